//! Sessions in Redis: one server, Sentinel or Cluster; a lock that hands over, a write that is always checked.
//!
//! ```no_run
//! use session_core::SessionStore;
//! use session_redis::RedisStore;
//!
//! # async fn run() -> session_core::Result<()> {
//! let store = RedisStore::connect_url("redis://127.0.0.1:6379/0?prefix=shop:").await?;
//! assert!(store.capabilities().fencing);
//! # Ok(()) }
//! ```
//!
//! - A read is one round trip; a write two (load; commit); an exclusive request two (lock and load; commit and hand over).
//! - Every write checks the lock and the version in the same script. Nothing is ever written to a record that is not there.
//! - The lock is handed along a queue, first come, first served; see [`lock`]. [`LockKind::Spin`] does without.
//! - Every key has a ttl; see [`RedisStore::orphans`] for those that lost it.
//!
//! What it needs of the server: version 7.0; for an ACL user the keys `~prefix*`, the channels `&prefix*`, and the commands
//! that the scripts and this crate use: `+@read +@write +@scripting +@pubsub +@transaction +@connection +info +time`, and `+cluster`
//! in a cluster. A policy that evicts makes sessions vanish: then [`Capabilities::may_evict`](session_core::Capabilities::may_evict) says so.

pub mod config;
mod connection;
mod index;
mod layout;
pub mod lock;
mod orphans;
mod router;
mod script;
pub mod store;
#[cfg(feature = "tls")]
mod tls;
mod url;
mod waiters;

#[cfg(feature = "cluster")]
mod cluster;
#[cfg(feature = "sentinel")]
mod sentinel;

pub use config::{LockKind, Node, RedisConfig, Secret, Tls, Topology};
pub use orphans::{Orphan, OrphanKind, OrphanSearch, Orphans};
pub use store::RedisStore;
