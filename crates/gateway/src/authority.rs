//! The local authority: certificates for a deployment that was given none, made once in the data
//! directory, and those of the internal channels between processes.
//!
//! Owns the files below `tls/`. Refuses to replace an authority's key that it cannot read: clients
//! trust it by hand, and a silent new one would look like an attack.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use aws_lc_rs::digest;
use rcgen::string::Ia5String;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, OtherNameValue, PKCS_ECDSA_P256_SHA256, SanType,
};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::sign::CertifiedKey;

use chancery_api::Role;
use chancery_api::channel::Credentials;
use chancery_runtime::{Clock, Ids};

use crate::tls::{self, CertificateFiles};

const DAY: i64 = 24 * 60 * 60;
/// How long an authority is valid.
const AUTHORITY_DAYS: i64 = 3_650;
/// How long a leaf is valid: what browsers and mail clients accept at most is 398.
const LEAF_DAYS: i64 = 397;
/// A leaf with less than this left is replaced at start.
const RENEW_DAYS: i64 = 30;
/// Certificates begin this much before they are made, for clients whose clock is behind.
const BACKDATED: i64 = 60 * 60;
/// id-on-xmppAddr (RFC 6120 §13.7.1.4).
const XMPP_ADDR: &[u64] = &[1, 3, 6, 1, 5, 5, 7, 8, 5];
/// Longest common name (RFC 5280 appendix A).
const COMMON_NAME_BYTES: usize = 64;

/// Why there are no certificates.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// A file cannot be read or written.
    #[error("{path}: {error}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// The authority's files are damaged.
    #[error(
        "{path} is damaged: put back the copy from a backup, or remove it for a new authority that every client has to trust again"
    )]
    Damaged {
        /// Which.
        path: PathBuf,
    },
    /// The domain cannot stand in a certificate.
    #[error("no certificate can be made for {0:?}: configure one")]
    Domain(String),
    /// A certificate could not be made.
    #[error("cannot make a certificate: {0}")]
    Make(#[from] rcgen::Error),
    /// There is no authority yet.
    #[error("there is no local authority in {0}")]
    Absent(PathBuf),
}

/// What a person needs to trust the authority.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trust {
    /// The certificate's file.
    pub path: PathBuf,
    /// The certificate.
    pub pem: String,
    /// Its SHA-256, as clients show it: upper case, by colons.
    pub sha256: String,
    /// Its SHA-1, for older trust stores.
    pub sha1: String,
}

/// Makes sure that the authority in `dir` and a leaf for every domain exist and are good for some
/// time; renews leaves that are not. Returns where the leaves are.
pub fn certificates(
    dir: &Path,
    domains: &[String],
    clock: &Clock,
    ids: &Ids,
) -> Result<Vec<CertificateFiles>, AuthorityError> {
    let _lock = lock(dir)?;
    let authority = Authority::open(dir, "Chancery local authority", clock, ids)?;
    let leaves = dir.join("domains");
    make_dir(&leaves)?;
    let mut files = Vec::with_capacity(domains.len());
    for domain in domains {
        let wrong = || AuthorityError::Domain(domain.clone());
        if !is_host_name(domain) {
            return Err(wrong());
        }
        let mut params = CertificateParams::default();
        params.distinguished_name = common_name(domain);
        params.subject_alt_names = vec![
            SanType::DnsName(Ia5String::try_from(domain.as_str()).map_err(|_| wrong())?),
            SanType::OtherName((
                XMPP_ADDR.to_vec(),
                OtherNameValue::Utf8String(domain.clone()),
            )),
        ];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let found = authority.leaf(&leaves, domain, params, clock)?;
        files.push(CertificateFiles {
            domain: domain.clone(),
            chain: found.chain,
            key: found.key,
        });
    }
    Ok(files)
}

/// What `trust show` prints; fails when no authority was made.
pub fn trust_show(dir: &Path) -> Result<Trust, AuthorityError> {
    let path = dir.join(AUTHORITY_PEM);
    if !path.exists() {
        return Err(AuthorityError::Absent(dir.to_owned()));
    }
    let damaged = || AuthorityError::Damaged { path: path.clone() };
    let pem = String::from_utf8(read(&path)?).map_err(|_| damaged())?;
    let der = CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|_| damaged())?;
    Ok(Trust {
        sha256: fingerprint(&digest::SHA256, &der),
        sha1: fingerprint(&digest::SHA1_FOR_LEGACY_USE_ONLY, &der),
        pem,
        path,
    })
}

