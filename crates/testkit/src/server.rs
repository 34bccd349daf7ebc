//! Servers for tests: the binary, all in one or as eight processes with two gateways, each of which
//! can be killed, stopped and started again.

mod command_line;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::client::{Client, Login};
use crate::place::ready;
pub use crate::place::{binary, free_address, get};
use crate::wire::trusting;

/// How long a server may take until it says that it is ready.
const START_LIMIT: Duration = Duration::from_secs(40);
/// How long a graceful stop may take.
const STOP_LIMIT: Duration = Duration::from_secs(25);
/// The password of every account that tests make.
pub const PASSWORD: &str = "correct horse battery staple";

/// In which wiring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// One process.
    One,
    /// Eight processes, two gateways.
    Many,
}

/// What is configured beside the defaults.
#[derive(Clone, Debug)]
pub struct Setup {
    /// Domains, the default one first.
    pub domains: Vec<String>,
    /// More TOML, for every process.
    pub config: String,
    /// `CHANCERY_FAILPOINTS` by process name; `*` for all.
    pub failpoints: Vec<(String, String)>,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            domains: vec!["example.test".into()],
            config: String::new(),
            failpoints: vec![],
        }
    }
}

struct Process {
    name: String,
    config: PathBuf,
    log: PathBuf,
    ops: SocketAddr,
    child: Option<Child>,
}

/// A server that is not ours, and how it is prepared for a scenario.
#[derive(Clone, Debug)]
pub struct Foreign {
    /// Listener with STARTTLS.
    pub c2s: SocketAddr,
    /// Listener with direct TLS.
    pub c2s_tls: SocketAddr,
    /// Its domain.
    pub domain: String,
    /// PEM of what its certificate is to be trusted by.
    pub authority: PathBuf,
    /// Called as `PREPARE reset`, `PREPARE account NAME PASSWORD` and `PREPARE introduce NAME NAME`.
    pub prepare: PathBuf,
}

impl Foreign {
    /// From `CHANCERY_FOREIGN_*` in the environment, if `CHANCERY_FOREIGN_C2S` is there.
    pub fn from_environment() -> Result<Option<Self>> {
        let Ok(c2s) = std::env::var("CHANCERY_FOREIGN_C2S") else {
            return Ok(None);
        };
        let var = |name: &str| {
            let name = format!("CHANCERY_FOREIGN_{name}");
            std::env::var(&name).with_context(|| name)
        };
        Ok(Some(Self {
            c2s: c2s.parse()?,
            c2s_tls: var("C2S_TLS")?.parse()?,
            domain: var("DOMAIN")?,
            authority: var("AUTHORITY")?.into(),
            prepare: var("PREPARE")?.into(),
        }))
    }

