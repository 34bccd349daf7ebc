//! Where a test finds things on its machine: the binary, addresses, pages over HTTP.

use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};

/// The binary under test: `CHANCERY_BIN`, or the one beside the test's own target directory.
pub fn binary() -> Result<PathBuf> {
    if let Some(given) = std::env::var_os("CHANCERY_BIN") {
        return Ok(given.into());
    }
    let own = std::env::current_exe()?;
    own.ancestors()
        .map(|dir| dir.join("chancery"))
        .find(|candidate| candidate.is_file())
        .context("build the binary first: cargo build -p chancery")
}

/// An address on which nobody listens. Each is on a loopback address of its own, by process and by call:
/// between the look and the listening nobody else, neither another test nor a client's own port, takes it.
pub fn free_address() -> Result<SocketAddr> {
    static CALLS: AtomicU32 = AtomicU32::new(0);
    let call = CALLS.fetch_add(1, Ordering::Relaxed) & 0xff;
    let process = std::process::id() & 0x3fff;
    let host = Ipv4Addr::from_bits(0x7f80_0000 | (process << 8) | call);
    Ok(TcpListener::bind((host, 0))?.local_addr()?)
}

pub(crate) fn ready(ops: SocketAddr) -> bool {
    get(ops, "/ready").is_ok_and(|(status, _)| status == 200)
}

/// A plain HTTP GET; status and body.
pub fn get(address: SocketAddr, path: &str) -> Result<(u16, String)> {
    use std::io::Read;
    let mut tcp = std::net::TcpStream::connect_timeout(&address, Duration::from_secs(2))?;
    tcp.set_read_timeout(Some(Duration::from_secs(5)))?;
    write!(
        tcp,
        "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    )?;
    let mut text = String::new();
    tcp.read_to_string(&mut text)?;
    let status = text
        .split(' ')
        .nth(1)
        .and_then(|s| s.parse().ok())
        .context("no status")?;
    let body = text
        .split_once("\r\n\r\n")
        .map(|(_, body)| body.to_owned())
        .unwrap_or_default();
    Ok((status, body))
}
