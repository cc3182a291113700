//! What is left behind: expired records, and what crashes leave.
//!
//! A sweep looks without a lock and removes under it: each find is judged again, in a step like any other, of
//! which one takes up some tens of finds. It goes round the directories of records, from where the last one
//! stopped, and when it has been everywhere and the limit was not reached, cleans up the rest: entries of the
//! index that name no session of that user, and owner files of the dead.
//!
//! What is not ours stays: names that this crate does not give, and records that are damaged.

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

    /// The entries that seem to name nothing, of the users whose keys begin with this byte.
    fn stale(&self, byte: usize) -> Result<Vec<(PrincipalKey, StorageKey)>> {
        let above = self.layout.users_of(byte);
        let digits = match self.fs().list(&above) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            listed => listed.map_err(|error| self.failed(SWEEP, Effect::None, &above, error))?,
        };
        let mut stale = Vec::new();
        for digit in digits.iter().filter(|name| layout::is_digit(name)) {
            let path = above.join(digit);
            let names = self.user_names(SWEEP, &path)?;
            if names.is_empty() {
                // The kernel removes it if it is empty, and whoever creates an entry makes it again.
                let _not_empty = self.fs().remove_dir(&path);
            }
            stale.extend(names.into_iter().filter(|(principal, key)| {
                self.peek(key).is_none_or(|header| header.principal != Some(*principal))
            }));
        }
        Ok(stale)
    }

    /// Removes the files of dead owners. What fails is tried again by the next sweep; nobody misses it.
    fn bury(&self) -> Result<()> {
        let path = self.layout.owners();
        let names = self.fs().list(&path).map_err(|error| self.failed(SWEEP, Effect::None, &path, error))?;
        for id in names.iter().filter_map(|name| layout::owner(name)).filter(|id| *id != self.owner.id) {
            let path = self.layout.owner(id);
            owner::remove_dead(self.fs(), &path)
                .map_err(|error| self.failed(SWEEP, Effect::None, &path, error))?;
        }
        Ok(())
    }
}

impl Shard<'_> {
    /// Removes what was found, if it is still so; how many records that were.
    fn sweep(&self, finds: &[Entry]) -> Result<usize> {
        let mut removed = 0;
        for find in finds {
            match find {
                Entry::Record(key) => removed += usize::from(self.sweep_record(key)?),
                Entry::Lock(key) => self.sweep_lock(key)?,
                Entry::Temp(key) => {
                    // Whoever writes one holds this flock: it is nobody's.
                    let path = self.shared.layout.temp(key);
                    match self.shared.fs().remove_file(&path) {
                        Err(error) if error.kind() != io::ErrorKind::NotFound => {
                            return Err(self.failed(Effect::None, &path, error));
                        }
                        _ => {}
                    }
                }
            }
        }
        Ok(removed)
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
    /// Removes up to `limit` expired records and all that crashes have left in one directory; how many, and
    /// whether there are more.
    async fn sweep_shard(&self, shard: usize, limit: usize) -> Result<Swept> {
        let shared = Arc::clone(&self.shared);
        let mut finds = blocking(SWEEP, move || shared.finds(shard)).await??;
        let records = finds.iter().filter(|find| matches!(find, Entry::Record(_))).count();
        let more = records > limit;
        let mut left = limit;
        finds.retain(|find| {
            let wanted = !matches!(find, Entry::Record(_)) || left > 0;
            left -= usize::from(wanted && matches!(find, Entry::Record(_)));
            wanted
        });
        let mut removed = 0;
        for batch in finds.chunks(BATCH) {
            let (Entry::Record(key) | Entry::Lock(key) | Entry::Temp(key)) = batch[0];
            let batch = batch.to_vec();
            removed += self.step(SWEEP, &key, move |shard| shard.sweep(&batch)).await?;
        }
        Ok(Swept { removed, more })
    }

    async fn sweep_index(&self) -> Result<()> {
        for byte in 0..SHARDS {
            let shared = Arc::clone(&self.shared);
            for (principal, key) in blocking(SWEEP, move || shared.stale(byte)).await?? {
                self.step(SWEEP, &key, move |shard| shard.sweep_entry(&principal, &key)).await?;
            }
        }
        Ok(())
    }
}

#[async_trait]
impl SessionSweeper for FileStore {
    async fn sweep(&self, limit: usize) -> Result<Swept> {
        let mut swept = Swept::default();
        let first = self.shared.swept.load(Relaxed);
        for round in 0..SHARDS {
            let shard = (first + round) % SHARDS;
            let here = self.sweep_shard(shard, limit - swept.removed).await?;
            swept.removed += here.removed;
            if here.more {
                // Here the next sweep goes on. Two sweeps at once may send each other back, and lose nothing
                // but time.
                self.shared.swept.store(shard, Relaxed);
                swept.more = true;
                return Ok(swept);
            }
        }
        self.sweep_index().await?;
        let shared = Arc::clone(&self.shared);
        blocking(SWEEP, move || shared.bury()).await??;
        Ok(swept)
    }
}
