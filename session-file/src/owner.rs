//! Who is alive: each open store keeps a flock on a file of its own for as long as it is open.
//!
//! A lease names its owner. Whoever can take the flock of that owner's file knows that the owner is gone,
//! however it went, and need not wait for the lease to end. A stopped process keeps its flock, so its leases
//! end by time.
//!
//! A flock belongs to an opened file, not to a process: two stores in one process see each other as any two
//! processes do. Programs that are started do not inherit it (std opens everything close-on-exec); a child
//! that was *forked* and goes on without exec does, and then its parent's leases end by time, too.

use crate::{
    format::OwnerId,
    fs::{Flock, Fs},
    layout::Layout,
};
use session_core::{Random, Result};
use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::Duration,
};

/// How often an owner file is tried that somebody else locks at the same moment, for microseconds.
const TRIES: usize = 16;
const BETWEEN_TRIES: Duration = Duration::from_millis(1);

/// The proof that this store is open.
#[derive(Debug)]
pub(crate) struct Owner {
    pub(crate) id: OwnerId,
    path: PathBuf,
    fs: Arc<dyn Fs>,
    file: Mutex<File>,
}

impl Owner {
    /// Creates an owner file under a new name and locks it.
    pub(crate) fn create(
        fs: &Arc<dyn Fs>,
        layout: &Layout,
        random: &dyn Random,
        failed: impl Fn(&Path, io::Error) -> session_core::Error,
    ) -> Result<Self> {
        for _ in 0..TRIES {
            let mut id = OwnerId([0; 16]);
            random.fill(&mut id.0)?;
            let path = layout.owner(id);
            if let Some(file) = hold(&**fs, &path).map_err(|error| failed(&path, error))? {
                return Ok(Self { id, path, fs: Arc::clone(fs), file: Mutex::new(file) });
            }
        }
        Err(failed(&layout.owners(), io::ErrorKind::ResourceBusy.into()))
    }

    /// Makes sure that others can see this owner before it takes a lease: something that tidies up temporary
    /// directories may have removed the file, and a lease of an owner without a file is free for all.
    pub(crate) fn ensure(&self) -> io::Result<()> {
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        for _ in 0..TRIES {
            if self.fs.is_at(&file, &self.path)? {
                return Ok(());
            }
            if let Some(new) = hold(&*self.fs, &self.path)? {
                *file = new;
            }
        }
        Err(io::ErrorKind::ResourceBusy.into())
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        // Only tidiness: without the flock, which goes with the descriptor, the file says "dead", and a sweep
        // removes it.
        let _swept_later = self.fs.remove_file(&self.path);
    }
}

/// The owner file of this name with its flock; `None` when somebody else has locked it at this moment: a
/// sweep that takes the file for a dead one's, because it came between the two calls, and removes it before
/// it gives the flock back, which the comparison shows; or one who looks whether the owner lives.
fn hold(fs: &dyn Fs, path: &Path) -> io::Result<Option<File>> {
    let file = fs.create(path)?;
    let held = fs.try_lock(&file, Flock::Exclusive)? && fs.is_at(&file, path)?;
    if !held {
        thread::sleep(BETWEEN_TRIES);
    }
    Ok(held.then_some(file))
}

/// Whether the process with this owner file is gone.
pub(crate) fn is_dead(fs: &dyn Fs, path: &Path) -> io::Result<bool> {
    let file = match fs.open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(true),
        opened => opened?,
    };
    // Shared: those who look at the same time do not take each other for the owner.
    fs.try_lock(&file, Flock::Shared)
}

/// Removes the file of an owner that is gone. It is locked meanwhile, so it is nobody's who was about to lock
/// it.
pub(crate) fn remove_dead(fs: &dyn Fs, path: &Path) -> io::Result<()> {
    let file = match fs.open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        opened => opened?,
    };
    if fs.try_lock(&file, Flock::Exclusive)? && fs.is_at(&file, path)? {
        fs.remove_file(path)?;
    }
    Ok(())
}
