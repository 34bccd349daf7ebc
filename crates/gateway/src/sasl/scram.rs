//! SCRAM, the server's side, as pure functions (RFC 5802, RFC 7677): messages in, messages out.
//!
//! Refuses to know accounts and time: keys, nonce and channel binding are handed in.

use std::fmt::Write;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::{digest, hmac};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use chancery_xmpp::SaslFailure;

/// Bytes of a client's nonce.
const NONCE_BYTES: usize = 512;
/// Bytes of a user name or authorization identity (RFC 7622 §3.3).
const NAME_BYTES: usize = 1023;

/// The hash of a mechanism.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hash {
    /// SHA-1
    Sha1,
    /// SHA-256
    Sha256,
}

impl Hash {
    fn digest(self) -> &'static digest::Algorithm {
        match self {
            Self::Sha1 => &digest::SHA1_FOR_LEGACY_USE_ONLY,
            Self::Sha256 => &digest::SHA256,
        }
    }

    fn hmac(self) -> hmac::Algorithm {
        match self {
            Self::Sha1 => hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY,
            Self::Sha256 => hmac::HMAC_SHA256,
        }
    }

    /// Bytes of its output.
    pub fn output_bytes(self) -> usize {
        self.digest().output_len()
    }
}

/// What the client says of channel binding (RFC 5802 §6).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Binding {
    /// `n`: it cannot.
    No,
    /// `y`: it can, and believes that we cannot.
    NotOffered,
    /// `p`: it does, by this type.
    Used(String),
}

/// The client's first message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientFirst {
    /// What it says of channel binding.
    pub binding: Binding,
    /// Whom it wants to act for; empty for itself.
    pub authzid: String,
    /// Who it is.
    pub username: String,
    nonce: String,
    gs2_header: String,
    bare: String,
}

impl ClientFirst {
    /// Reads it (RFC 5802 §7).
    pub fn parse(message: &[u8]) -> Result<Self, SaslFailure> {
        Self::read(message).ok_or(SaslFailure::MalformedRequest)
    }

    fn read(message: &[u8]) -> Option<Self> {
        let message = std::str::from_utf8(message).ok()?;
        let (flag, rest) = message.split_once(',')?;
        let (authzid, bare) = rest.split_once(',')?;
        let binding = match flag {
            "n" => Binding::No,
            "y" => Binding::NotOffered,
            _ => Binding::Used(
                flag.strip_prefix("p=")
                    .filter(|n| is_cb_name(n))?
                    .to_owned(),
            ),
        };
        let authzid = match authzid {
            "" => String::new(),
            _ => saslname(authzid.strip_prefix("a=")?)?,
        };
        // A leading `m=` is a mandatory extension, and we know none.
        let mut attributes = bare.split(',');
        let username = saslname(attributes.next()?.strip_prefix("n=")?)?;
        let nonce = attributes
            .next()?
            .strip_prefix("r=")
            .filter(|nonce| is_nonce(nonce))?;
        if !attributes.all(is_extension) {
            return None;
        }
        Some(Self {
            binding,
            authzid,
            username,
            nonce: nonce.to_owned(),
            gs2_header: message[..message.len() - bare.len()].to_owned(),
            bare: bare.to_owned(),
        })
    }
}

/// The account's keys.
#[derive(Clone)]
pub struct Keys {
    /// Under which the others were made.
    pub hash: Hash,
    /// The salt.
    pub salt: Vec<u8>,
    /// Of PBKDF2.
    pub iterations: u32,
    /// Checks the client's proof.
    pub stored_key: Vec<u8>,
    /// Makes our signature.
    pub server_key: Vec<u8>,
}

/// An exchange whose challenge is out.
pub struct Exchange {
    first: ClientFirst,
    /// What `c=` has to be: the header as the client wrote it, and the channel's data.
    binding_input: Vec<u8>,
    nonce: String,
    server_first: String,
    keys: Keys,
}

impl Exchange {
    /// Makes the challenge. `server_nonce` is fresh and printable; `binding_data` belongs to the
    /// channel binding type that the client uses, and is empty when it uses none.
    pub fn challenge(
        first: ClientFirst,
        keys: Keys,
        server_nonce: &str,
        binding_data: &[u8],
    ) -> (Self, String) {
        let nonce = format!("{}{server_nonce}", first.nonce);
        let mut server_first = String::with_capacity(128);
        // Writing into a String cannot fail.
        let _ = write!(
            server_first,
            "r={nonce},s={},i={}",
            STANDARD.encode(&keys.salt),
            keys.iterations
        );
        let binding_input = [first.gs2_header.as_bytes(), binding_data].concat();
        let challenge = server_first.clone();
        (
            Self {
                first,
                binding_input,
                nonce,
                server_first,
                keys,
            },
            challenge,
        )
    }

