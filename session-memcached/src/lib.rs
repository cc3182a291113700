//! Sessions in memcached: every write compares, and what memcached forgets is gone and never wrong.
//!
//! ```no_run
//! use session_core::{Key, Sessions};
//! use session_memcached::{MemcachedConfig, MemcachedStore};
//!
//! const CART: Key<Vec<String>> = Key::new("cart");
//!
//! # async fn run() -> session_core::Result<()> {
//! let config = MemcachedConfig::from_url("memcached://10.0.0.1,10.0.0.2?prefix=shop:")?;
//! let sessions = Sessions::builder(MemcachedStore::connect(&config).await?).build()?;
//! let session = sessions.create();
//! session.update(CART, |cart| cart.push("book".into()))?;
//! session.commit().await?;
//! # Ok(()) }
//! ```
//!
//! # What it promises
//! No update is lost and no session revived among the writes that memcached still has. There is no fencing (a
//! lock orders those who take it, and stops nobody else) and no index of users. Each operation is one atomic
//! step at the server; between the commands of one operation another's may come, and then the version
//! decides.
//!
//! | what memcached forgets | when | what is seen of it |
//! |---|---|---|
//! | everything | its process ends | sessions are `Missing`, locks are lost; nothing from before overwrites what is made after (see *Versions*) |
//! | a session | its memory is full | `Missing`, as if it had expired; never an older version of it |
//! | a lock, with those who wait for it | its memory is full | two may believe to hold it, until one of them renews, writes or releases; the version decides between their writes. Who waited asks anew |
//! | what a replica would know | always | there are none: a server's sessions are on that server |
//!
//! So a side effect that must happen once is claimed by a commit before it is performed, as
//! [`Sessions::exclusive`](session_core::Sessions::exclusive) tells: here the lock alone is less than
//! elsewhere.
//!
//! | operation | round trips, meta protocol | plain protocol |
//! |---|---|---|
//! | load, insert | 1 | 1 |
//! | replace after a load here | 1 | 1 |
//! | touch after a load here | 1, without the record | 2, with the record |
//! | delete | 2 | 2 |
//! | lock and load | 1 | 2 |
//! | write and unlock after that | 1; 2 when others wait or waited | 3 |
//!
//! The meta protocol is used where the server speaks it (from 1.6.18 on), the plain one otherwise; both read
//! each other's sessions.
//!
//! # Versions
//! A version is 16 random bytes in the header of the record. What memcached compares is its own cas number,
//! which the driver remembers from the load to the write that follows; when it does not know the number, it
//! reads the record, compares the version, and writes by the number just read.
//!
//! After a restart memcached counts from the beginning, so another record can have the remembered number. It
//! is therefore used only on a connection that was open before the number was asked for: that connection ends
//! with the process that gave it. A writer from before a restart overwrites nothing made after it
//! (`tests/driver/restart.rs` makes the numbers meet). What remains is a middleman that keeps a client's
//! connection open while it changes the server behind it: put none between.
//!
//! # Locks
//! A lock is an item with the holder's token and those of up to 64 waiters. Who releases it hands it to the
//! first of them, who has a second to claim it; so waiters are served in turn, also those of other processes.
//! memcached wakes nobody: the next in line asks again and again for some milliseconds, then with pauses of
//! up to 4 ms.
//!
//! Writing and unlocking are two commands in one request, and memcached does the second also when it refuses
//! the first. It refuses a holder's write only when somebody has written without the lock (a touch makes it
//! keep both); the exclusive request is then over, and its driver takes the lock back in the request that
//! reads the fresh record. Who gets in between is the only holder: the one before is told
//! [`NotHolder`](session_core::Replaced::NotHolder), its request `LockLost`. `tests/driver/window.rs` forces
//! each of these.
//!
//! # Several servers
//! A session and its lock are on one server, chosen by consistent hashing of the servers' names. One that
//! does not answer is [`Unavailable`](session_core::ErrorKind::Unavailable) for its sessions, and never
//! replaced by another: its return would bring back what was destroyed meanwhile. When it comes back empty
//! its sessions are `Missing`.
//!
//! # Times and sizes
//! memcached counts whole seconds: times to live and leases are rounded up so that nothing ends early, and
//! end up to three seconds late. Those over 30 days are sent as dates, by the *server's* clock as it told at
//! connect; what ends after 2038 does not expire by itself. The maximum lifetime of a session is kept by the
//! portable part, by the clock of the application's machine.
//!
//! | limit | default | when it is passed |
//! |---|---|---|
//! | a record | the item limit (`-I`, 1 MiB) less the key and some hundred bytes; [`max_value`](MemcachedConfig::max_value) | [`TooLarge`](session_core::ErrorKind::TooLarge), before anything is sent |
//! | connections to each server | 16 ([`pool`](MemcachedConfig::pool)) | it is waited for, at most for the timeout |
//! | time for an operation | 2 s ([`timeout`](MemcachedConfig::timeout)) | [`Unavailable`](session_core::ErrorKind::Unavailable); its effect is `Unknown` when the request had left |
//! | waiters of a lock that are served in turn | 64, one for each process and session | those beyond ask again and again |
//! | servers | [`MAX_SERVERS`] | [`Invalid`](session_core::ErrorKind::Invalid), at connect |
//!
//! # Errors
//! | kind | what happened |
//! |---|---|
//! | `Unavailable` | no connection, no reply in time, or a connection that broke; it is closed, and the next operation opens another |
//! | `Backend` | the server refused (`SERVER_ERROR`; nothing was done, or its effect is `Unknown`), or said what no memcached says |
//! | `Damaged` | under the session's key is what this driver did not write for this session; it is left where it is |
//! | `Unsupported` | at connect: a server without cas numbers (`-C`), or without the meta protocol where that was asked for; the text names the cure |
//! | `Invalid`, `TooLarge` | see above |
//!
//! # memcache-async
//! The crate speaks the classic commands here: `version`, `gets`, `add` and `cas`, one request and one reply
//! at a time. Not used are its `set`, `append` and `delete`, which do not wait for the answer and so take a
//! refusal for success. What it does not have (the meta commands, several commands in one request) is written
//! beside it on the same stream. Since a cancelled call of it leaves its reply on the connection for the next
//! one, a connection that did not see its reply to the end is closed, always; each value also carries a
//! checksum over its session's key, so that a mixed-up reply would be
//! [`Damaged`](session_core::ErrorKind::Damaged) and not another's session.

mod attempt;
mod config;
mod connection;
mod exchange;
mod fault;
mod hints;
mod item;
mod key;
mod layout;
mod lock;
mod meta;
mod plain;
mod ring;
mod server;
mod store;
mod unlock;
mod waiting;

pub use config::{DEFAULT_PORT, MAX_PREFIX, MAX_SERVERS, MemcachedConfig, Node, Protocol};
pub use store::MemcachedStore;
