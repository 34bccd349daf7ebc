//! One line of an import file. Owns its form (documented at `user import`), and what is wrong with
//! a line in words that never repeat a secret.
//!
//! `JID PASSWORD`, or `JID {SCRAM-SHA-256}ITERATIONS,SALT,STOREDKEY,SERVERKEY` and, behind a space,
//! the same for `{SCRAM-SHA-1}`; salt and keys in base64 (RFC 5803 orders them likewise).

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use chancery_api::directory::{Hash, ImportAccount, NewCredentials, ScramKeys};

use super::bare_jid;

/// Longest line; a longer one is a problem, not a password.
pub const LINE_BYTES: usize = 8192;
/// Iterations that ready keys may have: below is weak, above would stall logins.
const ITERATIONS: std::ops::RangeInclusive<u32> = 4096..=10_000_000;
/// Bytes of a salt.
const SALT: std::ops::RangeInclusive<usize> = 8..=128;

/// The account that `line` names; none for an empty line or a comment.
pub fn parse(line: &str) -> Result<Option<ImportAccount>, String> {
    let line = line.trim_end_matches(['\n', '\r']).trim_start();
    if line.is_empty() || line.starts_with('#') {
        return Ok(None);
    }
    let Some((jid, secret)) = line.split_once([' ', '\t']) else {
        return Err("expected a JID, a space, and a password or SCRAM keys".into());
    };
    let jid = bare_jid(jid)?;
    let credentials = if secret.trim_start().starts_with("{SCRAM-") {
        NewCredentials {
            password: String::new(),
            keys: keys(secret)?,
        }
    } else if secret.is_empty() {
        return Err(format!("{jid}: the password is empty"));
    } else {
        NewCredentials {
            password: secret.to_owned(),
            keys: Vec::new(),
        }
    };
    Ok(Some(ImportAccount {
        jid,
        credentials: Some(credentials),
    }))
}

fn keys(text: &str) -> Result<Vec<ScramKeys>, String> {
    let mut keys: Vec<ScramKeys> = Vec::new();
    for word in text.split_whitespace() {
        let key = key(word)?;
        if keys.iter().any(|other| other.hash == key.hash) {
            return Err("keys of the same mechanism twice".into());
        }
        keys.push(key);
    }
    Ok(keys)
}

fn key(word: &str) -> Result<ScramKeys, String> {
    let (scheme, rest) = word
        .strip_prefix('{')
        .and_then(|word| word.split_once('}'))
        .ok_or("expected {SCRAM-SHA-256} or {SCRAM-SHA-1} before the keys")?;
    let (hash, length) = match scheme {
        "SCRAM-SHA-1" => (Hash::Sha1, 20),
        "SCRAM-SHA-256" => (Hash::Sha256, 32),
        _ => return Err("the mechanism is neither SCRAM-SHA-256 nor SCRAM-SHA-1".into()),
    };
    let parts: Vec<&str> = rest.split(',').collect();
    let [iterations, salt, stored, server] = parts.as_slice() else {
        return Err(format!(
            "{scheme}: expected ITERATIONS,SALT,STOREDKEY,SERVERKEY"
        ));
    };
    let iterations: u32 = iterations
        .parse()
        .ok()
        .filter(|n| ITERATIONS.contains(n))
        .ok_or_else(|| {
            format!(
                "{scheme}: iterations are not from {} to {}",
                ITERATIONS.start(),
                ITERATIONS.end()
            )
        })?;
    let bytes = |name: &str, text: &str| {
        STANDARD
            .decode(text)
            .map_err(|_| format!("{scheme}: {name} is not base64"))
    };
    let salt = bytes("the salt", salt)?;
    if !SALT.contains(&salt.len()) {
        return Err(format!(
            "{scheme}: the salt has {} bytes, not 8 to 128",
            salt.len()
        ));
    }
    let (stored_key, server_key) = (
        bytes("the stored key", stored)?,
        bytes("the server key", server)?,
    );
    if stored_key.len() != length || server_key.len() != length {
        return Err(format!("{scheme}: a key does not have {length} bytes"));
    }
    Ok(ScramKeys {
        hash: hash.into(),
        salt: salt.into(),
        iterations,
        stored_key: stored_key.into(),
        server_key: server_key.into(),
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;

    fn account(line: &str) -> (String, NewCredentials) {
        let account = parse(line).unwrap().unwrap();
        (account.jid, account.credentials.unwrap())
    }

    #[test]
    fn a_password_is_the_rest_of_the_line() {
        let (jid, credentials) = account("Alice@Example.ORG  two words \r\n");
        assert_eq!(jid, "alice@example.org");
        assert_eq!(credentials.password, " two words ");
        assert_eq!(account("a@b\tx").1.password, "x");
    }

    #[test]
    fn nothing_is_in_empty_lines_and_comments() {
        for line in ["", "\n", "  \r\n", "# a@b secret"] {
            assert_eq!(parse(line), Ok(None), "{line:?}");
        }
    }

    #[test]
    fn ready_keys_are_taken_as_they_are() {
        let (k1, k256) = (STANDARD.encode([1; 20]), STANDARD.encode([2; 32]));
        let salt = STANDARD.encode([9; 16]);
        let line = format!(
            "a@b {{SCRAM-SHA-256}}4096,{salt},{k256},{k256} {{SCRAM-SHA-1}}8192,{salt},{k1},{k1}"
        );
        let (_, credentials) = account(&line);
        assert!(credentials.password.is_empty());
        assert_eq!(credentials.keys.len(), 2);
        assert_eq!(credentials.keys[0].hash(), Hash::Sha256);
        assert_eq!(credentials.keys[0].stored_key[..], [2; 32]);
        assert_eq!(credentials.keys[1].iterations, 8192);
    }

    #[test]
    fn what_is_wrong_is_said_without_the_secret() {
        let k = STANDARD.encode([1; 20]);
        for (line, part) in [
            ("alice@example.org", "expected a JID"),
            ("alice secretword", "NAME@DOMAIN"),
            ("a@b/res secretword", "resource"),
            ("a@b ", "empty"),
            ("a@127.0.0.1 secretword", "ip address"),
            ("a@b {SCRAM-MD5}4096,secretword,x,y", "neither"),
            ("a@b {SCRAM-SHA-1}4096,secretword", "expected ITERATIONS"),
            ("a@b {SCRAM-SHA-1}1,c2FsdHNhbHQ=,k,k", "iterations"),
            (
                "a@b {SCRAM-SHA-1}4096,c2FsdHNhbHQ=,secretword!,k",
                "not base64",
            ),
            (
                "a@b {SCRAM-SHA-1}4096,c2FsdHNhbHQ=,c2FsdA==,c2FsdA==",
                "20 bytes",
            ),
            (
                "a@b {SCRAM-SHA-1}4096,c2E=,c2FsdA==,c2FsdA==",
                "salt has 2 bytes",
            ),
        ] {
            let error = parse(line).unwrap_err();
            assert!(error.contains(part), "{line}: {error}");
            assert!(!error.contains("secretword"), "{error}");
        }
        let one = format!("{{SCRAM-SHA-1}}4096,c2FsdHNhbHQ=,{k},{k}");
        assert!(
            parse(&format!("a@b {one} {one}"))
                .unwrap_err()
                .contains("twice")
        );
    }
}
