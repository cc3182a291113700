//! The store: records in files.
//!
//! | verb | what its one step does |
//! |---|---|
//! | load | reads the file; no lock, and no thread when the file is in memory |
//! | insert, replace, touch | reads, compares, writes a new file and renames it into place |
//! | delete | reads, removes the file |
//!
//! A damaged record is an error for every verb, `delete` and `insert` included: what cannot be read cannot be
//! told apart from what somebody needs, so it stays where it is until a person moves it. The error names the
//! file.

use crate::{
    FileConfig, FileDurability,
    format::{HEADER, Header, Lock, Record},
    fs::{Flock, Fs},
    layout::{FORMAT, Layout, SHARDS, shard_of},
    owner::{self, Owner},
    shard::{Shard, THREADS, blocking},
};
use async_trait::async_trait;
use session_core::{
    Capabilities, Deleted, Effect, Error, ErrorKind, Inserted, Put, Replaced, Result, SessionIndex,
    SessionStore, SessionSweeper, StorageKey, Stored, Touched, Version,
};
use std::{
    io,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::sync::{Mutex, Semaphore};

/// Records up to this size are read on the spot when they are in memory: copying and checking them takes
/// microseconds, less than the way to another thread and back.
const ON_THE_SPOT: usize = 64 << 10;

/// Sessions in files. Cheap to clone: clones share one owner file, and the leases that it stands for.
#[derive(Clone, Debug)]
pub struct FileStore {
    pub(crate) shared: Arc<Shared>,
}

#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) config: FileConfig,
    pub(crate) layout: Layout,
    pub(crate) owner: Owner,
    /// One for each directory of records.
    pub(crate) shards: Vec<Place>,
    /// What each step at work has one of.
    pub(crate) threads: Arc<Semaphore>,
    /// How many steps were done at all.
    pub(crate) steps: AtomicUsize,
    /// The directory of records where the last sweep stopped.
    pub(crate) swept: AtomicUsize,
}

/// What a store knows of a directory of records.
#[derive(Debug, Default)]
pub(crate) struct Place {
    /// Stands in front of the flock.
    pub(crate) queue: Arc<Mutex<()>>,
    /// How many steps were done there: whether the queue moves.
    pub(crate) steps: AtomicUsize,
    /// Whether the disk surely has the name of the directory. It is never removed, so once is enough.
    pub(crate) has_name: AtomicBool,
    /// Whether a record there has got or lost its name for all to see, and the disk may not know. Changed
    /// under the flock, which therefore those take who look meanwhile.
    pub(crate) unsynced: AtomicBool,
}

impl FileStore {
    /// Opens the store, creating what is not there: some blocking file calls, for the start of a program.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] for settings that cannot be used, and for a directory with the layout of
    /// another version; [`ErrorKind::Unsupported`] where the file system does not lock;
    /// [`ErrorKind::Unavailable`] or [`ErrorKind::Backend`] when a file call fails.
    pub fn open(mut config: FileConfig) -> Result<Self> {
        config.check()?;
        let failed = |path: &Path, error| io_error(OPEN, Effect::None, path, error);
        // A program that changes its directory later goes on with the same sessions.
        config.root = std::path::absolute(&config.root).map_err(|error| failed(&config.root, error))?;
        let (fs, names_last) = (&*config.fs, config.durability == FileDurability::FileAndDirectory);
        // A link is not opened; what is locked and synced is what it leads to.
        config.root = create_all(fs, &config.root, names_last)
            .and_then(|()| fs.real_path(&config.root))
            .map_err(|error| failed(&config.root, error))?;
        let layout = Layout::new(&config.root);
        check_format(&config, &layout)?;
        for path in [layout.records(), layout.users(), layout.owners()] {
            fs.create_dir(&path).map_err(|error| failed(&path, error))?;
        }
        if names_last {
            // Whoever has created them may not have come to this line yet.
            sync(fs, layout.root()).map_err(|error| failed(layout.root(), error))?;
        }
        if !locks_work(fs, &layout.records()).map_err(|error| failed(&layout.records(), error))? {
            return Err(no_locks(&layout.records()));
        }
        let owner = Owner::create(&config.fs, &layout, &*config.random, failed)?;
        let path = layout.owner(owner.id);
        if owner::is_dead(fs, &path).map_err(|error| failed(&path, error))? {
            return Err(no_locks(&path));
        }
        let shards = (0..SHARDS).map(|_| Place::default()).collect();
        let threads = Arc::new(Semaphore::new(THREADS));
        let (steps, swept) = (AtomicUsize::new(0), AtomicUsize::new(0));
        Ok(Self { shared: Arc::new(Shared { config, layout, owner, shards, threads, steps, swept }) })
    }

