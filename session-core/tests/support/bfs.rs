//! Looks at every state that a protocol can reach, by breadth first, so that what is found is found by the
//! shortest way.

use std::{
    collections::{HashMap, VecDeque},
    fmt::Debug,
    hash::Hash,
};

/// A protocol: where it begins, what can happen next, and what must hold.
pub(crate) trait Model {
    type State: Clone + Eq + Hash + Debug;

    fn first(&self) -> Self::State;

    /// Everything that can happen in this state: its name, and what it leads to.
    fn next(&self, state: &Self::State, next: &mut Vec<(String, Self::State)>);

    /// What is wrong with this state. `last`: nothing can happen any more.
    fn wrong(&self, state: &Self::State, last: bool) -> Option<String>;
}

#[derive(Debug)]
pub(crate) struct Explored {
    pub(crate) states: usize,
    /// What went wrong first, after what.
    pub(crate) wrong: Option<(String, Vec<String>)>,
}

/// All states, or those until the first wrong one.
pub(crate) fn explore<M: Model>(model: &M, most: usize) -> Explored {
    let first = model.first();
    let mut states = vec![first.clone()];
    let mut came_from: Vec<(usize, String)> = vec![(0, String::new())];
    let mut known = HashMap::from([(first, 0)]);
    let mut queue = VecDeque::from([0]);
    let mut next = Vec::new();
    while let Some(at) = queue.pop_front() {
        next.clear();
        let state = states[at].clone();
        model.next(&state, &mut next);
        if let Some(wrong) = model.wrong(&state, next.is_empty()) {
            return Explored { states: states.len(), wrong: Some((wrong, way_to(at, &came_from))) };
        }
        for (what, state) in next.drain(..) {
            if !known.contains_key(&state) {
                known.insert(state.clone(), states.len());
                queue.push_back(states.len());
                states.push(state);
                came_from.push((at, what));
                assert!(states.len() <= most, "more than {most} states");
            }
        }
    }
    Explored { states: states.len(), wrong: None }
}

fn way_to(mut at: usize, came_from: &[(usize, String)]) -> Vec<String> {
    let mut way = Vec::new();
    while at != 0 {
        let (before, what) = &came_from[at];
        way.push(what.clone());
        at = *before;
    }
    way.reverse();
    way
}

/// The protocol holds with all its rules, and fails without any one of them. Prints the states, and for each
/// rule how.
pub(crate) fn every_rule_is_needed<M: Model, R: Copy + Debug + PartialEq>(
    protocol: &str,
    rules: &[R],
    most: usize,
    model: impl Fn(Option<R>) -> M,
) {
    let explored = explore(&model(None), most);
    println!("{protocol}: {} states", explored.states);
    assert_eq!(explored.wrong, None, "{protocol}");
    for rule in rules {
        let explored = explore(&model(Some(*rule)), most);
        let Some((wrong, way)) = explored.wrong else { panic!("{protocol}: {rule:?} can be left out") };
        println!("{protocol} without {rule:?}: {wrong}: {}", way.join("; "));
    }
}
