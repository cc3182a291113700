//! The search for an order: Wing and Gong's, with Lowe's memory of what was tried.
//!
//! A configuration is the set of calls that have taken effect and the state they led to. From it, any call
//! may take effect next that had been asked before the first answer of those still waiting came. Two ways to
//! the same configuration have the same future, so each is tried once.

use super::{Call, Sequential};
use std::{
    collections::HashSet,
    time::{Duration, Instant},
};

/// How much is searched before the answer is [`Ordering::Unknown`].
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Limits {
    /// How long.
    pub time: Duration,
    /// How many configurations are remembered, each with a bit for every call.
    pub configurations: usize,
}

impl Limits {
    /// Five seconds and a million configurations: a history without anything wrong takes milliseconds.
    pub const DEFAULT: Self = Self { time: Duration::from_secs(5), configurations: 1_000_000 };

    /// Another time.
    #[must_use]
    pub const fn time(mut self, time: Duration) -> Self {
        self.time = time;
        self
    }

    /// Another number of configurations.
    #[must_use]
    pub const fn configurations(mut self, configurations: usize) -> Self {
        self.configurations = configurations;
        self
    }
}

/// Whether a history can be put in an order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ordering {
    /// It can: in this one, by the index of each call. Calls without an answer that need not have happened
    /// are left out.
    Found(Vec<usize>),
    /// It cannot. These calls, by index, took effect in the longest attempt; none of the others can be next.
    None(Vec<usize>),
    /// The limits were reached first.
    Unknown,
}

/// Looks for an order of the calls in which each takes effect between its times and one thing that does one
/// call after the other, beginning with `initial`, would have answered as was answered.
///
/// Two calls of which one ends in the very moment in which the other begins are taken to overlap: clocks are
/// coarse.
pub fn check<O: Sequential>(initial: &O::State, calls: &[Call<O>], limits: Limits) -> Ordering {
    Search::new(calls, limits).run(initial)
}

struct Search<'a, O: Sequential> {
    calls: &'a [Call<O>],
    /// The calls by time of asking.
    order: Vec<usize>,
    /// How many have an answer: when they have taken effect, all is explained.
    answered: usize,
    visited: HashSet<(Box<[u64]>, O::State)>,
    limits: Limits,
    deadline: Option<Instant>,
}

/// A configuration on the way, with the calls that can be next and have not been tried.
struct Frame<S> {
    state: S,
    untried: Vec<usize>,
    /// The call, by its place in the order, that led here.
    by: Option<usize>,
}

impl<'a, O: Sequential> Search<'a, O> {
    fn new(calls: &'a [Call<O>], limits: Limits) -> Self {
        let mut order: Vec<_> = (0..calls.len()).collect();
        order.sort_by_key(|index| calls[*index].start);
        let answered = calls.iter().filter(|call| call.end.is_some()).count();
        let deadline = Instant::now().checked_add(limits.time);
        Self { calls, order, answered, visited: HashSet::new(), limits, deadline }
    }

    fn run(mut self, initial: &O::State) -> Ordering {
        let mut done = vec![0_u64; self.calls.len().div_ceil(64)].into_boxed_slice();
        let (mut explained, mut longest) = (0, Vec::new());
        let mut stack =
            vec![Frame { state: initial.clone(), untried: self.candidates(&done, 0, initial), by: None }];
        while let Some(frame) = stack.last_mut() {
            if explained == self.answered {
                return Ordering::Found(self.way(&stack));
            }
            let Some(place) = frame.untried.pop() else {
                if let Some(place) = frame.by {
                    flip(&mut done, place);
                    explained -= usize::from(self.call(place).end.is_some());
                }
                stack.pop();
                continue;
            };
            let Some(state) = self.call(place).step.apply(&frame.state) else { continue };
            flip(&mut done, place);
            if !self.visited.insert((done.clone(), state.clone())) {
                flip(&mut done, place);
                continue;
            }
            if self.exhausted() {
                return Ordering::Unknown;
            }
            explained += usize::from(self.call(place).end.is_some());
            let untried = self.candidates(&done, first_free(&done), &state);
            stack.push(Frame { untried, state, by: Some(place) });
            if stack.len() > longest.len() + 1 {
                longest = self.way(&stack);
            }
        }
        if self.answered == 0 { Ordering::Found(Vec::new()) } else { Ordering::None(longest) }
    }

    fn call(&self, place: usize) -> &Call<O> {
        &self.calls[self.order[place]]
    }

