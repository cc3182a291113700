//! A store that does something else in one place: slow, deaf or wrong on purpose, around a store that is
//! right.
//!
//! ```
//! use async_trait::async_trait;
//! use session_conformance::wrapper::{Wrapper, wrap};
//! use session_core::{LockingStore, MemoryStore, Result, StorageKey, Stored};
//! use std::sync::Arc;
//!
//! /// Finds nothing, ever.
//! #[derive(Debug)]
//! struct Forgetful(Arc<dyn LockingStore>);
//!
//! #[async_trait]
//! impl Wrapper for Forgetful {
//!     fn inner(&self) -> &Arc<dyn LockingStore> {
//!         &self.0
//!     }
//!
//!     async fn load(&self, _: &StorageKey) -> Result<Option<Stored>> {
//!         Ok(None)
//!     }
//! }
//!
//! let store: Arc<dyn LockingStore> = wrap(Forgetful(Arc::new(MemoryStore::default())));
//! ```

use async_trait::async_trait;
use session_core::{
    Acquired, Capabilities, Deleted, Grant, Inserted, Loaded, LockingStore, Put, Released, Renewed, Replaced,
    Result, SessionIndex, SessionLock, SessionStore, SessionSweeper, StorageKey, Stored, Token, Touched,
    Version,
};
use std::{fmt::Debug, sync::Arc, time::Duration};

/// What a wrapper does differently. The methods are those of the three driver contracts, and by default the
/// inner store's.
///
/// A driver has no default methods, so that none is forgotten; here one that is not written is one that is
/// not touched.
#[async_trait]
#[expect(missing_docs, reason = "each is documented where it comes from")]
pub trait Wrapper: Debug + Send + Sync + 'static {
    /// The store that does all the rest.
    fn inner(&self) -> &Arc<dyn LockingStore>;

    fn capabilities(&self) -> Capabilities {
        self.inner().capabilities()
    }

    fn index(&self) -> Option<&dyn SessionIndex> {
        self.inner().index()
    }

    fn sweeper(&self) -> Option<&dyn SessionSweeper> {
        self.inner().sweeper()
    }

    async fn load(&self, key: &StorageKey) -> Result<Option<Stored>> {
        self.inner().load(key).await
    }

    async fn insert(&self, key: &StorageKey, put: &Put) -> Result<Inserted> {
        self.inner().insert(key, put).await
    }

    async fn replace(&self, key: &StorageKey, expected: Version, put: &Put) -> Result<Replaced> {
        self.inner().replace(key, expected, put).await
    }

    async fn touch(&self, key: &StorageKey, expected: Version, ttl: Duration) -> Result<Touched> {
        self.inner().touch(key, expected, ttl).await
    }

    async fn delete(&self, key: &StorageKey) -> Result<Deleted> {
        self.inner().delete(key).await
    }

    async fn acquire(
        &self,
        key: &StorageKey,
        token: Token,
        lease: Duration,
        wait: Duration,
    ) -> Result<Acquired> {
        self.inner().acquire(key, token, lease, wait).await
    }

    async fn renew(&self, grant: &Grant, lease: Duration) -> Result<Renewed> {
        self.inner().renew(grant, lease).await
    }

    async fn release(&self, grant: &Grant) -> Result<Released> {
        self.inner().release(grant).await
    }

    async fn acquire_and_load(
        &self,
        key: &StorageKey,
        token: Token,
        lease: Duration,
        wait: Duration,
    ) -> Result<Loaded> {
        self.inner().acquire_and_load(key, token, lease, wait).await
    }

    async fn replace_and_release(&self, grant: &Grant, expected: Version, put: &Put) -> Result<Replaced> {
        self.inner().replace_and_release(grant, expected, put).await
    }

    async fn delete_and_release(&self, grant: &Grant) -> Result<Deleted> {
        self.inner().delete_and_release(grant).await
    }
}

/// The wrapper as a store.
pub fn wrap(wrapper: impl Wrapper) -> Arc<dyn LockingStore> {
    Arc::new(Wrapped(wrapper))
}

#[derive(Debug)]
struct Wrapped<W>(W);

#[async_trait]
impl<W: Wrapper> SessionStore for Wrapped<W> {
    fn capabilities(&self) -> Capabilities {
        self.0.capabilities()
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
impl<W: Wrapper> SessionLock for Wrapped<W> {
    async fn acquire(
        &self,
        key: &StorageKey,
        token: Token,
        lease: Duration,
        wait: Duration,
    ) -> Result<Acquired> {
        self.0.acquire(key, token, lease, wait).await
    }

    async fn renew(&self, grant: &Grant, lease: Duration) -> Result<Renewed> {
        self.0.renew(grant, lease).await
    }

    async fn release(&self, grant: &Grant) -> Result<Released> {
        self.0.release(grant).await
    }
}

#[async_trait]
impl<W: Wrapper> LockingStore for Wrapped<W> {
    async fn acquire_and_load(
        &self,
        key: &StorageKey,
        token: Token,
        lease: Duration,
        wait: Duration,
    ) -> Result<Loaded> {
        self.0.acquire_and_load(key, token, lease, wait).await
    }

    async fn replace_and_release(&self, grant: &Grant, expected: Version, put: &Put) -> Result<Replaced> {
        self.0.replace_and_release(grant, expected, put).await
    }

    async fn delete_and_release(&self, grant: &Grant) -> Result<Deleted> {
        self.0.delete_and_release(grant).await
    }
}