    /// The client's first message.
    pub fn first(&self) -> &ClientFirst {
        &self.first
    }

    /// Checks the client's final message and gives ours.
    pub fn finish(&self, message: &[u8]) -> Result<String, SaslFailure> {
        let last = ClientFinal::read(message).ok_or(SaslFailure::MalformedRequest)?;
        if last.proof.len() != self.keys.hash.output_bytes() {
            return Err(SaslFailure::MalformedRequest);
        }
        let same = |a: &[u8], b: &[u8]| verify_slices_are_equal(a, b).is_ok();
        if !same(last.nonce.as_bytes(), self.nonce.as_bytes())
            || !same(&last.binding_input, &self.binding_input)
        {
            return Err(SaslFailure::NotAuthorized);
        }
        let auth_message = format!(
            "{},{},{}",
            self.first.bare, self.server_first, last.without_proof
        );
        let sign = |key: &[u8]| {
            hmac::sign(
                &hmac::Key::new(self.keys.hash.hmac(), key),
                auth_message.as_bytes(),
            )
        };
        let signature = sign(&self.keys.stored_key);
        let client_key: Vec<u8> = last
            .proof
            .iter()
            .zip(signature.as_ref())
            .map(|(a, b)| a ^ b)
            .collect();
        let stored = digest::digest(self.keys.hash.digest(), &client_key);
        if !same(stored.as_ref(), &self.keys.stored_key) {
            return Err(SaslFailure::NotAuthorized);
        }
        Ok(format!(
            "v={}",
            STANDARD.encode(sign(&self.keys.server_key))
        ))
    }
}

/// The client's final message.
struct ClientFinal<'a> {
    binding_input: Vec<u8>,
    nonce: &'a str,
    proof: Vec<u8>,
    without_proof: &'a str,
}

impl<'a> ClientFinal<'a> {
    fn read(message: &'a [u8]) -> Option<Self> {
        let message = std::str::from_utf8(message).ok()?;
        let (without_proof, proof) = message.rsplit_once(",p=")?;
        let proof = STANDARD.decode(proof).ok()?;
        let mut attributes = without_proof.split(',');
        let binding_input = STANDARD
            .decode(attributes.next()?.strip_prefix("c=")?)
            .ok()?;
        let nonce = attributes.next()?.strip_prefix("r=")?;
        // Extensions are passed over, but none of them may look like what has its own place.
        if !attributes.all(is_extension) {
            return None;
        }
        Some(Self {
            binding_input,
            nonce,
            proof,
            without_proof,
        })
    }
}

/// `attr-val` with a name that RFC 5802 §5.1 does not use.
fn is_extension(attribute: &str) -> bool {
    let mut chars = attribute.chars();
    let name = chars.next();
    name.is_some_and(|n| n.is_ascii_alphabetic() && !"anmrcsipve".contains(n))
        && chars.next() == Some('=')
        && chars.next().is_some()
        && !attribute.contains('\0')
}

fn is_cb_name(name: &str) -> bool {
    !name.is_empty()
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b == b'.' || b == b'-')
}

fn is_nonce(nonce: &str) -> bool {
    let printable = |b: u8| (0x21..=0x7e).contains(&b) && b != b',';
    (1..=NONCE_BYTES).contains(&nonce.len()) && nonce.bytes().all(printable)
}

/// Undoes the escaping of `,` and `=`; any other `=` is an error (RFC 5802 §5.1).
fn saslname(escaped: &str) -> Option<String> {
    if escaped.is_empty() || escaped.contains('\0') {
        return None;
    }
    let mut name = String::with_capacity(escaped.len());
    let mut parts = escaped.split('=');
    name.push_str(parts.next()?);
    for part in parts {
        let (code, rest) = part.split_at_checked(2)?;
        name.push(match code {
            "2C" => ',',
            "3D" => '=',
            _ => return None,
        });
        name.push_str(rest);
    }
    (name.len() <= NAME_BYTES).then_some(name)
}