/// What a process that runs `roles` shows to the others: a leaf of the internal authority below
/// `dir`, for serving and for calling. Several processes may share the directory.
pub fn internal_credentials(
    dir: &Path,
    roles: &[Role],
    clock: &Clock,
    ids: &Ids,
) -> Result<Credentials, AuthorityError> {
    let dir = dir.join("internal");
    let _lock = lock(&dir)?;
    let authority = Authority::open(&dir, "Chancery internal authority", clock, ids)?;
    let mut roles = roles.to_vec();
    roles.sort_unstable();
    roles.dedup();
    let stem = roles
        .iter()
        .map(|role| role.name())
        .collect::<Vec<_>>()
        .join("+");
    let mut params = CertificateParams::default();
    params.distinguished_name = common_name(&stem);
    for role in &roles {
        let name = role.dns_name();
        let name = Ia5String::try_from(name).map_err(|_| AuthorityError::Domain(stem.clone()))?;
        params.subject_alt_names.push(SanType::DnsName(name));
    }
    params.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
    let leaf = authority.leaf(&dir, &stem, params, clock)?;
    Ok(Credentials {
        authority: authority.pem.into_bytes(),
        chain: read(&leaf.chain)?,
        key: read(&leaf.key)?,
    })
}

const AUTHORITY_PEM: &str = "authority.pem";
const AUTHORITY_KEY: &str = "authority.key";

struct Authority {
    pem: String,
    der: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

struct Leaf {
    chain: PathBuf,
    key: PathBuf,
}

impl Authority {
    /// The one in `dir`, or a new one if there is none or it is about to end.
    fn open(dir: &Path, name: &str, clock: &Clock, ids: &Ids) -> Result<Self, AuthorityError> {
        let (pem_path, key_path) = (dir.join(AUTHORITY_PEM), dir.join(AUTHORITY_KEY));
        // The certificate is written last: without it, whatever else is there was never used.
        if !pem_path.exists() {
            make_authority(&pem_path, &key_path, name, clock, ids)?;
        }
        let authority = Self::read(&pem_path, &key_path)?;
        if not_after(&authority.der).unwrap_or(0) - now(clock) >= LEAF_DAYS * DAY {
            return Ok(authority);
        }
        tracing::warn!("the local authority is about to end; clients have to trust the new one");
        make_authority(&pem_path, &key_path, name, clock, ids)?;
        Self::read(&pem_path, &key_path)
    }

    fn read(pem_path: &Path, key_path: &Path) -> Result<Self, AuthorityError> {
        let damaged = |path: &Path| AuthorityError::Damaged {
            path: path.to_owned(),
        };
        let pem = String::from_utf8(read(pem_path)?).map_err(|_| damaged(pem_path))?;
        let key = String::from_utf8(read(key_path)?).map_err(|_| damaged(key_path))?;
        let der = CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|_| damaged(pem_path))?;
        let key = KeyPair::from_pem(&key).map_err(|_| damaged(key_path))?;
        let public = public_key(&der).ok_or_else(|| damaged(pem_path))?;
        if public != key.public_key_raw() {
            return Err(damaged(key_path));
        }
        let issuer = Issuer::from_ca_cert_pem(&pem, key).map_err(|_| damaged(pem_path))?;
        Ok(Self { pem, der, issuer })
    }

    /// The leaf named `stem` if it is good, or a new one with `params`.
    fn leaf(
        &self,
        dir: &Path,
        stem: &str,
        mut params: CertificateParams,
        clock: &Clock,
    ) -> Result<Leaf, AuthorityError> {
        let chain = dir.join(format!("{stem}.pem"));
        let key = dir.join(format!("{stem}.key"));
        if self.is_good(&chain, &key, clock) {
            return Ok(Leaf { chain, key });
        }
        validity(&mut params, LEAF_DAYS, clock);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.is_ca = IsCa::ExplicitNoCa;
        params.use_authority_key_identifier_extension = true;
        let pair = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let certificate = params.signed_by(&pair, &self.issuer)?;
        write(&key, pair.serialize_pem().as_bytes(), 0o600)?;
        write(&chain, certificate.pem().as_bytes(), 0o644)?;
        Ok(Leaf { chain, key })
    }

