//! SASL as RFC 6120 §6 uses it: which mechanisms are offered, and one exchange at a time, driven by
//! the client's elements and answered by the directory.
//!
//! Refuses to touch the stream (negotiation writes what comes out) and to count attempts on it.
//! User names, passwords and proofs go to the directory and nowhere else: never to a log.

pub mod channel_binding;
pub mod plain;
pub mod scram;

#[cfg(test)]
pub(crate) mod fake;
#[cfg(test)]
mod tests;

use std::fmt;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jid::BareJid;
use tokio::time::Instant;

use chancery_api::directory::{
    self, CredentialsRequest, CredentialsResponse, Directory, ReportAttemptRequest,
    VerifyPasswordRequest,
};
use chancery_api::{ApiError, Cx};
use chancery_runtime::{Clock, Ids};
use chancery_xml::Element;
use chancery_xmpp::{SaslFailure, jid as addresses};

use channel_binding::ChannelBindings;
use scram::{Binding, ClientFirst, Hash};

/// How long one question to the directory may take.
const DIRECTORY_LIMIT: Duration = Duration::from_secs(5);
/// An answer is held back no longer than this, whatever the directory says.
const HOLD_LIMIT: Duration = Duration::from_secs(20);
/// Random bytes of our part of a nonce.
const NONCE_BYTES: usize = 18;

/// The mechanisms, in the order in which they are offered (RFC 6120 §6.3.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mechanism {
    /// `SCRAM-SHA-256-PLUS`
    ScramSha256Plus,
    /// `SCRAM-SHA-1-PLUS`
    ScramSha1Plus,
    /// `SCRAM-SHA-256`
    ScramSha256,
    /// `SCRAM-SHA-1`
    ScramSha1,
    /// `PLAIN`
    Plain,
}

impl Mechanism {
    /// All, the strongest first.
    pub const ALL: [Self; 5] = [
        Self::ScramSha256Plus,
        Self::ScramSha1Plus,
        Self::ScramSha256,
        Self::ScramSha1,
        Self::Plain,
    ];

    /// Those for a connection that can be bound in these ways.
    pub fn offered(bindings: &ChannelBindings) -> impl Iterator<Item = Self> {
        let any = bindings.any();
        Self::ALL
            .into_iter()
            .filter(move |mechanism| any || !mechanism.is_plus())
    }

    /// Its registered name.
    pub fn name(self) -> &'static str {
        match self {
            Self::ScramSha256Plus => "SCRAM-SHA-256-PLUS",
            Self::ScramSha1Plus => "SCRAM-SHA-1-PLUS",
            Self::ScramSha256 => "SCRAM-SHA-256",
            Self::ScramSha1 => "SCRAM-SHA-1",
            Self::Plain => "PLAIN",
        }
    }

    /// Whether it binds the channel.
    pub fn is_plus(self) -> bool {
        matches!(self, Self::ScramSha256Plus | Self::ScramSha1Plus)
    }

    fn hash(self) -> Option<Hash> {
        match self {
            Self::ScramSha256Plus | Self::ScramSha256 => Some(Hash::Sha256),
            Self::ScramSha1Plus | Self::ScramSha1 => Some(Hash::Sha1),
            Self::Plain => None,
        }
    }
}

impl fmt::Display for Mechanism {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What an exchange needs of its surroundings; the stream is in TLS.
pub(crate) struct Surroundings<'a> {
    pub directory: &'a dyn Directory,
    pub clock: &'a Clock,
    pub ids: &'a Ids,
    /// The domain of the stream.
    pub domain: &'a str,
    /// Address of the client, for throttling.
    pub peer: &'a str,
    pub bindings: &'a ChannelBindings,
}

/// Who has authenticated.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Login {
    pub account: BareJid,
    pub credential_version: u64,
    pub mechanism: Mechanism,
}

