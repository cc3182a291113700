//! A toy: one file per session, one lock file around each step. A store only; `Pair` adds a lock.

use async_trait::async_trait;
use bytes::Bytes;
use session_core::{
    Capabilities, Clock as _, Deleted, Durability, Error, ErrorKind, Inserted, Put, Replaced, Result,
    SessionIndex, SessionStore, SessionSweeper, StorageKey, Stored, SystemClock, SystemRandom, Touched,
    Version,
};
use std::{
    fs::{self, File},
    io,
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

/// A directory of sessions.
#[derive(Clone, Debug)]
pub(crate) struct DirStore {
    dir: Arc<PathBuf>,
}

impl DirStore {
    /// Opens the directory, which is made if need be.
    pub(crate) fn open(dir: impl Into<PathBuf>) -> Result<Self> {
        let dir = dir.into();
        fs::create_dir_all(&dir).map_err(|error| Error::unavailable("open", error))?;
        Ok(Self { dir: Arc::new(dir) })
    }

    /// One step under the lock of the directory, off the async threads.
    async fn step<R: Send + 'static>(
        &self,
        operation: &'static str,
        key: &StorageKey,
        step: impl FnOnce(&Record) -> Result<R> + Send + 'static,
    ) -> Result<R> {
        let record = Record { path: self.dir.join(key.to_string()), operation };
        let lock = self.dir.join(".lock");
        let run = move || {
            // Held until the file is closed, at the end of the step.
            let lock = File::create(lock).map_err(|error| record.error(error))?;
            lock.lock().map_err(|error| record.error(error))?;
            step(&record)
        };
        tokio::task::spawn_blocking(run).await.map_err(|error| Error::backend(operation, error))?
    }
}

/// The file of one session: version, expiry (milliseconds since 1970), data.
struct Record {
    path: PathBuf,
    operation: &'static str,
}

impl Record {
    fn read(&self) -> Result<Option<Stored>> {
        let raw = match fs::read(&self.path) {
            Ok(raw) => raw,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(self.error(error)),
        };
        let damaged = || Error::new(ErrorKind::Damaged, self.operation);
        let (version, rest) = raw.split_first_chunk::<16>().ok_or_else(damaged)?;
        let (until, data) = rest.split_first_chunk::<8>().ok_or_else(damaged)?;
        let ttl = Duration::from_millis(u64::from_be_bytes(*until)).saturating_sub(SystemClock.now());
        let stored = Stored::new(Version::from_bytes(*version), Bytes::copy_from_slice(data), ttl);
        Ok((!ttl.is_zero()).then_some(stored))
    }

    fn write(&self, version: Version, data: &[u8], ttl: Duration) -> Result<Version> {
        let until = u64::try_from((SystemClock.now() + ttl).as_millis()).unwrap_or(u64::MAX);
        let new = self.path.with_extension("new");
        let raw = [&version.to_bytes()[..], &until.to_be_bytes(), data].concat();
        fs::write(&new, raw).and_then(|()| fs::rename(new, &self.path)).map_err(|error| self.error(error))?;
        Ok(version)
    }

    fn error(&self, error: io::Error) -> Error {
        Error::backend(self.operation, error)
    }
}

#[async_trait]
impl SessionStore for DirStore {
    fn capabilities(&self) -> Capabilities {
        Capabilities::new(Durability::Restart)
    }

    fn index(&self) -> Option<&dyn SessionIndex> {
        None
    }

    fn sweeper(&self) -> Option<&dyn SessionSweeper> {
        None
    }

    async fn load(&self, key: &StorageKey) -> Result<Option<Stored>> {
        self.step("load", key, Record::read).await
    }

    async fn insert(&self, key: &StorageKey, put: &Put) -> Result<Inserted> {
        let (put, version) = (put.clone(), Version::random(&SystemRandom)?);
        let step = move |record: &Record| match record.read()? {
            Some(_) => Ok(Inserted::Exists),
            None => record.write(version, &put.data, put.ttl).map(Inserted::Created),
        };
        self.step("insert", key, step).await
    }

    async fn replace(&self, key: &StorageKey, expected: Version, put: &Put) -> Result<Replaced> {
        let (put, version) = (put.clone(), Version::random(&SystemRandom)?);
        let step = move |record: &Record| match record.read()? {
            None => Ok(Replaced::Missing),
            Some(stored) if stored.version != expected => Ok(Replaced::Conflict(stored)),
            Some(_) => record.write(version, &put.data, put.ttl).map(Replaced::Done),
        };
        self.step("replace", key, step).await
    }

    async fn touch(&self, key: &StorageKey, expected: Version, ttl: Duration) -> Result<Touched> {
        let step = move |record: &Record| match record.read()? {
            None => Ok(Touched::Missing),
            Some(stored) if stored.version != expected => Ok(Touched::Conflict),
            Some(stored) => record.write(stored.version, &stored.data, ttl).map(|_| Touched::Extended),
        };
        self.step("touch", key, step).await
    }

    async fn delete(&self, key: &StorageKey) -> Result<Deleted> {
        let step = |record: &Record| match record.read()? {
            None => Ok(Deleted::Missing),
            Some(stored) => {
                fs::remove_file(&record.path).map_err(|error| record.error(error))?;
                Ok(Deleted::Removed(stored))
            }
        };
        self.step("delete", key, step).await
    }
}