    /// Whether the leaf is ours, has its key, and is valid for some time.
    fn is_good(&self, chain: &Path, key: &Path, clock: &Clock) -> bool {
        let Ok((certificates, private)) = tls::read_pem(chain, key) else {
            return false;
        };
        let Some(leaf) = certificates.first().cloned() else {
            return false;
        };
        let signed = || {
            let (_, leaf) = x509_parser::parse_x509_certificate(&leaf).ok()?;
            let (_, authority) = x509_parser::parse_x509_certificate(&self.der).ok()?;
            leaf.verify_signature(Some(authority.public_key())).ok()
        };
        let left = not_after(&leaf).unwrap_or(0) - now(clock);
        let begun = not_before(&leaf).is_some_and(|begin| begin <= now(clock));
        let provider = rustls::crypto::aws_lc_rs::default_provider();
        left >= RENEW_DAYS * DAY
            && begun
            && signed().is_some()
            && CertifiedKey::from_der(certificates, private, &provider).is_ok()
    }
}

fn make_authority(
    pem_path: &Path,
    key_path: &Path,
    name: &str,
    clock: &Clock,
    ids: &Ids,
) -> Result<(), AuthorityError> {
    let mut params = CertificateParams::default();
    // The suffix keeps the authorities of two deployments apart in a client's trust store.
    let suffix = ids.token();
    params.distinguished_name = common_name(&format!("{name} {}", &suffix[..8]));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    validity(&mut params, AUTHORITY_DAYS, clock);
    let pair = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let certificate = params.self_signed(&pair)?;
    write(key_path, pair.serialize_pem().as_bytes(), 0o600)?;
    write(pem_path, certificate.pem().as_bytes(), 0o644)
}

fn common_name(name: &str) -> DistinguishedName {
    let mut distinguished = DistinguishedName::new();
    if name.len() <= COMMON_NAME_BYTES {
        distinguished.push(DnType::CommonName, name);
    }
    distinguished
}

fn validity(params: &mut CertificateParams, days: i64, clock: &Clock) {
    let seconds = |at: i64| Duration::from_secs(u64::try_from(at).unwrap_or(0));
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    params.not_before = epoch + seconds(now(clock) - BACKDATED);
    params.not_after = epoch + seconds(now(clock) - BACKDATED + days * DAY);
}

fn now(clock: &Clock) -> i64 {
    clock.now_unix_ms() / 1000
}

fn not_after(der: &CertificateDer<'_>) -> Option<i64> {
    let (_, parsed) = x509_parser::parse_x509_certificate(der).ok()?;
    Some(parsed.validity().not_after.timestamp())
}

fn not_before(der: &CertificateDer<'_>) -> Option<i64> {
    let (_, parsed) = x509_parser::parse_x509_certificate(der).ok()?;
    Some(parsed.validity().not_before.timestamp())
}

fn public_key(der: &CertificateDer<'_>) -> Option<Vec<u8>> {
    let (_, parsed) = x509_parser::parse_x509_certificate(der).ok()?;
    Some(parsed.public_key().subject_public_key.data.to_vec())
}

/// Letters, digits and hyphens in labels: also what is safe as a file name.
fn is_host_name(domain: &str) -> bool {
    let label = |label: &str| {
        !label.is_empty()
            && label
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-')
    };
    domain.len() <= 253 && domain.split('.').all(label)
}

fn fingerprint(algorithm: &'static digest::Algorithm, der: &[u8]) -> String {
    let hash = digest::digest(algorithm, der);
    hash.as_ref()
        .iter()
        .map(|byte| format!("{byte:02X}"))
        .collect::<Vec<_>>()
        .join(":")
}

fn failed(path: &Path) -> impl FnOnce(io::Error) -> AuthorityError {
    let path = path.to_owned();
    move |error| AuthorityError::File { path, error }
}

fn make_dir(dir: &Path) -> Result<(), AuthorityError> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(failed(dir))
}

/// Only one process at a time makes certificates in a directory; the lock ends with the file.
fn lock(dir: &Path) -> Result<File, AuthorityError> {
    make_dir(dir)?;
    let path = dir.join("lock");
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(&path)
        .map_err(failed(&path))?;
    file.lock().map_err(failed(&path))?;
    Ok(file)
}

fn read(path: &Path) -> Result<Vec<u8>, AuthorityError> {
    fs::read(path).map_err(failed(path))
}

