//! Wrong about waiting.

use super::Store;
use crate::wrapper::{Wrapper, wrap};
use async_trait::async_trait;
use session_core::{
    Acquired, Deleted, Grant, Held, Loaded, Put, Released, Replaced, Result, StorageKey, Token, Version,
};
use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, sleep, timeout},
};

pub(super) fn busy_is_missing(inner: Store) -> Store {
    wrap(Impatient(inner))
}

#[derive(Debug)]
struct Impatient(Store);

#[async_trait]
impl Wrapper for Impatient {
    fn inner(&self) -> &Store {
        &self.0
    }

    async fn acquire_and_load(
        &self,
        key: &StorageKey,
        token: Token,
        lease: Duration,
        wait: Duration,
    ) -> Result<Loaded> {
        Ok(match self.0.acquire_and_load(key, token, lease, wait).await? {
            Loaded::Held(_) => Loaded::Missing,
            loaded => loaded,
        })
    }
}

pub(super) fn waits_without_end(inner: Store) -> Store {
    wrap(Patient(inner))
}

#[derive(Debug)]
struct Patient(Store);

impl Patient {
    const MORE: Duration = Duration::from_hours(1);
}

#[async_trait]
impl Wrapper for Patient {
    fn inner(&self) -> &Store {
        &self.0
    }

    async fn acquire(
        &self,
        key: &StorageKey,
        token: Token,
        lease: Duration,
        wait: Duration,
    ) -> Result<Acquired> {
        self.0.acquire(key, token, lease, wait + Self::MORE).await
    }

    async fn acquire_and_load(
        &self,
        key: &StorageKey,
        token: Token,
        lease: Duration,
        wait: Duration,
    ) -> Result<Loaded> {
        self.0.acquire_and_load(key, token, lease, wait + Self::MORE).await
    }
}

pub(super) fn loses_a_wakeup(inner: Store) -> Store {
    wrap(Sleeper(inner))
}

#[derive(Debug)]
struct Sleeper(Store);

#[async_trait]
impl Wrapper for Sleeper {
    fn inner(&self) -> &Store {
        &self.0
    }

    async fn acquire(
        &self,
        key: &StorageKey,
        token: Token,
        lease: Duration,
        wait: Duration,
    ) -> Result<Acquired> {
        let acquired = self.0.acquire(key, token, lease, Duration::ZERO).await?;
        if matches!(acquired, Acquired::Held(_)) {
            sleep(wait).await;
        }
        Ok(acquired)
    }

    async fn acquire_and_load(
        &self,
        key: &StorageKey,
        token: Token,
        lease: Duration,
        wait: Duration,
    ) -> Result<Loaded> {
        let loaded = self.0.acquire_and_load(key, token, lease, Duration::ZERO).await?;
        if matches!(loaded, Loaded::Held(_)) {
            sleep(wait).await;
        }
        Ok(loaded)
    }
}

pub(super) fn serves_the_last_first(inner: Store) -> Store {
    wrap(Stack { inner, waiting: Mutex::default(), next: AtomicU64::new(0) })
}

/// Who waits for which lock, the last one last.
#[derive(Debug)]
struct Stack {
    inner: Store,
    waiting: Mutex<HashMap<StorageKey, Vec<u64>>>,
    next: AtomicU64,
}

/// A place on the stack, for as long as it is waited for.
struct Place<'a> {
    stack: &'a Stack,
    key: StorageKey,
    number: u64,
}

impl Stack {
    const POLL: Duration = Duration::from_micros(200);

    fn waiting(&self) -> MutexGuard<'_, HashMap<StorageKey, Vec<u64>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn enter(&self, key: &StorageKey) -> Place<'_> {
        let number = self.next.fetch_add(1, Relaxed);
        self.waiting().entry(*key).or_default().push(number);
        Place { stack: self, key: *key, number }
    }
}

impl Place<'_> {
    fn is_last(&self) -> bool {
        self.stack.waiting().get(&self.key).and_then(|numbers| numbers.last()) == Some(&self.number)
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        if let Some(numbers) = self.stack.waiting().get_mut(&self.key) {
            numbers.retain(|number| *number != self.number);
        }
    }
}

#[async_trait]
impl Wrapper for Stack {
    fn inner(&self) -> &Store {
        &self.inner
    }

    async fn acquire_and_load(
        &self,
        key: &StorageKey,
        token: Token,
        lease: Duration,
        wait: Duration,
    ) -> Result<Loaded> {
        let (place, end) = (self.enter(key), Instant::now() + wait);
        loop {
            if place.is_last() {
                let loaded = self.inner.acquire_and_load(key, token, lease, Duration::ZERO).await?;
                if !matches!(loaded, Loaded::Held(_)) {
                    return Ok(loaded);
                }
            }
            if Instant::now() >= end {
                return Ok(Loaded::Held(Held::default()));
            }
            sleep(Self::POLL).await;
        }
    }
}

pub(super) fn a_connection_for_each_lock(inner: Store) -> Store {
    wrap(Pool { inner, connections: Arc::new(Semaphore::new(10)), taken: Mutex::default() })
}

#[derive(Debug)]
struct Pool {
    inner: Store,
    connections: Arc<Semaphore>,
    taken: Mutex<HashMap<Token, OwnedSemaphorePermit>>,
}

impl Pool {
    fn taken(&self) -> MutexGuard<'_, HashMap<Token, OwnedSemaphorePermit>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn connection(&self, wait: Duration) -> Option<OwnedSemaphorePermit> {
        timeout(wait, Arc::clone(&self.connections).acquire_owned()).await.ok()?.ok()
    }
}

#[async_trait]
impl Wrapper for Pool {
    fn inner(&self) -> &Store {
        &self.inner
    }

    async fn acquire(
        &self,
        key: &StorageKey,
        token: Token,
        lease: Duration,
        wait: Duration,
    ) -> Result<Acquired> {
        let Some(connection) = self.connection(wait).await else {
            return Ok(Acquired::Held(Held::default()));
        };
        let acquired = self.inner.acquire(key, token, lease, wait).await?;
        if matches!(acquired, Acquired::Granted(_)) {
            self.taken().insert(token, connection);
        }
        Ok(acquired)
    }

    async fn acquire_and_load(
        &self,
        key: &StorageKey,
        token: Token,
        lease: Duration,
        wait: Duration,
    ) -> Result<Loaded> {
        let Some(connection) = self.connection(wait).await else {
            return Ok(Loaded::Held(Held::default()));
        };
        let loaded = self.inner.acquire_and_load(key, token, lease, wait).await?;
        if matches!(loaded, Loaded::Granted(..)) {
            self.taken().insert(token, connection);
        }
        Ok(loaded)
    }

    async fn release(&self, grant: &Grant) -> Result<Released> {
        self.taken().remove(grant.token());
        self.inner.release(grant).await
    }

    async fn replace_and_release(&self, grant: &Grant, expected: Version, put: &Put) -> Result<Replaced> {
        let replaced = self.inner.replace_and_release(grant, expected, put).await?;
        if !matches!(replaced, Replaced::Conflict(_)) {
            self.taken().remove(grant.token());
        }
        Ok(replaced)
    }

    async fn delete_and_release(&self, grant: &Grant) -> Result<Deleted> {
        self.taken().remove(grant.token());
        self.inner.delete_and_release(grant).await
    }
}
