//! Wrong about time.

use super::Store;
use crate::wrapper::{Wrapper, wrap};
use async_trait::async_trait;
use session_core::{Grant, Inserted, Put, Replaced, Result, StorageKey, Touched, Version};
use std::time::Duration;

pub(super) fn expires_early(inner: Store) -> Store {
    wrap(Ttl { inner, change: |ttl| ttl / 2 })
}

pub(super) fn expires_never(inner: Store) -> Store {
    wrap(Ttl { inner, change: |ttl| ttl * 1000 })
}

pub(super) fn long_ttls_are_dates(inner: Store) -> Store {
    wrap(Ttl { inner, change: |ttl| if ttl > Duration::from_hours(30 * 24) { Duration::ZERO } else { ttl } })
}

/// Keeps records for another time than it is told.
#[derive(Debug)]
struct Ttl {
    inner: Store,
    change: fn(Duration) -> Duration,
}

impl Ttl {
    fn put(&self, put: &Put) -> Put {
        Put::new(put.data.clone(), (self.change)(put.ttl)).principal(put.principal)
    }
}

#[async_trait]
impl Wrapper for Ttl {
    fn inner(&self) -> &Store {
        &self.inner
    }

    async fn insert(&self, key: &StorageKey, put: &Put) -> Result<Inserted> {
        self.inner.insert(key, &self.put(put)).await
    }

    async fn replace(&self, key: &StorageKey, expected: Version, put: &Put) -> Result<Replaced> {
        self.inner.replace(key, expected, &self.put(put)).await
    }

    async fn touch(&self, key: &StorageKey, expected: Version, ttl: Duration) -> Result<Touched> {
        self.inner.touch(key, expected, (self.change)(ttl)).await
    }

    async fn replace_and_release(&self, grant: &Grant, expected: Version, put: &Put) -> Result<Replaced> {
        self.inner.replace_and_release(grant, expected, &self.put(put)).await
    }
}

pub(super) fn touch_ignores_the_version(inner: Store) -> Store {
    wrap(AnyVersion(inner))
}

#[derive(Debug)]
struct AnyVersion(Store);

#[async_trait]
impl Wrapper for AnyVersion {
    fn inner(&self) -> &Store {
        &self.0
    }

    async fn touch(&self, key: &StorageKey, _: Version, ttl: Duration) -> Result<Touched> {
        match self.0.load(key).await? {
            Some(stored) => self.0.touch(key, stored.version, ttl).await,
            None => Ok(Touched::Missing),
        }
    }
}

pub(super) fn touch_rewrites(inner: Store) -> Store {
    wrap(Rewrite(inner))
}

#[derive(Debug)]
struct Rewrite(Store);

#[async_trait]
impl Wrapper for Rewrite {
    fn inner(&self) -> &Store {
        &self.0
    }

    async fn touch(&self, key: &StorageKey, expected: Version, ttl: Duration) -> Result<Touched> {
        let Some(stored) = self.0.load(key).await? else { return Ok(Touched::Missing) };
        let put = Put::new(stored.data, ttl).principal(stored.principal);
        Ok(match self.0.replace(key, expected, &put).await? {
            Replaced::Done(_) => Touched::Extended,
            Replaced::Missing => Touched::Missing,
            Replaced::Conflict(_) | Replaced::NotHolder(_) => Touched::Conflict,
        })
    }
}

pub(super) fn touches_the_dead(inner: Store) -> Store {
    wrap(Optimist(inner))
}

#[derive(Debug)]
struct Optimist(Store);

#[async_trait]
impl Wrapper for Optimist {
    fn inner(&self) -> &Store {
        &self.0
    }

    async fn touch(&self, key: &StorageKey, expected: Version, ttl: Duration) -> Result<Touched> {
        Ok(match self.0.touch(key, expected, ttl).await? {
            Touched::Missing => Touched::Extended,
            touched => touched,
        })
    }
}
