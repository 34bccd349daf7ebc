//! The administrator's socket in the data directory: nobody but its owner can connect at any
//! moment, and one that a dead server left is taken away. Owns the file; what is served on it is
//! wired elsewhere.

use std::fs;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use tokio::net::UnixListener;

use crate::error::Failure;

/// sockaddr_un holds 108 bytes with the closing zero.
const PATH_BYTES: usize = 107;

/// Where the socket of `data` is.
pub fn path(data: &Path) -> PathBuf {
    data.join("chancery.sock")
}

/// Listens. The caller holds the data directory's lock, so a socket that is there is stale.
///
/// Bound in a directory that only its owner can enter, given its mode, then moved into place: at
/// no moment can somebody else connect, whatever the umask and the data directory's mode.
pub fn listen(data: &Path) -> Result<UnixListener, Failure> {
    let place = path(data);
    let private = data.join(".socket");
    let inner = private.join("s");
    if inner.as_os_str().len() > PATH_BYTES || place.as_os_str().len() > PATH_BYTES {
        return Err(Failure::new(format!(
            "{}: too long for a socket, of which the system takes {PATH_BYTES} bytes; use a shorter data directory",
            place.display()
        )));
    }
    let _ = fs::remove_dir_all(&private);
    fs::DirBuilder::new().mode(0o700).create(&private)?;
    let listener = UnixListener::bind(&inner)
        .map_err(|error| Failure::new(format!("{}: {error}", place.display())))?;
    fs::set_permissions(&inner, fs::Permissions::from_mode(0o600))?;
    fs::rename(&inner, &place)?;
    fs::remove_dir(&private)?;
    Ok(listener)
}

/// Takes the socket away at the end.
pub fn remove(data: &Path) {
    let _ = fs::remove_file(path(data));
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;

    #[tokio::test]
    async fn only_its_owner_connects_and_a_stale_one_is_replaced() {
        let data = tempfile::tempdir().unwrap();
        let stale = listen(data.path()).unwrap();
        drop(stale);
        assert!(path(data.path()).exists());
        let _listener = listen(data.path()).unwrap();
        let mode = fs::metadata(path(data.path()))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
        tokio::net::UnixStream::connect(path(data.path()))
            .await
            .unwrap();
        remove(data.path());
        assert!(!path(data.path()).exists());
    }

    #[tokio::test]
    async fn a_path_that_no_socket_can_have_is_refused_in_words() {
        let data = tempfile::tempdir().unwrap();
        let long = data.path().join("x".repeat(120));
        fs::create_dir(&long).unwrap();
        assert!(listen(&long).unwrap_err().to_string().contains("shorter"));
    }
}
