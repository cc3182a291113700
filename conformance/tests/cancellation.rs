//! Every future of the public interface, dropped at every await point, on the stores in memory. (Each backend
//! does the same.) And stores that do not stand it, which must be convicted.

#![allow(clippy::panic, reason = "a test fails by panicking")]

use async_trait::async_trait;
use session_conformance::cancellation::{Bounds, drop_everywhere};
use session_core::{
    Acquired, Capabilities, Deleted, Grant, Inserted, LockingStore, MemoryLock, MemoryStore, Pair, Put,
    Released, Renewed, Replaced, Result, SessionIndex, SessionLock, SessionStore, SessionSweeper, StorageKey,
    Stored, Token, Touched, Version,
};
use std::{sync::Arc, time::Duration};

/// A lease that never ends by itself here: what is free in a second was released.
const BOUNDS: Bounds = Bounds { lease: Duration::from_mins(10), free_within: Duration::from_secs(1) };

async fn drop_everywhere_on(store: Arc<dyn LockingStore>) {
    let dropped = drop_everywhere(store, BOUNDS).await;
    let mut drops = 0;
    for case in dropped.unwrap_or_else(|wrong| panic!("{wrong}")) {
        println!("{:4} await points: {}", case.await_points, case.case);
        assert!(case.await_points >= 6, "{case:?}");
        drops += case.await_points;
    }
    println!("{drops} drops");
}

#[tokio::test(start_paused = true)]
async fn on_a_store_that_fences() {
    drop_everywhere_on(Arc::new(MemoryStore::default())).await;
}

#[tokio::test(start_paused = true)]
async fn on_a_store_with_a_lock_beside_it() {
    drop_everywhere_on(Arc::new(Pair(MemoryStore::default(), MemoryLock::default()))).await;
}

/// Forgets to release when it is cut in the middle: what a naive driver does between asking and telling.
#[derive(Debug)]
struct Forgetful(MemoryLock);

#[async_trait]
impl SessionLock for Forgetful {
    async fn acquire(
        &self,
        key: &StorageKey,
        asked: Token,
        lease: Duration,
        wait: Duration,
    ) -> Result<Acquired> {
        // A token of its own at first: what is held with that cannot be released with the caller's.
        let own = Token::random(&session_core::SystemRandom)?;
        let acquired = self.0.acquire(key, own, lease, wait).await?;
        tokio::task::yield_now().await;
        let Acquired::Granted(grant) = acquired else { return Ok(acquired) };
        let (Released::Freed | Released::Lost) = self.0.release(&grant).await?;
        self.0.acquire(key, asked, lease, Duration::ZERO).await
    }

    async fn renew(&self, grant: &Grant, lease: Duration) -> Result<Renewed> {
        self.0.renew(grant, lease).await
    }

    async fn release(&self, grant: &Grant) -> Result<Released> {
        self.0.release(grant).await
    }
}

#[tokio::test(start_paused = true)]
async fn a_lock_that_stays_is_convicted() {
    let pair = Pair(MemoryStore::default(), Forgetful(MemoryLock::default()));
    let wrong = drop_everywhere(Arc::new(pair), BOUNDS).await.unwrap_err();
    assert!(wrong.contains("the lock is still held"), "{wrong}");
}

/// Replaces in two steps.
#[derive(Debug)]
struct Torn(MemoryStore);

#[async_trait]
impl SessionStore for Torn {
    fn capabilities(&self) -> Capabilities {
        self.0.capabilities()
    }

    fn index(&self) -> Option<&dyn SessionIndex> {
        self.0.index()
    }

    fn sweeper(&self) -> Option<&dyn SessionSweeper> {
        self.0.sweeper()
    }

    async fn load(&self, key: &StorageKey) -> Result<Option<Stored>> {
        self.0.load(key).await
    }

    async fn insert(&self, key: &StorageKey, put: &Put) -> Result<Inserted> {
        self.0.insert(key, put).await
    }

    async fn replace(&self, key: &StorageKey, expected: Version, put: &Put) -> Result<Replaced> {
        let Some(stored) = self.0.load(key).await? else { return Ok(Replaced::Missing) };
        if stored.version != expected {
            return Ok(Replaced::Conflict(stored));
        }
        let _removed = self.0.delete(key).await?;
        tokio::task::yield_now().await;
        match self.0.insert(key, put).await? {
            Inserted::Created(version) => Ok(Replaced::Done(version)),
            Inserted::Exists => Ok(Replaced::Missing),
        }
    }

    async fn touch(&self, key: &StorageKey, expected: Version, ttl: Duration) -> Result<Touched> {
        self.0.touch(key, expected, ttl).await
    }

    async fn delete(&self, key: &StorageKey) -> Result<Deleted> {
        self.0.delete(key).await
    }
}

#[tokio::test(start_paused = true)]
async fn a_write_in_two_steps_is_convicted() {
    let pair = Pair(Torn(MemoryStore::default()), MemoryLock::default());
    let wrong = drop_everywhere(Arc::new(pair), BOUNDS).await.unwrap_err();
    assert!(wrong.contains("it is None, neither"), "{wrong}");
}
