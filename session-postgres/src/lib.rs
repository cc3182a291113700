//! Sessions in PostgreSQL (14 and later): rows that carry their version, and locks that do not eat the pool.
//!
//! [`PostgresStore`] keeps one row a session. Every verb is one statement, so one round trip; a write names
//! the version that it replaces. Locking is by advisory locks on a few connections of their own, or by a
//! lease in the row, which is what works behind a pooler: see [`LockMode`].
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
//! - Expiry is by the server's clock. Expired rows are invisible;
//!   [`SessionSweeper`](session_core::SessionSweeper) removes them, in small batches that wait for nobody.
//! - The user index is a column: it is never out of date.
//! - An acknowledged write survives what the server promises: a loss of power by default; nothing with
//!   [`unlogged`](PostgresConfig::unlogged) tables or `synchronous_commit = off`. Both are read from the
//!   server, and declared.
//! - A future that is dropped, at whichever await, leaves no lock that nobody asked for, and no connection in
//!   the pool with a reply in it that is another's.
//!
//! Server time is what `clock_timestamp()` says; a server whose clock is set back prolongs leases and
//! sessions by as much.
//!
//! # Which lock
//! | | [`Advisory`](LockMode::Advisory) | [`Lease`](LockMode::Lease) |
//! |---|---|---|
//! | held by | a few connections of the process | the row |
//! | connections beside the pool | 4, and 2 for waiters | none |
//! | behind a pooler | does not start, and says so | works |
//! | the holder is killed | free at once | free when the lease is over |
//! | the holder is stopped, or cut off | free when the lease is over | free when the lease is over |
//! | the connection is lost | the lock is lost, its writes are refused | nothing happens |
//! | waiting for another process | in the server's queue, in order | asks every 8 ms; who has waited longest is next |
//! | a locked update, each in one trip | reads; writes and unlocks | writes the lease; writes and unlocks |
//!
//! # Errors
//! | kind | when | effect |
//! |---|---|---|
//! | `Unavailable` | no connection; every one is busy for longer than `timeout`; a standby | none |
//! | `Unavailable` | the connection broke, or no answer came within `timeout` | unknown |
//! | `Invalid` | a setting, user, password, or table that is not as this version needs it | none |
//! | `Unsupported` | a server before 14; advisory locks behind a pooler | none |
//! | `TooLarge` | a record above `max_value`; more than `max_locks` at once | none |
//! | `Damaged` | a row that this driver did not write | none, unknown after a write |
//! | `Backend` | whatever else the server refuses: the statement was rolled back | none |
//!
//! # The database
//! Everything is in one schema: the table `session_records`, ten functions, two tables of bookkeeping.
//! Whoever creates them needs the privilege to; who uses them, `USAGE` on the schema, `SELECT`, `INSERT`,
//! `UPDATE` and `DELETE` on the table, `SELECT` on the other two. [`PostgresConfig::schema_sql`] prints it
//! all. Advisory locks share the server's lock table (`max_locks_per_transaction`) and the database's space
//! of keys; what locks them beside this crate has to stay off 64-bit keys, or may make sessions wait.

#![cfg_attr(docsrs, feature(doc_cfg))]

mod advisory;
mod config;
mod connect;
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