    /// What is to be stored, under a new version. Fails before anything is touched.
    pub(crate) fn draft(&self, put: &Put, operation: &'static str) -> Result<Draft> {
        let limit = self.shared.config.max_value;
        if put.data.len() > limit {
            return Err(Error::new(ErrorKind::TooLarge, operation)
                .with_context(format!("{} bytes, at most {limit}", put.data.len())));
        }
        Ok(Draft { version: Version::random(&*self.shared.config.random)?, put: put.clone() })
    }
}

/// A record that has no expiry yet: it lives from the moment when it is written, not when that was asked for.
#[derive(Debug)]
pub(crate) struct Draft {
    version: Version,
    put: Put,
}

impl Draft {
    pub(crate) fn at(self, now: Duration) -> Record {
        let Put { data, ttl, principal, .. } = self.put;
        Record { version: self.version, expires: now.saturating_add(ttl), principal, data }
    }
}

const OPEN: &str = "open";

/// Creates the root and what is missing above it, and syncs the new names if it is to survive a loss of
/// power.
fn create_all(fs: &dyn Fs, path: &Path, sync_names: bool) -> io::Result<()> {
    let Some(above) = path.parent() else { return Ok(()) };
    let created = match fs.create_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            create_all(fs, above, sync_names)?;
            fs.create_dir(path)?
        }
        other => other?,
    };
    if !(created && sync_names) {
        return Ok(());
    }
    fs.real_path(above).and_then(|above| sync(fs, &above)).inspect_err(|_| {
        // Were it left, the next who opens the store would take its name for synced.
        let _not_empty = fs.remove_dir(path);
    })
}

/// Waits until the disk has the names in a directory.
pub(crate) fn sync(fs: &dyn Fs, directory: &Path) -> io::Result<()> {
    fs.sync(&fs.open(directory)?)
}

/// Whether this tree is one of ours. Written beside and renamed: those who open a new store at once write the
/// same.
fn check_format(config: &FileConfig, layout: &Layout) -> Result<()> {
    let (fs, path) = (&*config.fs, layout.format());
    let failed = |error| io_error(OPEN, Effect::None, &path, error);
    let read = |path: &Path| -> io::Result<Vec<u8>> {
        let file = fs.open(path)?;
        let mut bytes = vec![0; FORMAT.len() + 1];
        let size = usize::try_from(fs.size(&file)?.unwrap_or(0)).unwrap_or(usize::MAX).min(bytes.len());
        bytes.truncate(size);
        fs.read(&file, &mut bytes, 0)?;
        Ok(bytes)
    };
    match read(&path) {
        Ok(bytes) if bytes == FORMAT => Ok(()),
        Ok(_) => Err(Error::new(ErrorKind::Invalid, OPEN).with_context(format!(
            "{} does not say {:?}: another version's sessions, or none",
            path.display(),
            String::from_utf8_lossy(FORMAT).trim_end()
        ))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let mut dice = [0; 8];
            config.random.fill(&mut dice)?;
            let temp = path.with_extension(format!("{:016x}", u64::from_be_bytes(dice)));
            let written = fs.create_new(&temp).and_then(|file| {
                fs.write(&file, FORMAT)?;
                // Whatever the durability: were it empty after a loss of power, nobody could open the store.
                fs.sync(&file)
            });
            written.and_then(|()| fs.rename(&temp, &path)).map_err(|error| {
                // The first error counts; what is left is an empty file with a telling name.
                let _left_behind = fs.remove_file(&temp);
                failed(error)
            })
        }
        Err(error) => Err(failed(error)),
    }
}

/// Whether two who open the same directory exclude each other: on some file systems a flock fails, on some it
/// does nothing.
fn locks_work(fs: &dyn Fs, path: &Path) -> io::Result<bool> {
    let (first, second) = (fs.open(path)?, fs.open(path)?);
    let both = || Ok(fs.try_lock(&first, Flock::Exclusive)? && fs.try_lock(&second, Flock::Exclusive)?);
    // A first one that is refused has met somebody's who opens the store at the same time: it works, too.
    both().map_or_else(
        |error: io::Error| if is_unsupported(&error) { Ok(false) } else { Err(error) },
        |both| Ok(!both),
    )
}

