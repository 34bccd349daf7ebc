//! Prosody and ejabberd as targets, from the system's packages, each as one foreground process on
//! loopback with a configuration of its own. What they are told to do is in their own files.

mod ejabberd;
mod prosody;

use std::fs::File;
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use chancery_testkit::server::{PASSWORD, free_address};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};

use crate::phases::{Plan, Target};
use crate::presence;
use crate::probe::{Account, Salted};
use crate::report::note;

/// The one domain.
const DOMAIN: &str = "example.test";
/// How long a peer may take until it accepts and knows its accounts.
const START_LIMIT: Duration = Duration::from_secs(60);
/// How long it may take to end by itself; its data are thrown away anyway.
const STOP_LIMIT: Duration = Duration::from_secs(5);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(50);

/// What a peer is started with.
struct Place {
    /// Directory for configuration, data and log.
    home: PathBuf,
    /// STARTTLS listener.
    address: SocketAddr,
    /// PEM files.
    certificate: PathBuf,
    key: PathBuf,
    /// Certificate, then key, in one file.
    both: PathBuf,
    /// Accounts `user0` and up.
    users: usize,
    /// Every message into both users' archives.
    archive: bool,
    /// Users with their contacts.
    rosters: Vec<(usize, Vec<usize>)>,
}

/// A running peer.
pub struct Peer {
    child: Child,
    address: SocketAddr,
    tls: Arc<ClientConfig>,
    salted: Salted,
    /// Rosters were there before it started.
    has_rosters: bool,
    _home: tempfile::TempDir,
}

/// Starts `prosody`, `prosody-off`, `ejabberd` or `ejabberd-off` with the plan's accounts.
pub fn start(name: &str, data: &Path, plan: &Plan) -> Result<Peer> {
    let (server, archive) = match name.strip_suffix("-off") {
        Some(server) => (server, false),
        None => (name, true),
    };
    let program = match server {
        "prosody" => prosody::PROGRAM,
        "ejabberd" => ejabberd::PROGRAM,
        _ => bail!("no such target: {name}"),
    };
    if !Path::new(program).exists() {
        install(server)?;
    }
    let directory = tempfile::Builder::new()
        .prefix("chancery-peer-")
        .tempdir_in(data)?;
    let place = prepare(directory.path(), plan, archive)?;
    let mut command = match server {
        "prosody" => prosody::command(&place)?,
        _ => ejabberd::command(&place)?,
    };
    let log = place.home.join("console.log");
    let out = File::create(&log)?;
    let child = command
        .current_dir(&place.home)
        .stdin(Stdio::null())
        .stdout(out.try_clone()?)
        .stderr(out)
        .spawn()
        .with_context(|| format!("start {server}"))?;
    let mut peer = Peer {
        child,
        address: place.address,
        tls: unchecked(),
        salted: Salted::default(),
        has_rosters: server == "prosody",
        _home: directory,
    };
    let told = (server == "ejabberd").then(|| ejabberd::told(&place));
    peer.wait_ready(told.as_deref()).with_context(|| {
        let logs = [log, place.home.join("server.log")].map(std::fs::read_to_string);
        let logs: Vec<String> = logs.into_iter().filter_map(Result::ok).collect();
        format!("{server} is not ready:\n{}", logs.join("\n"))
    })?;
    Ok(peer)
}

fn prepare(home: &Path, plan: &Plan, archive: bool) -> Result<Place> {
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
    let mut parameters = rcgen::CertificateParams::new([DOMAIN.to_owned()])?;
    // ejabberd cannot read the years that rcgen would take.
    parameters.not_before = rcgen::date_time_ymd(2020, 1, 1);
    parameters.not_after = rcgen::date_time_ymd(2049, 1, 1);
    let certificate = parameters.self_signed(&key)?.pem();
    let key = key.serialize_pem();
    let place = Place {
        home: home.to_owned(),
        address: free_address()?,
        certificate: home.join("certificate.pem"),
        key: home.join("key.pem"),
        both: home.join("both.pem"),
        users: plan.accounts(),
        archive,
        rosters: presence::rosters(plan).collect(),
    };
    std::fs::write(&place.certificate, &certificate)?;
    std::fs::write(&place.key, &key)?;
    std::fs::write(&place.both, format!("{certificate}{key}"))?;
    Ok(place)
}

impl Peer {
    fn wait_ready(&mut self, told: Option<&Path>) -> Result<()> {
        let until = Instant::now() + START_LIMIT;
        loop {
            let known = told.is_none_or(Path::exists);
            if known && TcpStream::connect_timeout(&self.address, LOOK).is_ok() {
                return Ok(());
            }
            if let Some(status) = self.child.try_wait()? {
                bail!("it ended with {status}");
            }
            if Instant::now() > until {
                bail!("it took longer than {} s", START_LIMIT.as_secs());
            }
            std::thread::sleep(LOOK);
        }
    }

    fn ends_by_itself(&mut self) -> bool {
        let Ok(pid) = i32::try_from(self.child.id()) else {
            return false;
        };
        if kill(Pid::from_raw(pid), Signal::SIGTERM).is_err() {
            return false;
        }
        let until = Instant::now() + STOP_LIMIT;
        while Instant::now() < until {
            if matches!(self.child.try_wait(), Ok(Some(_))) {
                return true;
            }
            std::thread::sleep(LOOK);
        }
        false
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        if !self.ends_by_itself() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

impl Target for Peer {
    fn pids(&self) -> Vec<u32> {
        vec![self.child.id()]
    }

    fn has_rosters(&self) -> bool {
        self.has_rosters
    }

    fn account(&self, n: usize) -> Account {
        Account {
            address: self.address,
            domain: DOMAIN.into(),
            user: format!("user{n}"),
            password: PASSWORD.into(),
            tls: Arc::clone(&self.tls),
            salted: Arc::clone(&self.salted),
        }
    }
}

/// Installs a Debian package without letting its service start.
fn install(package: &str) -> Result<()> {
    note(&format!("{package} is missing: installing it with apt-get"))?;
    let policy = Path::new("/usr/sbin/policy-rc.d");
    if !policy.exists() {
        note("writing /usr/sbin/policy-rc.d, so that the package's service does not start")?;
        std::fs::write(policy, "#!/bin/sh\nexit 101\n")
            .context("to install a peer takes root; or install it beforehand")?;
        std::fs::set_permissions(policy, std::fs::Permissions::from_mode(0o755))?;
    }
    let run = |arguments: &[&str]| -> Result<bool> {
        let mut apt = Command::new("apt-get");
        // apt's own words go to stderr: stdout is for the table.
        apt.args(arguments)
            .env("DEBIAN_FRONTEND", "noninteractive")
            .stdout(std::io::stderr());
        Ok(apt.status().context("apt-get")?.success())
    };
    let wanted = ["install", "-y", "--no-install-recommends", package];
    if !(run(&wanted)? || run(&["update"])? && run(&wanted)?) {
        bail!("apt-get could not install {package}");
    }
    Ok(())
}

/// TLS 1.3 that trusts anybody, for servers this process itself has started on loopback. Every
/// login is a whole handshake: nothing is resumed.
pub fn unchecked() -> Arc<ClientConfig> {
    let mut config = ClientConfig::builder_with_protocol_versions(&[&rustls::version::TLS13])
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody))
        .with_no_client_auth();
    config.resumption = Resumption::disabled();
    Arc::new(config)
}

#[derive(Debug)]
struct Anybody;

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![
            SignatureScheme::ECDSA_NISTP256_SHA256,
            SignatureScheme::ED25519,
        ]
    }
}
