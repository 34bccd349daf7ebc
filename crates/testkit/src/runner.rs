//! Runs a scenario against a deployment, step by step; the first difference ends it.

use std::collections::{BTreeMap, VecDeque};

use anyhow::{Context, Result, bail};
use chancery_xml::Element;

use crate::client::{Client, Past, authenticate};
use crate::matching::{Captures, differs, parse, substitute};
use crate::scenario::{Action, Scenario};
use crate::server::{Foreign, Server, Setup, Shape};
use crate::wire::{Incoming, PATIENCE};

/// Complaints in logs that say no more than what the test did itself.
const EXPECTED_AFTER_KILL: &[&str] = &["lane", "link", "lost", "unreachable", "h2", "transport"];

struct Play<'a> {
    server: &'a mut Server,
    clients: BTreeMap<String, Client>,
    /// Of clients that dropped their connection.
    past: BTreeMap<String, Past>,
    captures: Captures,
    killed: bool,
}

/// Runs `scenario` in one wiring.
pub fn run(scenario: &Scenario, shape: Shape) -> Result<()> {
    let mut setup = Setup {
        config: scenario.config.clone(),
        ..Setup::default()
    };
    if !scenario.domains.is_empty() {
        setup.domains.clone_from(&scenario.domains);
    }
    play(scenario, Server::start(shape, setup)?)
}

/// Runs a universal scenario against a server that is not ours; what is in the log is not asked.
pub fn run_foreign(scenario: &Scenario, foreign: Foreign) -> Result<()> {
    let mut scenario = scenario.clone();
    scenario
        .steps
        .retain(|step| !matches!(step.action, Action::Record { .. }));
    play(&scenario, Server::foreign(foreign)?)
}

fn play(scenario: &Scenario, mut server: Server) -> Result<()> {
    prepare(scenario, &server)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let mut captures = Captures::new();
    captures.insert("domain".into(), server.domain().to_owned());
    for name in &scenario.accounts {
        captures.insert(name.clone(), format!("{name}@{}", server.domain()));
    }
    let mut play = Play {
        server: &mut server,
        clients: BTreeMap::new(),
        past: BTreeMap::new(),
        captures,
        killed: false,
    };
    for step in &scenario.steps {
        let done = runtime
            .block_on(play.step(&step.action))
            .with_context(|| format!("line {}: {:?}", step.line, brief(&step.action)));
        if let Err(error) = done {
            let kept = play.server.keep_logs();
            return Err(error.context(format!("logs: {}", kept.display())));
        }
    }
    let killed = play.killed;
    drop(play);
    server.stop()?;
    let mut allowed: Vec<&str> = scenario.complaints.iter().map(String::as_str).collect();
    if killed {
        allowed.extend(EXPECTED_AFTER_KILL);
    }
    let complaints = server.complaints(&allowed);
    if !complaints.is_empty() {
        server.keep_logs();
        bail!(
            "unexpected complaints in the logs:\n{}",
            complaints.join("\n")
        );
    }
    Ok(())
}

/// Is there an element of this name inside, however deep?
fn holds(tree: &minidom::Element, name: &str) -> bool {
    tree.children()
        .any(|child| child.name() == name || holds(child, name))
}

fn brief(action: &Action) -> String {
    format!("{action:?}").chars().take(200).collect()
}

fn prepare(scenario: &Scenario, server: &Server) -> Result<()> {
    let names: Vec<&str> = scenario.accounts.iter().map(String::as_str).collect();
    if !names.is_empty() {
        server.accounts(&names)?;
    }
    if !scenario.strangers {
        for (index, one) in names.iter().enumerate() {
            for other in &names[index + 1..] {
                server.introduce(one, other)?;
            }
        }
    }
    for (group, members) in &scenario.groups {
        server.must(&["group", "create", group], "")?;
        for member in members {
            let jid = format!("{member}@{}", server.domain());
            server.must(&["group", "add", group, &jid], "")?;
        }
    }
    Ok(())
}

