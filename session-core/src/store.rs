//! The contract of a store: a durable map from key to versioned bytes, in five atomic verbs.
//!
//! A driver is thin: it holds no policy. Each method is one atomic step on the backend; outcomes that are
//! part of life are `#[must_use]` values, and an [`Error`](crate::Error) says whether it had an
//! [`Effect`](crate::Effect). There is no blind save and no default method: a lost update cannot be written,
//! and a wrapper cannot forget a method.
//!
//! ```
//! use session_core::{Inserted, MemoryStore, Put, Replaced, SessionId, SessionStore, SystemRandom};
//! use std::time::Duration;
//!
//! # async fn run() -> session_core::Result<()> {
//! let store = MemoryStore::default();
//! let key = SessionId::random(&SystemRandom)?.storage_key();
//! let put = |data: &'static str| Put::new(data.into(), Duration::from_secs(60));
//! let Inserted::Created(first) = store.insert(&key, &put("one")).await? else { panic!("a new id") };
//! let Replaced::Done(_second) = store.replace(&key, first, &put("two")).await? else { panic!("nobody else") };
//! // The version it names is no longer there: refused, with the record as it is.
//! let Replaced::Conflict(fresh) = store.replace(&key, first, &put("three")).await? else { panic!("stale") };
//! assert_eq!(fresh.data, "two");
//! # Ok(()) }
//! # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(run()).unwrap();
//! ```

use crate::{Held, PrincipalKey, Result, StorageKey, Version};
use async_trait::async_trait;
use bytes::Bytes;
use std::{fmt::Debug, time::Duration};

/// Durable map from key to versioned bytes. Every method is one atomic step on the backend.
///
/// Of several true answers the first of this order counts: `Missing`, `NotHolder`, `Conflict`, `Done`.
///
/// A record is *live* from its insert until it is deleted or its `ttl` has passed by the backend's clock,
/// whichever is first. A record that is not live does not exist for any method.
///
/// # Errors
/// Every method may fail with [`Unavailable`](crate::ErrorKind::Unavailable),
/// [`Backend`](crate::ErrorKind::Backend) or [`Damaged`](crate::ErrorKind::Damaged) (the record cannot be
/// what this driver wrote; it is left where it is), and those that write with
/// [`TooLarge`](crate::ErrorKind::TooLarge), before anything is sent, when the data is longer than
/// [`Capabilities::max_value`]. An error whose effect is [`Effect::Unknown`](crate::Effect::Unknown) may have
/// been applied, and may still be.
#[async_trait]
pub trait SessionStore: Debug + Send + Sync + 'static {
    /// What this store promises. Constant for its lifetime; the conformance suite asserts each in both
    /// directions.
    fn capabilities(&self) -> Capabilities;

    /// The user index, when the backend keeps one.
    fn index(&self) -> Option<&dyn SessionIndex>;

    /// How to remove what has expired; `None` when the backend does so by itself.
    fn sweeper(&self) -> Option<&dyn SessionSweeper>;

    /// The live record, or `None`.
    async fn load(&self, key: &StorageKey) -> Result<Option<Stored>>;

    /// Creates; never replaces a live record.
    async fn insert(&self, key: &StorageKey, put: &Put) -> Result<Inserted>;

    /// Replaces iff the stored version is `expected` (and, with [`Capabilities::fencing`], nobody holds the
    /// lock).
    async fn replace(&self, key: &StorageKey, expected: Version, put: &Put) -> Result<Replaced>;

    /// Moves the expiry alone, to `ttl` from now; data and version stay. Not fenced: a lock does not stop it.
    ///
    /// It names a version so that it never prolongs a tombstone that it takes for a session.
    async fn touch(&self, key: &StorageKey, expected: Version, ttl: Duration) -> Result<Touched>;

    /// Removes, whatever the version, whoever holds the lock: destroy wins. The lock, if any, is left alone.
    async fn delete(&self, key: &StorageKey) -> Result<Deleted>;
}

/// The whole of what is to be stored: state, never a delta.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Put {
    /// The record, opaque to the store.
    pub data: Bytes,
    /// How long it lives, from now, by the backend's clock. Rounded up to the backend's resolution.
    pub ttl: Duration,
    /// Whose session it is, for the index. A store without one ignores it.
    pub principal: Option<PrincipalKey>,
}

impl Put {
    /// Data that lives for `ttl` and belongs to nobody.
    #[must_use]
    pub const fn new(data: Bytes, ttl: Duration) -> Self {
        Self { data, ttl, principal: None }
    }

    /// The same, belonging to a user.
    #[must_use]
    pub const fn principal(mut self, principal: Option<PrincipalKey>) -> Self {
        self.principal = principal;
        self
    }
}

