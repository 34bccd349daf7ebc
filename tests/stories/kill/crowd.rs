//! The archive restarts under thousands of sessions with IQs under way: the sessions stay, are
//! attached again, and no request has an answer about the recipient.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use chancery_testkit::client::Client;
use chancery_testkit::server::{PASSWORD, Server, Setup, Shape};
use chancery_testkit::wire::Incoming;
use chancery_xml::Element;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::stage::times;
use super::stanza;

const ACCOUNTS: usize = 200;
/// Sessions per change, and when everything is run at length.
const SESSIONS: usize = 1_500;
const SESSIONS_AT_LENGTH: usize = 5_000;
/// Requests a second, of all together.
const REQUESTS_A_SECOND: usize = 300;
/// Logins at once.
const LOGINS: usize = 24;
/// A request is answered by then, or is lost.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);
/// The same for one that nobody may ever answer.
const EXCUSED_LIMIT: Duration = Duration::from_secs(4);
/// Everybody is reached again so long after the archive is ready, not counting the pause between
/// two requests.
const BACK: Duration = Duration::from_secs(15);

/// What all sessions write to.
#[derive(Default)]
struct Board {
    /// Raised when the archive is back.
    era: AtomicU32,
    over: AtomicBool,
    killed: OnceLock<Instant>,
    /// Requests that were under way at the kill, and whose answer went with it.
    unanswered: AtomicUsize,
    answered: AtomicUsize,
    told_to_wait: AtomicUsize,
    /// Sessions whose request of the latest era was answered by its target.
    reached: AtomicUsize,
    problems: std::sync::Mutex<Vec<String>>,
}

impl Board {
    fn problem(&self, text: String) {
        let mut problems = self.problems.lock().unwrap();
        if problems.len() < 20 {
            problems.push(text);
        }
    }

    /// Neither a request nor its result can be settled (they are not in the log): what was under
    /// way at the kill may have no answer, or an error and an answer.
    fn excuses(&self, asked: Instant) -> bool {
        self.killed.get().is_some_and(|killed| asked <= *killed)
    }

    fn check(&self) -> Result<()> {
        let problems = self.problems.lock().unwrap();
        if problems.is_empty() {
            Ok(())
        } else {
            bail!("{}", problems.join("\n"))
        }
    }
}

/// Name and resource of a session.
fn name(number: usize) -> (String, String) {
    (
        format!("u{:03}", number % ACCOUNTS),
        format!("r{}", number / ACCOUNTS),
    )
}

/// One session: asks its target again and again, and answers whoever asks.
async fn session(mut client: Client, target: String, every: Duration, board: Arc<Board>) {
    let mut number = 0u32;
    // When the request under way was sent, and in which era.
    let mut asked: Option<(Instant, u32)> = None;
    let mut reached = u32::MAX;
    let mut excused = 0;
    let mut last = None;
    let mut tick = tokio::time::interval(every);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    while !board.over.load(SeqCst) {
        let sent = tokio::select! {
            next = client.wire.next() => match next {
                Ok(Incoming::Element(element)) => {
                    let answer = Answer::of(&element, number, excused);
                    if let (Some(_), Some((_, era))) = (&answer, asked) {
                        if matches!(answer, Some(Answer::Result)) && era == board.era.load(SeqCst)
                            && reached != era
                        {
                            reached = era;
                            board.reached.fetch_add(1, SeqCst);
                        }
                        asked = None;
                    }
                    match answer {
                        Some(Answer::Result) => { board.answered.fetch_add(1, SeqCst); }
                        Some(Answer::Wait) => { board.told_to_wait.fetch_add(1, SeqCst); }
                        Some(Answer::Wrong(text)) => board.problem(text),
                        None => {}
                    }
                    reply(&mut client, &element).await
                }
                Ok(Incoming::Open(_)) => Ok(()),
                other => {
                    board.problem(format!("{} ended: {other:?}", client.jid));
                    return;
                }
            },
            _ = tick.tick() => match asked {
                Some((at, _)) if at.elapsed() > EXCUSED_LIMIT && board.excuses(at) => {
                    board.unanswered.fetch_add(1, SeqCst);
                    asked = None;
                    Ok(())
                }
                Some((at, _)) if at.elapsed() > ANSWER_LIMIT => {
                    board.problem(format!("{}: no answer to request {number}", client.jid));
                    return;
                }
                Some(_) => Ok(()),
                None => {
                    if last.is_some_and(|at| board.excuses(at)) {
                        excused = number;
                    }
                    number += 1;
                    last = Some(Instant::now());
                    asked = Some((Instant::now(), board.era.load(SeqCst)));
                    let ping = "<ping xmlns='urn:xmpp:ping'/>";
                    client.wire
                        .send(format!("<iq type='get' id='{number}' to='{target}'>{ping}</iq>"))
                        .await
                }
            },
        };
        if let Err(error) = sent {
            board.problem(format!("{}: {error:#}", client.jid));
            return;
        }
    }
}

enum Answer {
    Result,
    Wait,
    Wrong(String),
}

