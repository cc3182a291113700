//! Sessions in this process's memory: for tests, for one process that may forget, and as the reference of the
//! contract.
//!
//! [`MemoryStore`] fences, keeps an index of users and wakes its waiters; [`MemoryLock`] is its lock alone,
//! for a [`Pair`](crate::Pair).
//!
//! ```
//! use session_core::{Durability, MemoryStore, SessionStore};
//!
//! let store = MemoryStore::default();
//! assert_eq!(store.capabilities().durability, Durability::Volatile);
//! assert!(store.capabilities().fencing && store.index().is_some());
//! ```

use crate::{
    Acquired, Capabilities, Clock, Deleted, Durability, Error, ErrorKind, Grant, Held, Inserted, Loaded,
    LockingStore, Page, PrincipalKey, Put, Random, Released, Renewed, Replaced, Result, SessionIndex,
    SessionLock, SessionStore, SessionSweeper, StorageKey, Stored, Swept, SystemClock, SystemRandom, Token,
    Touched, Version,
};
use async_trait::async_trait;
use bytes::Bytes;
use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::{sync::Notify, time::Instant};

/// The longest record, in bytes.
const MAX_VALUE: usize = 16 << 20;

/// Thirty years: longer than anybody waits, and within what an [`Instant`] can hold.
const FAR: Duration = Duration::from_hours(24 * 365 * 30);

/// Sessions in a map behind a mutex: every method is one critical section without an await.
#[derive(Clone, Debug)]
pub struct MemoryStore {
    clock: Arc<dyn Clock>,
    random: Arc<dyn Random>,
    state: Arc<Mutex<State>>,
}

/// The lock of [`MemoryStore`] without its records.
#[derive(Clone, Debug, Default)]
pub struct MemoryLock(MemoryStore);

impl MemoryLock {
    /// A lock with its own clock.
    #[must_use]
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        Self(MemoryStore::new(clock, Arc::new(SystemRandom)))
    }
}

#[derive(Debug, Default)]
struct State {
    records: HashMap<StorageKey, Record>,
    index: HashMap<PrincipalKey, BTreeSet<StorageKey>>,
    locks: HashMap<StorageKey, Lock>,
}

#[derive(Clone, Debug)]
struct Record {
    version: Version,
    data: Bytes,
    expires: Duration,
    principal: Option<PrincipalKey>,
}

/// There as long as someone holds it or waits for it.
#[derive(Debug, Default)]
struct Lock {
    holder: Option<(Token, Duration)>,
    waiters: usize,
    freed: Arc<Notify>,
}

impl Default for MemoryStore {
    fn default() -> Self {
        Self::new(Arc::new(SystemClock), Arc::new(SystemRandom))
    }
}

impl MemoryStore {
    /// An empty store with its own clock and source of versions.
    #[must_use]
    pub fn new(clock: Arc<dyn Clock>, random: Arc<dyn Random>) -> Self {
        Self { clock, random, state: Arc::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // No critical section below can leave the maps half changed: a panic of another thread is no reason
        // to stop.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn record(&self, put: &Put, operation: &'static str) -> Result<Record> {
        if put.data.len() > MAX_VALUE {
            return Err(Error::new(ErrorKind::TooLarge, operation)
                .with_context(format!("{} bytes, at most {MAX_VALUE}", put.data.len())));
        }
        Ok(Record {
            version: Version::random(&*self.random)?,
            data: put.data.clone(),
            expires: self.clock.now().saturating_add(put.ttl),
            principal: put.principal,
        })
    }

    /// Takes the lock as soon as it is free: tries, then sleeps until a release, the end of the lease or of
    /// patience.
    async fn take(
        &self,
        key: &StorageKey,
        token: Token,
        lease: Duration,
        wait: Duration,
        only_live: bool,
    ) -> Taken {
        let deadline = Instant::now() + wait.min(FAR);
        let waiting = Waiting::enter(self, key);
        loop {
            let taken = self.state().take(key, token, lease, self.clock.now(), only_live);
            let Taken::Held(held) = &taken else { return taken };
            let now = Instant::now();
            if now >= deadline {
                return taken;
            }
            let lease_end = now + held.retry_after.unwrap_or_default().min(FAR);
            // A permit is kept for whoever comes late, and passed on by whoever leaves: no wake-up is lost.
            drop(tokio::time::timeout_at(deadline.min(lease_end), waiting.freed.notified()).await);
        }
    }
}

enum Taken {
    Granted(Grant, Option<Stored>),
    Held(Held),
    Missing,
}

/// Counts those who wait for a lock, so that its entry can go with the last of them, however they leave.
struct Waiting<'a> {
    store: &'a MemoryStore,
    key: StorageKey,
    freed: Arc<Notify>,
}

