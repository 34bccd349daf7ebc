//! SCRAM keys (RFC 5802 §3, RFC 7677): made from a password, invented for who does not exist, and
//! compared in constant time. It refuses to run the exchange (the gateway does) and to choose the
//! thread on which the work is done.

use std::num::NonZeroU32;

use aws_lc_rs::{constant_time, digest, hmac, pbkdf2};
use chancery_api::directory::{Hash, NewCredentials, ScramKeys};

use crate::config::{ITERATIONS_MAX, ITERATIONS_MIN};

/// Bytes of a salt that we make.
pub const SALT_BYTES: usize = 16;
/// The shortest and longest salt that ready keys may have.
const SALT_RANGE_BYTES: std::ops::RangeInclusive<usize> = 8..=255;
/// The longest password, before and after preparation.
const PASSWORD_LIMIT_BYTES: usize = 1_023;

/// A hash function that SCRAM is used with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Mechanism {
    Sha1,
    Sha256,
}

impl Mechanism {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Sha1, Self::Sha256];

    /// As named on the wire; `None` for an unknown one.
    pub fn of(hash: Hash) -> Option<Self> {
        match hash {
            Hash::Unspecified => None,
            Hash::Sha1 => Some(Self::Sha1),
            Hash::Sha256 => Some(Self::Sha256),
        }
    }

    /// On the wire.
    pub fn hash(self) -> Hash {
        match self {
            Self::Sha1 => Hash::Sha1,
            Self::Sha256 => Hash::Sha256,
        }
    }

    /// Bytes of a digest.
    pub fn digest_bytes(self) -> usize {
        match self {
            Self::Sha1 => 20,
            Self::Sha256 => 32,
        }
    }

    fn hmac(self) -> hmac::Algorithm {
        match self {
            Self::Sha1 => hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY,
            Self::Sha256 => hmac::HMAC_SHA256,
        }
    }

    fn digest(self) -> &'static digest::Algorithm {
        match self {
            Self::Sha1 => &digest::SHA1_FOR_LEGACY_USE_ONLY,
            Self::Sha256 => &digest::SHA256,
        }
    }

    fn pbkdf2(self) -> pbkdf2::Algorithm {
        match self {
            Self::Sha1 => pbkdf2::PBKDF2_HMAC_SHA1,
            Self::Sha256 => pbkdf2::PBKDF2_HMAC_SHA256,
        }
    }
}

/// What is stored of a password for one mechanism.
#[derive(Clone, PartialEq, Eq)]
pub struct Keys {
    pub salt: Vec<u8>,
    pub iterations: u32,
    pub stored_key: Vec<u8>,
    pub server_key: Vec<u8>,
}

impl std::fmt::Debug for Keys {
    /// Never shows a key.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Keys")
            .field("iterations", &self.iterations)
            .finish_non_exhaustive()
    }
}

impl Keys {
    /// RFC 5802 §3, from a prepared password: `Hi`, `StoredKey`, `ServerKey`. Costs `iterations`.
    pub fn derive(mechanism: Mechanism, password: &[u8], salt: &[u8], iterations: u32) -> Self {
        let mut salted = vec![0; mechanism.digest_bytes()];
        let rounds = NonZeroU32::new(iterations).unwrap_or(NonZeroU32::MIN);
        pbkdf2::derive(mechanism.pbkdf2(), rounds, salt, password, &mut salted);
        let key = hmac::Key::new(mechanism.hmac(), &salted);
        let client_key = hmac::sign(&key, b"Client Key");
        let stored_key = digest::digest(mechanism.digest(), client_key.as_ref());
        let server_key = hmac::sign(&key, b"Server Key");
        Self {
            salt: salt.to_vec(),
            iterations,
            stored_key: stored_key.as_ref().to_vec(),
            server_key: server_key.as_ref().to_vec(),
        }
    }

    /// Stable keys for an account that does not exist: the same after a restart and on every
    /// process, since they depend on the deployment's secret and the name only.
    pub fn invent(mechanism: Mechanism, secret: &[u8], name: &str, iterations: u32) -> Self {
        let key = hmac::Key::new(hmac::HMAC_SHA256, secret);
        let part = |purpose: &str, bytes: usize| {
            let mut context = hmac::Context::with_key(&key);
            context.update(purpose.as_bytes());
            context.update(&[0, mechanism as u8, 0]);
            context.update(name.as_bytes());
            let mut tag = context.sign().as_ref().to_vec();
            tag.truncate(bytes);
            tag
        };
        Self {
            salt: part("salt", SALT_BYTES),
            iterations,
            stored_key: part("stored key", mechanism.digest_bytes()),
            server_key: part("server key", mechanism.digest_bytes()),
        }
    }

