//! The cas numbers that went with versions and tokens when this process last saw them.
//!
//! A version is what the portable part names; a cas number is what the server compares. Between a load and
//! the write that follows, the number is remembered here, so that the write is one round trip. A hint that is
//! lost costs a round trip and nothing else: the item is then read, its version compared, and its number of
//! that moment used.
//!
//! A number means something only to the server process that gave it: after a restart the counting starts
//! again, and another record can have the same one. So a hint carries the moment *before* it was asked for,
//! and is used only on a connection that was open by then ([`Ticks`]): such a connection was accepted by the
//! process that gave the number, or it is broken.

use session_core::StorageKey;
use std::{
    collections::HashMap,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
};

/// How many are kept at least, and at most twice as many.
const GENERATION: usize = 1 << 13;

/// An order of events in this process.
#[derive(Debug, Default)]
pub(crate) struct Ticks(AtomicU64);

impl Ticks {
    /// A moment after all before it.
    pub(crate) fn next(&self) -> u64 {
        self.0.fetch_add(1, SeqCst)
    }
}

/// A cas number, and when it was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Hint {
    pub(crate) cas: u64,
    pub(crate) asked: u64,
    /// When the item ends, in milliseconds since 1970 by the server's clock, as its header says.
    pub(crate) ends: u64,
}

type Name = (StorageKey, [u8; 16]);

/// Hints by session and version (or token). When the young are many, the old are forgotten.
#[derive(Debug, Default)]
pub(crate) struct Hints(Mutex<Generations>);

#[derive(Debug, Default)]
struct Generations {
    young: HashMap<Name, Hint>,
    old: HashMap<Name, Hint>,
}

impl Hints {
    pub(crate) fn keep(&self, key: &StorageKey, stamp: [u8; 16], hint: Hint) {
        let mut hints = self.lock();
        if hints.young.len() >= GENERATION {
            hints.old = std::mem::take(&mut hints.young);
        }
        hints.young.insert((*key, stamp), hint);
    }

    pub(crate) fn get(&self, key: &StorageKey, stamp: [u8; 16]) -> Option<Hint> {
        let hints = self.lock();
        let name = (*key, stamp);
        hints.young.get(&name).or_else(|| hints.old.get(&name)).copied()
    }

    pub(crate) fn forget(&self, key: &StorageKey, stamp: [u8; 16]) {
        let mut hints = self.lock();
        let name = (*key, stamp);
        hints.young.remove(&name);
        hints.old.remove(&name);
    }

    fn lock(&self) -> MutexGuard<'_, Generations> {
        // Each method leaves the maps whole wherever it may end.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_young_are_kept_and_the_number_is_bounded() {
        let hints = Hints::default();
        let key = StorageKey::from_bytes([1; 32]);
        let stamp = |number: usize| (number as u128).to_be_bytes();
        for number in 0..5 * GENERATION {
            hints.keep(&key, stamp(number), Hint { cas: number as u64, asked: 0, ends: 0 });
            let oldest_kept = number.saturating_sub(GENERATION - 1);
            assert_eq!(hints.get(&key, stamp(oldest_kept)).map(|hint| hint.cas), Some(oldest_kept as u64));
        }
        let kept = |hints: &Generations| hints.young.len() + hints.old.len();
        assert!(kept(&hints.lock()) <= 2 * GENERATION);
        hints.forget(&key, stamp(5 * GENERATION - 1));
        assert_eq!(hints.get(&key, stamp(5 * GENERATION - 1)), None);
        assert_eq!(hints.get(&StorageKey::from_bytes([2; 32]), stamp(5 * GENERATION - 2)), None);
    }
}