/// What a file system that cannot flock a directory answers; NFS: that it is not open for writing.
fn is_unsupported(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::Unsupported
        || error.raw_os_error() == Some(rustix::io::Errno::BADF.raw_os_error())
        || error.raw_os_error() == Some(rustix::io::Errno::NOLCK.raw_os_error())
}

fn no_locks(path: &Path) -> Error {
    Error::new(ErrorKind::Unsupported, OPEN).with_context(format!(
        "flock does not work on {}: put the sessions on a local file system",
        path.display()
    ))
}

/// The error of a file call.
pub(crate) fn io_error(operation: &'static str, effect: Effect, path: &Path, error: io::Error) -> Error {
    use io::ErrorKind as Kind;
    // What may pass by itself, or with the disk that is mounted again. Too many open files have no kind of
    // their own.
    let passing = matches!(
        error.kind(),
        Kind::StorageFull
            | Kind::QuotaExceeded
            | Kind::NotFound
            | Kind::TimedOut
            | Kind::ResourceBusy
            | Kind::OutOfMemory
    ) || error.raw_os_error().is_some_and(|code| {
        [rustix::io::Errno::MFILE, rustix::io::Errno::NFILE].iter().any(|errno| errno.raw_os_error() == code)
    });
    let raise = if passing { Error::unavailable } else { Error::backend };
    raise(operation, error).with_effect(effect).with_context(path.display().to_string())
}

impl Shared {
    pub(crate) fn fs(&self) -> &dyn Fs {
        &*self.config.fs
    }

    pub(crate) fn failed(
        &self,
        operation: &'static str,
        effect: Effect,
        path: &Path,
        error: io::Error,
    ) -> Error {
        io_error(operation, effect, path, error)
    }

    /// The record, live or expired. Needs no lock: a file is complete before it gets its name, and never
    /// changed after.
    pub(crate) fn read_record(&self, operation: &'static str, key: &StorageKey) -> Result<Option<Record>> {
        let path = self.layout.record(key);
        let damaged = |why: &str| {
            Error::new(ErrorKind::Damaged, operation).with_context(format!("{}: {why}", path.display()))
        };
        let failed = |error: io::Error| match error.kind() {
            io::ErrorKind::UnexpectedEof => damaged("cut off while it was read"),
            io::ErrorKind::IsADirectory => damaged("a directory"),
            _ if error.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error()) => damaged("a link"),
            _ => self.failed(operation, Effect::None, &path, error),
        };
        let file = match self.fs().open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return self.is_there(operation, &self.layout.records()).map(|()| None);
            }
            opened => opened.map_err(failed)?,
        };
        let Some(size) = self.fs().size(&file).map_err(failed)? else { return Err(damaged("not a file")) };
        let size = usize::try_from(size).unwrap_or(usize::MAX);
        let mut bytes = vec![0; size.min(ON_THE_SPOT)];
        self.fs().read(&file, &mut bytes, 0).map_err(failed)?;
        if size > ON_THE_SPOT {
            // Believed only after a look at the header: memory is not given to whatever lies there.
            let header = Header::parse(&bytes).map_err(damaged)?;
            if header.length != size - HEADER {
                return Err(damaged("cut off, or longer than it says"));
            }
            bytes.resize(size, 0);
            self.fs().read(&file, &mut bytes[ON_THE_SPOT..], ON_THE_SPOT as u64).map_err(failed)?;
        }
        Record::decode(key, bytes).map(Some).map_err(damaged)
    }

    /// The record if it is in memory and fine. Anything else is for [`read_record`](Self::read_record) to
    /// judge, absence too: it may be that of the whole store.
    fn read_cached(&self, key: &StorageKey) -> Option<Record> {
        let bytes = self.fs().read_cached(&self.layout.record(key), ON_THE_SPOT).ok()??;
        Record::decode(key, bytes).ok()
    }

    /// For what was not found below this directory: an error if the directory is not there either. The root
    /// was moved away then, or is not mounted, and nothing is known of its sessions.
    pub(crate) fn is_there(&self, operation: &'static str, directory: &Path) -> Result<()> {
        let opened = self.fs().open(directory).map(drop);
        opened.map_err(|error| self.failed(operation, Effect::None, directory, error))
    }

    /// Who holds the lock of a session, and who is next, be they alive or not.
    ///
    /// A file that cannot be read names nobody: it is a first lease that a crash has cut short, or torn by a
    /// loss of power, which its owner did not survive. Whoever may have held it all the same is told at its
    /// write, which the lock no longer covers.
    pub(crate) fn read_lock(&self, operation: &'static str, key: &StorageKey) -> Result<Lock> {
        let path = self.layout.lock(key);
        let read = || -> io::Result<Lock> {
            let file = self.fs().open(&path)?;
            if self.fs().size(&file)? != Some(Lock::LEN as u64) {
                return Ok(Lock::default());
            }
            let mut bytes = [0; Lock::LEN];
            self.fs().read(&file, &mut bytes, 0)?;
            Ok(Lock::decode(&bytes).unwrap_or_default())
        };
        match read() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Lock::default()),
            other => other.map_err(|error| self.failed(operation, Effect::None, &path, error)),
        }
    }
}

