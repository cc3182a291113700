//! Files by hand: a lock by `flock`, a new file renamed over the old one. On the threads for blocking work,
//! as in every server.

use super::{STAMP, failed, hex, stamp, strange};
use async_trait::async_trait;
use session_conformance::bench::{ByHand, Hands};
use session_core::{Error, ErrorKind, Result};
use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Seek as _, Write as _},
    path::{Path, PathBuf},
    sync::Arc,
};
use url::Url;

pub(super) struct Files {
    root: PathBuf,
}

struct Prepared {
    sessions: Vec<Session>,
    stored: Arc<[u8]>,
    plain: Arc<[u8]>,
}

#[derive(Clone)]
struct Session {
    record: Arc<Path>,
    lock: Arc<Path>,
    classical: Arc<Path>,
}

impl Files {
    pub(super) fn at(address: &Url) -> Result<Self> {
        let root = address.to_file_path().map_err(|()| Error::new(ErrorKind::Invalid, "by hand"))?;
        Ok(Self { root: root.join("by-hand") })
    }
}

async fn blocking<R: Send + 'static>(run: impl FnOnce() -> io::Result<R> + Send + 'static) -> Result<R> {
    tokio::task::spawn_blocking(run).await.map_err(failed)?.map_err(failed)
}

fn replace(path: &Path, version: [u8; STAMP], data: &[u8]) -> io::Result<()> {
    let temporary = path.with_extension("tmp");
    let mut file = File::create(&temporary)?;
    file.write_all(&[&version, data].concat())?;
    fs::rename(&temporary, path)
}

fn locked(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
    file.lock()?;
    Ok(file)
}

#[async_trait]
impl ByHand for Files {
    async fn prepare(&self, sessions: usize, stored: &[u8], plain: &[u8]) -> Result<Arc<dyn Hands>> {
        let mut prepared =
            Prepared { sessions: Vec::new(), stored: stored.to_vec().into(), plain: plain.to_vec().into() };
        fs::create_dir_all(&self.root).map_err(failed)?;
        for _ in 0..sessions {
            let name = self.root.join(hex(&stamp()?));
            let at = |extension: &str| -> Arc<Path> { name.with_extension(extension).into() };
            let session = Session { record: at("record"), lock: at("lock"), classical: at("classical") };
            replace(&session.record, stamp()?, stored).map_err(failed)?;
            fs::write(&session.classical, plain).map_err(failed)?;
            prepared.sessions.push(session);
        }
        Ok(Arc::new(prepared))
    }
}

#[async_trait]
impl Hands for Prepared {
    async fn read(&self, session: usize) -> Result<()> {
        let Session { record, .. } = self.sessions[session].clone();
        let found = blocking(move || fs::read(record)).await?;
        if found.len() < STAMP { Err(strange("a torn record")) } else { Ok(()) }
    }

    /// Read; then, under a lock for this step alone, compare and replace.
    async fn write(&self, session: usize) -> Result<()> {
        let Session { record, lock, .. } = self.sessions[session].clone();
        let (path, version) = (Arc::clone(&record), stamp()?);
        let found = blocking(move || fs::read(path)).await?;
        let stored = Arc::clone(&self.stored);
        blocking(move || {
            let _lock = locked(&lock)?;
            let mut present = [0; STAMP];
            File::open(&record)?.read_exact(&mut present)?;
            if found[..STAMP] != present {
                return Err(io::Error::other("another version"));
            }
            replace(&record, version, &stored)
        })
        .await
    }

    async fn exclusive(&self, session: usize) -> Result<()> {
        let Session { record, lock, .. } = self.sessions[session].clone();
        let (path, version) = (Arc::clone(&record), stamp()?);
        let (lock, _found) = blocking(move || Ok((locked(&lock)?, fs::read(path)?))).await?;
        let stored = Arc::clone(&self.stored);
        blocking(move || {
            replace(&record, version, &stored)?;
            lock.unlock()
        })
        .await
    }

    /// As PHP does it: the file is its own lock, and is written where it is.
    async fn classical(&self, session: usize) -> Result<()> {
        let Session { classical, .. } = self.sessions[session].clone();
        let mut file = blocking(move || {
            let mut file = locked(&classical)?;
            file.read_to_end(&mut Vec::new())?;
            Ok(file)
        })
        .await?;
        let plain = Arc::clone(&self.plain);
        blocking(move || {
            file.rewind()?;
            file.write_all(&plain)?;
            file.set_len(plain.len() as u64)?;
            file.unlock()
        })
        .await
    }
}