    fn prepare(&self, arguments: &[&str]) -> Result<()> {
        let output = Command::new(&self.prepare).args(arguments).output()?;
        if !output.status.success() {
            bail!("{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(())
    }
}

/// A running deployment.
pub struct Server {
    foreign: Option<Foreign>,
    shape: Shape,
    setup: Setup,
    home: tempfile::TempDir,
    processes: Vec<Process>,
    /// STARTTLS listeners, one a gateway.
    pub c2s: Vec<SocketAddr>,
    /// Direct TLS listeners, one a gateway.
    pub c2s_tls: Vec<SocketAddr>,
    /// Internal listeners by role, where services are processes of their own.
    pub internal: Vec<(&'static str, SocketAddr)>,
}

const SERVICES: [&str; 6] = [
    "archive",
    "directory",
    "roster",
    "pubsub",
    "policy",
    "presence",
];
const GATEWAYS: [&str; 2] = ["gw1", "gw2"];

impl Server {
    /// Starts a deployment and waits until every process is ready.
    pub fn start(shape: Shape, setup: Setup) -> Result<Self> {
        Self::start_in(&std::env::temp_dir(), shape, setup)
    }

    /// The same, with its data below `parent`.
    pub fn start_in(parent: &Path, shape: Shape, setup: Setup) -> Result<Self> {
        let home = tempfile::Builder::new()
            .prefix("chancery-test-")
            .tempdir_in(parent)?;
        let mut server = Self {
            foreign: None,
            shape,
            setup,
            home,
            processes: vec![],
            c2s: vec![],
            c2s_tls: vec![],
            internal: vec![],
        };
        match shape {
            Shape::One => server.lay_out_one()?,
            Shape::Many => server.lay_out_many()?,
        }
        for index in 0..server.processes.len() {
            server.spawn(index)?;
        }
        server.wait_ready()?;
        Ok(server)
    }

    /// Somebody else's server, emptied.
    pub fn foreign(foreign: Foreign) -> Result<Self> {
        foreign.prepare(&["reset"])?;
        let home = tempfile::Builder::new()
            .prefix("chancery-test-")
            .tempdir()?;
        let setup = Setup {
            domains: vec![foreign.domain.clone()],
            ..Setup::default()
        };
        let (c2s, c2s_tls) = (vec![foreign.c2s], vec![foreign.c2s_tls]);
        let foreign = Some(foreign);
        Ok(Self {
            foreign,
            shape: Shape::One,
            setup,
            home,
            processes: vec![],
            c2s,
            c2s_tls,
            internal: vec![],
        })
    }

    fn lay_out_one(&mut self) -> Result<()> {
        let (c2s, tls, ops) = (free_address()?, free_address()?, free_address()?);
        self.c2s = vec![c2s];
        self.c2s_tls = vec![tls];
        let config = format!(
            "[server]\nname = \"one\"\ndomains = {:?}\ndata = {:?}\n\
             [listen]\nc2s = \"{c2s}\"\nc2s_tls = \"{tls}\"\nops = \"{ops}\"\n{}",
            self.setup.domains,
            self.home.path().join("data"),
            self.setup.config
        );
        self.add_process("one", &config, ops)
    }

    fn lay_out_many(&mut self) -> Result<()> {
        let internal = self.home.path().join("internal");
        let made = Command::new(binary()?)
            .arg("internal-certs")
            .arg(&internal)
            .output()?;
        if !made.status.success() {
            bail!("internal-certs: {}", String::from_utf8_lossy(&made.stderr));
        }
        let mut services = String::from("[services]\n");
        let mut addresses = Vec::new();
        for name in SERVICES {
            let address = free_address()?;
            services.push_str(&format!("{name} = \"{address}\"\n"));
            addresses.push(address);
            self.internal.push((name, address));
        }
        for (name, address) in SERVICES.iter().zip(addresses) {
            let listen = format!("internal = \"{address}\"\n");
            self.add_role(name, name, &listen, &services, &internal)?;
        }
        for name in GATEWAYS {
            let (c2s, tls) = (free_address()?, free_address()?);
            self.c2s.push(c2s);
            self.c2s_tls.push(tls);
            let listen = format!("c2s = \"{c2s}\"\nc2s_tls = \"{tls}\"\n");
            self.add_role(name, "gateway", &listen, &services, &internal)?;
        }
        Ok(())
    }

    fn add_role(
        &mut self,
        name: &str,
        role: &str,
        listen: &str,
        services: &str,
        internal: &Path,
    ) -> Result<()> {
        let ops = free_address()?;
        let data = if role == "gateway" {
            "gateways"
        } else {
            "data"
        };
        let config = format!(
            "[server]\nname = \"{name}\"\ndomains = {:?}\ndata = {:?}\nroles = [\"{role}\"]\n\
             [listen]\n{listen}ops = \"{ops}\"\n{services}\
             [internal]\ndirectory = {internal:?}\n{}",
            self.setup.domains,
            self.home.path().join(format!("{data}-{name}")),
            self.setup.config
        );
        self.add_process(name, &config, ops)
    }

    fn add_process(&mut self, name: &str, config: &str, ops: SocketAddr) -> Result<()> {
        let path = self.home.path().join(format!("{name}.toml"));
        std::fs::write(&path, config)?;
        self.processes.push(Process {
            name: name.into(),
            config: path,
            log: self.home.path().join(format!("{name}.log")),
            ops,
            child: None,
        });
        Ok(())
    }

    fn spawn(&mut self, index: usize) -> Result<()> {
        let points: Vec<String> = self
            .setup
            .failpoints
            .iter()
            .filter(|(name, _)| name == "*" || *name == self.processes[index].name)
            .map(|(_, points)| points.clone())
            .collect();
        let process = &mut self.processes[index];
        let log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(&process.log)?;
        let child = Command::new(binary()?)
            .args(["serve", "--config"])
            .arg(&process.config)
            .env("CHANCERY_FAILPOINTS", points.join(";"))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        process.child = Some(child);
        Ok(())
    }

    /// Waits until every process that runs says so on its readiness address.
    pub fn wait_ready(&mut self) -> Result<()> {
        let until = Instant::now() + START_LIMIT;
        for index in 0..self.processes.len() {
            if self.processes[index].child.is_none() {
                continue;
            }
            loop {
                let process = &mut self.processes[index];
                if ready(process.ops) {
                    break;
                }
                let ended = process
                    .child
                    .as_mut()
                    .and_then(|c| c.try_wait().ok().flatten());
                if ended.is_some() || Instant::now() > until {
                    let log = std::fs::read_to_string(&process.log).unwrap_or_default();
                    bail!("{} is not ready ({ended:?}):\n{log}", process.name);
                }
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        Ok(())
    }

    /// The wiring.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// The default domain.
    pub fn domain(&self) -> &str {
        &self.setup.domains[0]
    }

    /// The process that runs `role` (in one process: that one).
    fn index_of(&self, role: &str) -> Result<usize> {
        let name = if self.shape == Shape::One {
            "one"
        } else {
            role
        };
        self.processes
            .iter()
            .position(|p| p.name == name)
            .context("no such process")
    }

    /// The process id of the process that runs `role`.
    pub fn pid(&self, role: &str) -> Result<i32> {
        let process = &self.processes[self.index_of(role)?];
        let child = process.child.as_ref().context("not running")?;
        Ok(i32::try_from(child.id())?)
    }

    /// Process ids of all processes that run.
    pub fn pids(&self) -> Vec<u32> {
        self.processes
            .iter()
            .filter_map(|p| p.child.as_ref().map(Child::id))
            .collect()
    }

    /// kill -9.
    pub fn kill(&mut self, role: &str) -> Result<()> {
        let index = self.index_of(role)?;
        if let Some(mut child) = self.processes[index].child.take() {
            child.kill()?;
            child.wait()?;
        }
        Ok(())
    }

    /// Sends a signal, e.g. SIGSTOP, SIGCONT or SIGHUP.
    pub fn signal(&self, role: &str, signal: Signal) -> Result<()> {
        kill(Pid::from_raw(self.pid(role)?), signal)?;
        Ok(())
    }

    /// Failpoints of every process that starts from now on; the running ones keep theirs.
    pub fn set_failpoints(&mut self, failpoints: Vec<(String, String)>) {
        self.setup.failpoints = failpoints;
    }

    /// Starts a process that was killed or has ended, and waits until it is ready.
    pub fn start_again(&mut self, role: &str) -> Result<()> {
        self.begin_again(role)?;
        self.wait_ready()
    }

    /// The same, without waiting.
    pub fn begin_again(&mut self, role: &str) -> Result<()> {
        let index = self.index_of(role)?;
        if let Some(mut child) = self.processes[index].child.take() {
            child.wait()?;
        }
        self.spawn(index)
    }

    /// Starts every process that does not run, and waits until all are ready.
    pub fn start_all(&mut self) -> Result<()> {
        for index in 0..self.processes.len() {
            if self.processes[index].child.is_none() {
                self.spawn(index)?;
            }
        }
        self.wait_ready()
    }

    /// Whether the process still runs.
    pub fn runs(&mut self, role: &str) -> Result<bool> {
        let index = self.index_of(role)?;
        let child = self.processes[index].child.as_mut();
        Ok(child.is_some_and(|c| matches!(c.try_wait(), Ok(None))))
    }

    /// Stops everything gracefully; fails when a process does not end in time or ends badly.
    pub fn stop(&mut self) -> Result<()> {
        // Whoever calls goes before whom it calls, as an operator would do it; gateways together.
        let (gateways, services): (Vec<usize>, Vec<usize>) =
            (0..self.processes.len()).partition(|at| self.processes[*at].name.starts_with("gw"));
        let rounds = std::iter::once(gateways).chain(services.into_iter().rev().map(|at| vec![at]));
        for round in rounds {
            for &index in &round {
                let Some(child) = self.processes[index].child.as_ref() else {
                    continue;
                };
                kill(Pid::from_raw(i32::try_from(child.id())?), Signal::SIGTERM)?;
            }
            for index in round {
                self.await_end(index)?;
            }
        }
        Ok(())
    }

    fn await_end(&mut self, index: usize) -> Result<()> {
        let until = Instant::now() + STOP_LIMIT;
        let process = &mut self.processes[index];
        let Some(mut child) = process.child.take() else {
            return Ok(());
        };
        loop {
            if let Some(status) = child.try_wait()? {
                if !status.success() {
                    bail!("{} ended with {status}", process.name);
                }
                return Ok(());
            }
            if Instant::now() > until {
                child.kill()?;
                bail!("{} did not stop", process.name);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Data directory in which the command line finds the server.
    pub fn data(&self) -> PathBuf {
        let name = if self.shape == Shape::One {
            "data"
        } else {
            "data-directory"
        };
        self.home.path().join(name)
    }

    /// A place for files of the test.
    pub fn home(&self) -> &Path {
        self.home.path()
    }

    /// Everything a client needs to trust gateway `gateway`.
    pub fn trust(&self, gateway: usize) -> Result<Arc<rustls::ClientConfig>> {
        trusting(&std::fs::read(self.authority(gateway))?, None)
    }

    /// Path of the authority's certificate that clients of a gateway have to trust.
    pub fn authority(&self, gateway: usize) -> PathBuf {
        if let Some(foreign) = &self.foreign {
            return foreign.authority.clone();
        }
        let data = match self.shape {
            Shape::One => "data".to_owned(),
            Shape::Many => format!("gateways-{}", GATEWAYS[gateway % GATEWAYS.len()]),
        };
        self.home.path().join(data).join("tls/authority.pem")
    }

    /// How `user` logs in at gateway number `gateway` (in one process always that one).
    pub fn login(&self, user: &str, resource: &str, gateway: usize) -> Result<Login> {
        Ok(Login {
            address: self.c2s[gateway % self.c2s.len()],
            direct: false,
            tls: self.trust(gateway)?,
            domain: self.domain().to_owned(),
            user: user.into(),
            password: PASSWORD.into(),
            resource: Some(resource.into()),
            mechanism: "SCRAM-SHA-256".into(),
        })
    }

    /// Logs in.
    pub async fn client(&self, user: &str, resource: &str, gateway: usize) -> Result<Client> {
        Client::login(&self.login(user, resource, gateway)?).await
    }

    /// Metrics of the process that runs `role`.
    pub fn metrics(&self, role: &str) -> Result<String> {
        let (_, body) = get(self.processes[self.index_of(role)?].ops, "/metrics")?;
        Ok(body)
    }

    /// Status and body of a page on the ops address of the process that runs `role`.
    pub fn probe(&self, role: &str, page: &str) -> Result<(u16, String)> {
        get(self.processes[self.index_of(role)?].ops, page)
    }

    /// Log lines at level WARN or ERROR, of all processes, that no `allowed` text explains; and any
    /// that name an account or say the password, which nothing explains.
    pub fn complaints(&self, allowed: &[&str]) -> Vec<String> {
        let at_domain = format!("@{}", self.domain());
        let mut found = Vec::new();
        for process in &self.processes {
            let log = std::fs::read_to_string(&process.log).unwrap_or_default();
            for line in log.lines() {
                let loud = line.contains(" WARN ")
                    || line.contains(" ERROR ")
                    || line.contains("panicked");
                let tells = line.contains(&at_domain) || line.contains(PASSWORD);
                if tells || loud && !allowed.iter().any(|text| line.contains(text)) {
                    found.push(format!("{}: {line}", process.name));
                }
            }
        }
        found
    }

    /// Copies the logs to where they outlive the deployment: they explain a failure.
    pub fn keep_logs(&self) -> PathBuf {
        let own = self
            .home
            .path()
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        let kept = std::env::temp_dir().join(format!("{own}-failed"));
        let _ = std::fs::create_dir_all(&kept);
        for process in &self.processes {
            let _ = std::fs::copy(&process.log, kept.join(format!("{}.log", process.name)));
        }
        kept
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        for process in &mut self.processes {
            if let Some(mut child) = process.child.take() {
                let _ = child.kill();
                let _ = child.wait();
            }
        }
        if std::thread::panicking() {
            self.keep_logs();
        }
    }
}