/// What to do next.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Send these bytes in base64 and wait for a response.
    Challenge(Vec<u8>),
    /// It is over and won, with these bytes for the client.
    Success(Login, Option<Vec<u8>>),
    /// It is over and lost; the client may try again.
    Failure(SaslFailure),
    /// Too many attempts elsewhere: the stream ends with `policy-violation`.
    Refused,
}

impl From<SaslFailure> for Step {
    fn from(failure: SaslFailure) -> Self {
        Self::Failure(failure)
    }
}

/// The exchange under way on a stream, if any.
#[derive(Default)]
pub(crate) enum Exchange {
    #[default]
    None,
    /// A mechanism was chosen without an initial response.
    Chosen(Mechanism),
    /// Our challenge is out.
    Scram(Box<ScramUnderWay>),
}

pub(crate) struct ScramUnderWay {
    mechanism: Mechanism,
    exchange: scram::Exchange,
    account: Option<BareJid>,
    credentials: CredentialsResponse,
    hold: Instant,
}

impl Exchange {
    /// Takes `<auth/>` (RFC 6120 §6.4.2). One that is under way is given up.
    pub async fn auth(&mut self, around: &Surroundings<'_>, element: &Element) -> Step {
        *self = Self::None;
        let asked = element.header.attr("mechanism").unwrap_or_default();
        let offered = Mechanism::offered(around.bindings).find(|m| m.name() == asked);
        let Some(mechanism) = offered else {
            return SaslFailure::InvalidMechanism.into(); // §6.5.7
        };
        match payload(element) {
            Err(failure) => failure.into(),
            Ok(Some(message)) => self.first(around, mechanism, &message).await,
            Ok(None) => {
                *self = Self::Chosen(mechanism);
                Step::Challenge(Vec::new())
            }
        }
    }

    /// Takes `<response/>` (§6.4.4).
    pub async fn response(&mut self, around: &Surroundings<'_>, element: &Element) -> Step {
        let under_way = std::mem::take(self);
        let message = match payload(element) {
            Ok(message) => message.unwrap_or_default(),
            Err(failure) => return failure.into(),
        };
        match under_way {
            Self::None => SaslFailure::NotAuthorized.into(),
            Self::Chosen(mechanism) => self.first(around, mechanism, &message).await,
            Self::Scram(scram) => finish_scram(around, *scram, &message).await,
        }
    }

    /// Takes `<abort/>` (§6.4.4, §6.5.1).
    pub fn abort(&mut self) -> Step {
        *self = Self::None;
        SaslFailure::Aborted.into()
    }

    async fn first(
        &mut self,
        around: &Surroundings<'_>,
        mechanism: Mechanism,
        message: &[u8],
    ) -> Step {
        let Some(hash) = mechanism.hash() else {
            return plain_login(around, message).await;
        };
        match begin_scram(around, mechanism, hash, message).await {
            Err(step) => step,
            Ok((scram, challenge)) => {
                *self = Self::Scram(Box::new(scram));
                Step::Challenge(challenge.into_bytes())
            }
        }
    }
}

/// The data of `<auth/>` or `<response/>`; `None` when there is none, as opposed to `=`, which is
/// data of length zero (§6.4.2).
fn payload(element: &Element) -> Result<Option<Vec<u8>>, SaslFailure> {
    if !element.header.children.is_empty() {
        return Err(SaslFailure::MalformedRequest);
    }
    match element.text().as_str() {
        "" => Ok(None),
        "=" => Ok(Some(Vec::new())),
        text => STANDARD
            .decode(text)
            .map(Some)
            .map_err(|_| SaslFailure::IncorrectEncoding),
    }
}

/// The account that a user name means on this stream. Names that cannot be one fail before the
/// directory is asked, which says nothing about who exists.
fn account_of(username: &str, domain: &str) -> Result<BareJid, SaslFailure> {
    if username.contains(['@', '/']) {
        return Err(SaslFailure::NotAuthorized);
    }
    addresses::parse_bare(&format!("{username}@{domain}")).map_err(|_| SaslFailure::NotAuthorized)
}

