//! Histories: what was asked when, what was answered when, and whether one atomic thing could have answered
//! so.
//!
//! ```
//! use session_conformance::history::{Call, Limits, Ordering, Register, check};
//!
//! // A read that begins after a swap was acknowledged, and still sees what was there before it.
//! let swap = Call::answered(0, 10, Register::Swapped { from: 1, to: 2 });
//! let stale = Call::answered(20, 30, Register::Saw(1));
//! assert!(matches!(check(&1, &[swap, stale], Limits::DEFAULT), Ordering::None(_)));
//! // One that overlaps it may see either.
//! let early = Call::answered(5, 30, Register::Saw(1));
//! assert!(matches!(check(&1, &[swap, early], Limits::DEFAULT), Ordering::Found(order) if order == [1, 0]));
//! ```
//!
//! One history is of one session: what is linearizable session by session is linearizable as a whole, and
//! sessions are judged apart because the search is exponential in what overlaps. What can be judged in linear
//! time, without a search, is in [`Chain`].

mod chain;
mod search;

pub use chain::{Chain, Fork};
pub use search::{Limits, Ordering, check};

use std::hash::Hash;

/// One call, with what it was answered: a step from one state of the thing to another, somewhere between its
/// two times.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Call<O> {
    /// When it was asked.
    pub start: u64,
    /// When it was answered. `None` when it never was: then it may have happened at any time from `start` on,
    /// or not at all.
    pub end: Option<u64>,
    /// What was asked, and what was answered.
    pub step: O,
}

impl<O> Call<O> {
    /// A call whose answer is known.
    #[must_use]
    pub const fn answered(start: u64, end: u64, step: O) -> Self {
        Self { start, end: Some(end), step }
    }

    /// A call of which nobody knows whether it happened.
    #[must_use]
    pub const fn unknown(start: u64, step: O) -> Self {
        Self { start, end: None, step }
    }
}

/// What a thing does that is one thing, one call after the other.
pub trait Sequential {
    /// What it remembers.
    type State: Clone + Eq + Hash;

    /// The state after this step, or `None` when the thing would not have answered so in this state.
    fn apply(&self, state: &Self::State) -> Option<Self::State>;

    /// Whether it leaves every state as it is.
    fn only_looks(&self) -> bool;
}

/// The steps of a session as one value: reads, and compare-and-swaps. Calls that failed without an effect and
/// without showing anything are no steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Register {
    /// A read saw this.
    Saw(u64),
    /// A swap found what it named and replaced it.
    Swapped {
        /// What it named.
        from: u64,
        /// What it put.
        to: u64,
    },
    /// A swap did not find what it named, and was shown what was there.
    Refused {
        /// What it named.
        from: u64,
        /// What was there.
        found: u64,
    },
}

impl Sequential for Register {
    type State = u64;

    fn apply(&self, state: &u64) -> Option<u64> {
        match self {
            Self::Saw(value) => (state == value).then_some(*state),
            Self::Swapped { from, to } => (state == from).then_some(*to),
            Self::Refused { from, found } => (state == found && state != from).then_some(*state),
        }
    }

    fn only_looks(&self) -> bool {
        matches!(self, Self::Saw(_) | Self::Refused { .. })
    }
}