/// What is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stored {
    /// What a write must name to replace it.
    pub version: Version,
    /// As put.
    pub data: Bytes,
    /// The time left, by the backend's clock.
    pub ttl: Duration,
    /// As put: without it the next commit would take the session out of its user's index.
    pub principal: Option<PrincipalKey>,
}

impl Stored {
    /// A record that belongs to nobody.
    #[must_use]
    pub const fn new(version: Version, data: Bytes, ttl: Duration) -> Self {
        Self { version, data, ttl, principal: None }
    }

    /// The same, belonging to a user.
    #[must_use]
    pub const fn principal(mut self, principal: Option<PrincipalKey>) -> Self {
        self.principal = principal;
        self
    }
}

/// The outcome of [`SessionStore::insert`].
#[must_use]
#[derive(Debug)]
pub enum Inserted {
    /// It is stored, under this version.
    Created(Version),
    /// There is a live record under this key; nothing was written.
    Exists,
}

/// The outcome of [`SessionStore::replace`] and
/// [`LockingStore::replace_and_release`](crate::LockingStore::replace_and_release).
#[must_use]
#[derive(Debug)]
pub enum Replaced {
    /// It is stored, under this new version.
    Done(Version),
    /// The version is another one: here is the record as it is. Nothing was written.
    Conflict(Stored),
    /// No live record; nothing was written.
    Missing,
    /// The lock says no: another holds it, or (under a grant) the lease has run out. Nothing was written.
    NotHolder(Held),
}

/// The outcome of [`SessionStore::touch`].
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Touched {
    /// It lives for the new `ttl` from now.
    Extended,
    /// No live record; nothing was written.
    Missing,
    /// The version is another one; nothing was written. (A backend that cannot compare answers this, too.)
    Conflict,
}

/// The outcome of [`SessionStore::delete`] and
/// [`LockingStore::delete_and_release`](crate::LockingStore::delete_and_release).
#[must_use]
#[derive(Debug)]
pub enum Deleted {
    /// There is no record any more. This is what was there at that very moment: it may name a successor.
    Removed(Stored),
    /// There was no live record.
    Missing,
}

/// How much a store keeps of what it acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Durability {
    /// Gone when the store's process ends.
    Volatile,
    /// Kept when the store's process is killed and started again.
    Restart,
    /// Kept also when the machine loses power.
    PowerLoss,
}

/// What a store promises.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Capabilities {
    /// What an acknowledged write survives.
    pub durability: Durability,
    /// Whether live records can vanish under memory pressure.
    pub may_evict: bool,
    /// Whether writes check the lock in the same atomic step. Then a plain `replace` while another's lease is
    /// alive is refused, and so is a holder whose lease ran out, even when nobody took the lock since.
    pub fencing: bool,
    /// The longest `Put::data`, in bytes.
    pub max_value: usize,
    /// What a `ttl` or a lease is rounded up to. Nothing ends before its time is over; it may take up to
    /// three of these longer, where a clock ticks in steps of this and now and then leaves one out.
    pub ttl_resolution: Duration,
}

impl Capabilities {
    /// No eviction, no fencing, values up to 1 MiB, milliseconds.
    #[must_use]
    pub const fn new(durability: Durability) -> Self {
        Self {
            durability,
            may_evict: false,
            fencing: false,
            max_value: 1 << 20,
            ttl_resolution: Duration::from_millis(1),
        }
    }
}

/// Sessions by user: may name records that are gone or were re-assigned; never omits a live one.
///
/// The driver writes the index before the record, so that a crash between the two leaves a stale name, never
/// a session that `revoke_all` cannot find.
#[async_trait]
pub trait SessionIndex: Debug + Send + Sync {
    /// Up to `limit` keys of this user's sessions, from the beginning or after a previous page.
    ///
    /// # Errors
    /// As for [`SessionStore`].
    async fn keys_of(&self, principal: &PrincipalKey, after: Option<Bytes>, limit: usize) -> Result<Page>;
}

/// A part of a list.
#[derive(Debug, Default)]
pub struct Page {
    /// The keys, in no particular order.
    pub keys: Vec<StorageKey>,
    /// Where the next page begins, opaque; `None` at the end.
    pub next: Option<Bytes>,
}

/// Removal of what has expired, for backends that do not do it by themselves.
#[async_trait]
pub trait SessionSweeper: Debug + Send + Sync {
    /// Removes up to `limit` expired records with all that belongs to them, never a live one, and never
    /// blocks those who work meanwhile. Sweeping is housekeeping: a record that has expired is gone for every
    /// method whether it was swept or not.
    ///
    /// # Errors
    /// As for [`SessionStore`]. A damaged record is left where it is and is not an error here.
    async fn sweep(&self, limit: usize) -> Result<Swept>;
}

/// The outcome of [`SessionSweeper::sweep`].
#[must_use]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    /// How many records were removed.
    pub removed: usize,
    /// Whether the limit was reached before the end: sweep again.
    pub more: bool,
}