/// Writes a file so that it is there whole or not at all.
fn write(path: &Path, bytes: &[u8], mode: u32) -> Result<(), AuthorityError> {
    let fresh = path.with_extension("new");
    let written = || -> io::Result<()> {
        let _ = fs::remove_file(&fresh); // of a start that was interrupted; its mode may differ
        let mut file = OpenOptions::new()
            .create_new(true)
            .write(true)
            .mode(mode)
            .open(&fresh)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&fresh, path)?;
        path.parent()
            .map_or(Ok(()), |dir| File::open(dir)?.sync_all())
    };
    written().map_err(failed(path))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::tls::Certificates;

    const START_MS: i64 = 1_900_000_000_000;

    fn made(dir: &Path, domains: &[&str], clock: &Clock) -> Vec<CertificateFiles> {
        let domains: Vec<_> = domains.iter().map(|domain| (*domain).to_owned()).collect();
        certificates(dir, &domains, clock, &Ids::seeded(1)).unwrap()
    }

    fn days(days: u64) -> Duration {
        Duration::from_secs(days * 24 * 60 * 60)
    }

    #[test]
    fn made_once_and_used_again() {
        let dir = tempfile::tempdir().unwrap();
        let clock = Clock::manual(START_MS);
        let files = made(dir.path(), &["example.test"], &clock);
        let trust = trust_show(dir.path()).unwrap();
        let leaf = fs::read(&files[0].chain).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&files[0].key), 0o600);
        assert_eq!(mode(&dir.path().join(AUTHORITY_KEY)), 0o600);
        assert_eq!(trust.sha256.len(), 32 * 3 - 1);

        clock.advance(days(300));
        let again = made(dir.path(), &["example.test", "second.test"], &clock);
        assert_eq!(again[0], files[0]);
        assert_eq!(
            fs::read(&files[0].chain).unwrap(),
            leaf,
            "the leaf is the same"
        );
        assert_eq!(
            trust_show(dir.path()).unwrap(),
            trust,
            "the authority is the same"
        );
        Certificates::load(again, clock).unwrap();
    }

    #[test]
    fn a_leaf_is_renewed_before_it_ends() {
        let dir = tempfile::tempdir().unwrap();
        let clock = Clock::manual(START_MS);
        let files = made(dir.path(), &["example.test"], &clock);
        let trust = trust_show(dir.path()).unwrap();
        let leaf = fs::read(&files[0].chain).unwrap();
        clock.advance(days(368));
        made(dir.path(), &["example.test"], &clock);
        assert_ne!(fs::read(&files[0].chain).unwrap(), leaf);
        assert_eq!(trust_show(dir.path()).unwrap(), trust);
        Certificates::load(files, clock).unwrap();
    }

    #[test]
    fn a_damaged_leaf_is_remade_and_a_damaged_authority_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let clock = Clock::manual(START_MS);
        let files = made(dir.path(), &["example.test", "second.test"], &clock);
        fs::copy(&files[1].key, &files[0].key).unwrap();
        made(dir.path(), &["example.test"], &clock);
        Certificates::load(files, clock.clone()).unwrap();

        fs::write(dir.path().join(AUTHORITY_KEY), b"nothing").unwrap();
        let error = certificates(dir.path(), &[], &clock, &Ids::seeded(1)).unwrap_err();
        assert!(matches!(error, AuthorityError::Damaged { .. }), "{error}");
    }

    #[test]
    fn names_that_are_no_host_names_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let clock = Clock::manual(START_MS);
        for domain in ["", "..", "a/b", "münchen.test", "a..b", "x y"] {
            let domains = [domain.to_owned()];
            let result = certificates(dir.path(), &domains, &clock, &Ids::seeded(1));
            assert!(matches!(result, Err(AuthorityError::Domain(_))), "{domain}");
        }
    }

    #[test]
    fn internal_leaves_name_their_roles_and_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        let clock = Clock::manual(START_MS);
        let ids = Ids::seeded(1);
        let of = |roles: &[Role]| internal_credentials(dir.path(), roles, &clock, &ids).unwrap();
        let gateway = of(&[Role::Gateway]);
        let both = of(&[Role::Policy, Role::Archive]);
        assert_eq!(gateway.authority, both.authority);
        assert_eq!(of(&[Role::Gateway]).chain, gateway.chain);
        assert_eq!(
            of(&[Role::Archive, Role::Policy, Role::Policy]).chain,
            both.chain
        );
        let der = CertificateDer::from_pem_slice(&both.chain).unwrap();
        let (_, parsed) = x509_parser::parse_x509_certificate(&der).unwrap();
        let san = parsed.subject_alternative_name().unwrap().unwrap();
        assert_eq!(san.value.general_names.len(), 2);
        let usage = parsed.extended_key_usage().unwrap().unwrap();
        assert!(usage.value.server_auth && usage.value.client_auth);
        assert!(
            trust_show(dir.path()).is_err(),
            "clients never see the internal authority"
        );
    }
}
