//! What is left behind: expired records, and what crashes leave.
//!
//! A sweep looks without a lock and removes under it: each find is judged again, in a step like any other, of
//! which one takes up some tens of finds. It goes round the directories of records, from where the last one
//! stopped, and when it has been everywhere and the limit was not reached, cleans up the rest: entries of the
//! index that name no session of that user, and owner files of the dead.
//!
//! What is not ours stays: names that this crate does not give, and records that are damaged.
//!
//! What cannot be removed is passed, or it would keep all that is behind it from being swept for ever. The
//! first error is the sweep's in the end.

use crate::{
    FileStore,
    format::{HEADER, Header, Lock},
    layout::{self, Entry, SHARDS, entry},
    lock::kept,
    owner,
    shard::{Shard, blocking},
    store::Shared,
};
use async_trait::async_trait;
use session_core::{Effect, ErrorKind, PrincipalKey, Result, SessionSweeper, StorageKey, Swept};
use std::{
    io,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

const SWEEP: &str = "sweep";

/// How many finds one step removes: about a millisecond.
const BATCH: usize = 32;

impl Shared {
    /// What looks expired or left behind in one directory of records.
    fn finds(&self, shard: usize) -> Result<Vec<Entry>> {
        let path = self.layout.shard(shard);
        let names = match self.fs().list(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            listed => listed.map_err(|error| self.failed(SWEEP, Effect::None, &path, error))?,
        };
        let now = self.config.clock.now();
        let ours = names.iter().filter_map(|name| entry(shard, name));
        Ok(ours
            .filter(|entry| match entry {
                Entry::Record(key) => self.has_expired(key, now),
                // Most lock files and temporary files are in use and gone a moment later; the step will see.
                Entry::Lock(_) | Entry::Temp(_) => true,
            })
            .collect())
    }

    /// Whether this is a record that has expired: by its header, and then by all of it, so that damaged ones,
    /// which stay, do not count against the limit.
    fn has_expired(&self, key: &StorageKey, now: Duration) -> bool {
        self.peek(key).is_some_and(|header| header.expires <= now)
            && matches!(self.read_record(SWEEP, key), Ok(Some(record)) if !record.is_live(now))
    }

    /// What the header of a record says, if there is one. Not checked: a reason to look again, never to act.
    fn peek(&self, key: &StorageKey) -> Option<Header> {
        let file = self.fs().open(&self.layout.record(key)).ok()?;
        let mut header = [0; HEADER];
        self.fs().size(&file).ok()??;
        self.fs().read(&file, &mut header, 0).ok()?;
        Header::parse(&header).ok()
    }

    /// The entries that seem to name nothing, of the users whose keys begin with this byte; and whether all
    /// could be read.
    fn stale(&self, byte: usize) -> (Vec<(PrincipalKey, StorageKey)>, Result<()>) {
        let (mut stale, mut done) = (Vec::new(), Ok(()));
        let above = self.layout.users_of(byte);
        let digits = match self.fs().list(&above) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return (stale, Err(self.failed(SWEEP, Effect::None, &above, error))),
            Ok(digits) => digits,
        };
        for digit in digits.iter().filter(|name| layout::is_digit(name)) {
            let path = above.join(digit);
            match self.user_names(SWEEP, &path) {
                Err(error) => done = done.and(Err(error)),
                Ok(names) => {
                    if names.is_empty() {
                        // The kernel removes it if it is empty, and whoever creates an entry makes it again.
                        let _not_empty = self.fs().remove_dir(&path);
                    }
                    stale.extend(names.into_iter().filter(|(principal, key)| {
                        self.peek(key).is_none_or(|header| header.principal != Some(*principal))
                    }));
                }
            }
        }
        (stale, done)
    }

    /// Removes the files of dead owners. What fails is tried again by the next sweep; nobody misses it.
    fn bury(&self) -> Result<()> {
        let path = self.layout.owners();
        let names = self.fs().list(&path).map_err(|error| self.failed(SWEEP, Effect::None, &path, error))?;
        let mut done = Ok(());
        for id in names.iter().filter_map(|name| layout::owner(name)).filter(|id| *id != self.owner.id) {
            let path = self.layout.owner(id);
            let buried = owner::remove_dead(self.fs(), &path);
            done = done.and(buried.map_err(|error| self.failed(SWEEP, Effect::None, &path, error)));
        }
        done
    }
}