impl<'a> Waiting<'a> {
    fn enter(store: &'a MemoryStore, key: &StorageKey) -> Self {
        let mut state = store.state();
        let lock = state.locks.entry(*key).or_default();
        lock.waiters += 1;
        Self { store, key: *key, freed: Arc::clone(&lock.freed) }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut state = self.store.state();
        if let Some(lock) = state.locks.get_mut(&self.key) {
            lock.waiters -= 1;
        }
        state.forget_idle_lock(&self.key);
    }
}

impl Record {
    fn stored(&self, now: Duration) -> Stored {
        Stored::new(self.version, self.data.clone(), self.expires.saturating_sub(now))
            .principal(self.principal)
    }
}

impl State {
    fn live(&self, key: &StorageKey, now: Duration) -> Option<&Record> {
        self.records.get(key).filter(|record| record.expires > now)
    }

    /// The holder, if its lease is alive.
    fn holder(&self, key: &StorageKey, now: Duration) -> Option<(Token, Held)> {
        let (token, until) = self.locks.get(key)?.holder?;
        (until > now).then(|| (token, Held { retry_after: Some(until - now) }))
    }

    fn take(
        &mut self,
        key: &StorageKey,
        token: Token,
        lease: Duration,
        now: Duration,
        only_live: bool,
    ) -> Taken {
        let stored = self.live(key, now).map(|record| record.stored(now));
        if only_live && stored.is_none() {
            self.free(key, token, now);
            return Taken::Missing;
        }
        match self.holder(key, now) {
            Some((holder, held)) if holder != token => Taken::Held(held),
            _ => {
                self.locks.entry(*key).or_default().holder = Some((token, now.saturating_add(lease)));
                Taken::Granted(Grant::new(*key, token), stored)
            }
        }
    }

    /// Whether it was this token's to free.
    fn free(&mut self, key: &StorageKey, token: Token, now: Duration) -> bool {
        if self.holder(key, now).is_none_or(|(holder, _)| holder != token) {
            return false;
        }
        if let Some(lock) = self.locks.get_mut(key) {
            lock.holder = None;
            lock.freed.notify_one();
        }
        self.forget_idle_lock(key);
        true
    }

    fn forget_idle_lock(&mut self, key: &StorageKey) {
        if self.locks.get(key).is_some_and(|lock| lock.waiters == 0 && lock.holder.is_none()) {
            self.locks.remove(key);
        }
    }

    fn replace(
        &mut self,
        key: &StorageKey,
        expected: Version,
        new: Record,
        by: Option<Token>,
        now: Duration,
    ) -> Replaced {
        let Some(record) = self.live(key, now) else { return Replaced::Missing };
        let holder = self.holder(key, now);
        if holder.map(|(token, _)| token) != by {
            return Replaced::NotHolder(holder.map(|(_, held)| held).unwrap_or_default());
        }
        if record.version != expected {
            return Replaced::Conflict(record.stored(now));
        }
        let version = new.version;
        self.write(key, new);
        Replaced::Done(version)
    }

    fn write(&mut self, key: &StorageKey, new: Record) {
        let principal = new.principal;
        let old = self.records.insert(*key, new);
        self.reindex(key, old.and_then(|record| record.principal), principal);
    }

    fn delete(&mut self, key: &StorageKey, now: Duration) -> Deleted {
        let stored = self.live(key, now).map(|record| record.stored(now));
        self.remove(key);
        if let Some(lock) = self.locks.get(key) {
            lock.freed.notify_waiters(); // there is nothing left to wait for
        }
        stored.map_or(Deleted::Missing, Deleted::Removed)
    }

    fn remove(&mut self, key: &StorageKey) {
        if let Some(record) = self.records.remove(key) {
            self.reindex(key, record.principal, None);
        }
    }

