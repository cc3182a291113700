//! The checker of histories against an independent one, `stateright`'s, on small histories, right and wrong.

#![allow(clippy::expect_used, clippy::panic, reason = "this is how a test fails")]

use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use session_conformance::history::{Call, Limits, Ordering, Register, Sequential as _, check};
use stateright::semantics::{ConsistencyTester as _, LinearizabilityTester, SequentialSpec};

const HISTORIES: usize = 20_000;
/// Few values, so that they come back and there is more than one way to explain what was seen.
const VALUES: u64 = 3;

/// The same register in the other checker's words: what is asked, and apart from it what is answered.
#[derive(Clone)]
struct Reference(u64);

#[derive(Clone, Debug)]
enum Asked {
    Read,
    Swap(u64, u64),
}

#[derive(Clone, Debug, PartialEq)]
enum Answered {
    Value(u64),
    Swapped,
    Refused(u64),
}

impl SequentialSpec for Reference {
    type Op = Asked;
    type Ret = Answered;

    fn invoke(&mut self, asked: &Asked) -> Answered {
        match *asked {
            Asked::Read => Answered::Value(self.0),
            Asked::Swap(from, to) if self.0 == from => {
                self.0 = to;
                Answered::Swapped
            }
            Asked::Swap(..) => Answered::Refused(self.0),
        }
    }
}

fn reference(initial: u64, calls: &[Call<Register>]) -> bool {
    let mut events: Vec<(u64, bool, usize)> = Vec::new();
    for (thread, call) in calls.iter().enumerate() {
        events.push((call.start, false, thread));
        events.extend(call.end.map(|end| (end, true, thread)));
    }
    events.sort_unstable(); // of one moment, the beginnings first: they overlap
    let mut tester = LinearizabilityTester::new(Reference(initial));
    for (_, returns, thread) in events {
        let (asked, answered) = match calls[thread].step {
            Register::Saw(value) => (Asked::Read, Answered::Value(value)),
            Register::Swapped { from, to } => (Asked::Swap(from, to), Answered::Swapped),
            Register::Refused { from, found } => (Asked::Swap(from, 0), Answered::Refused(found)),
        };
        let done = if returns {
            tester.on_return(thread, answered).map(drop)
        } else {
            tester.on_invoke(thread, asked).map(drop)
        };
        done.expect("a history of calls that begin and end");
    }
    tester.is_consistent()
}

/// Calls at random times that one register answered, each at some moment between its own two; some answers
/// lost, whether or not the call happened.
fn right(random: &mut StdRng) -> Vec<Call<Register>> {
    let mut calls = Vec::new();
    for _ in 0..random.random_range(2..8) {
        let start = random.random_range(0..20_u64);
        let end = start + random.random_range(0..12);
        let lost = random.random_range(0..5) == 0;
        // One that was lost may happen long after, or never.
        let moment = match random.random_range(0..3) {
            _ if !lost => Some(random.random_range(start..=end)),
            0 => None,
            _ => Some(random.random_range(start..40)),
        };
        calls.push((moment, start, end, lost));
    }
    calls.sort_by_key(|call| call.0);
    let mut state = 0;
    let mut history = Vec::new();
    for (moment, start, end, lost) in calls {
        let (from, to) = (random.random_range(0..VALUES), random.random_range(0..VALUES));
        let step = match random.random_range(0..3) {
            _ if lost => Register::Swapped { from, to },
            0 => Register::Saw(state),
            _ if from == state => Register::Swapped { from, to },
            _ => Register::Refused { from, found: state },
        };
        if moment.is_some() {
            state = step.apply(&state).unwrap_or(state);
        }
        history.push(Call { start, end: (!lost).then_some(end), step });
    }
    history
}

/// One answer is another one, or one call ended sooner or began later than it did.
fn spoiled(mut calls: Vec<Call<Register>>, random: &mut StdRng) -> Vec<Call<Register>> {
    let chosen = random.random_range(0..calls.len());
    let call = &mut calls[chosen];
    let (from, to) = (random.random_range(0..VALUES), random.random_range(0..VALUES));
    match random.random_range(0..4) {
        0 if call.end.is_some() => call.step = Register::Saw(to),
        1 => call.step = Register::Swapped { from, to },
        2 => call.start = call.end.unwrap_or(call.start + 5),
        _ => call.end = call.end.map(|_| call.start),
    }
    calls
}

/// Nobody has ever been asked.
fn invented(random: &mut StdRng) -> Vec<Call<Register>> {
    let calls = right(random);
    let spoil = |calls, _| spoiled(calls, random);
    (0..4).fold(calls, spoil)
}

#[test]
fn it_agrees_with_an_independent_checker() {
    let mut random = StdRng::seed_from_u64(7);
    let (mut ordered, mut disordered, mut lost) = (0, 0, 0);
    for number in 0..HISTORIES {
        let calls = match number % 3 {
            0 => right(&mut random),
            1 => {
                let calls = right(&mut random);
                spoiled(calls, &mut random)
            }
            _ => invented(&mut random),
        };
        let expected = reference(0, &calls);
        assert!(expected || number % 3 != 0, "history {number} is of one register: {calls:?}");
        match check(&0, &calls, Limits::DEFAULT) {
            Ordering::Found(order) => {
                assert!(expected, "history {number} has no order: {calls:?}");
                explains(&order, &calls);
                ordered += 1;
            }
            Ordering::None(_) => {
                assert!(!expected, "history {number} has an order: {calls:?}");
                disordered += 1;
            }
            Ordering::Unknown => panic!("history {number} is small: {calls:?}"),
        }
        lost += usize::from(calls.iter().any(|call| call.end.is_none()));
    }
    println!(
        "{HISTORIES} histories: {ordered} with an order, {disordered} without; {lost} with calls that were never answered"
    );
    assert!(ordered > HISTORIES / 4 && disordered > HISTORIES / 10 && lost > HISTORIES / 4);
}

/// The order that was found is one: answers, times, and nothing that was answered left out.
fn explains(order: &[usize], calls: &[Call<Register>]) {
    let (mut state, mut latest_start) = (0, 0);
    for index in order {
        let call = &calls[*index];
        state = call.step.apply(&state).unwrap_or_else(|| panic!("{order:?} does not explain {calls:?}"));
        assert!(call.end.is_none_or(|end| end >= latest_start), "{order:?} goes back in time: {calls:?}");
        latest_start = latest_start.max(call.start);
    }
    let mut sorted = order.to_vec();
    sorted.sort_unstable();
    sorted.dedup();
    assert_eq!(sorted.len(), order.len(), "a call happened twice");
    let left_out = (0..calls.len()).filter(|index| !order.contains(index));
    assert!(left_out.into_iter().all(|index| calls[index].end.is_none()), "an answer was left out");
}

#[test]
fn a_long_history_takes_a_moment() {
    // Eight callers at a time, 500 calls, unique values: the size of a cell of the suite. The memory is what
    // keeps it short.
    let calls: Vec<_> = (0..500_u64)
        .map(|n| match n % 2 {
            0 => Call::answered(n * 10, n * 10 + 80, Register::Swapped { from: n / 2, to: n / 2 + 1 }),
            _ => Call::answered(n * 10, n * 10 + 80, Register::Saw(n / 2 + 1)),
        })
        .collect();
    let Ordering::Found(order) = check(&0, &calls, Limits::DEFAULT) else { panic!("it has an order") };
    explains(&order, &calls);
    let mut wrong = calls;
    wrong.push(Call::answered(5000, 6000, Register::Saw(3)));
    assert!(matches!(check(&0, &wrong, Limits::DEFAULT), Ordering::None(_)));
}
