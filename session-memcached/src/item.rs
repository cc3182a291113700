//! What the two protocols have in common.

use bytes::Bytes;

/// An item as the server gave it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Item {
    pub(crate) value: Bytes,
    /// Its number of this moment.
    pub(crate) cas: u64,
    /// Seconds left, where the protocol tells; negative: it does not expire.
    pub(crate) left: Option<i64>,
}

/// The outcome of a command that compares the cas number.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Swapped {
    /// The number was right, and it is done.
    Done,
    /// The item has another number; nothing was done.
    Changed,
    /// There is no item; nothing was done.
    Missing,
}
