//! Where the tasks of a cell meet: barriers and named signals, kept by the parent, whichever process the
//! tasks are in.

use crate::trouble::{Trial, Trouble};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::{collections::BTreeMap, future::Future, time::Duration};
use tokio::sync::watch;

/// What a task asks of the parent.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Request {
    /// Come together: `of` tasks (all, when absent). Answered with whether it opened in time.
    Barrier { name: String, of: Option<usize>, within_ms: Option<u64> },
    /// Tell everybody, now and later. The first value of a name stays.
    Signal { name: String, value: Value },
    /// Wait for a signal. Answered with its value, or null when it did not come in time.
    Wait { name: String, within_ms: Option<u64> },
    /// Stop this process, and let it go on when the signal comes.
    PauseUntil { rank: usize, signal: String },
    /// Stop this process for a while.
    PauseFor { rank: usize, millis: u64 },
    /// Kill this process.
    Kill { rank: usize },
}

/// The state of a meeting.
#[derive(Debug)]
pub(crate) struct Hub {
    ranks: usize,
    state: watch::Sender<State>,
}

#[derive(Debug, Default)]
struct State {
    arrived: BTreeMap<String, usize>,
    signals: BTreeMap<String, Value>,
    killed: usize,
}

impl Hub {
    pub(crate) fn new(ranks: usize) -> Self {
        Self { ranks, state: watch::Sender::default() }
    }

    /// Answers what needs no process to be stopped.
    pub(crate) async fn answer(&self, request: Request) -> Trial<Value> {
        match request {
            Request::Barrier { name, of, within_ms } => {
                within(within_ms, self.barrier(&name, of)).await.map(|opened| opened.is_some().into())
            }
            Request::Signal { name, value } => {
                self.signal(name, value);
                Ok(Value::Null)
            }
            Request::Wait { name, within_ms } => {
                within(within_ms, self.wait(&name)).await.map(Option::unwrap_or_default)
            }
            Request::PauseUntil { .. } | Request::PauseFor { .. } | Request::Kill { .. } => {
                Err(Trouble::unproven("a task can be stopped or killed in a process of its own alone"))
            }
        }
    }

    pub(crate) fn signal(&self, name: String, value: Value) {
        self.state.send_modify(|state| {
            state.signals.entry(name).or_insert(value);
        });
    }

    pub(crate) async fn wait(&self, name: &str) -> Trial<Value> {
        self.until(|state| state.signals.get(name).cloned()).await
    }

    /// Those who were killed are no longer waited for.
    pub(crate) fn killed(&self, tasks: usize) {
        self.state.send_modify(|state| state.killed += tasks);
    }

    pub(crate) fn signals(&self) -> BTreeMap<String, Value> {
        self.state.borrow().signals.clone()
    }

    /// Barriers that did not open, for the evidence of a cell that hung.
    pub(crate) fn stuck(&self) -> String {
        let state = self.state.borrow();
        let expected = self.ranks - state.killed;
        let waiting = state.arrived.iter().filter(|(_, arrived)| **arrived < expected);
        let waiting: Vec<_> =
            waiting.map(|(name, arrived)| format!("{arrived} of {expected} at barrier {name}")).collect();
        if waiting.is_empty() { "no task at a barrier".to_owned() } else { waiting.join(", ") }
    }

    async fn barrier(&self, name: &str, of: Option<usize>) -> Trial<()> {
        self.state.send_modify(|state| *state.arrived.entry(name.to_owned()).or_default() += 1);
        self.until(|state| {
            let expected = of.unwrap_or(self.ranks - state.killed);
            (state.arrived.get(name).copied().unwrap_or_default() >= expected).then_some(())
        })
        .await
    }

    async fn until<T>(&self, found: impl Fn(&State) -> Option<T>) -> Trial<T> {
        let mut states = self.state.subscribe();
        loop {
            {
                let state = states.borrow_and_update();
                if let Some(found) = found(&state) {
                    return Ok(found);
                }
            }
            if states.changed().await.is_err() {
                return Err(Trouble::unproven("the meeting place is gone"));
            }
        }
    }
}

/// `None` when the time is over.
async fn within<T>(millis: Option<u64>, waiting: impl Future<Output = Trial<T>>) -> Trial<Option<T>> {
    match millis {
        None => waiting.await.map(Some),
        Some(millis) => match tokio::time::timeout(Duration::from_millis(millis), waiting).await {
            Ok(found) => found.map(Some),
            Err(_) => Ok(None),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    fn barrier(name: &str) -> Request {
        Request::Barrier { name: name.to_owned(), of: None, within_ms: None }
    }

    #[tokio::test]
    async fn a_barrier_opens_for_the_last_one() {
        let hub = Arc::new(Hub::new(2));
        let first = tokio::spawn({
            let hub = Arc::clone(&hub);
            async move { hub.answer(barrier("all")).await }
        });
        tokio::task::yield_now().await;
        assert!(!first.is_finished());
        assert_eq!(hub.stuck(), "1 of 2 at barrier all");
        assert_eq!(hub.answer(barrier("all")).await, Ok(Value::Bool(true)));
        assert_eq!(first.await.expect("no panic"), Ok(Value::Bool(true)));
        assert_eq!(hub.stuck(), "no task at a barrier");
    }

    #[tokio::test]
    async fn the_killed_are_not_waited_for() {
        let hub = Hub::new(3);
        hub.killed(2);
        assert_eq!(hub.answer(barrier("all")).await, Ok(Value::Bool(true)));
    }

    #[tokio::test]
    async fn the_first_value_of_a_signal_stays() {
        let hub = Hub::new(1);
        for value in [1, 2] {
            let signal = Request::Signal { name: "n".to_owned(), value: value.into() };
            assert_eq!(hub.answer(signal).await, Ok(Value::Null));
        }
        assert_eq!(hub.wait("n").await, Ok(1.into()));
    }

    #[tokio::test]
    async fn nobody_is_stopped_or_killed_in_one_process() {
        assert!(matches!(Hub::new(1).answer(Request::Kill { rank: 0 }).await, Err(Trouble::Unproven(_))));
    }
}
