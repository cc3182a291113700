//! Power over the disk below a store that keeps files: its calls fail, and what was not synced is lost.

use session_core::{LockingStore, Result};
use std::{fmt::Debug, io, sync::Arc};

/// A disk with a store on it, which some scenarios are hard on: see
/// [`Instance::disks`](crate::Instance::disks).
pub trait Disk: Debug + Send + Sync {
    /// How the store is told to keep data, for the report.
    fn name(&self) -> String;

    /// The store on it, as another process would open it. The calls of all of them fail alike.
    ///
    /// # Errors
    /// As the store.
    fn open(&self) -> Result<Arc<dyn LockingStore>>;

    /// Has the `nth` I/O call from now on fail; the next one is 1. A write that fails has written a part.
    fn fail(&self, nth: usize, fault: Fault);

    /// From now on no call fails. Whether the one that was to fail was made.
    fn heal(&self) -> bool;

    /// The power goes and comes back. Stores that were open are of no use afterwards.
    ///
    /// # Errors
    /// When what is left cannot be put there.
    fn lose_power(&self, loss: Loss) -> io::Result<()>;
}

/// How calls fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// There is no space left, once.
    Full,
    /// An input/output error, once.
    Once,
    /// An input/output error, and from then on nothing else.
    ForGood,
}

/// What is lost with the power: what a file system owes is a promise about what was synced, and none about
/// the rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// Names and data that were not synced.
    Unsynced,
    /// Data that was not synced; all names are there, also of files that are now empty.
    UnsyncedData,
}
