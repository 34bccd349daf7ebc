//! The archive phase: a few users, of whom each has the same number of messages in the archive, page
//! through it (XEP-0313), forward, as a client does that comes back. Counts messages by a few words;
//! no XML tree.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use memchr::memmem;
use tokio::io::AsyncReadExt;
use tokio::task::JoinSet;

use crate::live::Live;
use crate::meter;
use crate::phases::{Plan, QUIET_LIMIT, Target, connect, per, quiet};
use crate::probe::{Equip, Probe};

/// Users who page at once, in pairs.
pub const READERS: usize = 4;
/// Messages that each has in the archive, sent and received.
const MESSAGES: u64 = 1500;
/// Messages of a page.
const PAGE: u32 = 50;
/// Messages of one sender under way while the archives are filled.
const UNDER_WAY: u64 = 8;
/// Bytes that a page may have: whoever sends more has not understood the question.
const PAGE_BYTES: usize = 4 * 1024 * 1024;

/// For the first reading of an archive.
const FIRST_LIMIT: Duration = Duration::from_secs(60);
/// Between two looks at a partner.
const LOOK: Duration = Duration::from_millis(2);

/// One page as it came.
struct Page {
    messages: u64,
    /// Where the next one begins; `None` at the end.
    last: Option<String>,
}

/// Everybody writes to the partner: half of the messages each.
async fn fill(target: &dyn Target, plan: &Plan) -> Result<()> {
    let who = plan.archivists();
    let probes = connect(target, who.clone(), READERS, "fill", Equip::Chat).await?;
    let mut tasks = JoinSet::new();
    let mut lives = Vec::new();
    for (n, probe) in who.clone().zip(probes) {
        let live = Live::start(probe, &target.account(n).user, &mut tasks);
        live.send("<presence/>").await?;
        lives.push(live);
    }
    let mut writes = JoinSet::new();
    for (n, live) in lives.iter().enumerate() {
        let to = target.account(who.start + (n ^ 1)).bare();
        let (live, partner) = (Arc::clone(live), Arc::clone(&lives[n ^ 1]));
        writes.spawn(async move {
            for sent in 0..MESSAGES / 2 {
                while partner.messages() + UNDER_WAY <= sent {
                    // The partner tells nobody else: a look now and then will do.
                    tokio::time::sleep(LOOK).await;
                }
                let body = format!("{:x<100}", "");
                live.send(&format!(
                    "<message to='{to}' type='chat' id='h{sent}'><body>{body}</body></message>"
                ))
                .await?;
            }
            anyhow::Ok(())
        });
    }
    while let Some(written) = writes.join_next().await {
        written??;
    }
    let until = Instant::now() + QUIET_LIMIT;
    while lives.iter().any(|live| live.messages() < MESSAGES / 2) && Instant::now() < until {
        tokio::time::sleep(LOOK).await;
    }
    while let Some(ended) = tasks.try_join_next() {
        ended??;
    }
    for live in &lives {
        live.close().await?;
    }
    quiet(target).await?;
    tasks.shutdown().await;
    Ok(())
}

/// Microseconds of CPU a message that was paged.
pub async fn measure(target: &dyn Target, plan: &Plan) -> Result<f64> {
    let who = plan.archivists();
    let mut readers = connect(target, who.clone(), READERS, "history", Equip::Nothing).await?;
    if page(&mut readers[0], None, 0).await?.is_none() {
        bail!("it has no archive");
    }
    fill(target, plan).await?;
    // What is read for the first time is read from the disk; and whether it is all there.
    let all = read(&mut readers[0], &mut 0, Instant::now() + FIRST_LIMIT).await?;
    if all != MESSAGES {
        bail!("{all} messages are in an archive that {MESSAGES} were put into");
    }
    let before = meter::cpu_us(&target.pids())?;
    let until = Instant::now() + plan.period;
    let mut tasks = JoinSet::new();
    for mut reader in readers {
        tasks.spawn(async move {
            let (mut messages, mut pages) = (0, 1000);
            while Instant::now() < until {
                messages += read(&mut reader, &mut pages, until).await?;
            }
            reader.send("</stream:stream>").await?;
            anyhow::Ok(messages)
        });
    }
    let mut messages = 0;
    while let Some(read) = tasks.join_next().await {
        messages += read??;
    }
    let spent = meter::cpu_us(&target.pids())? - before;
    quiet(target).await?;
    Ok(per(spent, messages))
}

/// Reads an archive from its beginning to its end, or until then; counts messages.
async fn read(probe: &mut Probe, pages: &mut usize, until: Instant) -> Result<u64> {
    let (mut messages, mut after) = (0, None);
    loop {
        *pages += 1;
        let page = page(probe, after.as_deref(), *pages).await?;
        let page = page.context("the archive is gone")?;
        messages += page.messages;
        after = page.last;
        if after.is_none() || Instant::now() > until {
            return Ok(messages);
        }
    }
}

/// Asks for a page; `None` when the answer is an error.
async fn page(probe: &mut Probe, after: Option<&str>, n: usize) -> Result<Option<Page>> {
    let after = after.map_or(String::new(), |id| format!("<after>{id}</after>"));
    let query = format!(
        "<iq type='set' id='page{n}'><query xmlns='urn:xmpp:mam:2'>\
         <set xmlns='http://jabber.org/protocol/rsm'><max>{PAGE}</max>{after}</set></query></iq>"
    );
    probe.send(&query).await?;
    let mut bytes = Vec::new();
    let mut chunk = vec![0; 64 * 1024];
    // Either quotation mark; the id is in the answer only.
    let ids = [format!("id='page{n}'"), format!("id=\"page{n}\"")];
    loop {
        let read = probe.tls.read(&mut chunk).await?;
        if read == 0 || bytes.len() > PAGE_BYTES {
            bail!("no page");
        }
        bytes.extend_from_slice(&chunk[..read]);
        let Some(at) = ids
            .iter()
            .find_map(|id| memmem::rfind(&bytes, id.as_bytes()))
        else {
            continue;
        };
        let answer = String::from_utf8_lossy(&bytes[at..]);
        if !answer.contains("</iq>") {
            continue;
        }
        if !answer.contains("<fin") {
            return Ok(None);
        }
        let complete = answer.contains("complete='true'") || answer.contains("complete=\"true\"");
        let last = answer
            .split_once("<last>")
            .and_then(|(_, rest)| rest.split_once("</last>"));
        return Ok(Some(Page {
            messages: memmem::find_iter(&bytes, b"<result ").count() as u64,
            last: last.map(|(id, _)| id.to_owned()).filter(|_| !complete),
        }));
    }
}