/// An authorization identity has to be the account itself (§6.3.8): nobody acts for another.
fn check_authzid(authzid: &str, account: &BareJid) -> Result<(), SaslFailure> {
    if authzid.is_empty() || addresses::parse_bare(authzid).is_ok_and(|jid| jid == *account) {
        return Ok(());
    }
    Err(SaslFailure::InvalidAuthzid)
}

/// What the binding that the client states means for this mechanism: the channel's data.
fn binding_data<'a>(
    mechanism: Mechanism,
    binding: &Binding,
    bindings: &'a ChannelBindings,
) -> Result<&'a [u8], SaslFailure> {
    match (binding, mechanism.is_plus()) {
        (Binding::Used(name), true) => bindings.data(name).ok_or(SaslFailure::NotAuthorized),
        (Binding::No, false) => Ok(&[]),
        // RFC 5802 §6: the client believes that we offered none. If we did, somebody removed it.
        (Binding::NotOffered, false) if bindings.any() => Err(SaslFailure::NotAuthorized),
        (Binding::NotOffered, false) => Ok(&[]),
        (Binding::Used(_), false) | (_, true) => Err(SaslFailure::MalformedRequest),
    }
}

async fn begin_scram(
    around: &Surroundings<'_>,
    mechanism: Mechanism,
    hash: Hash,
    message: &[u8],
) -> Result<(ScramUnderWay, String), Step> {
    let first = ClientFirst::parse(message)?;
    let data = binding_data(mechanism, &first.binding, around.bindings)?;
    let account = account_of(&first.username, around.domain)?;
    check_authzid(&first.authzid, &account)?;
    let request = CredentialsRequest {
        domain: around.domain.to_owned(),
        username: first.username.clone(),
        hash: match hash {
            Hash::Sha1 => directory::Hash::Sha1.into(),
            Hash::Sha256 => directory::Hash::Sha256.into(),
        },
        peer: around.peer.to_owned(),
    };
    let cx = Cx::local().within(DIRECTORY_LIMIT);
    let asked = tokio::time::timeout(DIRECTORY_LIMIT, around.directory.credentials(&cx, request));
    let mut credentials = asked
        .await
        .map_err(|_| late())?
        .map_err(|error| outage(&error))?;
    if credentials.refused {
        return Err(Step::Refused);
    }
    let keys = take_keys(&mut credentials, hash)?;
    let nonce = STANDARD.encode(around.ids.bytes::<NONCE_BYTES>());
    let hold = hold_until(around.clock, credentials.delay_ms);
    let (exchange, challenge) = scram::Exchange::challenge(first, keys, &nonce, data);
    let account = credentials
        .usable
        .then(|| account_in(&credentials.jid, &account))
        .flatten();
    let under_way = ScramUnderWay {
        mechanism,
        exchange,
        account,
        credentials,
        hold,
    };
    Ok((under_way, challenge))
}

/// The account as the directory prepared it, which has to be the one that we prepared.
fn account_in(prepared: &str, ours: &BareJid) -> Option<BareJid> {
    let same = prepared == ours.as_str();
    if !same {
        tracing::error!("the directory prepares a user name otherwise");
    }
    same.then(|| ours.clone())
}

fn take_keys(credentials: &mut CredentialsResponse, hash: Hash) -> Result<scram::Keys, Step> {
    let found = credentials.keys.take().filter(|keys| {
        keys.stored_key.len() == hash.output_bytes()
            && keys.server_key.len() == hash.output_bytes()
            && !keys.salt.is_empty()
            && keys.iterations > 0
    });
    let Some(keys) = found else {
        tracing::error!("the directory gave keys that are none");
        return Err(SaslFailure::TemporaryAuthFailure.into());
    };
    Ok(scram::Keys {
        hash,
        salt: keys.salt.to_vec(),
        iterations: keys.iterations,
        stored_key: keys.stored_key.to_vec(),
        server_key: keys.server_key.to_vec(),
    })
}

