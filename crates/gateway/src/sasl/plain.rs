//! PLAIN (RFC 4616): reads the message. Refuses to check a password; only the directory can.

use chancery_xmpp::SaslFailure;

/// Bytes of each of the three parts.
const PART_BYTES: usize = 1023;

/// What a PLAIN message says.
#[derive(PartialEq, Eq)]
pub struct Message<'a> {
    /// Whom the client wants to act for; empty for itself.
    pub authzid: &'a str,
    /// Who it is.
    pub username: &'a str,
    /// Its secret.
    pub password: &'a str,
}

/// Reads `[authzid] NUL authcid NUL passwd`: exactly two NULs, no part but the first empty.
pub fn parse(message: &[u8]) -> Result<Message<'_>, SaslFailure> {
    let malformed = SaslFailure::MalformedRequest;
    let message = std::str::from_utf8(message).map_err(|_| malformed)?;
    let mut parts = message.split('\0');
    let (Some(authzid), Some(username), Some(password), None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err(malformed);
    };
    let too_long = [authzid, username, password]
        .iter()
        .any(|part| part.len() > PART_BYTES);
    if username.is_empty() || password.is_empty() || too_long {
        return Err(malformed);
    }
    Ok(Message {
        authzid,
        username,
        password,
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;

    #[test]
    fn three_parts() {
        let message = parse(b"alice@example.test\0alice\0p w\xc3\xa9")
            .ok()
            .unwrap();
        assert_eq!(message.authzid, "alice@example.test");
        assert_eq!((message.username, message.password), ("alice", "p wé"));
        assert_eq!(parse(b"\0alice\0pw").ok().unwrap().authzid, "");
    }

    #[test]
    fn attack_d2_malformed() {
        let long = [b"\0alice\0".as_slice(), &[b'x'; 100 * 1024]].concat();
        let wrong: [&[u8]; 9] = [
            b"",
            b"alice",
            b"alice\0pw",
            b"\0alice\0pw\0",
            b"\0\0pw",
            b"\0alice\0",
            b"\0a\0p\xff",
            b"\0\xc0\xbc\0pw",
            &long,
        ];
        for message in wrong {
            assert!(matches!(parse(message), Err(SaslFailure::MalformedRequest)));
        }
    }
}
