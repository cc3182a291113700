//! A store that counts what it is asked.

use crate::wrapper::{Wrapper, wrap};
use async_trait::async_trait;
use session_core::{
    Deleted, Grant, Inserted, Loaded, LockingStore, Put, Replaced, Result, StorageKey, Stored, Token, Version,
};
use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

/// How often the store was asked.
#[derive(Debug, Default)]
pub(super) struct Calls {
    reads: AtomicU64,
    writes: AtomicU64,
}

impl Calls {
    pub(super) fn writes(&self) -> u64 {
        self.writes.load(Relaxed)
    }

    pub(super) fn all(&self) -> u64 {
        self.reads.load(Relaxed) + self.writes()
    }

    fn read(&self) {
        self.reads.fetch_add(1, Relaxed);
    }

    fn write(&self) {
        self.writes.fetch_add(1, Relaxed);
    }
}

#[derive(Debug)]
struct Counted(Arc<dyn LockingStore>, Arc<Calls>);

/// The store, counted.
pub(super) fn counted(store: &Arc<dyn LockingStore>) -> (Arc<dyn LockingStore>, Arc<Calls>) {
    let calls = Arc::<Calls>::default();
    (wrap(Counted(Arc::clone(store), Arc::clone(&calls))), calls)
}

#[async_trait]
impl Wrapper for Counted {
    fn inner(&self) -> &Arc<dyn LockingStore> {
        &self.0
    }

    async fn load(&self, key: &StorageKey) -> Result<Option<Stored>> {
        self.1.read();
        self.0.load(key).await
    }

    async fn acquire_and_load(
        &self,
        key: &StorageKey,
        token: Token,
        lease: Duration,
        wait: Duration,
    ) -> Result<Loaded> {
        self.1.read();
        self.0.acquire_and_load(key, token, lease, wait).await
    }

    async fn insert(&self, key: &StorageKey, put: &Put) -> Result<Inserted> {
        self.1.write();
        self.0.insert(key, put).await
    }

    async fn replace(&self, key: &StorageKey, expected: Version, put: &Put) -> Result<Replaced> {
        self.1.write();
        self.0.replace(key, expected, put).await
    }

    async fn replace_and_release(&self, grant: &Grant, expected: Version, put: &Put) -> Result<Replaced> {
        self.1.write();
        self.0.replace_and_release(grant, expected, put).await
    }

    async fn delete(&self, key: &StorageKey) -> Result<Deleted> {
        self.1.write();
        self.0.delete(key).await
    }
}
