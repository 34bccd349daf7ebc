//! A disk in memory under SQLite: a layer (VFS) that keeps a trace of what was written, synced, cut
//! off and deleted, so that what a power cut leaves can be made of it ([`crate::power`]).
//!
//! Owns files, locks and the shared index of the write-ahead log, all in this process. Refuses to lose
//! anything by itself, and to judge. SQLite is told what is true of the disks that we run on: bytes
//! beside those written do not change; nothing is atomic, nothing in order.
//!
//! The crate `sqlite-vfs` has the unsafe half. It copies the index at each lock, so connections to one
//! file have to take turns; in tests they do.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io::{Error, ErrorKind};
use std::ops::Range;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use parking_lot::Mutex;
use sqlite_vfs::wip::{WalIndex, WalIndexLock};
use sqlite_vfs::{DatabaseHandle, LockKind, OpenAccess, OpenKind, OpenOptions, Vfs};

/// Paths below are on simulated disks: `/simulated/<disk>/<file>`.
pub const ROOT: &str = "/simulated";
/// The layer's name in SQLite.
const NAME: &str = "simulated";
/// Bytes of one part of the write-ahead log's index.
const REGION: usize = 32_768;

/// The files of a disk, by name.
pub type Image = BTreeMap<String, Vec<u8>>;

/// What was done to a disk, in this order. Files have numbers, in the order of their creation; those of the
/// image come first.
#[derive(Clone, Debug)]
pub enum Op {
    Create {
        file: usize,
        name: String,
        /// SQLite syncs the directory together with the first sync of this one.
        journal: bool,
    },
    Delete {
        name: String,
    },
    Write {
        file: usize,
        at: usize,
        bytes: Vec<u8>,
    },
    Truncate {
        file: usize,
        size: usize,
    },
    Sync {
        file: usize,
    },
}

#[derive(Default)]
struct State {
    names: BTreeMap<String, usize>,
    files: Vec<Vec<u8>>,
    trace: Vec<Op>,
    locks: HashMap<usize, Locks>,
    handles: u64,
}

/// Locks on one file, by the numbers of handles.
#[derive(Default)]
struct Locks {
    shared: BTreeSet<u64>,
    /// Reserved or exclusive.
    writer: Option<(u64, LockKind)>,
    index: HashMap<u8, IndexLock>,
    regions: HashMap<u32, Box<[u8; REGION]>>,
}

#[derive(Clone)]
enum IndexLock {
    Shared(BTreeSet<u64>),
    Exclusive(u64),
}

/// A disk. It goes away with this value; connections should be closed before.
pub struct Disk {
    number: u64,
    state: Arc<Mutex<State>>,
}

type Disks = Mutex<HashMap<u64, Arc<Mutex<State>>>>;

static DISKS: OnceLock<Disks> = OnceLock::new();
static NEXT: AtomicU64 = AtomicU64::new(1);
static REGISTERED: OnceLock<bool> = OnceLock::new();

fn disks() -> &'static Disks {
    DISKS.get_or_init(Disks::default)
}

/// Registers the layer with SQLite, once in a process, and gives its name.
pub fn layer() -> anyhow::Result<&'static str> {
    let registered = REGISTERED.get_or_init(|| sqlite_vfs::register(NAME, Layer, false).is_ok());
    anyhow::ensure!(*registered, "SQLite does not take the layer");
    Ok(NAME)
}

impl Disk {
    /// A disk with these files, all of them synced.
    pub fn new(image: Image) -> Self {
        let mut state = State::default();
        for (name, bytes) in image {
            state.names.insert(name, state.files.len());
            state.files.push(bytes);
        }
        let number = NEXT.fetch_add(1, Ordering::SeqCst);
        let state = Arc::new(Mutex::new(state));
        disks().lock().insert(number, Arc::clone(&state));
        Self { number, state }
    }

