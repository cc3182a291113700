//! Session storage that never loses an update: the driver contracts and the portable part.
//!
//! A session is read at the start of a request and written at its end, and browsers send requests in
//! parallel. Here every write names the version that it replaces, and a refused write is replayed: parallel
//! requests run in parallel and lose nothing. Locks are for those who need them.
//!
//! ```
//! use session_core::{Key, MemoryStore, Sessions};
//!
//! const VISITS: Key<u64> = Key::new("visits");
//!
//! # async fn run() -> session_core::Result<()> {
//! let sessions = Sessions::builder(MemoryStore::default()).build()?;
//! let session = sessions.create();
//! session.update(VISITS, |visits| *visits += 1)?;
//! session.commit().await?;
//! let id = session.id().expect("it was stored");
//! sessions.update(&id, |session| session.update(VISITS, |visits| *visits += 1)).await?;
//! assert_eq!(sessions.read(&id).await?.expect("it lives").get(VISITS)?, Some(2));
//! # Ok(()) }
//! # tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(run()).unwrap();
//! ```
//!
//! # For applications
//!
//! [`Sessions`] opens them, [`Session`] is one request's view, [`Key`] names a value and its type. [`Access`]
//! chooses: [`Write`](Access::Write) (no lock, replayed) for everything that only changes the session;
//! [`Exclusive`](Access::Exclusive) (the lock first, never replayed) for side effects; [`Read`](Access::Read)
//! for what only looks.
//!
//! # For drivers
//!
//! [`SessionStore`] and [`SessionLock`] are the contract, [`LockingStore`] both in one round trip, [`Pair`]
//! any store with any lock, [`MemoryStore`] the reference. Policy lives here and not in a driver: replay,
//! queueing, renewal, expiry, rotation, lost replies.
//!
//! # Observability
//!
//! Spans `session.open`, `session.read`, `session.commit`, `session.revoke_all` (level debug) and warnings by
//! `tracing`; by `metrics`:
#![doc = include_str!("metrics.md")]

mod codec;
mod commit;
mod compression;
mod engine;
mod envelope;
mod environment;
mod error;
mod found;
mod hold;
mod id;
mod key;
mod lock;
mod log;
mod memory;
mod pair;
mod principal;
mod queue;
mod record;
mod renewal;
mod session;
mod sessions;
mod settings;
mod store;
mod telemetry;

pub use codec::Codec;
pub use environment::{Clock, Random, SystemClock, SystemRandom};
pub use error::{Effect, Error, ErrorKind, Result};
pub use id::{PrincipalKey, SessionId, StorageKey, Token, Version};
pub use key::Key;
pub use lock::{Acquired, Grant, Held, Loaded, LockingStore, Released, Renewed, SessionLock};
pub use memory::{MemoryLock, MemoryStore};
pub use pair::Pair;
pub use session::Session;
pub use sessions::{Access, Sessions, Snapshot};
pub use settings::{OnBusy, SessionsBuilder};
pub use store::{
    Capabilities, Deleted, Durability, Inserted, Page, Put, Replaced, SessionIndex, SessionStore,
    SessionSweeper, Stored, Swept, Touched,
};
