//! A session that reads by itself: counts what comes and acknowledges when it is asked to (XEP-0198).
//! Looks for tags only; no XML tree.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use anyhow::{Result, bail};
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::net::TcpStream;
use tokio::sync::{Mutex, Notify};
use tokio::task::JoinSet;
use tokio_rustls::client::TlsStream;

use crate::probe::Probe;

/// Tags of more bytes than this are not what these phases are about.
const TAG_BYTES: usize = 256 * 1024;
/// Of what came last, in which a stream error is looked for when the server ends a stream.
const LAST_WORDS: usize = 512;

/// One side of it: whoever writes, and looks at the counts.
pub struct Live {
    write: Mutex<WriteHalf<TlsStream<TcpStream>>>,
    /// Stanzas since stream management was enabled.
    stanzas: AtomicU64,
    /// Presence of others.
    heard: AtomicU64,
    /// Presence of the own account.
    echoed: AtomicU64,
    messages: AtomicU64,
    over: AtomicBool,
    changed: Notify,
}

impl Live {
    /// Reads from now on, in a task of `tasks`, which fails when the server ends the stream.
    pub fn start(probe: Probe, account: &str, tasks: &mut JoinSet<Result<()>>) -> Arc<Self> {
        let stanzas = probe.stanzas;
        let (read, write) = tokio::io::split(probe.tls);
        let live = Arc::new(Self {
            write: Mutex::new(write),
            stanzas: AtomicU64::new(stanzas),
            heard: AtomicU64::new(0),
            echoed: AtomicU64::new(0),
            messages: AtomicU64::new(0),
            over: AtomicBool::new(false),
            changed: Notify::new(),
        });
        tasks.spawn(read_on(read, format!("{account}@"), Arc::clone(&live)));
        live
    }

    /// Writes.
    pub async fn send(&self, text: &str) -> Result<()> {
        let mut write = self.write.lock().await;
        write.write_all(text.as_bytes()).await?;
        write.flush().await?;
        Ok(())
    }

    /// Acknowledges everything and ends the stream.
    pub async fn close(&self) -> Result<()> {
        self.over();
        let h = self.stanzas();
        self.send(&format!(
            "<a xmlns='urn:xmpp:sm:3' h='{h}'/></stream:stream>"
        ))
        .await
    }

    /// The server may end the stream now; whoever waits stops waiting.
    pub fn over(&self) {
        self.over.store(true, Ordering::Relaxed);
        self.changed.notify_one();
    }

    pub fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }

    /// Until something else has come, or it is over.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }

    pub fn stanzas(&self) -> u64 {
        self.stanzas.load(Ordering::Relaxed)
    }

    pub fn heard(&self) -> u64 {
        self.heard.load(Ordering::Relaxed)
    }

    /// All presence that came.
    pub fn presences(&self) -> u64 {
        self.heard() + self.echoed.load(Ordering::Relaxed)
    }

    pub fn messages(&self) -> u64 {
        self.messages.load(Ordering::Relaxed)
    }

    fn count(&self, counter: &AtomicU64) {
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

async fn read_on(
    mut read: ReadHalf<TlsStream<TcpStream>>,
    own: String,
    live: Arc<Live>,
) -> Result<()> {
    let mut buffer: Vec<u8> = Vec::with_capacity(8 * 1024);
    let mut chunk = vec![0u8; 16 * 1024];
    let mut said = Vec::with_capacity(2 * LAST_WORDS);
    loop {
        let n = read.read(&mut chunk).await.unwrap_or(0);
        if n == 0 {
            if live.is_over() {
                return Ok(());
            }
            bail!("the server has ended a stream: {}", last_words(&said));
        }
        buffer.extend_from_slice(&chunk[..n]);
        said.extend_from_slice(&chunk[n.saturating_sub(LAST_WORDS)..n]);
        said.drain(..said.len().saturating_sub(LAST_WORDS));
        let mut at = 0;
        let mut asked = false;
        while let Some(end) = memchr::memchr(b'>', &buffer[at..]) {
            let tag = &buffer[at..=at + end];
            if is_end(tag) {
                live.count(&live.stanzas);
            }
            if tag.starts_with(b"<presence") {
                let (from, other) = (format!("from='{own}"), format!("from=\"{own}"));
                let echoed = contains(tag, &from) || contains(tag, &other);
                live.count(if echoed { &live.echoed } else { &live.heard });
            } else if tag.ends_with(b"</message>") {
                live.count(&live.messages);
            } else if tag.starts_with(b"<r ") || tag == b"<r/>" {
                asked = true;
            }
            at += end + 1;
        }
        buffer.drain(..at);
        if buffer.len() > TAG_BYTES {
            bail!("a tag without an end");
        }
        live.changed.notify_one();
        if asked {
            let h = live.stanzas();
            live.send(&format!("<a xmlns='urn:xmpp:sm:3' h='{h}'/>"))
                .await?;
        }
    }
}

/// The stream error in what came last, or nothing.
fn last_words(said: &[u8]) -> String {
    let said = String::from_utf8_lossy(said);
    let error = said.find("<stream:error").unwrap_or(said.len());
    said[error..].to_owned()
}

fn contains(tag: &[u8], text: &str) -> bool {
    memchr::memmem::find(tag, text.as_bytes()).is_some()
}

/// Does a stanza end with this tag (and the text before it)?
pub fn is_end(tag: &[u8]) -> bool {
    ["message", "presence", "iq"].iter().any(|name| {
        let name = name.as_bytes();
        let named = |tag: &[u8]| tag.get(..name.len()) == Some(name);
        // An end tag may have text before it.
        let closed = tag.strip_suffix(b">").is_some_and(|tag| {
            tag.ends_with(name) && tag[..tag.len() - name.len()].ends_with(b"</")
        });
        closed || tag.ends_with(b"/>") && tag.strip_prefix(b"<").is_some_and(named)
    })
}