    /// The path of a file on it.
    pub fn path(&self, name: &str) -> PathBuf {
        PathBuf::from(format!("{ROOT}/{}/{name}", self.number))
    }

    /// How much was done to it so far.
    pub fn position(&self) -> usize {
        self.state.lock().trace.len()
    }

    /// What was done to it.
    pub fn trace(&self) -> Vec<Op> {
        self.state.lock().trace.clone()
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        disks().lock().remove(&self.number);
    }
}

/// What SQLite calls.
struct Layer;

/// The disk and the name that a path means.
fn place(path: &str) -> Result<(Arc<Mutex<State>>, String), Error> {
    let rest = path.strip_prefix(ROOT).and_then(|r| r.strip_prefix('/'));
    let (number, name) = rest
        .and_then(|rest| rest.split_once('/'))
        .ok_or(ErrorKind::NotFound)?;
    let number: u64 = number.parse().map_err(|_| ErrorKind::NotFound)?;
    let state = disks().lock().get(&number).map(Arc::clone);
    Ok((state.ok_or(ErrorKind::NotFound)?, name.to_owned()))
}

impl Vfs for Layer {
    type Handle = File;

    fn open(&self, path: &str, options: OpenOptions) -> Result<File, Error> {
        let (disk, name) = place(path)?;
        let mut state = disk.lock();
        let file = match (state.names.get(&name).copied(), options.access) {
            (Some(_), OpenAccess::CreateNew) => return Err(ErrorKind::AlreadyExists.into()),
            (Some(file), _) => file,
            (None, OpenAccess::Read | OpenAccess::Write) => return Err(ErrorKind::NotFound.into()),
            (None, OpenAccess::Create | OpenAccess::CreateNew) => {
                let file = state.files.len();
                state.files.push(Vec::new());
                state.names.insert(name.clone(), file);
                let journals = [OpenKind::Wal, OpenKind::MainJournal, OpenKind::SuperJournal];
                state.trace.push(Op::Create {
                    file,
                    name,
                    journal: journals.contains(&options.kind),
                });
                file
            }
        };
        state.handles += 1;
        let id = state.handles;
        drop(state);
        Ok(File { disk, file, id })
    }

    fn delete(&self, path: &str) -> Result<(), Error> {
        let (disk, name) = place(path)?;
        let mut state = disk.lock();
        state.names.remove(&name).ok_or(ErrorKind::NotFound)?;
        state.trace.push(Op::Delete { name });
        Ok(())
    }

    fn exists(&self, path: &str) -> Result<bool, Error> {
        let (disk, name) = place(path)?;
        let state = disk.lock();
        // SQLite asks whether a journal is there, and an empty one is none.
        Ok(state.names.contains_key(&name))
    }

    fn temporary_name(&self) -> String {
        // Temporary tables are in memory: no file of this name is ever opened.
        format!("{ROOT}/none/temporary")
    }

    fn random(&self, buffer: &mut [i8]) {
        // The same in each run: SQLite seeds the salts of its log with it.
        for (byte, value) in buffer.iter_mut().zip((1..=i8::MAX).cycle()) {
            *byte = value;
        }
    }

    fn sleep(&self, duration: Duration) -> Duration {
        std::thread::sleep(duration);
        duration
    }

    fn full_pathname<'a>(&self, path: &'a str) -> Result<Cow<'a, str>, Error> {
        Ok(path.into())
    }
}

/// An open file.
pub struct File {
    disk: Arc<Mutex<State>>,
    file: usize,
    id: u64,
}

fn usize_of(value: u64) -> Result<usize, Error> {
    usize::try_from(value).map_err(|_| ErrorKind::InvalidInput.into())
}

impl DatabaseHandle for File {
    type WalIndex = Index;

    fn size(&self) -> Result<u64, Error> {
        let state = self.disk.lock();
        Ok(state.files.get(self.file).map_or(0, |f| f.len() as u64))
    }

