//! Any store with any lock, and shared stores: what makes one out of two, and `Arc<dyn LockingStore>` usable
//! as a store.
//!
//! ```
//! use session_core::{MemoryLock, MemoryStore, Pair, SessionStore, Sessions};
//!
//! let pair = Pair(MemoryStore::default(), MemoryLock::default());
//! assert!(!pair.capabilities().fencing); // the version check holds all the same
//! let sessions = Sessions::builder(pair).build()?;
//! # Ok::<(), session_core::Error>(())
//! ```

use crate::{
    Acquired, Capabilities, Deleted, Grant, Inserted, Loaded, LockingStore, Put, Released, Renewed, Replaced,
    Result, SessionIndex, SessionLock, SessionStore, SessionSweeper, StorageKey, Stored, Token, Touched,
    Version,
};
use async_trait::async_trait;
use std::{sync::Arc, time::Duration};

/// Any store with any lock. The version check still holds; fencing does not: the lock orders those who take
/// it.
#[derive(Clone, Debug)]
pub struct Pair<S, L>(
    /// Where the records are.
    pub S,
    /// What orders their exclusive users.
    pub L,
);

#[async_trait]
impl<S: SessionStore, L: SessionLock> SessionStore for Pair<S, L> {
    fn capabilities(&self) -> Capabilities {
        Capabilities { fencing: false, ..self.0.capabilities() }
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
        self.0.replace(key, expected, put).await
    }

    async fn touch(&self, key: &StorageKey, expected: Version, ttl: Duration) -> Result<Touched> {
        self.0.touch(key, expected, ttl).await
    }

    async fn delete(&self, key: &StorageKey) -> Result<Deleted> {
        self.0.delete(key).await
    }
}

#[async_trait]
impl<S: SessionStore, L: SessionLock> SessionLock for Pair<S, L> {
    async fn acquire(
        &self,
        key: &StorageKey,
        token: Token,
        lease: Duration,
        wait: Duration,
    ) -> Result<Acquired> {
        self.1.acquire(key, token, lease, wait).await
    }

    async fn renew(&self, grant: &Grant, lease: Duration) -> Result<Renewed> {
        self.1.renew(grant, lease).await
    }

    async fn release(&self, grant: &Grant) -> Result<Released> {
        self.1.release(grant).await
    }
}

#[async_trait]
impl<S: SessionStore, L: SessionLock> LockingStore for Pair<S, L> {
    async fn acquire_and_load(
        &self,
        key: &StorageKey,
        token: Token,
        lease: Duration,
        wait: Duration,
    ) -> Result<Loaded> {
        match self.1.acquire(key, token, lease, wait).await? {
            Acquired::Held(held) => Ok(Loaded::Held(held)),
            Acquired::Granted(grant) => match self.0.load(key).await? {
                Some(stored) => Ok(Loaded::Granted(grant, stored)),
                None => self.1.release(&grant).await.map(|_| Loaded::Missing),
            },
        }
    }

    async fn replace_and_release(&self, grant: &Grant, expected: Version, put: &Put) -> Result<Replaced> {
        let replaced = self.0.replace(grant.key(), expected, put).await?;
        if matches!(replaced, Replaced::Done(_) | Replaced::Missing) {
            // The record is written: a lock that does not answer ends with its lease, and is no reason to
            // call it failed.
            if let Err(error) = self.1.release(grant).await {
                tracing::warn!(%error, "a lock could not be released after the write");
            }
        }
        Ok(replaced)
    }

    async fn delete_and_release(&self, grant: &Grant) -> Result<Deleted> {
        let deleted = self.0.delete(grant.key()).await?;
        if let Err(error) = self.1.release(grant).await {
            tracing::warn!(%error, "a lock could not be released after the delete");
        }
        Ok(deleted)
    }
}

#[async_trait]
impl<T: SessionStore + ?Sized> SessionStore for Arc<T> {
    fn capabilities(&self) -> Capabilities {
        (**self).capabilities()
    }

    fn index(&self) -> Option<&dyn SessionIndex> {
        (**self).index()
    }

    fn sweeper(&self) -> Option<&dyn SessionSweeper> {
        (**self).sweeper()
    }

    async fn load(&self, key: &StorageKey) -> Result<Option<Stored>> {
        (**self).load(key).await
    }

    async fn insert(&self, key: &StorageKey, put: &Put) -> Result<Inserted> {
        (**self).insert(key, put).await
    }

    async fn replace(&self, key: &StorageKey, expected: Version, put: &Put) -> Result<Replaced> {
        (**self).replace(key, expected, put).await
    }

    async fn touch(&self, key: &StorageKey, expected: Version, ttl: Duration) -> Result<Touched> {
        (**self).touch(key, expected, ttl).await
    }

    async fn delete(&self, key: &StorageKey) -> Result<Deleted> {
        (**self).delete(key).await
    }
}

#[async_trait]
impl<T: SessionLock + ?Sized> SessionLock for Arc<T> {
    async fn acquire(
        &self,
        key: &StorageKey,
        token: Token,
        lease: Duration,
        wait: Duration,
    ) -> Result<Acquired> {
        (**self).acquire(key, token, lease, wait).await
    }

    async fn renew(&self, grant: &Grant, lease: Duration) -> Result<Renewed> {
        (**self).renew(grant, lease).await
    }

    async fn release(&self, grant: &Grant) -> Result<Released> {
        (**self).release(grant).await
    }
}

#[async_trait]
impl<T: LockingStore + ?Sized> LockingStore for Arc<T> {
    async fn acquire_and_load(
        &self,
        key: &StorageKey,
        token: Token,
        lease: Duration,
        wait: Duration,
    ) -> Result<Loaded> {
        (**self).acquire_and_load(key, token, lease, wait).await
    }

    async fn replace_and_release(&self, grant: &Grant, expected: Version, put: &Put) -> Result<Replaced> {
        (**self).replace_and_release(grant, expected, put).await
    }

    async fn delete_and_release(&self, grant: &Grant) -> Result<Deleted> {
        (**self).delete_and_release(grant).await
    }
}
