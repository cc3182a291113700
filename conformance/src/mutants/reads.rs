//! Stores that answer with what is not there, or no longer.

use super::{EveryFew, Store};
use crate::wrapper::{Wrapper, wrap};
use async_trait::async_trait;
use session_core::{Put, Replaced, Result, StorageKey, Stored, Version};
use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
};

/// Records as they were.
#[derive(Debug, Default)]
struct Memory(Mutex<HashMap<StorageKey, Stored>>);

impl Memory {
    /// Keeps the record and gives back the one that was kept before.
    fn keep(&self, key: &StorageKey, stored: Stored) -> Option<Stored> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(*key, stored)
    }

    /// The one that is kept; this one, when there is none.
    fn keep_first(&self, key: &StorageKey, stored: Stored) -> Stored {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(*key).or_insert(stored).clone()
    }
}

#[derive(Debug)]
struct ConflictsWithTheOldRecord(Store, Memory);

pub(super) fn conflicts_with_the_old_record(inner: Store) -> Store {
    wrap(ConflictsWithTheOldRecord(inner, Memory::default()))
}

impl ConflictsWithTheOldRecord {
    /// Before each write, what is there: what a write that is refused right after another one is shown.
    async fn before(&self, key: &StorageKey) -> Result<Option<Stored>> {
        let Some(stored) = self.0.load(key).await? else { return Ok(None) };
        Ok(self.1.keep(key, stored))
    }
}

#[async_trait]
impl Wrapper for ConflictsWithTheOldRecord {
    fn inner(&self) -> &Store {
        &self.0
    }

    async fn replace(&self, key: &StorageKey, expected: Version, put: &Put) -> Result<Replaced> {
        let before = self.before(key).await?;
        Ok(match (self.0.replace(key, expected, put).await?, before) {
            (Replaced::Conflict(_), Some(old)) => Replaced::Conflict(old),
            (replaced, _) => replaced,
        })
    }
}

#[derive(Debug)]
struct MixesSessions(Store, EveryFew, Mutex<Option<(StorageKey, Stored)>>);

pub(super) fn mixes_sessions(inner: Store) -> Store {
    wrap(MixesSessions(inner, EveryFew::of(50), Mutex::default()))
}

#[async_trait]
impl Wrapper for MixesSessions {
    fn inner(&self) -> &Store {
        &self.0
    }

    async fn load(&self, key: &StorageKey) -> Result<Option<Stored>> {
        let Some(stored) = self.0.load(key).await? else { return Ok(None) };
        let mut last = self.2.lock().unwrap_or_else(PoisonError::into_inner);
        let other = last.replace((*key, stored.clone())).filter(|(other, _)| other != key && self.1.now());
        Ok(Some(other.map_or(stored, |(_, other)| other)))
    }
}

/// Answers some loads from a copy that is brought up to date every few loads.
#[derive(Debug)]
struct ReadsFromAReplica(Store, EveryFew, Memory);

pub(super) fn reads_from_a_replica(inner: Store) -> Store {
    wrap(ReadsFromAReplica(inner, EveryFew::of(8), Memory::default()))
}

#[async_trait]
impl Wrapper for ReadsFromAReplica {
    fn inner(&self) -> &Store {
        &self.0
    }

    async fn load(&self, key: &StorageKey) -> Result<Option<Stored>> {
        let Some(stored) = self.0.load(key).await? else { return Ok(None) };
        if self.1.now() {
            self.2.keep(key, stored.clone());
        }
        Ok(Some(self.2.keep_first(key, stored)))
    }
}
