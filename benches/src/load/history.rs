//! The archive phase: a few users page through what the chat phases have left in their archives
//! (XEP-0313), forward, as a client does that comes back. Counts messages by a few words; no XML tree.

use anyhow::{Context, Result, bail};
use memchr::memmem;
use tokio::io::AsyncReadExt;
use tokio::task::JoinSet;

use crate::meter;
use crate::phases::Target;
use crate::probe::Probe;

/// Users who page at once.
const READERS: usize = 8;
/// Messages of a page.
const PAGE: u32 = 100;
/// Pages of one user at most.
const PAGES: usize = 50;
/// Bytes that a page may have: whoever sends more has not understood the question.
const PAGE_BYTES: usize = 4 * 1024 * 1024;

/// One page as it came.
struct Page {
    messages: u64,
    /// Where the next one begins; `None` at the end.
    last: Option<String>,
}

/// Microseconds of CPU a message that was paged; `None` where there is no archive.
pub async fn measure(target: &dyn Target) -> Result<Option<f64>> {
    let mut readers = Vec::new();
    for n in 0..READERS {
        readers.push(Probe::login(&target.account(n), "history").await?);
    }
    // What is read for the first time is read from the disk.
    let Some(first) = page(&mut readers[0], None, 0).await? else {
        return Ok(None);
    };
    if first.messages == 0 {
        return Ok(None);
    }
    let before = meter::cpu_us(&target.pids())?;
    let mut tasks = JoinSet::new();
    for mut reader in readers {
        tasks.spawn(async move {
            let (mut messages, mut after) = (0, None);
            for n in 1..=PAGES {
                let page = page(&mut reader, after.as_deref(), n).await?;
                let page = page.context("the archive is gone")?;
                messages += page.messages;
                after = page.last;
                if after.is_none() {
                    break;
                }
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
    if messages == 0 {
        return Ok(None);
    }
    Ok(Some(spent as f64 / messages as f64))
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
