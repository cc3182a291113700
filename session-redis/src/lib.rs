//! Sessions in Redis: one server, Sentinel or Cluster; a lock that hands over, a write that is always
//! checked.
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
//! - A read is one round trip; a write two (load; commit); an exclusive request two (lock and load; commit
//!   and hand over). A commit moves the expiry along.
//! - Every write checks the lock and the version in the same script. Nothing is ever written to a record that
//!   is not there.
//! - The lock is handed along a queue, first come, first served; see [`lock`]. [`LockKind::Spin`] does
//!   without.
//! - Every key has a ttl; see [`RedisStore::orphans`] for those that lost it.
//! - One server, Sentinel (feature `sentinel`), Cluster (`cluster`), TLS (`tls`); see [`config`] for URLs and
//!   options.
//!
//! # What it needs of the server
//!
//! Version 7.0; for an ACL user the keys `~prefix*`, the channels `&prefix*`, and the commands that the
//! scripts and this crate use: `+@read +@write +@scripting +@pubsub +@connection +info +time`, and `+cluster`
//! in a cluster. Two connections for each store, however many requests there are: one for commands (in a
//! cluster one for each primary and each node of the URL), and one for messages once somebody has waited for
//! a lock.
//!
//! # What it promises
//!
//! As the server is configured, asked once when it connects ([`Capabilities`](session_core::Capabilities)):
//! an append-only file keeps what was acknowledged over a restart, one that is flushed with each write also
//! over a loss of power; without one, and behind Sentinel or in a cluster, the last moments may be lost: a
//! replica that takes over lacks what had not come to it yet. Sessions are then older or
//! [`Missing`](session_core::Replaced::Missing), and locks are free.
//!
//! A policy that evicts makes sessions vanish: `may_evict`. It may also take the index of a user and leave
//! his sessions: so with such a policy there is no index, and `for_principal` and `revoke_all` are
//! `Unsupported`. In a cluster the index may be on another server than a session: a failover there may forget
//! the last names of sessions that live on, and `revoke_all` does not find these until they are written or
//! touched again.
//!
//! # Limits
//!
//! | | |
//! |---|---|
//! | a record | [`store::MAX_VALUE`], 16 MiB |
//! | a time to live | rounded up to whole milliseconds; at most 1000 years |
//! | tickets in one session's queue | 1024; who comes later polls until there is a place |
//! | a page of the index | 1000 sessions |
//!
//! # Errors
//!
//! | kind | effect | when |
//! |---|---|---|
//! | `Unavailable` | none | no connection within `connect_timeout`; the server is loading, out of memory, or no primary |
//! | `Unavailable` | unknown | the connection ended, or `response_timeout` passed, after the command was sent |
//! | `TooLarge` | none | before anything is sent |
//! | `Damaged` | none | what is stored is not of this driver; it is left where it is |
//! | `Backend` | by the error | whatever else the server says, a missing right for one |
//! | `Invalid`, `Unsupported` | none | when connecting: settings, an older server, a feature that is off |
//!
//! No write is ever sent twice, but after an answer that says that nothing has happened (a script that the
//! server does not know, a slot that has moved).

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
