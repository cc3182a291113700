//! What the tests share. Each test file uses a part of it.
#![allow(dead_code, unreachable_pub, reason = "each test file uses a part")]

pub mod hooked;
pub mod verbs;

use bytes::Bytes;
use session_core::{
    Acquired, Clock, Grant, Inserted, Put, Replaced, SessionId, SessionLock as _, SessionStore as _,
    StorageKey, SystemClock, SystemRandom, Token, Version,
};
use session_file::{FileConfig, FileStore};
use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};
use tempfile::TempDir;

pub const MINUTE: Duration = Duration::from_secs(60);
pub const NO_WAIT: Duration = Duration::ZERO;
/// No files.
pub const NONE: [PathBuf; 0] = [];

/// A clock that stands still until it is moved.
#[derive(Clone, Debug)]
pub struct Manual(Arc<AtomicU64>);

impl Manual {
    pub fn new() -> Self {
        Self(Arc::new(AtomicU64::new(1_700_000_000_000_000_000)))
    }

    /// From the time of day on, which other processes see.
    pub fn now() -> Self {
        Self(Arc::new(AtomicU64::new(u64::try_from(SystemClock.now().as_nanos()).unwrap())))
    }

    pub fn advance(&self, by: Duration) {
        self.0.fetch_add(u64::try_from(by.as_nanos()).unwrap(), SeqCst);
    }
}

impl Clock for Manual {
    fn now(&self) -> Duration {
        Duration::from_nanos(self.0.load(SeqCst))
    }
}

/// A directory with a store whose clocks stand still.
pub struct Fixture {
    pub directory: TempDir,
    pub clock: Manual,
    pub lease_clock: Manual,
}

impl Fixture {
    pub fn new() -> Self {
        Self { directory: TempDir::new().unwrap(), clock: Manual::new(), lease_clock: Manual::new() }
    }

    pub fn root(&self) -> PathBuf {
        self.directory.path().join("sessions")
    }

    pub fn config(&self) -> FileConfig {
        FileConfig::new(self.root())
            .clock(Arc::new(self.clock.clone()))
            .lease_clock(Arc::new(self.lease_clock.clone()))
    }

    pub fn open(&self) -> FileStore {
        FileStore::open(self.config()).unwrap()
    }

    pub fn record_path(&self, key: &StorageKey) -> PathBuf {
        let name = key.to_string();
        self.root().join("records").join(&name[..2]).join(name)
    }

    /// The same, in a directory that is there.
    pub fn new_record_path(&self, key: &StorageKey) -> PathBuf {
        let path = self.record_path(key);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        path
    }

    pub fn lock_path(&self, key: &StorageKey) -> PathBuf {
        self.record_path(key).with_extension("lock")
    }

    /// Every file that belongs to a session, from the root.
    pub fn session_files(&self) -> Vec<PathBuf> {
        ["records", "users"].iter().flat_map(|part| files_in(&self.root().join(part))).collect()
    }
}

pub fn files_in(directory: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() && !path.is_symlink() {
            files.extend(files_in(&path));
        } else {
            files.push(path);
        }
    }
    files
}

pub fn key() -> StorageKey {
    SessionId::random(&SystemRandom).unwrap().storage_key()
}

pub fn token() -> Token {
    Token::random(&SystemRandom).unwrap()
}

pub fn put(data: impl Into<Bytes>) -> Put {
    Put::new(data.into(), MINUTE)
}

pub async fn insert(store: &FileStore, key: &StorageKey, put: &Put) -> Version {
    match store.insert(key, put).await.unwrap() {
        Inserted::Created(version) => version,
        Inserted::Exists => panic!("{key} exists"),
    }
}

pub async fn replace(store: &FileStore, key: &StorageKey, expected: Version, put: &Put) -> Version {
    match store.replace(key, expected, put).await.unwrap() {
        Replaced::Done(version) => version,
        other => panic!("{other:?}"),
    }
}

pub async fn acquire(store: &FileStore, key: &StorageKey, lease: Duration) -> Grant {
    match store.acquire(key, token(), lease, NO_WAIT).await.unwrap() {
        Acquired::Granted(grant) => grant,
        Acquired::Held(held) => panic!("{held:?}"),
    }
}

/// The decimal number that comes next.
pub fn one_more(data: &[u8]) -> String {
    (std::str::from_utf8(data).unwrap().parse::<u64>().unwrap() + 1).to_string()
}
