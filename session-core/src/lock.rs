//! The contract of a lock: mutual exclusion per session, by lease. And of a store whose lock lives beside its
//! data.
//!
//! A lock is for side effects: charge once, send once. Safety never rests on it: a write names its version
//! all the same.
//!
//! ```
//! use session_core::{Acquired, MemoryLock, Released, SessionId, SessionLock, SystemRandom, Token};
//! use std::time::Duration;
//!
//! # async fn run() -> session_core::Result<()> {
//! let lock = MemoryLock::default();
//! let key = SessionId::random(&SystemRandom)?.storage_key();
//! let (lease, no_wait) = (Duration::from_secs(10), Duration::ZERO);
//! let mine = Token::random(&SystemRandom)?;
//! let Acquired::Granted(grant) = lock.acquire(&key, mine, lease, no_wait).await? else { panic!("it is free") };
//! let Acquired::Held(held) = lock.acquire(&key, Token::random(&SystemRandom)?, lease, no_wait).await? else {
//!     panic!("it is mine")
//! };
//! assert!(held.retry_after.unwrap() <= lease);
//! assert_eq!(lock.release(&grant).await?, Released::Freed);
//! assert_eq!(lock.release(&grant).await?, Released::Lost); // once is enough, twice does no harm
//! # Ok(()) }
//! # tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(run()).unwrap();
//! ```

use crate::{Deleted, Put, Replaced, Result, SessionStore, StorageKey, Stored, Token, Version};
use async_trait::async_trait;
use std::{fmt::Debug, time::Duration};

/// Mutual exclusion per session, by lease: bounded, renewable, released by its holder alone.
///
/// A lease lives for its length from the moment it was granted or renewed, by the backend's clock. After that
/// the lock is free, whether anyone takes it or not, and its former holder holds nothing.
///
/// # Errors
/// As for [`SessionStore`]. A request whose effect is unknown is asked again with the same token, or released
/// with it.
///
/// # Cancellation
/// A future of these methods that is dropped leaves no lock that lives longer than its lease. The caller
/// releases with the same token when it drops an `acquire`: a driver need not.
#[async_trait]
pub trait SessionLock: Debug + Send + Sync + 'static {
    /// Takes the lock, for `lease`. Waits for it at most `wait` (zero: tries once) and may answer
    /// [`Acquired::Held`] earlier, when it cannot be woken.
    ///
    /// Idempotent by token: who holds the lock already gets it again, with a new lease; who waits in a queue
    /// keeps its place. A waiter never occupies what others need (a pooled connection, a blocking thread, the
    /// shared connection).
    async fn acquire(
        &self,
        key: &StorageKey,
        token: Token,
        lease: Duration,
        wait: Duration,
    ) -> Result<Acquired>;

    /// Starts the lease anew, if it is still alive.
    async fn renew(&self, grant: &Grant, lease: Duration) -> Result<Renewed>;

    /// Frees the lock iff this grant holds it; takes its token out of the queue, where there is one.
    /// Idempotent: a second release says [`Released::Lost`].
    async fn release(&self, grant: &Grant) -> Result<Released>;
}

/// A store whose lock lives beside its data: lock and load are one round trip, write and unlock are one.
#[async_trait]
pub trait LockingStore: SessionStore + SessionLock {
    /// [`acquire`](SessionLock::acquire) and [`load`](SessionStore::load) in one: what is loaded is what the
    /// holder finds, nothing older.
    async fn acquire_and_load(
        &self,
        key: &StorageKey,
        token: Token,
        lease: Duration,
        wait: Duration,
    ) -> Result<Loaded>;

    /// Replaces iff the lease is alive and the stored version is `expected`, then releases.
    ///
    /// [`Replaced::Done`] and [`Replaced::Missing`] release the lock; [`Replaced::NotHolder`] means that
    /// nothing was held; [`Replaced::Conflict`] and an error keep it, for what the caller does next. Without
    /// [`fencing`](crate::Capabilities::fencing) the lease is not part of the step, and the version alone
    /// decides: `NotHolder` then says that it refused the write *and* that another holds the lock, so that
    /// nobody goes on as the holder of what is another's.
    async fn replace_and_release(&self, grant: &Grant, expected: Version, put: &Put) -> Result<Replaced>;

    /// Deletes, whoever holds the lock; then frees the lock iff this grant holds it. Never the other way
    /// round: a waiter that gets the lock must not see the old data.
    async fn delete_and_release(&self, grant: &Grant) -> Result<Deleted>;
}

/// Proof of a lease. Not `Clone`: one holder.
///
/// Passed by reference everywhere: by value, a `?` in the middle would drop it, and the lock would hang for
/// its lease.
#[derive(Debug, PartialEq, Eq)]
pub struct Grant {
    key: StorageKey,
    token: Token,
}

impl Grant {
    /// For drivers: the grant of what was asked for with this token. And for callers who gave up asking and
    /// release what they may have been given.
    #[must_use]
    pub const fn new(key: StorageKey, token: Token) -> Self {
        Self { key, token }
    }

    /// What is locked.
    #[must_use]
    pub const fn key(&self) -> &StorageKey {
        &self.key
    }

    /// Who holds it.
    #[must_use]
    pub const fn token(&self) -> &Token {
        &self.token
    }
}

/// How long until the lease of the present holder runs out at the latest, where the backend knows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Held {
    /// From now. A holder may renew it.
    pub retry_after: Option<Duration>,
}

/// The outcome of [`SessionLock::acquire`].
#[must_use]
#[derive(Debug)]
pub enum Acquired {
    /// The lock is held, for the lease.
    Granted(Grant),
    /// Another holds it.
    Held(Held),
}

/// The outcome of [`LockingStore::acquire_and_load`].
#[must_use]
#[derive(Debug)]
pub enum Loaded {
    /// The lock is held, and this is the record under it.
    Granted(Grant, Stored),
    /// Another holds the lock.
    Held(Held),
    /// No live record, hence no lock: ids that nobody issued make no lock keys.
    Missing,
}

/// The outcome of [`SessionLock::renew`].
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Renewed {
    /// The lease begins anew.
    Extended,
    /// The lease had run out, or another holds the lock.
    Lost,
}

/// The outcome of [`SessionLock::release`].
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Released {
    /// The lock is free.
    Freed,
    /// This grant held nothing (any more); nobody else's lock was touched.
    Lost,
}
