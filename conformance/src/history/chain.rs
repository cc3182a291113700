//! Rules that need no search: linear in the operations, and their evidence names the culprits.

use std::{
    collections::{HashMap, HashSet},
    hash::Hash,
};

/// The writes of one session that were acknowledged, each with what it replaced: a chain, when no update was lost.
///
/// ```
/// use session_conformance::history::{Chain, Fork};
///
/// let chain = Chain::new([("a", "b"), ("b", "c"), ("b", "d")]);
/// assert_eq!(chain.forks(), [Fork { from: "b", first: "c", second: "d" }]);
/// assert_eq!(Chain::new([("b", "c"), ("a", "b")]).follow("a"), ("c", 2));
/// ```
#[derive(Clone, Debug)]
pub struct Chain<T> {
    next: HashMap<T, T>,
    forks: Vec<Fork<T>>,
}

/// Two acknowledged writes that replaced the same thing: the second has overwritten the first, which is a lost update.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fork<T> {
    /// What both replaced.
    pub from: T,
    /// What one of them put.
    pub first: T,
    /// What the other one put.
    pub second: T,
}

impl<T: Clone + Eq + Hash> Chain<T> {
    /// From acknowledged writes, each as what it replaced and what it put; in any order.
    pub fn new(writes: impl IntoIterator<Item = (T, T)>) -> Self {
        let mut chain = Self { next: HashMap::new(), forks: Vec::new() };
        for (from, to) in writes {
            match chain.next.get(&from).cloned() {
                Some(first) => chain.forks.push(Fork { from, first, second: to }),
                None => {
                    chain.next.insert(from, to);
                }
            }
        }
        chain
    }

    /// The lost updates.
    #[must_use]
    pub fn forks(&self) -> &[Fork<T>] {
        &self.forks
    }

    /// How many writes there are, forks aside.
    #[must_use]
    pub fn len(&self) -> usize {
        self.next.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.next.is_empty()
    }

    /// Where the chain leads from here, and by how many writes; fewer than [`len`](Self::len) when it is not one chain.
    pub fn follow(&self, first: T) -> (T, usize) {
        let (mut last, mut seen) = (first, HashSet::new());
        while let Some(next) = self.next.get(&last).filter(|next| seen.insert((*next).clone())) {
            last = next.clone();
        }
        (last, seen.len())
    }
}

#[cfg(test)]
mod tests {
    use super::Chain;

    #[test]
    fn a_ring_ends() {
        assert_eq!(Chain::new([(1, 2), (2, 1)]).follow(1), (1, 2));
    }

    #[test]
    fn what_hangs_in_the_air_is_not_reached() {
        let chain = Chain::new([(1, 2), (3, 4)]);
        assert_eq!((chain.follow(1), chain.len()), ((2, 1), 2));
        assert!(!chain.is_empty() && chain.forks().is_empty());
    }
}