impl Shard<'_> {
    /// Removes what was found, if it is still so, up to the record that would be one too many; and whether
    /// all of that could be removed.
    fn sweep(&self, finds: &[Entry], limit: usize) -> (Swept, Result<()>) {
        let (mut swept, mut done) = (Swept::default(), Ok(()));
        for find in finds {
            let gone = match find {
                Entry::Record(_) if swept.removed == limit => {
                    swept.more = true;
                    break;
                }
                Entry::Record(key) => self.sweep_record(key).map(|was| swept.removed += usize::from(was)),
                Entry::Lock(key) => self.sweep_lock(key),
                Entry::Temp(key) => self.sweep_temp(key),
            };
            done = done.and(gone);
        }
        (swept, done)
    }

    fn sweep_record(&self, key: &StorageKey) -> Result<bool> {
        let record = match self.read(key) {
            Err(error) if error.kind() == ErrorKind::Damaged => return Ok(false),
            read => read?,
        };
        let now = self.shared.config.clock.now();
        let Some(record) = record.filter(|record| !record.is_live(now)) else { return Ok(false) };
        self.remove(key, record.principal)?;
        self.sweep_lock(key)?;
        Ok(true)
    }

    /// Removes a lock that nobody holds.
    fn sweep_lock(&self, key: &StorageKey) -> Result<()> {
        let now = self.shared.config.lease_clock.now();
        let lock = self.shared.read_lock(SWEEP, key)?;
        if kept(&lock, now).is_none() && self.holder(&lock, now)?.is_none() {
            self.write_lock(key, &Lock::default())?;
        }
        Ok(())
    }

    /// Removes what was never renamed into place. Whoever writes one holds this flock: it is nobody's.
    fn sweep_temp(&self, key: &StorageKey) -> Result<()> {
        let path = self.shared.layout.temp(key);
        match self.shared.fs().remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(self.failed(Effect::None, &path, error))
            }
            _ => Ok(()),
        }
    }

    /// Removes an entry of the index unless there is such a session of that user. A damaged one may be.
    fn sweep_entry(&self, principal: &PrincipalKey, key: &StorageKey) -> Result<()> {
        let record = match self.read(key) {
            Err(error) if error.kind() == ErrorKind::Damaged => return Ok(()),
            read => read?,
        };
        if record.is_none_or(|record| record.principal != Some(*principal)) {
            self.unindex(principal, key);
        }
        Ok(())
    }
}

impl FileStore {
    /// Removes all that crashes have left in one directory, and expired records, up to `limit` with those
    /// that were removed before.
    async fn sweep_shard(&self, shard: usize, limit: usize, swept: &mut Swept) -> Result<()> {
        let shared = Arc::clone(&self.shared);
        let finds = blocking(SWEEP, move || shared.finds(shard)).await??;
        let mut done = Ok(());
        for batch in finds.chunks(BATCH) {
            let (Entry::Record(key) | Entry::Lock(key) | Entry::Temp(key)) = batch[0];
            let (batch, left) = (batch.to_vec(), limit - swept.removed);
            let step = self.step(SWEEP, &key, move |shard| Ok(shard.sweep(&batch, left))).await;
            // No flock: the rest of the directory would wait for it as long.
            let Ok((here, all)) = step else { return done.and(step.map(drop)) };
            swept.removed += here.removed;
            swept.more = here.more;
            done = done.and(all);
            if swept.more {
                break;
            }
        }
        done
    }

    async fn sweep_index(&self) -> Result<()> {
        let mut done = Ok(());
        for byte in 0..SHARDS {
            let shared = Arc::clone(&self.shared);
            let (stale, all) = blocking(SWEEP, move || shared.stale(byte)).await?;
            done = done.and(all);
            for (principal, key) in stale {
                let entry = self.step(SWEEP, &key, move |shard| shard.sweep_entry(&principal, &key)).await;
                done = done.and(entry);
            }
        }
        done
    }
}

#[async_trait]
impl SessionSweeper for FileStore {
    async fn sweep(&self, limit: usize) -> Result<Swept> {
        let (mut swept, mut done) = (Swept::default(), Ok(()));
        let first = self.shared.swept.load(Relaxed);
        for round in 0..SHARDS {
            let shard = (first + round) % SHARDS;
            done = done.and(self.sweep_shard(shard, limit, &mut swept).await);
            if swept.more {
                // Here the next sweep goes on. Two sweeps at once may send each other back, and lose nothing
                // but time.
                self.shared.swept.store(shard, Relaxed);
                return done.map(|()| swept);
            }
        }
        done = done.and(self.sweep_index().await);
        let shared = Arc::clone(&self.shared);
        done = done.and(blocking(SWEEP, move || shared.bury()).await.and_then(|buried| buried));
        done.map(|()| swept)
    }
}