    fn reindex(&mut self, key: &StorageKey, old: Option<PrincipalKey>, new: Option<PrincipalKey>) {
        if let Some(new) = new {
            self.index.entry(new).or_default().insert(*key);
        }
        if let Some(old) = old.filter(|old| Some(*old) != new)
            && let Some(keys) = self.index.get_mut(&old)
        {
            keys.remove(key);
            if keys.is_empty() {
                self.index.remove(&old);
            }
        }
    }
}

#[async_trait]
impl SessionStore for MemoryStore {
    fn capabilities(&self) -> Capabilities {
        Capabilities { fencing: true, max_value: MAX_VALUE, ..Capabilities::new(Durability::Volatile) }
    }

    fn index(&self) -> Option<&dyn SessionIndex> {
        Some(self)
    }

    fn sweeper(&self) -> Option<&dyn SessionSweeper> {
        Some(self)
    }

    async fn load(&self, key: &StorageKey) -> Result<Option<Stored>> {
        let now = self.clock.now();
        Ok(self.state().live(key, now).map(|record| record.stored(now)))
    }

    async fn insert(&self, key: &StorageKey, put: &Put) -> Result<Inserted> {
        let record = self.record(put, "insert")?;
        let mut state = self.state();
        if state.live(key, self.clock.now()).is_some() {
            return Ok(Inserted::Exists);
        }
        let version = record.version;
        state.write(key, record);
        Ok(Inserted::Created(version))
    }

    async fn replace(&self, key: &StorageKey, expected: Version, put: &Put) -> Result<Replaced> {
        let record = self.record(put, "replace")?;
        Ok(self.state().replace(key, expected, record, None, self.clock.now()))
    }

    async fn touch(&self, key: &StorageKey, expected: Version, ttl: Duration) -> Result<Touched> {
        let now = self.clock.now();
        let mut state = self.state();
        Ok(match state.records.get_mut(key).filter(|record| record.expires > now) {
            None => Touched::Missing,
            Some(record) if record.version != expected => Touched::Conflict,
            Some(record) => {
                record.expires = now.saturating_add(ttl);
                Touched::Extended
            }
        })
    }

    async fn delete(&self, key: &StorageKey) -> Result<Deleted> {
        Ok(self.state().delete(key, self.clock.now()))
    }
}

#[async_trait]
impl SessionIndex for MemoryStore {
    async fn keys_of(&self, principal: &PrincipalKey, after: Option<Bytes>, limit: usize) -> Result<Page> {
        let after = match after.as_deref().map(<[u8; 32]>::try_from) {
            None => None,
            Some(Ok(bytes)) => Some(StorageKey::from_bytes(bytes)),
            Some(Err(_)) => {
                return Err(
                    Error::new(ErrorKind::Invalid, "keys_of").with_context("not a page of this index")
                );
            }
        };
        let state = self.state();
        let all = state.index.get(principal).into_iter().flatten();
        let mut keys: Vec<_> = all
            .filter(|key| after.is_none_or(|after| **key > after))
            .take(limit.saturating_add(1))
            .copied()
            .collect();
        let more = keys.len() > limit;
        keys.truncate(limit);
        let next = keys.last().filter(|_| more).map(|key| Bytes::copy_from_slice(key.as_bytes()));
        Ok(Page { keys, next })
    }
}

#[async_trait]
impl SessionSweeper for MemoryStore {
    async fn sweep(&self, limit: usize) -> Result<Swept> {
        let now = self.clock.now();
        let mut state = self.state();
        let expired = state.records.iter().filter(|(_, record)| record.expires <= now);
        let mut keys: Vec<_> = expired.map(|(key, _)| *key).take(limit.saturating_add(1)).collect();
        let more = keys.len() > limit;
        keys.truncate(limit);
        for key in &keys {
            state.remove(key);
        }
        state.locks.retain(|_, lock| lock.waiters > 0 || lock.holder.is_some_and(|(_, until)| until > now));
        Ok(Swept { removed: keys.len(), more })
    }
}

