//! What the tasks did, and what can be read from it.

use crate::trouble::Outcome;
use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::Value;
use std::collections::{BTreeMap, HashMap};

/// Microseconds of a clock that all processes of this machine share and that never goes back.
#[must_use]
pub fn now() -> u64 {
    let time = clock_gettime(ClockId::Monotonic);
    u64::try_from(time.tv_sec).unwrap_or_default() * 1_000_000
        + u64::try_from(time.tv_nsec).unwrap_or_default() / 1000
}

/// One operation under test: who, on what, when, and what became of it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Operation<N> {
    /// The task.
    pub rank: usize,
    /// Which of the plan's sessions: operations overlap when they are on one.
    pub session: usize,
    /// When it began, by [`now`].
    pub start: u64,
    /// When it ended.
    pub end: u64,
    /// What became of it.
    pub outcome: Outcome,
    /// What the scenario wants to know of it.
    pub note: N,
}

/// All that the tasks of a cell brought back.
#[derive(Debug)]
pub struct Findings<N> {
    /// By time of their beginning.
    pub operations: Vec<Operation<N>>,
    /// The signals that were given, with their values.
    pub signals: BTreeMap<String, Value>,
}

impl<N> Findings<N> {
    /// The operations on one session.
    pub fn of_session(&self, session: usize) -> impl Iterator<Item = &Operation<N>> {
        self.operations.iter().filter(move |operation| operation.session == session)
    }

    /// The acknowledged ones.
    pub fn acknowledged(&self) -> impl Iterator<Item = &Operation<N>> {
        self.operations.iter().filter(|operation| operation.outcome.is_ok())
    }

    /// How many were acknowledged, refused, and left unknown, on one session.
    #[must_use]
    pub fn count(&self, session: usize) -> Count {
        Count::of(self.of_session(session))
    }

    /// A judgement that has counted the operations and found nothing wrong yet.
    pub fn judgement(&self) -> crate::Judgement {
        let count = Count::of(&self.operations);
        crate::Judgement::counted(count.acknowledged, count.rejected, count.unknown)
    }
}

impl Findings<Value> {
    /// With the notes as what they are.
    pub(crate) fn typed<N: DeserializeOwned>(self) -> serde_json::Result<Findings<N>> {
        let typed = |operation: Operation<Value>| {
            let Operation { rank, session, start, end, outcome, note } = operation;
            Ok(Operation { rank, session, start, end, outcome, note: serde_json::from_value(note)? })
        };
        let operations = self.operations.into_iter().map(typed).collect::<serde_json::Result<_>>()?;
        Ok(Findings { operations, signals: self.signals })
    }
}

/// Operations by outcome.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// Answered with success.
    pub acknowledged: u64,
    /// Refused without effect.
    pub rejected: u64,
    /// The reply was lost.
    pub unknown: u64,
}

impl Count {
    /// Counts operations.
    pub fn of<'a, N: 'a>(operations: impl IntoIterator<Item = &'a Operation<N>>) -> Self {
        operations.into_iter().fold(Self::default(), |mut count, operation| {
            match operation.outcome {
                Outcome::Ok => count.acknowledged += 1,
                Outcome::Failed(..) => count.rejected += 1,
                Outcome::Unknown(_) => count.unknown += 1,
            }
            count
        })
    }
}

/// How many operations ran at the same time as one of another task on the same session.
pub(crate) fn overlapping<N>(operations: &[Operation<N>]) -> usize {
    let mut sessions: HashMap<usize, Vec<&Operation<N>>> = HashMap::new();
    for operation in operations {
        sessions.entry(operation.session).or_default().push(operation);
    }
    sessions
        .into_values()
        .map(|mut session| {
            session.sort_by_key(|operation| operation.start);
            let mut overlaps = vec![false; session.len()];
            // Of those begun so far: the one that ends last, and the one that ends last among the other
            // tasks.
            let (mut last, mut other): (Option<usize>, Option<usize>) = (None, None);
            for now in 0..session.len() {
                for earlier in [last, other].into_iter().flatten() {
                    if session[earlier].rank != session[now].rank && session[earlier].end > session[now].start
                    {
                        overlaps[earlier] = true;
                        overlaps[now] = true;
                    }
                }
                let ends = |index: Option<usize>| index.map_or(0, |index| session[index].end);
                let same = last.is_some_and(|last| session[last].rank == session[now].rank);
                if session[now].end >= ends(last) {
                    if !same {
                        other = last;
                    }
                    last = Some(now);
                } else if !same && session[now].end >= ends(other) {
                    other = Some(now);
                }
            }
            overlaps.into_iter().filter(|overlaps| *overlaps).count()
        })
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn operation(rank: usize, start: u64, end: u64) -> Operation<()> {
        Operation { rank, session: 0, start, end, outcome: Outcome::Ok, note: () }
    }

    #[test]
    fn one_task_never_overlaps_with_itself() {
        assert_eq!(overlapping(&[operation(0, 0, 10), operation(0, 5, 15)]), 0);
    }

    #[test]
    fn one_after_the_other_is_no_overlap() {
        assert_eq!(overlapping(&[operation(0, 0, 10), operation(1, 10, 20), operation(0, 20, 30)]), 0);
    }

    #[test]
    fn a_long_one_overlaps_with_all_that_run_meanwhile() {
        let all = [operation(0, 0, 100), operation(1, 10, 20), operation(1, 30, 40), operation(2, 100, 110)];
        assert_eq!(overlapping(&all), 3);
    }

    #[test]
    fn another_session_is_another_world() {
        let mut elsewhere = operation(1, 0, 10);
        elsewhere.session = 1;
        assert_eq!(overlapping(&[operation(0, 0, 10), elsewhere]), 0);
    }
}
