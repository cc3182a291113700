//! Sessions in PostgreSQL (14 and later): rows that carry their version, and locks that do not eat the pool.
//!
//! [`PostgresStore`] keeps one row a session. Every verb is one statement, so one round trip; a write names the version that it
//! replaces. Locking is by advisory locks on a few connections of their own, or by a lease in the row, which is what works behind a
//! pooler: see [`LockMode`].
//!
//! ```no_run
//! use session_core::Sessions;
//! use session_postgres::{PostgresConfig, PostgresStore};
//!
//! # async fn run() -> session_core::Result<()> {
//! let config = PostgresConfig::from_url("postgres://app:secret@localhost/shop?schema=web&pool=10")?;
//! let store = PostgresStore::connect(config).await?; // creates its tables when they are not there
//! let sessions = Sessions::builder(store).build()?;
//! # Ok(()) }
//! ```
//!
//! # What it promises
//! - Writes are checked against the lock in the same statement (`fencing`), in both modes.
//! - Expiry is by the server's clock. Expired rows are invisible; [`SessionSweeper`](session_core::SessionSweeper) removes them, in
//!   small batches that wait for nobody.
//! - The user index is a column: it is never out of date.
//! - An acknowledged write survives what the server promises: a loss of power by default; nothing with
//!   [`unlogged`](PostgresConfig::unlogged) tables or `synchronous_commit = off`. Both are read from the server, and declared.
//!
//! Server time is what `clock_timestamp()` says; a server whose clock is set back prolongs leases and sessions by as much.

#![cfg_attr(docsrs, feature(doc_cfg))]

mod advisory;
mod config;
mod failure;
mod lease;
mod line;
mod link;
mod lock;
mod owner;
mod pool;
mod record;
mod schema;
mod store;
mod turns;

pub use config::{LockMode, PostgresConfig, Statements};
pub use schema::Migration;
pub use store::PostgresStore;