    fn read_exact_at(&mut self, buffer: &mut [u8], offset: u64) -> Result<(), Error> {
        let state = self.disk.lock();
        let file = state.files.get(self.file).map_or(&[][..], Vec::as_slice);
        let there = file.get(usize_of(offset)?..).unwrap_or_default();
        let there = there.get(..buffer.len()).unwrap_or(there);
        // What is not there reads as zeros: SQLite counts on it.
        let (head, rest) = buffer.split_at_mut(there.len());
        head.copy_from_slice(there);
        rest.fill(0);
        if rest.is_empty() {
            Ok(())
        } else {
            Err(ErrorKind::UnexpectedEof.into())
        }
    }

    fn write_all_at(&mut self, buffer: &[u8], offset: u64) -> Result<(), Error> {
        let at = usize_of(offset)?;
        let mut state = self.disk.lock();
        if let Some(file) = state.files.get_mut(self.file) {
            write(file, at, buffer);
        }
        state.trace.push(Op::Write {
            file: self.file,
            at,
            bytes: buffer.to_vec(),
        });
        Ok(())
    }

    fn sync(&mut self, _data_only: bool) -> Result<(), Error> {
        self.disk.lock().trace.push(Op::Sync { file: self.file });
        Ok(())
    }

    fn set_len(&mut self, size: u64) -> Result<(), Error> {
        let size = usize_of(size)?;
        let mut state = self.disk.lock();
        let Some(file) = state.files.get_mut(self.file) else {
            return Ok(());
        };
        if file.len() != size {
            file.resize(size, 0);
            let file = self.file;
            state.trace.push(Op::Truncate { file, size });
        }
        Ok(())
    }

    fn lock(&mut self, kind: LockKind) -> Result<bool, Error> {
        let mut state = self.disk.lock();
        let locks = state.locks.entry(self.file).or_default();
        let others_write = locks.writer.filter(|(id, _)| *id != self.id);
        let others_read = locks.shared.iter().any(|id| *id != self.id);
        let given = match kind {
            LockKind::None => {
                locks.release(self.id);
                true
            }
            LockKind::Shared => {
                let free = others_write.is_none_or(|(_, kind)| kind == LockKind::Reserved);
                if free {
                    locks.release(self.id);
                    locks.shared.insert(self.id);
                }
                free
            }
            LockKind::Reserved | LockKind::Pending => {
                let free = others_write.is_none();
                if free {
                    locks.writer = Some((self.id, LockKind::Reserved));
                }
                free
            }
            LockKind::Exclusive => {
                let free = others_write.is_none() && !others_read;
                if free {
                    locks.writer = Some((self.id, LockKind::Exclusive));
                }
                free
            }
        };
        Ok(given)
    }

    fn reserved(&mut self) -> Result<bool, Error> {
        let state = self.disk.lock();
        let locks = state.locks.get(&self.file);
        Ok(locks.is_some_and(|locks| locks.writer.is_some()))
    }

    fn current_lock(&self) -> Result<LockKind, Error> {
        let state = self.disk.lock();
        let Some(locks) = state.locks.get(&self.file) else {
            return Ok(LockKind::None);
        };
        let own = locks.writer.filter(|(id, _)| *id == self.id);
        Ok(match own {
            Some((_, kind)) => kind,
            None if locks.shared.contains(&self.id) => LockKind::Shared,
            None => LockKind::None,
        })
    }

    fn wal_index(&self, _readonly: bool) -> Result<Index, Error> {
        Ok(Index {
            disk: Arc::clone(&self.disk),
            file: self.file,
            id: self.id,
        })
    }
}

impl Drop for File {
    fn drop(&mut self) {
        let mut state = self.disk.lock();
        if let Some(locks) = state.locks.get_mut(&self.file) {
            locks.release(self.id);
        }
    }
}

impl Locks {
    fn release(&mut self, id: u64) {
        self.shared.remove(&id);
        self.writer = self.writer.filter(|(other, _)| *other != id);
    }

