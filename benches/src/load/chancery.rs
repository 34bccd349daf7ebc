//! Chancery as a target, in both shapes.

use std::path::Path;
use std::sync::Arc;

use anyhow::Result;
use chancery_testkit::server::{PASSWORD, Server, Setup, Shape};

use crate::phases::Target;
use crate::probe::{Account, Salted};

/// A deployment with its accounts.
pub struct Chancery {
    server: Server,
    /// By gateway.
    tls: Vec<Arc<rustls::ClientConfig>>,
    salted: Salted,
}

/// Starts it with `users` accounts.
pub fn start(name: &str, data: &Path, users: usize) -> Result<Chancery> {
    let shape = if name == "one" {
        Shape::One
    } else {
        Shape::Many
    };
    let server = Server::start_in(data, shape, Setup::default())?;
    let names: Vec<String> = (0..users).map(|n| format!("user{n}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    server.accounts(&names)?;
    let tls = (0..server.c2s.len())
        .map(|gateway| {
            let mut tls = rustls::ClientConfig::clone(&*server.trust(gateway)?);
            // Every login is a whole handshake, here and with the peers.
            tls.resumption = rustls::client::Resumption::disabled();
            Ok(Arc::new(tls))
        })
        .collect::<Result<Vec<_>>>()?;
    Ok(Chancery {
        server,
        tls,
        salted: Salted::default(),
    })
}

impl Target for Chancery {
    fn pids(&self) -> Vec<u32> {
        self.server.pids()
    }

    fn account(&self, n: usize) -> Account {
        let gateway = n % self.server.c2s.len();
        Account {
            address: self.server.c2s[gateway],
            domain: self.server.domain().to_owned(),
            user: format!("user{n}"),
            password: PASSWORD.into(),
            tls: Arc::clone(&self.tls[gateway]),
            salted: self.salted.clone(),
        }
    }
}
