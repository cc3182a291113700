//! Rules that need no search: linear in the operations, and their evidence names the culprits.

use std::{collections::HashMap, hash::Hash};

/// The writes of one session that were acknowledged, each with what it replaced: a chain, when no update was
/// lost. No two put the same.
///
/// ```
/// use session_conformance::history::{Chain, Fork};
///
/// let chain = Chain::new([("a", "b"), ("b", "c"), ("b", "d")]);
/// assert_eq!(chain.forks(), [Fork { from: "b", first: "c", second: "d" }]);
/// // Of the three, two led to what is there in the end: one is lost.
/// assert_eq!((chain.len(), chain.behind("d")), (3, ("a", 2)));
/// ```
#[derive(Clone, Debug)]
pub struct Chain<T> {
    /// What each write replaced.
    replaced: HashMap<T, T>,
    forks: Vec<Fork<T>>,
}

/// Two acknowledged writes that replaced the same thing: the second has overwritten the first, which is a
/// lost update.
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
        let (mut next, mut replaced, mut forks) = (HashMap::new(), HashMap::new(), Vec::new());
        for (from, to) in writes {
            replaced.insert(to.clone(), from.clone());
            match next.get(&from).cloned() {
                Some(first) => forks.push(Fork { from, first, second: to }),
                None => drop(next.insert(from, to)),
            }
        }
        Self { replaced, forks }
    }

    /// Where updates were lost. Further ones may follow without a fork: two chains that go on beside each
    /// other.
    #[must_use]
    pub fn forks(&self) -> &[Fork<T>] {
        &self.forks
    }

    /// How many writes there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.replaced.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.replaced.is_empty()
    }

    /// What the chain that ends here began with, and how many writes it is of. All others are lost.
    pub fn behind(&self, last: T) -> (T, usize) {
        let (mut first, mut writes) = (last, 0);
        // What replaces itself, by whatever detour, would be walked for ever.
        while let Some(before) = self.replaced.get(&first).filter(|_| writes < self.len()) {
            first = before.clone();
            writes += 1;
        }
        (first, writes)
    }
}

#[cfg(test)]
mod tests {
    use super::Chain;

    #[test]
    fn a_ring_ends() {
        assert_eq!(Chain::new([(1, 2), (2, 1)]).behind(1), (1, 2));
    }

    #[test]
    fn what_is_not_behind_the_last_is_lost() {
        let chain = Chain::new([(0, 1), (0, 2), (1, 3), (2, 4)]);
        assert_eq!((chain.len(), chain.forks().len()), (4, 1));
        assert_eq!(chain.behind(4), (0, 2));
        assert_eq!(chain.behind(9), (9, 0), "nobody put that");
    }
}