async fn finish_scram(around: &Surroundings<'_>, scram: ScramUnderWay, message: &[u8]) -> Step {
    let checked = scram.exchange.finish(message);
    let proven = match (&checked, scram.account) {
        (Ok(_), Some(account)) => Ok(account),
        // Invented keys fit no proof; were one to fit, it would not be an account.
        (Ok(_), None) => Err(SaslFailure::NotAuthorized),
        (Err(failure), _) => Err(*failure),
    };
    let report = ReportAttemptRequest {
        domain: around.domain.to_owned(),
        username: scram.exchange.first().username.clone(),
        peer: around.peer.to_owned(),
        success: proven.is_ok(),
    };
    let cx = Cx::local().within(DIRECTORY_LIMIT);
    let told = tokio::time::timeout(
        DIRECTORY_LIMIT,
        around.directory.report_attempt(&cx, report),
    );
    // Throttling that cannot be told of does not change what was proven.
    if !matches!(told.await, Ok(Ok(_))) {
        tracing::warn!("the directory could not be told how an attempt ended");
    }
    tokio::time::sleep_until(scram.hold).await;
    match (proven, checked) {
        // Only whoever knows the password learns that the account is disabled.
        (Ok(_), _) if scram.credentials.disabled => SaslFailure::AccountDisabled.into(),
        (Ok(account), Ok(verifier)) => Step::Success(
            Login {
                account,
                credential_version: scram.credentials.credential_version,
                mechanism: scram.mechanism,
            },
            Some(verifier.into_bytes()),
        ),
        (Err(failure), _) | (_, Err(failure)) => failure.into(),
    }
}

async fn plain_login(around: &Surroundings<'_>, message: &[u8]) -> Step {
    match check_plain(around, message).await {
        Ok(login) => Step::Success(login, None),
        Err(step) => step,
    }
}

async fn check_plain(around: &Surroundings<'_>, message: &[u8]) -> Result<Login, Step> {
    let message = plain::parse(message)?;
    // D1: `a NUL b NUL password` never opens a session of a.
    let authzid_account = account_of(message.username, around.domain);
    if let Ok(account) = &authzid_account {
        check_authzid(message.authzid, account)?;
    }
    let account = authzid_account?;
    let request = VerifyPasswordRequest {
        domain: around.domain.to_owned(),
        username: message.username.to_owned(),
        password: message.password.to_owned(),
        peer: around.peer.to_owned(),
    };
    let cx = Cx::local().within(DIRECTORY_LIMIT);
    let asked = tokio::time::timeout(
        DIRECTORY_LIMIT,
        around.directory.verify_password(&cx, request),
    );
    let verified = asked
        .await
        .map_err(|_| late())?
        .map_err(|error| outage(&error))?;
    if verified.refused {
        return Err(Step::Refused);
    }
    tokio::time::sleep_until(hold_until(around.clock, verified.delay_ms)).await;
    if !verified.verified {
        return Err(SaslFailure::NotAuthorized.into());
    }
    if verified.disabled {
        return Err(SaslFailure::AccountDisabled.into());
    }
    let account = account_in(&verified.jid, &account).ok_or(SaslFailure::TemporaryAuthFailure)?;
    Ok(Login {
        account,
        credential_version: verified.credential_version,
        mechanism: Mechanism::Plain,
    })
}

fn hold_until(clock: &Clock, delay_ms: u64) -> Instant {
    clock.monotonic() + Duration::from_millis(delay_ms).min(HOLD_LIMIT)
}

fn late() -> Step {
    tracing::warn!("the directory did not answer a login in time");
    SaslFailure::TemporaryAuthFailure.into()
}

/// Our own outage is never a statement about the account (RFC 6120 §6.5.11).
fn outage(error: &ApiError) -> Step {
    tracing::warn!(%error, "the directory could not answer a login");
    SaslFailure::TemporaryAuthFailure.into()
}
