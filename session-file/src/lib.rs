//! Sessions in files, for several processes on one machine.
//!
//! [`FileStore`] keeps each session in a file of its own, writes it whole beside the old one and renames it
//! into place: a reader sees the old record or the new one, never a mixture, and takes no lock. Every other
//! step runs under the flock of one of 256 directories, for as long as its file calls take. The lock of a
//! session is not that flock but a lease in a file beside the record, checked in the same step as the write:
//! it ends by time also when its holder was stopped, and at once when its holder died.
//!
//! ```
//! use session_core::{Inserted, Put, SessionId, SessionStore, SystemRandom};
//! use session_file::{FileConfig, FileStore};
//! use std::time::Duration;
//!
//! # async fn run(directory: &std::path::Path) -> session_core::Result<()> {
//! let store = FileStore::open(FileConfig::new(directory.join("sessions")))?;
//! let key = SessionId::random(&SystemRandom)?.storage_key();
//! let put = Put::new("cart".into(), Duration::from_secs(1800));
//! let Inserted::Created(version) = store.insert(&key, &put).await? else { panic!("a new id") };
//! assert_eq!(store.load(&key).await?.unwrap().version, version);
//! # Ok(()) }
//! # let directory = tempfile::tempdir().unwrap();
//! # let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
//! # runtime.block_on(run(directory.path())).unwrap();
//! ```
//!
//! What it needs: a local file system that can flock (ext4, xfs, btrfs, tmpfs; not NFS), checked when the
//! store is opened, and a tokio runtime with its timer. What it cannot do: share sessions between machines,
//! or hide them from whoever may read the directory, which is therefore made for its owner alone.
//!
//! What can go wrong, and what happens then:
//!
//! | | |
//! |---|---|
//! | a process is killed, anywhere | each record is the old or the new one; its locks are free at once |
//! | it is stopped while it holds a session's lock | the lock is free at its deadline, and its late write is refused |
//! | it is stopped in the middle of a step (microseconds) | writes to one in 256 sessions fail with `Unavailable` after [`busy_timeout`](FileConfig::busy_timeout), until it goes on or dies |
//! | it forks without exec while it is open | its locks end at their deadline only, as long as the child lives |
//! | the disk is full, or fails | an error that says whether the write happened; the old record stays readable |
//! | the directory is moved away, or not mounted | `Unavailable` from every verb, which is not "no session" |
//! | the machine loses power | see [`FileDurability`] |
//! | a record is damaged | [`Damaged`](session_core::ErrorKind::Damaged) from every verb; the file stays until somebody moves it |
//! | the clock is set | records expire by the time of day, leases by [`BootClock`], which nobody sets |
//!
//! Call [`sweep`](session_core::SessionSweeper::sweep) now and then: it removes what has expired and what
//! crashes have left.

#[cfg(not(unix))]
compile_error!("session-file needs flock and the file modes of Unix");

mod clock;
mod config;
mod format;
#[doc(hidden)]
pub mod fs;
mod index;
mod layout;
mod lock;
mod owner;
mod shard;
mod store;
mod sweep;

pub use clock::BootClock;
pub use config::{FileConfig, FileDurability};
pub use store::FileStore;
