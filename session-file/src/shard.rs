//! One step: what happens on one session while the flock of its directory is held.
//!
//! A step runs from its first file call to its last on one thread, which takes the flock and gives it back:
//! whoever holds it needs nothing else to go on, so threads that wait for it can never starve its holder. To
//! keep waiting short all the same:
//!
//! - within a store a queue stands in front of each directory (an async mutex, in order of arrival), so of
//!   one store at most one thread per directory deals with the flock;
//! - that thread tries for about a millisecond, as others hold it for microseconds; after that the step goes
//!   back to where waiting costs nothing, sleeps, and comes again, until `busy_timeout`;
//! - of one store at most 16 threads are at work at once. More gain nothing (the work is the kernel's, or the
//!   disk's, and an fsync of many is one), and cost: of hundreds of threads on a few cores, those that hold a
//!   flock seldom run.
//!
//! Blocking `flock` was not chosen: it cannot be given up, and one stopped process would collect the threads
//! of all others.
//!
//! A step whose future was dropped still runs to its end, with its place in the queue: it happened or it did
//! not, and the next step on that session, also of the one who dropped it, comes after it.

use crate::{
    FileDurability,
    format::{Lease, Lock, OwnerId, Record},
    fs::{Flock, Fs},
    layout::shard_of,
    owner,
    store::{FileStore, Place, Shared, sync},
};
use session_core::{Effect, Error, ErrorKind, PrincipalKey, Result, StorageKey};
use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    thread,
    time::Duration,
};
use tokio::{
    sync::OwnedMutexGuard,
    time::{Instant, sleep},
};

/// The longest pause between two attempts on a busy directory.
const LONGEST_PAUSE: Duration = Duration::from_millis(5);

/// How many threads of one store are at work at once.
pub(crate) const THREADS: usize = 16;

/// How often a directory that is replaced while it is opened is opened again.
const REOPENED: usize = 16;

/// The proof that the flock of a session's directory is held, and what may be done under it.
#[derive(Debug)]
pub(crate) struct Shard<'a> {
    pub(crate) shared: &'a Shared,
    pub(crate) operation: &'static str,
    number: usize,
    directory: File,
    path: PathBuf,
}

impl Drop for Shard<'_> {
    fn drop(&mut self) {
        // Closing the descriptor gives the flock back, too, unless a child is being forked; then it ends a
        // moment later.
        let _closed_next = self.shared.fs().unlock(&self.directory);
    }
}

enum Attempt<J, R> {
    Done(Result<R>),
    Busy(J),
}