    /// Whether both come from one password, in a time that does not tell where they differ.
    pub fn same_stored_key(&self, other: &Self) -> bool {
        constant_time::verify_slices_are_equal(&self.stored_key, &other.stored_key).is_ok()
    }

    /// On the wire.
    pub fn to_wire(&self, mechanism: Mechanism) -> ScramKeys {
        ScramKeys {
            hash: mechanism.hash().into(),
            salt: self.salt.clone().into(),
            iterations: self.iterations,
            stored_key: self.stored_key.clone().into(),
            server_key: self.server_key.clone().into(),
        }
    }
}

/// The keys of one account.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeySet {
    pub sha1: Option<Keys>,
    pub sha256: Option<Keys>,
}

impl KeySet {
    /// Those of one mechanism.
    pub fn get(&self, mechanism: Mechanism) -> Option<&Keys> {
        match mechanism {
            Mechanism::Sha1 => self.sha1.as_ref(),
            Mechanism::Sha256 => self.sha256.as_ref(),
        }
    }

    /// Sets those of one mechanism.
    pub fn set(&mut self, mechanism: Mechanism, keys: Keys) {
        match mechanism {
            Mechanism::Sha1 => self.sha1 = Some(keys),
            Mechanism::Sha256 => self.sha256 = Some(keys),
        }
    }
}

/// What a person gives for a new account or as a new password, checked.
pub enum Given {
    /// A prepared password: keys have to be made.
    Password(String),
    /// Ready keys.
    Keys(KeySet),
}

/// RFC 4013. An error says what is wrong without repeating any of it.
pub fn prepare_password(password: &str) -> Result<String, &'static str> {
    if password.len() > PASSWORD_LIMIT_BYTES {
        return Err("password is longer than 1023 bytes");
    }
    let prepared = stringprep::saslprep(password)
        .map_err(|_| "password holds characters that saslprep refuses")?;
    if prepared.is_empty() {
        return Err("password is empty");
    }
    if prepared.len() > PASSWORD_LIMIT_BYTES {
        return Err("password is longer than 1023 bytes");
    }
    Ok(prepared.into_owned())
}

