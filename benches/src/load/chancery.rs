//! Chancery as a target, in both shapes.

use std::path::Path;

use anyhow::Result;
use chancery_testkit::server::{PASSWORD, Server, Setup, Shape};

use crate::phases::Target;
use crate::probe::{Account, Salted};

/// A deployment with its accounts.
pub struct Chancery {
    server: Server,
    salted: Salted,
}

/// Starts it with `users` accounts.
pub fn start(name: &str, data: &Path, users: usize) -> Result<Chancery> {
    let shape = if name == "one" { Shape::One } else { Shape::Many };
    let server = Server::start_in(data, shape, Setup::default())?;
    let names: Vec<String> = (0..users).map(|n| format!("user{n}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    server.accounts(&names)?;
    Ok(Chancery { server, salted: Salted::default() })
}

impl Target for Chancery {
    fn pids(&self) -> Vec<u32> {
        self.server.pids()
    }

    fn account(&self, n: usize) -> Account {
        let gateway = n % self.server.c2s.len();
        let tls = self.server.trust(gateway).unwrap_or_else(|_| crate::peers::unchecked());
        Account {
            address: self.server.c2s[gateway],
            domain: self.server.domain().to_owned(),
            user: format!("user{n}"),
            password: PASSWORD.into(),
            tls,
            salted: self.salted.clone(),
        }
    }
}