#[async_trait]
impl SessionLock for MemoryStore {
    async fn acquire(
        &self,
        key: &StorageKey,
        token: Token,
        lease: Duration,
        wait: Duration,
    ) -> Result<Acquired> {
        Ok(match self.take(key, token, lease, wait, false).await {
            Taken::Granted(grant, _) => Acquired::Granted(grant),
            Taken::Held(held) => Acquired::Held(held),
            Taken::Missing => Acquired::Held(Held::default()),
        })
    }

    async fn renew(&self, grant: &Grant, lease: Duration) -> Result<Renewed> {
        let now = self.clock.now();
        let mut state = self.state();
        if !matches!(state.holder(grant.key(), now), Some((token, _)) if token == *grant.token()) {
            return Ok(Renewed::Lost);
        }
        state.locks.entry(*grant.key()).or_default().holder =
            Some((*grant.token(), now.saturating_add(lease)));
        Ok(Renewed::Extended)
    }

    async fn release(&self, grant: &Grant) -> Result<Released> {
        let freed = self.state().free(grant.key(), *grant.token(), self.clock.now());
        Ok(if freed { Released::Freed } else { Released::Lost })
    }
}

#[async_trait]
impl LockingStore for MemoryStore {
    async fn acquire_and_load(
        &self,
        key: &StorageKey,
        token: Token,
        lease: Duration,
        wait: Duration,
    ) -> Result<Loaded> {
        Ok(match self.take(key, token, lease, wait, true).await {
            Taken::Granted(grant, Some(stored)) => Loaded::Granted(grant, stored),
            Taken::Held(held) => Loaded::Held(held),
            Taken::Missing | Taken::Granted(_, None) => Loaded::Missing,
        })
    }

    async fn replace_and_release(&self, grant: &Grant, expected: Version, put: &Put) -> Result<Replaced> {
        let record = self.record(put, "replace_and_release")?;
        let now = self.clock.now();
        let mut state = self.state();
        let replaced = state.replace(grant.key(), expected, record, Some(*grant.token()), now);
        if matches!(replaced, Replaced::Done(_) | Replaced::Missing) {
            state.free(grant.key(), *grant.token(), now);
        }
        Ok(replaced)
    }

    async fn delete_and_release(&self, grant: &Grant) -> Result<Deleted> {
        let now = self.clock.now();
        let mut state = self.state();
        let deleted = state.delete(grant.key(), now);
        state.free(grant.key(), *grant.token(), now);
        Ok(deleted)
    }
}

#[async_trait]
impl SessionLock for MemoryLock {
    async fn acquire(
        &self,
        key: &StorageKey,
        token: Token,
        lease: Duration,
        wait: Duration,
    ) -> Result<Acquired> {
        self.0.acquire(key, token, lease, wait).await
    }

    async fn renew(&self, grant: &Grant, lease: Duration) -> Result<Renewed> {
        self.0.renew(grant, lease).await
    }

    async fn release(&self, grant: &Grant) -> Result<Released> {
        self.0.release(grant).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What others call endless.
    #[tokio::test(start_paused = true)]
    async fn the_longest_times_and_the_highest_limits_are_taken() -> Result<()> {
        let store = MemoryStore::default();
        let [key, expired] = [1, 2].map(|number| StorageKey::from_bytes([number; 32]));
        let user = PrincipalKey::of("user");
        for (key, ttl) in [(key, Duration::MAX), (expired, Duration::ZERO)] {
            let put = Put::new(Bytes::new(), ttl).principal(Some(user));
            assert!(matches!(store.insert(&key, &put).await?, Inserted::Created(_)));
        }
        assert_eq!(store.sweep(usize::MAX).await?, Swept { removed: 1, more: false });
        let page = store.keys_of(&user, None, usize::MAX).await?;
        assert_eq!((page.keys, page.next), (vec![key], None));

        let ask = |number| {
            let (store, token) = (store.clone(), Token::from_bytes([number; 16]));
            async move { store.acquire(&key, token, Duration::MAX, Duration::MAX).await }
        };
        let Acquired::Granted(held) = ask(1).await? else { panic!("it is free") };
        let waiting = tokio::spawn(ask(2));
        tokio::time::sleep(Duration::from_mins(1)).await; // of the paused clock
        assert!(!waiting.is_finished());
        assert_eq!(store.release(&held).await?, Released::Freed);
        assert!(matches!(waiting.await.expect("it has not panicked")?, Acquired::Granted(_)));
        Ok(())
    }
}