    fn release_index(&mut self, slot: u8, id: u64) {
        let left = match self.index.remove(&slot) {
            Some(IndexLock::Shared(mut ids)) => {
                ids.remove(&id);
                (!ids.is_empty()).then_some(IndexLock::Shared(ids))
            }
            Some(IndexLock::Exclusive(other)) if other != id => Some(IndexLock::Exclusive(other)),
            _ => None,
        };
        if let Some(left) = left {
            self.index.insert(slot, left);
        }
    }
}

/// Writes into a file's bytes; a gap before them reads as zeros.
pub(crate) fn write(file: &mut Vec<u8>, at: usize, bytes: &[u8]) {
    let end = at + bytes.len();
    if file.len() < end {
        file.resize(end, 0);
    }
    if let Some(place) = file.get_mut(at..end) {
        place.copy_from_slice(bytes);
    }
}

/// A connection's half of the index that all connections to a file share. It is in memory only:
/// after a power cut it is made again from the log.
pub struct Index {
    disk: Arc<Mutex<State>>,
    file: usize,
    id: u64,
}

impl WalIndex for Index {
    fn map(&mut self, region: u32) -> Result<[u8; REGION], Error> {
        let mut state = self.disk.lock();
        let locks = state.locks.entry(self.file).or_default();
        let bytes = locks.regions.entry(region);
        Ok(**bytes.or_insert_with(|| Box::new([0; REGION])))
    }

    fn lock(&mut self, slots: Range<u8>, kind: WalIndexLock) -> Result<bool, Error> {
        let mut state = self.disk.lock();
        let locks = state.locks.entry(self.file).or_default();
        let free = slots
            .clone()
            .all(|slot| match (locks.index.get(&slot), kind) {
                (None, _) | (_, WalIndexLock::None) => true,
                (Some(IndexLock::Shared(_)), WalIndexLock::Shared) => true,
                (Some(IndexLock::Shared(ids)), WalIndexLock::Exclusive) => {
                    ids.iter().all(|id| *id == self.id)
                }
                (Some(IndexLock::Exclusive(id)), _) => *id == self.id,
            });
        if !free {
            return Ok(false);
        }
        for slot in slots {
            match (kind, locks.index.get_mut(&slot)) {
                (WalIndexLock::Shared, Some(IndexLock::Shared(ids))) => {
                    ids.insert(self.id);
                }
                (WalIndexLock::Shared, _) => {
                    let ids = BTreeSet::from([self.id]);
                    locks.index.insert(slot, IndexLock::Shared(ids));
                }
                (WalIndexLock::Exclusive, _) => {
                    locks.index.insert(slot, IndexLock::Exclusive(self.id));
                }
                (WalIndexLock::None, _) => locks.release_index(slot, self.id),
            }
        }
        Ok(true)
    }

    fn delete(self) -> Result<(), Error> {
        let mut state = self.disk.lock();
        if let Some(locks) = state.locks.get_mut(&self.file) {
            locks.regions.clear();
        }
        Ok(())
    }

    fn pull(&mut self, region: u32, data: &mut [u8; REGION]) -> Result<(), Error> {
        let state = self.disk.lock();
        let locks = state.locks.get(&self.file);
        if let Some(bytes) = locks.and_then(|locks| locks.regions.get(&region)) {
            data.copy_from_slice(&**bytes);
        }
        Ok(())
    }

    fn push(&mut self, region: u32, data: &[u8; REGION]) -> Result<(), Error> {
        let mut state = self.disk.lock();
        let locks = state.locks.entry(self.file).or_default();
        locks.regions.insert(region, Box::new(*data));
        Ok(())
    }
}

impl Drop for Index {
    fn drop(&mut self) {
        let mut state = self.disk.lock();
        if let Some(locks) = state.locks.get_mut(&self.file) {
            for slot in 0..8 {
                locks.release_index(slot, self.id);
            }
        }
    }
}
