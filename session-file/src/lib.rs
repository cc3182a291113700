//! Sessions in files, for several processes on one machine.
//!
//! [`FileStore`] keeps each session in a file of its own, writes it whole beside the old one and renames it into place: a reader
//! sees the old record or the new one, never a mixture, and takes no lock. Every other step runs under the flock of one of
//! 256 directories, for as long as its file calls take. The lock of a session is not that flock but a lease in a
//! file beside the record, checked in the same step as the write: it ends by time also when its holder was stopped, and at once
//! when its holder died.
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
//! What it needs: a local file system that can flock (ext4, xfs, btrfs, tmpfs; not NFS), checked when the store is opened, and
//! a tokio runtime with its timer. What it cannot do: share sessions between machines, or hide them from whoever may read the
//! directory, which is therefore made for its owner alone.

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