impl Answer {
    /// Whether an element is the answer to the session's own request.
    fn of(element: &Element, number: u32, excused: u32) -> Option<Self> {
        if &*element.header.name != "iq" {
            return Some(Self::Wrong(stanza::text(element)));
        }
        match element.header.type_.as_deref() {
            Some("get" | "set") => None,
            _ if excused > 0 && element.header.id.as_deref() == Some(&excused.to_string()) => None,
            _ if element.header.id.as_deref() != Some(number.to_string().as_str()) => Some(
                Self::Wrong(format!("out of turn: {}", stanza::text(element))),
            ),
            Some("result") => Some(Self::Result),
            _ => match stanza::condition(element) {
                (condition, kind) if condition == "resource-constraint" && kind == "wait" => {
                    Some(Self::Wait)
                }
                _ => Some(Self::Wrong(stanza::text(element))),
            },
        }
    }
}

async fn reply(client: &mut Client, element: &Element) -> Result<()> {
    if &*element.header.name != "iq" || element.header.type_.as_deref() != Some("get") {
        return Ok(());
    }
    let (Some(id), Some(from)) = (&element.header.id, &element.header.from) else {
        return Ok(());
    };
    client
        .wire
        .send(format!("<iq type='result' id='{id}' to='{from}'/>"))
        .await
}

/// Logs all sessions in.
async fn gather(server: &Server, count: usize, board: &Arc<Board>) -> Result<JoinSet<()>> {
    let room = Arc::new(Semaphore::new(LOGINS));
    let mut logins = JoinSet::new();
    for number in 0..count {
        let (user, resource) = name(number);
        let login = server.login(&user, &resource, number)?;
        let room = Arc::clone(&room);
        logins.spawn(async move {
            let _place = room.acquire_owned().await?;
            Client::login(&login)
                .await
                .with_context(|| format!("session {number}"))
                .map(|client| (number, client))
        });
    }
    let every = Duration::from_millis((count * 1000 / REQUESTS_A_SECOND) as u64);
    let mut clients = Vec::with_capacity(count);
    while let Some(done) = logins.join_next().await {
        clients.push(done??);
    }
    let mut sessions = JoinSet::new();
    for (number, client) in clients {
        let (user, resource) = name((number + count / 2) % count);
        let target = format!("{user}@{}/{resource}", server.domain());
        let board = Arc::clone(board);
        let begin = Duration::from_millis((number * 1000 / REQUESTS_A_SECOND) as u64);
        sessions.spawn(async move {
            tokio::time::sleep(begin).await;
            session(client, target, every, board).await;
        });
    }
    Ok(sessions)
}

/// Waits until every session was reached in this era.
async fn all_reached(board: &Board, count: usize, limit: Duration) -> Result<Duration> {
    let begun = Instant::now();
    while board.reached.load(SeqCst) < count {
        board.check()?;
        if begun.elapsed() > limit {
            bail!(
                "{} of {count} are reached after {limit:?}",
                board.reached.load(SeqCst)
            );
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(begun.elapsed())
}

async fn story() -> Result<()> {
    let count = if times() >= 20 {
        SESSIONS_AT_LENGTH
    } else {
        SESSIONS
    };
    rlimit::increase_nofile_limit(u64::MAX)?;
    let mut server = Server::start(Shape::Many, Setup::default())?;
    let file = server.home().join("crowd.txt");
    let domain = server.domain().to_owned();
    let lines: String = (0..ACCOUNTS)
        .map(|n| format!("u{n:03}@{domain} {PASSWORD}\n"))
        .collect();
    std::fs::write(&file, lines)?;
    server.must(&["user", "import", &file.display().to_string()], "")?;

    let board = Arc::new(Board::default());
    let begun = Instant::now();
    let mut sessions = gather(&server, count, &board).await?;
    println!("crowd: {count} sessions after {:?}", begun.elapsed());
    // A round of requests, the first of which begin only then.
    let round = Duration::from_secs((count / REQUESTS_A_SECOND + 1) as u64);
    all_reached(&board, count, 2 * round + BACK)
        .await
        .context("before")?;

    server.kill("archive")?;
    let _ = board.killed.set(Instant::now());
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    board.check().context("while the archive is away")?;
    if board.told_to_wait.load(SeqCst) == 0 {
        bail!("nobody was told to wait");
    }
    server.start_again("archive")?;
    board.reached.store(0, SeqCst);
    board.era.fetch_add(1, SeqCst);
    let took = all_reached(&board, count, 2 * round + BACK)
        .await
        .context("after")?;
    println!(
        "crowd: everybody is reached {took:?} after the restart; {} results, {} told to wait, {} \
         without answer",
        board.answered.load(SeqCst),
        board.told_to_wait.load(SeqCst),
        board.unanswered.load(SeqCst)
    );
    board.over.store(true, SeqCst);
    sessions.abort_all();
    while sessions.join_next().await.is_some() {}
    board.check()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn archive_restarts_under_thousands_of_sessions() {
    story().await.unwrap_or_else(|error| panic!("{error:#}"));
}
