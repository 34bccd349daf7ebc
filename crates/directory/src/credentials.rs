//! Logins: SCRAM keys, real or invented, and the check of a PLAIN password. It owns that one who
//! does not exist cannot be told from one who does: the same look-ups, the same work, the same
//! shape of answer. It refuses to say more to a guesser than that he was wrong.

use chancery_api::ApiError;
use chancery_api::directory::{
    CredentialsRequest, CredentialsResponse, ReportAttemptRequest, VerifyPasswordRequest,
    VerifyPasswordResponse,
};

use crate::names::{Name, username};
use crate::scram::{Keys, Mechanism, prepare_password};
use crate::service::{Inner, store_error};
use crate::store::State;
use crate::throttle::Check;

/// Who tries to log in.
struct Login {
    /// A localpart that no account has (the empty one) where the typed name cannot be prepared.
    name: Name,
    /// What invented keys and the throttle go by.
    label: String,
}

impl Login {
    fn new(domain: &str, typed: &str) -> Self {
        let prepared = username(domain, typed);
        // `\0` cannot be part of a prepared name, so the two kinds of label cannot meet.
        let label = match &prepared {
            Some(name) => name.jid(),
            None => format!("{domain}\0{typed}"),
        };
        let nobody = || Name {
            domain: domain.to_owned(),
            localpart: String::new(),
        };
        Self {
            name: prepared.unwrap_or_else(nobody),
            label,
        }
    }
}

/// What the store knows of a login.
struct Looked {
    keys: Keys,
    usable: bool,
    disabled: bool,
    jid: String,
    credential_version: u64,
}

async fn look(inner: &Inner, login: &Login, mechanism: Mechanism) -> Result<Looked, ApiError> {
    let invented = Keys::invent(
        mechanism,
        &inner.secret,
        &login.label,
        inner.config.iterations,
    );
    let found = inner
        .store
        .find(login.name.clone())
        .await
        .map_err(|error| store_error(&error))?;
    let real = found
        .filter(|(account, _)| account.state != State::Deleted)
        .and_then(|(account, set)| Some((account, set.get(mechanism)?.clone())));
    Ok(match real {
        Some((account, keys)) => Looked {
            keys,
            usable: true,
            disabled: account.state == State::Disabled,
            jid: account.name.jid(),
            credential_version: account.credential_version,
        },
        None => Looked {
            keys: invented,
            usable: false,
            disabled: false,
            jid: login.name.jid(),
            credential_version: 0,
        },
    })
}

/// SCRAM's first answer. `disabled` is for after a right proof only.
pub async fn credentials(
    inner: &Inner,
    request: CredentialsRequest,
) -> Result<CredentialsResponse, ApiError> {
    let mechanism =
        Mechanism::of(request.hash()).ok_or_else(|| ApiError::invalid("unknown hash"))?;
    let domain = inner.domains.hosted(&request.domain)?;
    let login = Login::new(&domain, &request.username);
    let delay = match inner.throttle.begin(&login.label, &request.peer) {
        Check::Delay(delay) => delay,
        Check::Refused => {
            inner.attempts.with(&["refused"]).inc();
            return Ok(CredentialsResponse {
                refused: true,
                ..CredentialsResponse::default()
            });
        }
    };
    let looked = look(inner, &login, mechanism).await?;
    Ok(CredentialsResponse {
        keys: Some(looked.keys.to_wire(mechanism)),
        usable: looked.usable,
        disabled: looked.disabled,
        jid: looked.jid,
        credential_version: looked.credential_version,
        delay_ms: milliseconds(delay),
        refused: false,
    })
}

/// PLAIN. `verified` and `disabled` together: the password is right, the account is not to be used.
pub async fn verify_password(
    inner: &Inner,
    request: VerifyPasswordRequest,
) -> Result<VerifyPasswordResponse, ApiError> {
    let domain = inner.domains.hosted(&request.domain)?;
    let login = Login::new(&domain, &request.username);
    let delay = match inner.throttle.begin(&login.label, &request.peer) {
        Check::Delay(delay) => delay,
        Check::Refused => {
            inner.attempts.with(&["refused"]).inc();
            let refused = VerifyPasswordResponse {
                refused: true,
                ..Default::default()
            };
            return Ok(refused);
        }
    };
    // The one mechanism that every account has keys for.
    let mechanism = Mechanism::Sha256;
    let looked = look(inner, &login, mechanism).await?;
    let prepared = prepare_password(&request.password);
    let fit = prepared.is_ok();
    // The same work for what cannot be any password.
    let password = prepared.unwrap_or_default().into_bytes();
    let salt = looked.keys.salt.clone();
    let derived = inner
        .pool
        .derive(mechanism, password, salt, looked.keys.iterations)
        .await?;
    let verified = derived.same_stored_key(&looked.keys) && looked.usable && fit;
    report(inner, &login, &request.peer, verified);
    let (jid, credential_version) = match verified {
        true => (looked.jid, looked.credential_version),
        false => (String::new(), 0),
    };
    Ok(VerifyPasswordResponse {
        verified,
        disabled: verified && looked.disabled,
        jid,
        credential_version,
        delay_ms: milliseconds(delay),
        refused: false,
    })
}

/// How a SCRAM exchange ended.
pub fn report_attempt(inner: &Inner, request: &ReportAttemptRequest) -> Result<(), ApiError> {
    let domain = inner.domains.hosted(&request.domain)?;
    let login = Login::new(&domain, &request.username);
    report(inner, &login, &request.peer, request.success);
    Ok(())
}

fn report(inner: &Inner, login: &Login, peer: &str, success: bool) {
    inner.throttle.report(&login.label, peer, success);
    inner
        .attempts
        .with(&[if success { "success" } else { "failure" }])
        .inc();
}

fn milliseconds(delay: std::time::Duration) -> u64 {
    u64::try_from(delay.as_millis()).unwrap_or(u64::MAX)
}