#[cfg(test)]
pub(crate) mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use std::num::NonZeroU32;

    use aws_lc_rs::pbkdf2;

    use super::*;

    /// Keys as the directory holds them.
    pub(crate) fn keys(hash: Hash, password: &str, salt: &[u8], iterations: u32) -> Keys {
        let algorithm = match hash {
            Hash::Sha1 => pbkdf2::PBKDF2_HMAC_SHA1,
            Hash::Sha256 => pbkdf2::PBKDF2_HMAC_SHA256,
        };
        let mut salted = vec![0; hash.output_bytes()];
        let rounds = NonZeroU32::new(iterations).unwrap();
        pbkdf2::derive(algorithm, rounds, salt, password.as_bytes(), &mut salted);
        let sign = |text: &[u8]| {
            hmac::sign(&hmac::Key::new(hash.hmac(), &salted), text)
                .as_ref()
                .to_vec()
        };
        Keys {
            hash,
            salt: salt.to_vec(),
            iterations,
            stored_key: digest::digest(hash.digest(), &sign(b"Client Key"))
                .as_ref()
                .to_vec(),
            server_key: sign(b"Server Key"),
        }
    }

    /// What an honest client answers to a challenge.
    pub(crate) fn answer(
        hash: Hash,
        password: &str,
        client_first: &str,
        challenge: &str,
        binding_data: &[u8],
    ) -> String {
        let header_len = client_first.match_indices(',').nth(1).unwrap().0 + 1;
        let (header, bare) = client_first.split_at(header_len);
        let value = |name: &str| {
            challenge
                .split(',')
                .find_map(|a| a.strip_prefix(name))
                .unwrap()
                .to_owned()
        };
        let salt = STANDARD.decode(value("s=")).unwrap();
        let keys = keys(hash, password, &salt, value("i=").parse().unwrap());
        let c = STANDARD.encode([header.as_bytes(), binding_data].concat());
        let without_proof = format!("c={c},r={}", value("r="));
        let message = format!("{bare},{challenge},{without_proof}");
        let signature = hmac::sign(
            &hmac::Key::new(hash.hmac(), &keys.stored_key),
            message.as_bytes(),
        );
        let algorithm = match hash {
            Hash::Sha1 => pbkdf2::PBKDF2_HMAC_SHA1,
            Hash::Sha256 => pbkdf2::PBKDF2_HMAC_SHA256,
        };
        let mut salted = vec![0; hash.output_bytes()];
        let rounds = NonZeroU32::new(keys.iterations).unwrap();
        pbkdf2::derive(algorithm, rounds, &salt, password.as_bytes(), &mut salted);
        let client_key = hmac::sign(&hmac::Key::new(hash.hmac(), &salted), b"Client Key");
        let proof: Vec<u8> = client_key
            .as_ref()
            .iter()
            .zip(signature.as_ref())
            .map(|(a, b)| a ^ b)
            .collect();
        format!("{without_proof},p={}", STANDARD.encode(proof))
    }

    struct Vector {
        hash: Hash,
        first: &'static str,
        server_nonce: &'static str,
        salt: &'static str,
        challenge: &'static str,
        last: &'static str,
        verifier: &'static str,
    }

    /// RFC 5802 §5.
    const SHA1: Vector = Vector {
        hash: Hash::Sha1,
        first: "n,,n=user,r=fyko+d2lbbFgONRv9qkxdawL",
        server_nonce: "3rfcNHYJY1ZVvWVs7j",
        salt: "QSXCR+Q6sek8bf92",
        challenge: "r=fyko+d2lbbFgONRv9qkxdawL3rfcNHYJY1ZVvWVs7j,s=QSXCR+Q6sek8bf92,i=4096",
        last: "c=biws,r=fyko+d2lbbFgONRv9qkxdawL3rfcNHYJY1ZVvWVs7j,p=v0X8v3Bz2T0CJGbJQyF0X+HI4Ts=",
        verifier: "v=rmF9pqV8S7suAoZWja4dJRkFsKQ=",
    };
    /// RFC 7677 §3.
    const SHA256: Vector = Vector {
        hash: Hash::Sha256,
        first: "n,,n=user,r=rOprNGfwEbeRWgbNEkqO",
        server_nonce: "%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0",
        salt: "W22ZaJ0SNY7soEsUEjb6gQ==",
        challenge: "r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096",
        last: "c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=",
        verifier: "v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=",
    };

    fn exchange(vector: &Vector) -> (Exchange, String) {
        let salt = STANDARD.decode(vector.salt).unwrap();
        let first = ClientFirst::parse(vector.first.as_bytes()).unwrap();
        let keys = keys(vector.hash, "pencil", &salt, 4096);
        Exchange::challenge(first, keys, vector.server_nonce, b"")
    }

    #[test]
    fn vectors_of_the_standards() {
        for vector in [&SHA1, &SHA256] {
            let (exchange, challenge) = exchange(vector);
            assert_eq!(challenge, vector.challenge);
            assert_eq!(
                exchange.finish(vector.last.as_bytes()).unwrap(),
                vector.verifier
            );
            let ours = answer(vector.hash, "pencil", vector.first, &challenge, b"");
            assert_eq!(ours, vector.last, "the client of these tests is right too");
        }
    }

    #[test]
    fn attack_d4_nonce_changed_shortened_extended() {
        let (exchange, _) = exchange(&SHA256);
        let nonce = "rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0";
        for wrong in [
            nonce.replacen('r', "s", 1),
            nonce[..nonce.len() - 1].to_owned(),
            format!("{nonce}x"),
            "rOprNGfwEbeRWgbNEkqO".to_owned(),
            String::new(),
        ] {
            let last = SHA256.last.replace(nonce, &wrong);
            let result = exchange.finish(last.as_bytes());
            assert_eq!(result, Err(SaslFailure::NotAuthorized), "{wrong}");
        }
    }

    #[test]
    fn attack_d5_final_messages_out_of_order() {
        let (exchange, _) = exchange(&SHA256);
        let (before, proof) = SHA256.last.rsplit_once(",p=").unwrap();
        let c = before.split_once(',').unwrap().1;
        let short = STANDARD.encode([0; 31]);
        for wrong in [
            c.to_owned() + ",p=" + proof,
            format!("m=ext,{}", SHA256.last),
            format!("{before},m=ext,p={proof}"),
            format!("{before},p={proof},p={proof}"),
            format!("{before},p={short}"),
            before.to_owned(),
            format!("{},x=1", SHA256.last),
            SHA256.last.replacen("c=biws", "c=b", 1),
            String::new(),
        ] {
            let result = exchange.finish(wrong.as_bytes());
            assert_eq!(result, Err(SaslFailure::MalformedRequest), "{wrong}");
        }
        assert_eq!(
            exchange.finish(b"\xff\xfe"),
            Err(SaslFailure::MalformedRequest)
        );
        let other_binding = SHA256.last.replacen("c=biws", "c=eSws", 1);
        assert_eq!(
            exchange.finish(other_binding.as_bytes()),
            Err(SaslFailure::NotAuthorized)
        );
        let wrong_proof = format!("{before},p={}", STANDARD.encode([7; 32]));
        assert_eq!(
            exchange.finish(wrong_proof.as_bytes()),
            Err(SaslFailure::NotAuthorized)
        );
    }

    #[test]
    fn attack_d5_first_messages_out_of_order() {
        let long = format!("n,,n={},r=x", "a".repeat(10 * 1024));
        for wrong in [
            "",
            "n",
            "n,",
            "n,,",
            "n,,n=u",
            "n,,r=x,n=u",
            "n,,n=,r=x",
            "n,,n=u,r=",
            "x,,n=u,r=x",
            "p=,,n=u,r=x",
            "p=a b,,n=u,r=x",
            "n,b=x,n=u,r=x",
            "n,a=,n=u,r=x",
            "n,,m=ext,n=u,r=x",
            "n,,n=u,r=x,m=ext",
            "n,,n=u,r=x,n=v",
            "n,,n==4A,r=x",
            "n,,n==,r=x",
            "n,,n=a=2c,r=x",
            "n,,n=a\0b,r=x",
            "n,,n=u,r=a b",
            "n,,n=u,r=\u{e9}",
            "n,,n=u,r=x,",
            &long,
        ] {
            let result = ClientFirst::parse(wrong.as_bytes());
            assert_eq!(result, Err(SaslFailure::MalformedRequest), "{wrong}");
        }
    }

    #[test]
    fn names_are_unescaped_and_bindings_read() {
        let first = ClientFirst::parse(b"p=tls-exporter,a=b=3Dc,n=a=2Cb=3D,r=xyz,t=later").unwrap();
        assert_eq!(first.username, "a,b=");
        assert_eq!(first.authzid, "b=c");
        assert_eq!(first.binding, Binding::Used("tls-exporter".into()));
        assert_eq!(first.gs2_header, "p=tls-exporter,a=b=3Dc,");
        assert_eq!(
            ClientFirst::parse(b"y,,n=u,r=x").unwrap().binding,
            Binding::NotOffered
        );
    }

    #[test]
    fn the_channel_has_to_be_the_same() {
        let text = "p=tls-exporter,,n=user,r=abc";
        let first = || ClientFirst::parse(text.as_bytes()).unwrap();
        let keys = || keys(Hash::Sha256, "pencil", b"salt", 1);
        let (exchange, challenge) = Exchange::challenge(first(), keys(), "def", &[9; 32]);
        let right = answer(Hash::Sha256, "pencil", text, &challenge, &[9; 32]);
        assert!(exchange.finish(right.as_bytes()).is_ok());
        let other = answer(Hash::Sha256, "pencil", text, &challenge, &[8; 32]);
        assert_eq!(
            exchange.finish(other.as_bytes()),
            Err(SaslFailure::NotAuthorized)
        );
    }
}