/// Checks credentials: a password, or ready keys with at least SHA-256.
pub fn check(given: Option<NewCredentials>) -> Result<Given, &'static str> {
    let given = given.ok_or("credentials are missing")?;
    if given.keys.is_empty() {
        return prepare_password(&given.password).map(Given::Password);
    }
    if !given.password.is_empty() {
        return Err("both a password and ready keys were given");
    }
    let mut set = KeySet::default();
    for keys in given.keys {
        let mechanism = Mechanism::of(keys.hash()).ok_or("unknown hash of ready keys")?;
        if set.get(mechanism).is_some() {
            return Err("ready keys for one hash were given twice");
        }
        if !(ITERATIONS_MIN..=ITERATIONS_MAX).contains(&keys.iterations) {
            return Err("iterations of ready keys are out of range");
        }
        if !SALT_RANGE_BYTES.contains(&keys.salt.len()) {
            return Err("salt of ready keys must have 8 to 255 bytes");
        }
        if keys.stored_key.len() != mechanism.digest_bytes()
            || keys.server_key.len() != mechanism.digest_bytes()
        {
            return Err("ready keys do not have the length of their hash");
        }
        let checked = Keys {
            salt: keys.salt.to_vec(),
            iterations: keys.iterations,
            stored_key: keys.stored_key.to_vec(),
            server_key: keys.server_key.to_vec(),
        };
        set.set(mechanism, checked);
    }
    if set.sha256.is_none() {
        return Err("ready keys for sha-256 are missing");
    }
    Ok(Given::Keys(set))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;

    /// The exchange of RFC 7677 §3: its proof fits our stored key.
    #[test]
    fn keys_fit_the_example_of_the_rfc() {
        // base64 W22ZaJ0SNY7soEsUEjb6gQ==
        let salt = hex::decode("5b6d99689d12358eeca04b141236fa81").unwrap();
        let keys = Keys::derive(Mechanism::Sha256, b"pencil", &salt, 4_096);
        let auth = "n=user,r=rOprNGfwEbeRWgbNEkqO,\
            r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096,\
            c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0";
        let key = hmac::Key::new(hmac::HMAC_SHA256, &keys.server_key);
        // base64 6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=
        assert_eq!(
            hex::encode(hmac::sign(&key, auth.as_bytes()).as_ref()),
            "eabae24d1062db75a9451ff0b6ea7e98c8546549ff741e672d3251b2397de46e"
        );
        // The proof in the example, dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=
        let proof = hex::decode("747cdb65aa56224e2352137e52d7bdcad6a0f738df30782caa69a2cfb0277554")
            .unwrap();
        let key = hmac::Key::new(hmac::HMAC_SHA256, &keys.stored_key);
        let signature = hmac::sign(&key, auth.as_bytes());
        let client_key: Vec<u8> = proof
            .iter()
            .zip(signature.as_ref())
            .map(|(a, b)| a ^ b)
            .collect();
        let stored = digest::digest(&digest::SHA256, &client_key);
        assert_eq!(stored.as_ref(), keys.stored_key);
    }

    #[test]
    fn invented_keys_are_stable_and_differ_by_name_mechanism_and_secret() {
        let invent = |m, secret: &[u8], name| Keys::invent(m, secret, name, 10_000);
        let one = invent(Mechanism::Sha256, b"s", "a");
        assert_eq!(one, invent(Mechanism::Sha256, b"s", "a"));
        assert_eq!((one.salt.len(), one.stored_key.len()), (16, 32));
        for other in [
            invent(Mechanism::Sha256, b"s", "b"),
            invent(Mechanism::Sha256, b"t", "a"),
            invent(Mechanism::Sha1, b"s", "a"),
        ] {
            assert_ne!(one.salt, other.salt);
        }
        assert_eq!(invent(Mechanism::Sha1, b"s", "a").server_key.len(), 20);
    }

    #[test]
    fn passwords_are_prepared_as_rfc_4013_says() {
        assert_eq!(prepare_password("I\u{ad}X").unwrap(), "IX");
        assert_eq!(prepare_password("\u{2168}").unwrap(), "IX");
        assert_eq!(prepare_password("a\u{a0}b").unwrap(), "a b");
        for bad in ["", "\u{ad}", "a\u{7}b", "\u{627}1"] {
            assert!(prepare_password(bad).is_err(), "{bad:?}");
        }
        assert!(prepare_password(&"x".repeat(1_024)).is_err());
    }

    #[test]
    fn ready_keys_are_checked() {
        let good = Keys::derive(Mechanism::Sha256, b"p", &[7; 16], 4_096);
        let credentials = |keys: Vec<ScramKeys>| {
            Some(NewCredentials {
                password: String::new(),
                keys,
            })
        };
        let wire = good.to_wire(Mechanism::Sha256);
        assert!(matches!(
            check(credentials(vec![wire.clone()])),
            Ok(Given::Keys(_))
        ));
        type Spoil = fn(&mut ScramKeys);
        let bad: [(&str, Spoil); 5] = [
            ("hash", |k| k.hash = 9),
            ("iterations", |k| k.iterations = 100),
            ("salt", |k| k.salt.clear()),
            ("stored", |k| k.stored_key.truncate(20)),
            ("only sha-1", |k| {
                k.hash = Hash::Sha1.into();
                k.stored_key.truncate(20);
                k.server_key.truncate(20);
            }),
        ];
        for (what, spoil) in bad {
            let mut keys = wire.clone();
            spoil(&mut keys);
            assert!(check(credentials(vec![keys])).is_err(), "{what}");
        }
        assert!(check(credentials(vec![wire.clone(), wire.clone()])).is_err());
        let both = NewCredentials {
            password: "p".into(),
            keys: vec![wire],
        };
        assert!(check(Some(both)).is_err());
        assert!(check(None).is_err());
    }

    #[test]
    fn debug_shows_no_key() {
        let keys = Keys {
            salt: vec![1],
            iterations: 5,
            stored_key: vec![213],
            server_key: vec![],
        };
        assert!(!format!("{keys:?}").contains("213"));
    }
}
