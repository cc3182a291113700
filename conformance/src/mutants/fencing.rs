//! Wrong about what a lock keeps out.

use super::Store;
use crate::wrapper::{Wrapper, wrap};
use async_trait::async_trait;
use session_core::{Capabilities, Deleted, Grant, MemoryLock, Pair, Result};
use std::{sync::Arc, time::Duration};
use tokio::time::sleep;

/// A lock beside the store that the store knows nothing of.
pub(super) fn fences_in_name_only(inner: Store) -> Store {
    wrap(Boast(Arc::new(Pair(inner, MemoryLock::default()))))
}

#[derive(Debug)]
struct Boast(Store);

#[async_trait]
impl Wrapper for Boast {
    fn inner(&self) -> &Store {
        &self.0
    }

    fn capabilities(&self) -> Capabilities {
        let mut declared = self.0.capabilities();
        declared.fencing = true;
        declared
    }
}

pub(super) fn unlocks_before_it_deletes(inner: Store) -> Store {
    wrap(Hasty(inner))
}

#[derive(Debug)]
struct Hasty(Store);

impl Hasty {
    /// Long enough for who waits for the lock to come and look.
    const BETWEEN: Duration = Duration::from_millis(2);
}

#[async_trait]
impl Wrapper for Hasty {
    fn inner(&self) -> &Store {
        &self.0
    }

    async fn delete_and_release(&self, grant: &Grant) -> Result<Deleted> {
        let _freed_or_lost = self.0.release(grant).await?;
        sleep(Self::BETWEEN).await;
        self.0.delete(grant.key()).await
    }
}
