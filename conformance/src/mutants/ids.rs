//! Stores that let a session begin, end or be found when it must not, or not be found when it must.

use super::Store;
use crate::wrapper::{Wrapper, wrap};
use async_trait::async_trait;
use bytes::Bytes;
use session_core::{
    Grant, Inserted, Loaded, Page, PrincipalKey, Put, Replaced, Result, SessionIndex, StorageKey, Stored,
    Token, Version,
};
use std::{
    collections::HashSet,
    sync::{Mutex, PoisonError},
    time::Duration,
};

#[derive(Debug)]
struct AdoptsUnknownIds(Store);

pub(super) fn adopts_unknown_ids(inner: Store) -> Store {
    wrap(AdoptsUnknownIds(inner))
}

impl AdoptsUnknownIds {
    async fn adopt(&self, key: &StorageKey) -> Result<()> {
        let nothing = Put::new(Bytes::new(), Duration::from_mins(30));
        let _created_or_there = self.0.insert(key, &nothing).await?;
        Ok(())
    }
}

#[async_trait]
impl Wrapper for AdoptsUnknownIds {
    fn inner(&self) -> &Store {
        &self.0
    }

    async fn load(&self, key: &StorageKey) -> Result<Option<Stored>> {
        let stored = self.0.load(key).await?;
        if stored.is_none() {
            self.adopt(key).await?;
        }
        Ok(stored)
    }

    async fn acquire_and_load(
        &self,
        key: &StorageKey,
        token: Token,
        lease: Duration,
        wait: Duration,
    ) -> Result<Loaded> {
        let loaded = self.0.acquire_and_load(key, token, lease, wait).await?;
        if matches!(loaded, Loaded::Missing) {
            self.adopt(key).await?;
        }
        Ok(loaded)
    }
}

#[derive(Debug)]
struct IndexForgets {
    inner: Store,
    written: Mutex<HashSet<StorageKey>>,
}

pub(super) fn index_forgets(inner: Store) -> Store {
    wrap(IndexForgets { inner, written: Mutex::default() })
}

impl IndexForgets {
    fn forget(&self, key: &StorageKey) {
        self.written.lock().unwrap_or_else(PoisonError::into_inner).insert(*key);
    }
}

#[async_trait]
impl Wrapper for IndexForgets {
    fn inner(&self) -> &Store {
        &self.inner
    }

    fn index(&self) -> Option<&dyn SessionIndex> {
        self.inner.index().map(|_| self as _)
    }

    async fn replace(&self, key: &StorageKey, expected: Version, put: &Put) -> Result<Replaced> {
        self.forget(key);
        self.inner.replace(key, expected, put).await
    }

    async fn replace_and_release(&self, grant: &Grant, expected: Version, put: &Put) -> Result<Replaced> {
        self.forget(grant.key());
        self.inner.replace_and_release(grant, expected, put).await
    }
}

#[async_trait]
impl SessionIndex for IndexForgets {
    async fn keys_of(&self, principal: &PrincipalKey, after: Option<Bytes>, limit: usize) -> Result<Page> {
        let mut page = match self.inner.index() {
            Some(index) => index.keys_of(principal, after, limit).await?,
            None => Page::default(),
        };
        let written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        page.keys.retain(|key| !written.contains(key));
        Ok(page)
    }
}

#[derive(Debug)]
struct InsertOverwrites(Store);

pub(super) fn insert_overwrites(inner: Store) -> Store {
    wrap(InsertOverwrites(inner))
}

#[async_trait]
impl Wrapper for InsertOverwrites {
    fn inner(&self) -> &Store {
        &self.0
    }

    async fn insert(&self, key: &StorageKey, put: &Put) -> Result<Inserted> {
        loop {
            if let Inserted::Created(version) = self.0.insert(key, put).await? {
                return Ok(Inserted::Created(version));
            }
            let _removed_or_gone = self.0.delete(key).await?;
        }
    }
}

#[derive(Debug)]
struct LocksUnknownIds(Store);

pub(super) fn locks_unknown_ids(inner: Store) -> Store {
    wrap(LocksUnknownIds(inner))
}

#[async_trait]
impl Wrapper for LocksUnknownIds {
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
        let loaded = self.0.acquire_and_load(key, token, lease, wait).await?;
        if matches!(loaded, Loaded::Missing) {
            let _left_behind = self.0.acquire(key, token, lease, Duration::ZERO).await?;
        }
        Ok(loaded)
    }
}

#[derive(Debug)]
struct RevivesOnSave(Store);

pub(super) fn revives_on_save(inner: Store) -> Store {
    wrap(RevivesOnSave(inner))
}

impl RevivesOnSave {
    async fn revive(&self, key: &StorageKey, put: &Put) -> Result<Replaced> {
        Ok(match self.0.insert(key, put).await? {
            Inserted::Created(version) => Replaced::Done(version),
            Inserted::Exists => Replaced::Missing,
        })
    }
}

#[async_trait]
impl Wrapper for RevivesOnSave {
    fn inner(&self) -> &Store {
        &self.0
    }

    async fn replace(&self, key: &StorageKey, expected: Version, put: &Put) -> Result<Replaced> {
        match self.0.replace(key, expected, put).await? {
            Replaced::Missing => self.revive(key, put).await,
            replaced => Ok(replaced),
        }
    }

    async fn replace_and_release(&self, grant: &Grant, expected: Version, put: &Put) -> Result<Replaced> {
        match self.0.replace_and_release(grant, expected, put).await? {
            Replaced::Missing => self.revive(grant.key(), put).await,
            replaced => Ok(replaced),
        }
    }
}