impl Shard<'_> {
    fn insert(&self, key: &StorageKey, draft: Draft) -> Result<Inserted> {
        let now = self.shared.config.clock.now();
        let before = self.read(key)?;
        if before.as_ref().is_some_and(|record| record.is_live(now)) {
            return Ok(Inserted::Exists);
        }
        let new = draft.at(now);
        self.write(key, before.and_then(|record| record.principal), &new)?;
        Ok(Inserted::Created(new.version))
    }

    fn touch(&self, key: &StorageKey, expected: Version, ttl: Duration) -> Result<Touched> {
        let Some(record) = self.live(key)? else { return Ok(Touched::Missing) };
        if record.version != expected {
            return Ok(Touched::Conflict);
        }
        let expires = self.shared.config.clock.now().saturating_add(ttl);
        self.write(key, record.principal, &Record { expires, ..record })?;
        Ok(Touched::Extended)
    }

    pub(crate) fn delete(&self, key: &StorageKey) -> Result<Deleted> {
        let Some(record) = self.read(key)? else { return Ok(Deleted::Missing) };
        let now = self.shared.config.clock.now();
        self.remove(key, record.principal)?;
        Ok(if record.is_live(now) { Deleted::Removed(record.stored(now)) } else { Deleted::Missing })
    }
}

#[async_trait]
impl SessionStore for FileStore {
    fn capabilities(&self) -> Capabilities {
        self.shared.config.capabilities()
    }

    fn index(&self) -> Option<&dyn SessionIndex> {
        Some(self)
    }

    fn sweeper(&self) -> Option<&dyn SessionSweeper> {
        Some(self)
    }

    async fn load(&self, key: &StorageKey) -> Result<Option<Stored>> {
        let record = if self.shared.shards[shard_of(key)].unsynced.load(Relaxed) {
            let key = *key;
            self.step("load", &key, move |shard| shard.read(&key)).await?
        } else if let Some(record) = self.shared.read_cached(key) {
            Some(record)
        } else {
            let (shared, key) = (Arc::clone(&self.shared), *key);
            blocking("load", move || shared.read_record("load", &key)).await??
        };
        let now = self.shared.config.clock.now();
        Ok(record.filter(|record| record.is_live(now)).map(|record| record.stored(now)))
    }

    async fn insert(&self, key: &StorageKey, put: &Put) -> Result<Inserted> {
        let (draft, key) = (self.draft(put, "insert")?, *key);
        self.step("insert", &key, move |shard| shard.insert(&key, draft)).await
    }

    async fn replace(&self, key: &StorageKey, expected: Version, put: &Put) -> Result<Replaced> {
        let (draft, key) = (self.draft(put, "replace")?, *key);
        self.step("replace", &key, move |shard| shard.replace(&key, expected, draft, None)).await
    }

    async fn touch(&self, key: &StorageKey, expected: Version, ttl: Duration) -> Result<Touched> {
        let key = *key;
        self.step("touch", &key, move |shard| shard.touch(&key, expected, ttl)).await
    }

    async fn delete(&self, key: &StorageKey) -> Result<Deleted> {
        let key = *key;
        self.step("delete", &key, move |shard| shard.delete(&key)).await
    }
}