    /// Every call that was asked before the first answer still to come. Those without an answer of their own
    /// are tried last: most of them did not happen or have nothing to explain.
    ///
    /// A look that shows this state takes effect now, and nothing else is tried: it must take effect
    /// somewhere, and wherever that is, what comes before it comes as well after it.
    fn candidates(&self, done: &[u64], from: usize, state: &O::State) -> Vec<usize> {
        let (mut answered, mut unknown, mut first_end) = (Vec::new(), Vec::new(), u64::MAX);
        for place in (from..self.calls.len()).filter(|place| !is_set(done, *place)) {
            let call = self.call(place);
            if call.start > first_end {
                break; // and so does every later one
            }
            match call.end {
                Some(_) if call.step.only_looks() && call.step.apply(state).is_some() => return vec![place],
                Some(end) => {
                    first_end = first_end.min(end);
                    answered.push(place);
                }
                None => unknown.push(place),
            }
        }
        // The last is tried first: by time of answering.
        answered.sort_by_key(|place| std::cmp::Reverse(self.call(*place).end));
        unknown.extend(answered);
        unknown
    }

    fn way(&self, stack: &[Frame<O::State>]) -> Vec<usize> {
        stack.iter().filter_map(|frame| frame.by).map(|place| self.order[place]).collect()
    }

    fn exhausted(&self) -> bool {
        let visited = self.visited.len();
        visited >= self.limits.configurations
            || visited.is_multiple_of(256) && self.deadline.is_some_and(|deadline| Instant::now() >= deadline)
    }
}

fn is_set(bits: &[u64], place: usize) -> bool {
    bits[place / 64] & (1 << (place % 64)) != 0
}

fn flip(bits: &mut [u64], place: usize) {
    bits[place / 64] ^= 1 << (place % 64);
}

/// Where the first call is that has not taken effect; beyond the end when all have.
fn first_free(bits: &[u64]) -> usize {
    bits.iter()
        .position(|word| *word != u64::MAX)
        .map_or(bits.len() * 64, |word| word * 64 + bits[word].trailing_ones() as usize)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::Register::{self, Refused, Saw, Swapped};

    fn ordering(calls: &[Call<Register>]) -> Ordering {
        check(&0, calls, Limits::DEFAULT)
    }

    #[test]
    fn nothing_is_in_order() {
        assert_eq!(ordering(&[]), Ordering::Found(vec![]));
    }

    #[test]
    fn two_swaps_of_one_value_are_not() {
        let both = [1, 2].map(|to| Call::answered(0, 9, Swapped { from: 0, to }));
        assert!(matches!(ordering(&both), Ordering::None(longest) if longest.len() == 1));
    }

    #[test]
    fn what_was_never_answered_may_have_happened_late_or_never() {
        let lost = Call::unknown(0, Swapped { from: 0, to: 1 });
        let (before, after) = (Call::answered(10, 11, Saw(0)), Call::answered(20, 21, Saw(1)));
        assert_eq!(ordering(&[lost, before]), Ordering::Found(vec![1]), "never");
        assert_eq!(ordering(&[lost, before, after]), Ordering::Found(vec![1, 0, 2]), "late");
        assert!(matches!(ordering(&[lost, after, before.at(30)]), Ordering::None(_)), "but not taken back");
        assert!(matches!(ordering(&[after, lost.at(22)]), Ordering::None(_)), "and not before it was asked");
    }

    #[test]
    fn a_refusal_shows_what_was_there() {
        let swap = Call::answered(0, 5, Swapped { from: 0, to: 1 });
        let refused = |found| Call::answered(6, 9, Refused { from: 0, found });
        assert_eq!(ordering(&[swap, refused(1)]), Ordering::Found(vec![0, 1]));
        assert!(matches!(ordering(&[swap, refused(0)]), Ordering::None(_)), "it found what it named");
        assert!(matches!(ordering(&[swap, refused(2)]), Ordering::None(_)), "nobody put that");
    }

    #[test]
    fn what_only_looks_makes_no_choices() {
        // Twenty swaps, one after the other, and meanwhile eight at a time who look at each.
        let mut calls: Vec<_> =
            (0..20).map(|n| Call::answered(n, n, Swapped { from: n, to: n + 1 })).collect();
        calls.extend((0..160).map(|n| Call::answered(0, 100, Saw(n / 8))));
        let few = Limits::DEFAULT.configurations(calls.len() + 1);
        assert!(matches!(check(&0, &calls, few), Ordering::Found(order) if order.len() == calls.len()));
    }

    #[test]
    fn the_limits_end_it() {
        // Swaps without an answer, from each of five values to each, all at once; and a read of what none of
        // them could have left.
        let pairs = (0..5).flat_map(|from| (0..5).map(move |to| (from, to)));
        let mut calls: Vec<_> = pairs.map(|(from, to)| Call::unknown(0, Swapped { from, to })).collect();
        calls.push(Call::answered(0, 100, Saw(99)));
        assert_eq!(check(&0, &calls, Limits::DEFAULT.configurations(50)), Ordering::Unknown);
        assert_eq!(check(&0, &calls, Limits::DEFAULT.time(Duration::ZERO)), Ordering::Unknown);
    }

    impl Call<Register> {
        /// The same, asked later.
        fn at(self, start: u64) -> Self {
            Self { start, end: self.end.map(|end| start + end - self.start), ..self }
        }
    }
}