impl Play<'_> {
    async fn step(&mut self, action: &Action) -> Result<()> {
        match action {
            Action::Connect { who, options } => self.connect(who, options).await,
            Action::Refused {
                who,
                options,
                condition,
            } => self.refused(who, options, condition).await,
            Action::Sends { who, xml } => {
                let xml = substitute(xml, &self.captures);
                for part in top_level(&xml) {
                    self.client(who)?.send(part).await?;
                }
                Ok(())
            }
            Action::Receives {
                who,
                xml,
                any_order,
                without,
            } => self.receives(who, xml, *any_order, without).await,
            Action::Awaits { who, xml } => self.awaits(who, xml).await,
            Action::Resumes {
                who,
                whose,
                options,
                xml,
            } => self.resumes(who, whose, options, xml).await,
            Action::Nothing { who } => {
                let came = self.client(who)?.until_marker().await?;
                if let Some(first) = came.first() {
                    bail!("received {}", String::from_utf8_lossy(&first.bytes));
                }
                Ok(())
            }
            Action::Skips { who } => self.client(who)?.until_marker().await.map(drop),
            Action::Closed { who, condition } => self.closed(who, condition.as_deref()).await,
            Action::Disconnect { who } => self.take(who)?.close().await,
            Action::Drop { who } => {
                let client = self.take(who)?;
                self.past.insert(who.clone(), client.past());
                Ok(())
            }
            Action::Settled { who } => self.client(who)?.settled().await,
            Action::Admin { .. } => self.admin(action),
            Action::Kill { role } => {
                self.killed = true;
                self.server.kill(role)
            }
            Action::Start { role } => self.server.start_again(role),
            Action::Restart => {
                self.killed = true;
                self.server.stop()?;
                self.server.start_all()
            }
            Action::Record { text, count } => self.record(text, *count),
        }
    }

    fn client(&mut self, who: &str) -> Result<&mut Client> {
        self.clients
            .get_mut(who)
            .with_context(|| format!("{who} is not connected"))
    }

    fn take(&mut self, who: &str) -> Result<Client> {
        self.clients
            .remove(who)
            .with_context(|| format!("{who} is not connected"))
    }

    fn login_of(&self, who: &str, options: &[String]) -> Result<crate::client::Login> {
        let (user, resource) = who.split_once('/').context("user/resource")?;
        let gateway = usize::from(options.iter().any(|o| o == "gw2"));
        let mut login = self.server.login(user, resource, gateway)?;
        for option in options {
            match option.split_once('=') {
                Some(("mech", name)) => login.mechanism = name.into(),
                Some(("pass", word)) => login.password = word.into(),
                Some(("domain", domain)) => login.domain = domain.into(),
                Some(("resource", name)) => login.resource = Some(name.into()),
                Some(("user", name)) => login.user = name.into(),
                None if option == "unnamed" => login.resource = None,
                None if option == "direct" => {
                    login.direct = true;
                    login.address = self.server.c2s_tls[gateway % self.server.c2s_tls.len()];
                }
                Some(("h" | "resumable", _)) => {}
                None if [
                    "gw1",
                    "gw2",
                    "sm",
                    "resumable",
                    "carbons",
                    "available",
                    "roster",
                ]
                .contains(&option.as_str()) => {}
                _ => bail!("unknown option {option}"),
            }
        }
        Ok(login)
    }

    async fn awaits(&mut self, who: &str, xml: &str) -> Result<()> {
        let expected = parse(&substitute(xml, &self.captures))?;
        let mut passed = Vec::new();
        loop {
            let got = self.client(who)?.stanza().await.with_context(|| {
                format!("while {who} waits for {xml}; came: {}", passed.join(" "))
            })?;
            let tree = parse(&String::from_utf8_lossy(&got.bytes))?;
            let mut trial = self.captures.clone();
            if differs(&expected, &tree, &mut trial).is_none() {
                self.captures = trial;
                return Ok(());
            }
            passed.push(text(&got));
        }
    }

    async fn resumes(
        &mut self,
        who: &str,
        whose: &str,
        options: &[String],
        xml: &str,
    ) -> Result<()> {
        let login = self.login_of(who, options)?;
        let id = self
            .captures
            .get(&format!("sm:{whose}"))
            .map_or(whose, String::as_str);
        let past = match self.clients.get(whose) {
            Some(client) => Some(client.past()),
            None => self.past.get(whose).cloned(),
        };
        let mut h = past.as_ref().map_or(0, |past| past.received);
        if let Some(stated) = options.iter().find_map(|o| o.strip_prefix("h=")) {
            h = stated.parse()?;
        }
        let mut wire = authenticate(&login).await?;
        wire.send(format!(
            "<resume xmlns='urn:xmpp:sm:3' previd='{id}' h='{h}'/>"
        ))
        .await?;
        let got = wire.element().await?;
        let expected = parse(&substitute(xml, &self.captures))?;
        let tree = parse(&String::from_utf8_lossy(&got.bytes))?;
        let mut captures = self.captures.clone();
        if let Some(reason) = differs(&expected, &tree, &mut captures) {
            bail!("{reason}\n  in {}", text(&got));
        }
        self.captures = captures;
        let client = if &*got.header.name == "resumed" {
            let handled = got.header.attr("h").context("no h")?.parse()?;
            let mut past = past.with_context(|| format!("{whose} was not connected"))?;
            past.received = h;
            let id = self.captures.get(&format!("sm:{whose}")).cloned();
            self.captures.extend(id.map(|id| (format!("sm:{who}"), id)));
            Client::resume(wire, past, handled).await?
        } else if got.is("error", "http://etherx.jabber.org/streams") {
            return Ok(());
        } else {
            Client::bind(wire, &login).await?
        };
        self.captures.insert(who.to_owned(), client.jid.clone());
        self.clients.insert(who.to_owned(), client);
        Ok(())
    }

    async fn connect(&mut self, who: &str, options: &[String]) -> Result<()> {
        let login = self.login_of(who, options)?;
        let mut client = Client::login(&login).await?;
        let on = |name: &str| options.iter().any(|o| o == name);
        let most = options.iter().find_map(|o| o.strip_prefix("resumable="));
        let attributes = match most {
            Some(seconds) => Some(format!(" resume='true' max='{seconds}'")),
            None if on("resumable") => Some(" resume='true'".to_owned()),
            None => on("sm").then(String::new),
        };
        if let Some(attributes) = attributes {
            let id = client.enable_with(&attributes).await?;
            self.captures.insert(format!("sm:{who}"), id);
        }
        if on("roster") {
            client
                .query("get", "<query xmlns='jabber:iq:roster'/>")
                .await?;
        }
        if on("carbons") {
            let enable = "<enable xmlns='urn:xmpp:carbons:2'/>";
            let answer = client.query("set", enable).await?;
            if answer.header.type_.as_deref() != Some("result") {
                bail!("{}", String::from_utf8_lossy(&answer.bytes));
            }
        }
        if on("available") {
            client.send("<presence/>").await?;
            let own = client.jid.clone();
            client
                .wait(|e| &*e.header.name == "presence" && e.header.from.as_deref() == Some(&own))
                .await?;
        }
        self.captures.insert(who.to_owned(), client.jid.clone());
        self.clients.insert(who.to_owned(), client);
        Ok(())
    }

    async fn refused(&mut self, who: &str, options: &[String], condition: &str) -> Result<()> {
        let login = self.login_of(who, options)?;
        match authenticate(&login).await {
            Ok(_) => bail!("was let in"),
            Err(error) if format!("{error:#}").contains(&format!("<{condition}")) => Ok(()),
            Err(error) => Err(error),
        }
    }

    async fn receives(
        &mut self,
        who: &str,
        xml: &[String],
        any_order: bool,
        without: &[String],
    ) -> Result<()> {
        let mut wanted: VecDeque<&String> = xml.iter().collect();
        while !wanted.is_empty() {
            let got = self.client(who)?.stanza().await.with_context(|| {
                format!(
                    "while {who} waits for {}",
                    wanted.front().map_or("", |w| w.as_str())
                )
            })?;
            let tree = parse(&String::from_utf8_lossy(&got.bytes))?;
            for name in without {
                if holds(&tree, name) {
                    bail!("<{name}/> is in {}", text(&got));
                }
            }
            let candidates = if any_order { wanted.len() } else { 1 };
            let mut reasons = Vec::new();
            let mut found = None;
            for (index, candidate) in wanted.iter().take(candidates).enumerate() {
                let expected = parse(&substitute(candidate, &self.captures))?;
                let mut trial = self.captures.clone();
                match differs(&expected, &tree, &mut trial) {
                    None => {
                        self.captures = trial;
                        found = Some(index);
                        break;
                    }
                    Some(reason) => reasons.push(reason),
                }
            }
            let Some(index) = found else {
                bail!("{}\n  in {}", reasons.join("\n  "), text(&got));
            };
            wanted.remove(index);
        }
        Ok(())
    }

    async fn closed(&mut self, who: &str, condition: Option<&str>) -> Result<()> {
        let mut client = self.take(who)?;
        let mut seen = String::new();
        loop {
            let next = tokio::time::timeout(PATIENCE, client.next())
                .await
                .context("the stream goes on")??;
            match next {
                Incoming::Element(element) => seen.push_str(&text(&element)),
                Incoming::Close | Incoming::End => break,
                Incoming::Open(_) => {}
            }
        }
        if let Some(condition) = condition
            && !seen.contains(&format!("<{condition}"))
        {
            bail!("closed, but without {condition}: {seen}");
        }
        Ok(())
    }

    fn admin(&mut self, action: &Action) -> Result<()> {
        let Action::Admin {
            arguments,
            input,
            fails,
            prints,
        } = action
        else {
            return Ok(());
        };
        let input = substitute(input, &self.captures);
        let mut words = Vec::new();
        for argument in arguments {
            // The block is a file where one is expected.
            if argument == "-" {
                let file = self.server.home().join("block");
                std::fs::write(&file, &input)?;
                words.push(file.display().to_string());
            } else {
                words.push(substitute(argument, &self.captures));
            }
        }
        let arguments = words;
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let output = self.server.admin(&arguments, &input)?;
        let said = format!(
            "{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        if output.status.success() == *fails {
            bail!("ended with {}: {said}", output.status);
        }
        match prints {
            Some(wanted) if !said.contains(&substitute(wanted, &self.captures)) => {
                bail!("did not print {wanted:?}: {said}")
            }
            _ => Ok(()),
        }
    }

    fn record(&mut self, text: &str, count: usize) -> Result<()> {
        let (file, key) = self.server.export(true)?;
        self.server
            .must(&["verify", &file.display().to_string(), "--key", &key], "")?;
        let text = substitute(text, &self.captures);
        let found = crate::checker::read(&file)?
            .iter()
            .filter(|record| record.payload.contains(&text) || record.detail.contains(&text))
            .count();
        if found != count {
            bail!("{found} records contain {text:?}, not {count}");
        }
        Ok(())
    }
}

fn text(element: &Element) -> String {
    String::from_utf8_lossy(&element.bytes).into_owned()
}

/// Elements of a block that is sent: each starts on a line of its own.
fn top_level(xml: &str) -> Vec<String> {
    let mut all: Vec<String> = Vec::new();
    for line in xml.lines() {
        if line.starts_with('<') && !line.starts_with("</") || all.is_empty() {
            all.push(line.to_owned());
        } else if let Some(last) = all.last_mut() {
            last.push('\n');
            last.push_str(line);
        }
    }
    all
}
