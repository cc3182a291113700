//! A store whose versions come back.

use super::Store;
use crate::wrapper::{Wrapper, wrap};
use async_trait::async_trait;
use session_core::{
    Grant, Inserted, Loaded, Put, Replaced, Result, StorageKey, Stored, Token, Touched, Version,
};
use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

/// Shows counted versions for those of the store below. They begin at one with each insert, also of an id
/// that was there before, and begin again after a few.
#[derive(Debug)]
struct ReusesAVersion {
    inner: Store,
    keys: Mutex<HashMap<StorageKey, Counted>>,
}

/// The versions of one key.
#[derive(Debug, Default)]
struct Counted {
    count: u64,
    /// What is shown for the versions of the store below, and which was the last that was shown so.
    shown: HashMap<Version, u64>,
    meant: HashMap<u64, Version>,
}

impl Counted {
    /// So few that one that is waiting meets its own again.
    const FEW: u64 = 4;

    fn show(&mut self, version: Version) -> Version {
        if !self.shown.contains_key(&version) {
            self.count += 1;
            self.shown.insert(version, self.count % Self::FEW);
            self.meant.insert(self.count % Self::FEW, version);
        }
        Version::from_u64(self.shown[&version])
    }

    /// What somebody means who names this version: the last that was shown so.
    fn mean(&self, named: Version) -> Version {
        self.meant
            .iter()
            .find(|(shown, _)| Version::from_u64(**shown) == named)
            .map_or(named, |(_, version)| *version)
    }
}

pub(super) fn reuses_a_version(inner: Store) -> Store {
    wrap(ReusesAVersion { inner, keys: Mutex::default() })
}

impl ReusesAVersion {
    fn keys(&self) -> MutexGuard<'_, HashMap<StorageKey, Counted>> {
        self.keys.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn version(&self, key: &StorageKey, version: Version) -> Version {
        self.keys().entry(*key).or_default().show(version)
    }

    fn record(&self, key: &StorageKey, mut stored: Stored) -> Stored {
        stored.version = self.version(key, stored.version);
        stored
    }

    fn meant(&self, key: &StorageKey, named: Version) -> Version {
        self.keys().entry(*key).or_default().mean(named)
    }

    fn replaced(&self, key: &StorageKey, replaced: Replaced) -> Replaced {
        match replaced {
            Replaced::Done(version) => Replaced::Done(self.version(key, version)),
            Replaced::Conflict(fresh) => Replaced::Conflict(self.record(key, fresh)),
            other => other,
        }
    }
}

#[async_trait]
impl Wrapper for ReusesAVersion {
    fn inner(&self) -> &Store {
        &self.inner
    }

    async fn load(&self, key: &StorageKey) -> Result<Option<Stored>> {
        Ok(self.inner.load(key).await?.map(|stored| self.record(key, stored)))
    }

    async fn insert(&self, key: &StorageKey, put: &Put) -> Result<Inserted> {
        Ok(match self.inner.insert(key, put).await? {
            Inserted::Created(version) => {
                self.keys().remove(key);
                Inserted::Created(self.version(key, version))
            }
            Inserted::Exists => Inserted::Exists,
        })
    }

    async fn replace(&self, key: &StorageKey, expected: Version, put: &Put) -> Result<Replaced> {
        let replaced = self.inner.replace(key, self.meant(key, expected), put).await?;
        Ok(self.replaced(key, replaced))
    }

    async fn touch(&self, key: &StorageKey, expected: Version, ttl: Duration) -> Result<Touched> {
        self.inner.touch(key, self.meant(key, expected), ttl).await
    }

    async fn acquire_and_load(
        &self,
        key: &StorageKey,
        token: Token,
        lease: Duration,
        wait: Duration,
    ) -> Result<Loaded> {
        Ok(match self.inner.acquire_and_load(key, token, lease, wait).await? {
            Loaded::Granted(grant, stored) => Loaded::Granted(grant, self.record(key, stored)),
            other => other,
        })
    }

    async fn replace_and_release(&self, grant: &Grant, expected: Version, put: &Put) -> Result<Replaced> {
        let expected = self.meant(grant.key(), expected);
        let replaced = self.inner.replace_and_release(grant, expected, put).await?;
        Ok(self.replaced(grant.key(), replaced))
    }
}
