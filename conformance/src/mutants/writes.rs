//! Stores that do not store what they say.

use super::{EveryFew, Store};
use crate::wrapper::{Wrapper, wrap};
use async_trait::async_trait;
use session_core::{Grant, Put, Replaced, Result, StorageKey, SystemRandom, Version};

/// Acknowledges with a version that is nowhere.
fn pretended() -> Result<Replaced> {
    Version::random(&SystemRandom).map(Replaced::Done)
}

#[derive(Debug)]
struct AcknowledgesThenDrops(Store, EveryFew);

pub(super) fn acknowledges_then_drops(inner: Store) -> Store {
    wrap(AcknowledgesThenDrops(inner, EveryFew::of(10)))
}

#[async_trait]
impl Wrapper for AcknowledgesThenDrops {
    fn inner(&self) -> &Store {
        &self.0
    }

    async fn replace(&self, key: &StorageKey, expected: Version, put: &Put) -> Result<Replaced> {
        if self.1.now() {
            return pretended();
        }
        self.0.replace(key, expected, put).await
    }

    async fn replace_and_release(&self, grant: &Grant, expected: Version, put: &Put) -> Result<Replaced> {
        if self.1.now() {
            let _freed_or_lost = self.0.release(grant).await?;
            return pretended();
        }
        self.0.replace_and_release(grant, expected, put).await
    }
}

#[derive(Debug)]
struct DropsRefusedWrites(Store);

pub(super) fn drops_refused_writes(inner: Store) -> Store {
    wrap(DropsRefusedWrites(inner))
}

#[async_trait]
impl Wrapper for DropsRefusedWrites {
    fn inner(&self) -> &Store {
        &self.0
    }

    async fn replace(&self, key: &StorageKey, expected: Version, put: &Put) -> Result<Replaced> {
        match self.0.replace(key, expected, put).await? {
            Replaced::Conflict(_) => pretended(),
            replaced => Ok(replaced),
        }
    }
}

#[derive(Debug)]
struct Overwrites(Store);

pub(super) fn overwrites(inner: Store) -> Store {
    wrap(Overwrites(inner))
}

#[async_trait]
impl Wrapper for Overwrites {
    fn inner(&self) -> &Store {
        &self.0
    }

    async fn replace(&self, key: &StorageKey, mut expected: Version, put: &Put) -> Result<Replaced> {
        loop {
            match self.0.replace(key, expected, put).await? {
                Replaced::Conflict(fresh) => expected = fresh.version,
                replaced => return Ok(replaced),
            }
        }
    }

    async fn replace_and_release(&self, grant: &Grant, mut expected: Version, put: &Put) -> Result<Replaced> {
        loop {
            match self.0.replace_and_release(grant, expected, put).await? {
                Replaced::Conflict(fresh) => expected = fresh.version,
                replaced => return Ok(replaced),
            }
        }
    }
}

#[derive(Debug)]
struct Tears(Store, EveryFew);

pub(super) fn tears(inner: Store) -> Store {
    wrap(Tears(inner, EveryFew::of(10)))
}

impl Tears {
    fn torn(&self, put: &Put) -> Put {
        let half = put.data.len() / 2;
        let data = if self.1.now() { put.data.slice(..half) } else { put.data.clone() };
        Put::new(data, put.ttl).principal(put.principal)
    }
}

#[async_trait]
impl Wrapper for Tears {
    fn inner(&self) -> &Store {
        &self.0
    }

    async fn replace(&self, key: &StorageKey, expected: Version, put: &Put) -> Result<Replaced> {
        self.0.replace(key, expected, &self.torn(put)).await
    }

    async fn replace_and_release(&self, grant: &Grant, expected: Version, put: &Put) -> Result<Replaced> {
        self.0.replace_and_release(grant, expected, &self.torn(put)).await
    }
}
