//! Listening sockets: bound with a backlog for login storms, and the open-files limit raised for
//! what comes through them.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use tokio::net::{TcpListener, TcpSocket};

use crate::error::Failure;

/// Connections that the kernel holds until they are accepted.
const BACKLOG: u32 = 4096;
/// Open files that are asked for when the system states no limit of its own.
const FILES: u64 = 1 << 20;

/// Listens on `address`; `what` is the setting that named it.
pub fn bind(what: &str, address: SocketAddr) -> Result<TcpListener, Failure> {
    listen(usable(address))
        .map_err(|error| Failure::new(format!("cannot listen on {address} ({what}): {error}")))
}

/// The address itself; for [::] all of IPv4 where there is no IPv6.
pub fn usable(address: SocketAddr) -> SocketAddr {
    let any = SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0));
    let six = || {
        TcpSocket::new_v6()
            .and_then(|socket| socket.bind(any))
            .is_ok()
    };
    if address.is_ipv6() && address.ip().is_unspecified() && !six() {
        return SocketAddr::from((Ipv4Addr::UNSPECIFIED, address.port()));
    }
    address
}

fn listen(address: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = if address.is_ipv6() {
        TcpSocket::new_v6()?
    } else {
        TcpSocket::new_v4()?
    };
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Raises the limit of open files as far as the system lets this process.
pub fn raise_open_files() {
    match rlimit::increase_nofile_limit(FILES) {
        Ok(files) => tracing::debug!(files, "open files limit"),
        Err(error) => tracing::warn!(%error, "the open files limit could not be raised"),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;

    #[tokio::test]
    async fn a_taken_address_is_named_with_its_setting() {
        let first = bind("c2s", "127.0.0.1:0".parse().unwrap()).unwrap();
        let taken = first.local_addr().unwrap();
        let error = bind("c2s_tls", taken).unwrap_err().to_string();
        assert!(
            error.contains(&taken.to_string()) && error.contains("c2s_tls"),
            "{error}"
        );
    }

    #[tokio::test]
    async fn everything_includes_ipv4() {
        let listener = bind("c2s", "[::]:0".parse().unwrap()).unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::net::TcpStream::connect(("127.0.0.1", port))
            .await
            .unwrap();
    }
}