impl FileStore {
    /// Runs one step on the session's directory.
    pub(crate) async fn step<R, F>(&self, operation: &'static str, key: &StorageKey, run: F) -> Result<R>
    where
        R: Send + 'static,
        F: FnOnce(&Shard<'_>) -> Result<R> + Send + 'static,
    {
        let number = shard_of(key);
        let (shared, timeout) = (&self.shared, self.shared.config.busy_timeout);
        let place = &shared.shards[number];
        let turn = while_it_moves(&place.steps, timeout, Arc::clone(&place.queue).lock_owned()).await;
        let mut job = (run, turn.ok_or_else(|| shared.busy(operation, number))?);
        let mut pause = Duration::from_millis(1);
        let mut refused = None;
        loop {
            let thread = Arc::clone(&shared.threads).acquire_owned();
            let Some(Ok(thread)) = while_it_moves(&shared.steps, timeout, thread).await else {
                return Err(shared.busy(operation, number));
            };
            let worker = Arc::clone(shared);
            let work = move || {
                let attempt = attempt(&worker, operation, number, job);
                drop(thread);
                attempt
            };
            match blocking(operation, work).await? {
                Attempt::Done(result) => return result,
                Attempt::Busy(again) => job = again,
            }
            let since = *refused.get_or_insert_with(Instant::now);
            let left = timeout.saturating_sub(since.elapsed());
            if left.is_zero() {
                return Err(shared.busy(operation, number));
            }
            sleep(shared.jittered(pause).min(left)).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }
}

/// Waits in a queue as long as it moves: a long one is no error, one that stands still is. `None` when no
/// step was done for so long.
async fn while_it_moves<T>(
    steps: &AtomicUsize,
    timeout: Duration,
    turn: impl Future<Output = T>,
) -> Option<T> {
    let mut turn = pin!(turn);
    loop {
        let before = steps.load(Relaxed);
        match tokio::time::timeout(timeout, turn.as_mut()).await {
            Ok(turn) => return Some(turn),
            Err(_) if steps.load(Relaxed) == before => return None,
            Err(_) => {} // its place is kept
        }
    }
}

/// Runs on a thread that may block.
pub(crate) async fn blocking<R: Send + 'static>(
    operation: &'static str,
    run: impl FnOnce() -> R + Send + 'static,
) -> Result<R> {
    tokio::task::spawn_blocking(run).await.map_err(|error| {
        // Cancelled are only those that never began: the runtime is shutting down.
        let effect = if error.is_cancelled() { Effect::None } else { Effect::Unknown };
        Error::unavailable(operation, error).with_effect(effect)
    })
}

fn attempt<R, F>(
    shared: &Shared,
    operation: &'static str,
    number: usize,
    (run, place): (F, OwnedMutexGuard<()>),
) -> Attempt<(F, OwnedMutexGuard<()>), R>
where
    F: FnOnce(&Shard<'_>) -> Result<R>,
{
    let mut pause = Duration::from_micros(30);
    loop {
        match Shard::try_lock(shared, operation, number) {
            Err(error) => return Attempt::Done(Err(error)),
            // The flock goes with the shard, before the place in the queue.
            Ok(Some(shard)) => {
                let result = run(&shard);
                drop(shard);
                shared.steps.fetch_add(1, Relaxed);
                shared.shards[number].steps.fetch_add(1, Relaxed);
                drop(place);
                return Attempt::Done(result);
            }
            Ok(None) if pause > Duration::from_micros(500) => return Attempt::Busy((run, place)),
            Ok(None) => {
                thread::sleep(pause);
                pause *= 2;
            }
        }
    }
}

impl<'a> Shard<'a> {
    /// Takes the flock of a directory if it is free.
    fn try_lock(shared: &'a Shared, operation: &'static str, number: usize) -> Result<Option<Self>> {
        let path = shared.layout.shard(number);
        let failed = |error| shared.failed(operation, Effect::None, &path, error);
        for _ in 0..REOPENED {
            let directory = match shared.fs().open(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    // Its first session, or somebody has tidied up. The directory above is not made here:
                    // without it there is no store.
                    shared.fs().create_dir(&path).map_err(failed)?;
                    shared.shards[number].has_name.store(false, Relaxed);
                    continue;
                }
                opened => opened.map_err(failed)?,
            };
            if !shared.fs().try_lock(&directory, Flock::Exclusive).map_err(failed)? {
                return Ok(None);
            }
            // Locked, but is it still the one of that name? Others lock what has the name.
            if shared.fs().is_at(&directory, &path).map_err(failed)? {
                return Ok(Some(Self { shared, operation, number, directory, path }));
            }
        }
        Err(shared.busy(operation, number))
    }

    fn fs(&self) -> &dyn Fs {
        self.shared.fs()
    }

    pub(crate) fn failed(&self, effect: Effect, path: &Path, error: io::Error) -> Error {
        self.shared.failed(self.operation, effect, path, error)
    }

    fn record_path(&self, key: &StorageKey) -> PathBuf {
        self.shared.layout.record(key)
    }

    fn place(&self) -> &Place {
        &self.shared.shards[self.number]
    }

    /// The record, live or expired, once the disk has what it did not take before, see
    /// [`settled`](Self::settled).
    pub(crate) fn read(&self, key: &StorageKey) -> Result<Option<Record>> {
        if self.place().unsynced.load(Relaxed) {
            self.sync_directory().map_err(|error| error.with_effect(Effect::None))?;
        }
        self.shared.read_record(self.operation, key)
    }

    /// The record, if it is live.
    pub(crate) fn live(&self, key: &StorageKey) -> Result<Option<Record>> {
        let now = self.shared.config.clock.now();
        Ok(self.read(key)?.filter(|record| record.is_live(now)))
    }

    /// Puts a record in the place of another one (or of none), which belonged to `before`.
    ///
    /// The index names the new user before the record does, and forgets the former one after it: a crash
    /// between leaves an entry too many, never one too few.
    pub(crate) fn write(&self, key: &StorageKey, before: Option<PrincipalKey>, new: &Record) -> Result<()> {
        if let Some(principal) = new.principal.filter(|principal| before != Some(*principal)) {
            self.index(&principal, key)?;
        }
        let synced = self.shared.config.durability != FileDurability::None;
        self.settled(self.put(key, &self.record_path(key), &new.encode(key), synced))?;
        if let Some(before) = before.filter(|before| new.principal != Some(*before)) {
            self.unindex(&before, key);
        }
        Ok(())
    }

    /// Removes a record that is there and belonged to `principal`.
    pub(crate) fn remove(&self, key: &StorageKey, principal: Option<PrincipalKey>) -> Result<()> {
        let path = self.record_path(key);
        let removed = self.fs().remove_file(&path);
        self.settled(removed.map_err(|error| self.failed(effect_of(&error), &path, error)))?;
        if let Some(principal) = principal {
            self.unindex(&principal, key);
        }
        Ok(())
    }

    /// Who holds the lock, if anybody does whose lease is alive.
    pub(crate) fn holder(&self, lock: &Lock, now: Duration) -> Result<Option<Lease>> {
        let Some(lease) = lock.holder.filter(|lease| lease.until > now) else { return Ok(None) };
        Ok((!self.is_dead(lease.owner)?).then_some(lease))
    }

    fn is_dead(&self, id: OwnerId) -> Result<bool> {
        if id == self.shared.owner.id {
            return Ok(false);
        }
        let path = self.shared.layout.owner(id);
        owner::is_dead(self.fs(), &path).map_err(|error| self.failed(Effect::None, &path, error))
    }

    /// Writes who holds the lock and who is next; nobody and nobody: no file.
    ///
    /// A first lease is written in place, which is quicker: cut short by a crash, it names nobody, who is who
    /// has it. Nothing is synced: no lease outlives a loss of power, because no owner does.
    pub(crate) fn write_lock(&self, key: &StorageKey, lock: &Lock) -> Result<()> {
        let (fs, path) = (self.fs(), self.shared.layout.lock(key));
        if *lock == Lock::default() {
            return match fs.remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    Err(self.failed(effect_of(&error), &path, error))
                }
                _ => Ok(()),
            };
        }
        match fs.create_new(&path) {
            Ok(file) => fs.write(&file, &lock.encode()).map_err(|error| {
                // The error that counts is the first; half a lock names nobody, and is swept.
                let _swept_later = fs.remove_file(&path);
                self.failed(Effect::None, &path, error)
            }),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                self.put(key, &path, &lock.encode(), false)
            }
            Err(error) => Err(self.failed(Effect::None, &path, error)),
        }
    }

    /// Writes a file beside the one that it replaces, then renames it into place.
    ///
    /// Temporary files need no names of their own: they are written under the flock, so there is one at a
    /// time, and one that is found there is what a crash has left.
    fn put(&self, key: &StorageKey, path: &Path, bytes: &[u8], synced: bool) -> Result<()> {
        let temp = self.shared.layout.temp(key);
        let fs = self.fs();
        let written = fs.create(&temp).and_then(|file| {
            fs.write(&file, bytes)?;
            if synced { fs.sync(&file) } else { Ok(()) }
        });
        let renamed = match written {
            Ok(()) => fs.rename(&temp, path).map_err(|error| (effect_of(&error), error)),
            Err(error) => Err((Effect::None, error)),
        };
        renamed.map_err(|(effect, error)| {
            // The error that counts is the first; what cannot be removed either is removed by a sweep.
            let _swept_later = fs.remove_file(&temp);
            self.failed(effect, path, error)
        })
    }

    /// What came of a change of names, when the disk has it too if it is to survive a loss of power.
    ///
    /// One that may be seen and not survive is remembered: who is told that its effect is unknown looks for
    /// it, would find it, and take it for stored. So nothing is read here until the disk has it. Other
    /// processes do not know.
    fn settled(&self, changed: Result<()>) -> Result<()> {
        if self.shared.config.durability != FileDurability::FileAndDirectory {
            return changed;
        }
        let settled = changed.and_then(|()| self.sync_directory());
        if settled.as_ref().is_err_and(|error| error.effect() == Effect::Unknown) {
            self.place().unsynced.store(true, Relaxed);
        }
        settled
    }

    /// Waits until the disk has the names in this directory, and its own.
    ///
    /// One that succeeds after one that failed is believed: a file system that could not write its journal
    /// takes nothing more.
    fn sync_directory(&self) -> Result<()> {
        // What was done is seen by all, but may not survive.
        let failed = |path: &Path, error| self.failed(Effect::Unknown, path, error);
        self.fs().sync(&self.directory).map_err(|error| failed(&self.path, error))?;
        let Place { has_name, unsynced, .. } = self.place();
        if !has_name.load(Relaxed) {
            let above = self.shared.layout.records();
            sync(self.fs(), &above).map_err(|error| failed(&above, error))?;
            has_name.store(true, Relaxed);
        }
        unsynced.store(false, Relaxed);
        Ok(())
    }
}

/// What a rename or a removal that failed has done: nothing, when the kernel refused it for a reason that it
/// checks before.
fn effect_of(error: &io::Error) -> Effect {
    use io::ErrorKind as Kind;
    match error.kind() {
        Kind::StorageFull
        | Kind::QuotaExceeded
        | Kind::PermissionDenied
        | Kind::ReadOnlyFilesystem
        | Kind::NotFound
        | Kind::IsADirectory
        | Kind::NotADirectory
        | Kind::OutOfMemory => Effect::None,
        _ => Effect::Unknown,
    }
}

impl Shared {
    pub(crate) fn busy(&self, operation: &'static str, shard: usize) -> Error {
        Error::new(ErrorKind::Unavailable, operation).with_context(format!(
            "{} stayed locked for {:?}: is a process stopped, or the disk?",
            self.layout.shard(shard).display(),
            self.config.busy_timeout
        ))
    }

    /// Between half of it and all of it, so that those who wait together do not come together.
    pub(crate) fn jittered(&self, pause: Duration) -> Duration {
        let mut dice = [0];
        // Without randomness they come together: slower, not wrong.
        let _worse = self.config.random.fill(&mut dice);
        pause / 2 + pause * u32::from(dice[0]) / 512
    }
}
