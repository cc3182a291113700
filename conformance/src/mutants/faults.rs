//! Stores that are right on a good day.

use super::Store;
use crate::wrapper::{Wrapper, wrap};
use async_trait::async_trait;
use bytes::Bytes;
use session_core::{
    Capabilities, Durability, Error, ErrorKind, Grant, Loaded, LockingStore as _, Put, Replaced, Result,
    StorageKey, Stored, SystemRandom, Token, Version,
};
use std::{
    collections::HashMap,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::time::sleep;

#[derive(Debug)]
struct Declares(Store, fn(&mut Capabilities));

pub(super) fn durable_in_name_only(inner: Store) -> Store {
    wrap(Declares(inner, |declared| declared.durability = Durability::PowerLoss))
}

pub(super) fn keeps_all_in_name_only(inner: Store) -> Store {
    wrap(Declares(inner, |declared| declared.may_evict = false))
}

#[async_trait]
impl Wrapper for Declares {
    fn inner(&self) -> &Store {
        &self.0
    }

    fn capabilities(&self) -> Capabilities {
        let mut declared = self.0.capabilities();
        (self.1)(&mut declared);
        declared
    }
}

#[derive(Debug)]
struct AcknowledgesWhatFailed(Store);

pub(super) fn acknowledges_what_failed(inner: Store) -> Store {
    wrap(AcknowledgesWhatFailed(inner))
}

fn pretended(replaced: Result<Replaced>) -> Result<Replaced> {
    match replaced {
        Err(error) if matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::Backend) => {
            Version::random(&SystemRandom).map(Replaced::Done)
        }
        replaced => replaced,
    }
}

#[async_trait]
impl Wrapper for AcknowledgesWhatFailed {
    fn inner(&self) -> &Store {
        &self.0
    }

    async fn replace(&self, key: &StorageKey, expected: Version, put: &Put) -> Result<Replaced> {
        pretended(self.0.replace(key, expected, put).await)
    }

    async fn replace_and_release(&self, grant: &Grant, expected: Version, put: &Put) -> Result<Replaced> {
        pretended(self.0.replace_and_release(grant, expected, put).await)
    }
}

/// Tries again and again, as if time did not matter.
#[derive(Debug)]
struct HangsWithTheServer(Store);

pub(super) fn hangs_with_the_server(inner: Store) -> Store {
    wrap(HangsWithTheServer(inner))
}

async fn again() {
    sleep(Duration::from_millis(10)).await;
}

fn is_down<T>(result: &Result<T>) -> bool {
    matches!(result, Err(error) if error.kind() == ErrorKind::Unavailable)
}

#[async_trait]
impl Wrapper for HangsWithTheServer {
    fn inner(&self) -> &Store {
        &self.0
    }

    async fn load(&self, key: &StorageKey) -> Result<Option<Stored>> {
        loop {
            let loaded = self.0.load(key).await;
            if !is_down(&loaded) {
                return loaded;
            }
            again().await;
        }
    }

    async fn acquire_and_load(
        &self,
        key: &StorageKey,
        token: Token,
        lease: Duration,
        wait: Duration,
    ) -> Result<Loaded> {
        loop {
            let loaded = self.0.acquire_and_load(key, token, lease, wait).await;
            if !is_down(&loaded) {
                return loaded;
            }
            again().await;
        }
    }
}

/// Has one connection, and never makes another.
#[derive(Debug)]
struct NeverComesBack(Store, AtomicBool);

pub(super) fn never_comes_back(inner: Store) -> Store {
    wrap(NeverComesBack(inner, AtomicBool::new(false)))
}

impl NeverComesBack {
    fn alive(&self, operation: &'static str) -> Result<()> {
        if self.1.load(Relaxed) {
            return Err(Error::unavailable(operation, "the connection is gone"));
        }
        Ok(())
    }

    fn seen<T>(&self, result: Result<T>) -> Result<T> {
        self.1.fetch_or(is_down(&result), Relaxed);
        result
    }
}

#[async_trait]
impl Wrapper for NeverComesBack {
    fn inner(&self) -> &Store {
        &self.0
    }

    async fn load(&self, key: &StorageKey) -> Result<Option<Stored>> {
        self.alive("load")?;
        self.seen(self.0.load(key).await)
    }

    async fn replace(&self, key: &StorageKey, expected: Version, put: &Put) -> Result<Replaced> {
        self.alive("replace")?;
        self.seen(self.0.replace(key, expected, put).await)
    }

    async fn acquire_and_load(
        &self,
        key: &StorageKey,
        token: Token,
        lease: Duration,
        wait: Duration,
    ) -> Result<Loaded> {
        self.alive("acquire_and_load")?;
        self.seen(self.0.acquire_and_load(key, token, lease, wait).await)
    }

    async fn replace_and_release(&self, grant: &Grant, expected: Version, put: &Put) -> Result<Replaced> {
        self.alive("replace_and_release")?;
        self.seen(self.0.replace_and_release(grant, expected, put).await)
    }
}

/// What was applied, by what it replaced.
#[derive(Debug)]
struct AppliesCopiesAgain(Store, Mutex<HashMap<(StorageKey, [u8; 16]), Bytes>>);

pub(super) fn applies_copies_again(inner: Store) -> Store {
    wrap(AppliesCopiesAgain(inner, Mutex::default()))
}

impl AppliesCopiesAgain {
    /// The answer to a first request; a copy of it is applied to whatever is there.
    async fn once_more(
        &self,
        key: &StorageKey,
        expected: Version,
        put: &Put,
        mut replaced: Replaced,
    ) -> Result<Replaced> {
        let known = (*key, expected.to_bytes());
        let is_copy = {
            let mut applied = self.1.lock().unwrap_or_else(PoisonError::into_inner);
            if matches!(replaced, Replaced::Done(_)) {
                applied.insert(known, put.data.clone());
            }
            applied.get(&known) == Some(&put.data)
        };
        if let (Replaced::NotHolder(_), true) = (&replaced, is_copy) {
            let Some(fresh) = self.0.load(key).await? else { return Ok(Replaced::Missing) };
            replaced = Replaced::Conflict(fresh);
        }
        while let (Replaced::Conflict(fresh), true) = (&replaced, is_copy) {
            replaced = self.0.replace(key, fresh.version, put).await?;
        }
        Ok(replaced)
    }
}

#[async_trait]
impl Wrapper for AppliesCopiesAgain {
    fn inner(&self) -> &Store {
        &self.0
    }

    async fn replace(&self, key: &StorageKey, expected: Version, put: &Put) -> Result<Replaced> {
        let replaced = self.0.replace(key, expected, put).await?;
        self.once_more(key, expected, put, replaced).await
    }

    async fn replace_and_release(&self, grant: &Grant, expected: Version, put: &Put) -> Result<Replaced> {
        let replaced = self.0.replace_and_release(grant, expected, put).await?;
        self.once_more(grant.key(), expected, put, replaced).await
    }
}
