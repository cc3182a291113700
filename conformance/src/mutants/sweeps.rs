//! Wrong about what may be swept.

use super::Store;
use crate::wrapper::{Wrapper, wrap};
use async_trait::async_trait;
use session_core::{Inserted, Put, Result, SessionSweeper, StorageKey, Swept};
use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::time::{Instant, sleep};

pub(super) fn sweeps_the_living(inner: Store) -> Store {
    wrap(Broom { inner, book: Mutex::default(), early: Duration::from_hours(1), pause: Duration::ZERO })
}

pub(super) fn sweeps_without_looking_again(inner: Store) -> Store {
    wrap(Broom { inner, book: Mutex::default(), early: Duration::ZERO, pause: Duration::from_millis(4) })
}

/// Keeps a book of when records expire, and deletes by it.
#[derive(Debug)]
struct Broom {
    inner: Store,
    book: Mutex<HashMap<StorageKey, Instant>>,
    /// How much too early it sweeps.
    early: Duration,
    /// How long it takes from the list to the deed.
    pause: Duration,
}

impl Broom {
    fn book(&self) -> MutexGuard<'_, HashMap<StorageKey, Instant>> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Wrapper for Broom {
    fn inner(&self) -> &Store {
        &self.inner
    }

    fn sweeper(&self) -> Option<&dyn SessionSweeper> {
        Some(self)
    }

    async fn insert(&self, key: &StorageKey, put: &Put) -> Result<Inserted> {
        let inserted = self.inner.insert(key, put).await?;
        if matches!(inserted, Inserted::Created(_)) {
            self.book().insert(*key, Instant::now() + put.ttl);
        }
        Ok(inserted)
    }
}

#[async_trait]
impl SessionSweeper for Broom {
    async fn sweep(&self, limit: usize) -> Result<Swept> {
        let by = Instant::now() + self.early;
        let expired: Vec<_> = self.book().iter().filter(|(_, end)| **end < by).map(|(key, _)| *key).collect();
        sleep(self.pause).await;
        for key in expired.iter().take(limit) {
            let _whatever_it_is = self.inner.delete(key).await?;
            self.book().remove(key);
        }
        Ok(Swept { removed: expired.len().min(limit), more: expired.len() > limit })
    }
}
