//! What one task of a scenario works with.

use super::{
    Terms,
    hub::{Hub, Request},
    lab::Batch,
    record::{Operation, now},
};
use crate::{
    Strategy,
    system::{Id, Settings, System, Systems},
    trouble::{Outcome, Trial, Trouble},
    worker::Line,
};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use serde::Serialize;
use serde_json::Value;
use session_core::{LockingStore, Result, SystemRandom, Token};
use std::{
    future::Future,
    ops::Range,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

/// How a task speaks to the parent.
#[derive(Clone, Debug)]
pub(crate) enum Link {
    /// It is in the same process.
    Here(Arc<Hub>),
    /// It is at the other end of the pipe.
    Parent(Arc<Line>),
}

/// One of the tasks that do a scenario's work, with everything that repeats.
///
/// Ranks count through all processes: process 0 has the first [`tasks`](Self::tasks) ranks, and so on.
#[derive(Debug)]
pub struct Task<N> {
    seat: Seat,
    random: Mutex<StdRng>,
    /// How often [`turns`](Self::turns) was called, the same in every task: it names the barriers.
    rounds: AtomicUsize,
    log: Mutex<Vec<Operation<N>>>,
}

/// The part of a [`Task`] that does not depend on the scenario's notes.
#[derive(Clone, Debug)]
pub(crate) struct Seat {
    pub(crate) rank: usize,
    pub(crate) terms: Terms,
    pub(crate) systems: Systems,
    pub(crate) link: Link,
}

impl<N: Serialize + Send> Task<N> {
    pub(crate) fn new(seat: Seat) -> Self {
        let random = StdRng::seed_from_u64(
            seat.terms.seed ^ (seat.rank as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15),
        );
        Self { seat, random: Mutex::new(random), rounds: AtomicUsize::new(0), log: Mutex::default() }
    }

    pub(crate) fn into_log(self) -> Vec<Operation<N>> {
        self.log.into_inner().unwrap_or_else(PoisonError::into_inner)
    }

    /// Its number, from zero, among [`ranks`](Self::ranks).
    pub fn rank(&self) -> usize {
        self.seat.rank
    }

    /// All tasks of all processes.
    pub fn ranks(&self) -> usize {
        self.seat.terms.ranks()
    }

    /// The tasks of each process.
    pub fn tasks(&self) -> usize {
        self.seat.terms.tasks
    }

    /// The number of the process that it is in, from zero.
    pub fn process(&self) -> usize {
        self.seat.rank / self.seat.terms.tasks
    }

    /// How many processes there are.
    pub fn processes(&self) -> usize {
        self.seat.terms.processes
    }

    /// The task across from this one: in the next process, where there are several, else the next one here.
    /// Each task is across from exactly one (from itself, when it is alone).
    pub fn across(&self) -> usize {
        let step = if self.processes() > 1 { self.tasks() } else { 1 };
        (self.rank() + step) % self.ranks()
    }

    /// The strategy of this cell.
    pub fn strategy(&self) -> Strategy {
        self.seat.terms.strategy
    }

    /// The store under test, for scenarios about drivers: this process's own connection to it.
    pub fn store(&self) -> &Arc<dyn LockingStore> {
        self.seat.systems.store()
    }

    /// Sessions by the strategy of this cell.
    pub fn system(&self) -> Arc<dyn System> {
        self.system_of(self.strategy())
    }

    /// Sessions by another strategy on the same store, in the same process-wide queues.
    pub fn system_of(&self, strategy: Strategy) -> Arc<dyn System> {
        self.seat.systems.of(strategy)
    }

    /// Sessions by the strategy of this cell on a store of the scenario's own making: a wrapper that delays,
    /// cuts, swallows.
    ///
    /// # Errors
    /// When the scenario's settings are refused.
    pub fn system_over(&self, store: Arc<dyn LockingStore>) -> Trial<Arc<dyn System>> {
        Ok(Systems::new(store, self.seat.systems.settings())?.of(self.strategy()))
    }

    /// Sessions by the strategy of this cell, set up in another way: by what the store can, for one. They
    /// share nothing with other tasks but the store.
    ///
    /// # Errors
    /// When the settings are refused.
    pub fn system_with(&self, settings: Settings) -> Trial<Arc<dyn System>> {
        Ok(Systems::new(Arc::clone(self.store()), settings)?.of(self.strategy()))
    }

    /// The same of a party whose lease must not run out, where those of the others must.
    ///
    /// # Errors
    /// When the settings are refused.
    pub fn patient_system(&self) -> Trial<Arc<dyn System>> {
        self.system_with(self.seat.systems.settings().lease(Settings::DEFAULT.lease))
    }

    /// The product itself, where a scenario is about more than [`System`] can say.
    pub fn sessions(&self) -> &session_core::Sessions {
        self.seat.systems.sessions()
    }

    /// A token for a lock.
    ///
    /// # Errors
    /// When there is no randomness.
    pub fn token(&self) -> Result<Token> {
        Token::random(&SystemRandom)
    }

    /// A number by the seed of the run: the same for the same rank, every time.
    pub fn draw(&self, range: Range<u64>) -> u64 {
        self.random.lock().unwrap_or_else(PoisonError::into_inner).random_range(range)
    }

    /// What a handler does between reading and writing: gives way, and sometimes takes a moment, so that
    /// others get in between.
    pub async fn think(&self) {
        match self.draw(0..4) {
            0 => tokio::time::sleep(Duration::from_micros(self.draw(50..500))).await,
            times => {
                for _ in 0..times {
                    tokio::task::yield_now().await;
                }
            }
        }
    }

    /// Runs an operation under test and records it: its time, its outcome, and the note. `None` when it was
    /// not acknowledged.
    pub async fn attempt<T>(
        &self,
        session: usize,
        note: N,
        run: impl Future<Output = Result<T>> + Send,
    ) -> Option<T> {
        let begun = self.begin(session);
        let result = run.await;
        begun.end(note, &result);
        result.ok()
    }

    /// Begins an operation whose note is known at its end.
    pub fn begin(&self, session: usize) -> Begun<'_, N> {
        Begun { task: self, session, start: now() }
    }

    /// This task's share of the operations of each batch, one after the other; all tasks enter each batch
    /// together, so that they meet on its session. Every task calls it equally often.
    pub fn turns<'a>(&'a self, batches: &'a [Batch]) -> Turns<'a, N> {
        Turns { task: self, round: self.rounds.fetch_add(1, Relaxed), batches, batch: 0, next: None }
    }

    /// Waits until every living task has come here. A name serves once.
    ///
    /// # Errors
    /// When the parent is gone.
    pub async fn barrier(&self, name: impl Into<String> + Send) -> Trial {
        self.ask(Request::Barrier { name: name.into(), of: None, within_ms: None }).await.map(drop)
    }

    /// Waits until `of` tasks have come here, at most for `limit`. Whether it opened.
    ///
    /// # Errors
    /// When the parent is gone.
    pub async fn barrier_of(
        &self,
        name: impl Into<String> + Send,
        of: usize,
        limit: Duration,
    ) -> Trial<bool> {
        let within_ms = Some(millis(limit));
        let opened = self.ask(Request::Barrier { name: name.into(), of: Some(of), within_ms }).await?;
        Ok(opened == Value::Bool(true))
    }

    /// Tells every task, now and later; the judge can read it, too. A name is given once: the first value
    /// stays.
    ///
    /// # Errors
    /// When the parent is gone.
    pub async fn signal(&self, name: impl Into<String> + Send, value: impl Into<Value> + Send) -> Trial {
        self.ask(Request::Signal { name: name.into(), value: value.into() }).await.map(drop)
    }

    /// Waits for a signal and gives its value.
    ///
    /// # Errors
    /// When the parent is gone.
    pub async fn wait(&self, name: impl Into<String> + Send) -> Trial<Value> {
        self.ask(Request::Wait { name: name.into(), within_ms: None }).await
    }

    /// Waits for a signal at most for `limit`; null when it did not come.
    ///
    /// # Errors
    /// When the parent is gone.
    pub async fn wait_at_most(&self, name: impl Into<String> + Send, limit: Duration) -> Trial<Value> {
        self.ask(Request::Wait { name: name.into(), within_ms: Some(millis(limit)) }).await
    }

    /// Has the parent stop this whole process (SIGSTOP) until the signal is given; when it stands still, the
    /// parent signals `paused/RANK`. Returns after it was continued.
    ///
    /// # Errors
    /// When this is not a process of its own ([`Need::Processes`](super::Need::Processes)), or the parent is
    /// gone.
    pub async fn pause_until(&self, signal: impl Into<String> + Send) -> Trial {
        self.ask(Request::PauseUntil { rank: self.rank(), signal: signal.into() }).await.map(drop)
    }

    /// The same for a time.
    ///
    /// # Errors
    /// As [`pause_until`](Self::pause_until).
    pub async fn pause_for(&self, time: Duration) -> Trial {
        self.ask(Request::PauseFor { rank: self.rank(), millis: millis(time) }).await.map(drop)
    }

    /// Has the parent kill this whole process (SIGKILL); when it is gone, the parent signals `killed/RANK`.
    /// What its tasks recorded is gone with them: signal what the judge must know.
    ///
    /// # Errors
    /// Always: it returns only when it could not be killed.
    pub async fn kill(&self) -> Trial {
        self.ask(Request::Kill { rank: self.rank() }).await?;
        Err(Trouble::unproven("this process was to be killed and lives"))
    }

    async fn ask(&self, request: Request) -> Trial<Value> {
        match &self.seat.link {
            Link::Here(hub) => hub.answer(request).await,
            Link::Parent(line) => line.ask(request).await,
        }
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// An operation under way.
#[derive(Debug)]
#[must_use = "it is recorded by `end`"]
pub struct Begun<'a, N> {
    task: &'a Task<N>,
    session: usize,
    start: u64,
}

impl<N> Begun<'_, N> {
    /// Records what became of it.
    pub fn end<T>(self, note: N, result: &Result<T>) {
        let operation = Operation {
            rank: self.task.seat.rank,
            session: self.session,
            start: self.start,
            end: now(),
            outcome: Outcome::of(result),
            note,
        };
        self.task.log.lock().unwrap_or_else(PoisonError::into_inner).push(operation);
    }
}

/// A task's share of the operations: see [`Task::turns`].
#[derive(Debug)]
pub struct Turns<'a, N> {
    task: &'a Task<N>,
    round: usize,
    batches: &'a [Batch],
    batch: usize,
    next: Option<u64>,
}

/// One operation to do.
#[derive(Clone, Copy, Debug)]
pub struct Turn<'a> {
    /// The number of the session in the plan.
    pub session: usize,
    /// Its id.
    pub id: &'a Id,
    /// The number of this operation among those of its session, from zero; no two tasks get the same.
    pub number: u64,
}

impl<'a, N: Serialize + Send> Turns<'a, N> {
    /// The next operation, or `None` at the end.
    ///
    /// # Errors
    /// When the parent is gone.
    pub async fn next(&mut self) -> Trial<Option<Turn<'a>>> {
        while let Some(batch) = self.batches.get(self.batch) {
            let number = match self.next {
                Some(number) => number,
                None => {
                    self.task.barrier(format!("round {}, batch {}", self.round, self.batch)).await?;
                    self.task.rank() as u64
                }
            };
            if number < batch.ops {
                self.next = Some(number + self.task.ranks() as u64);
                return Ok(Some(Turn { session: self.batch, id: &batch.id, number }));
            }
            self.batch += 1;
            self.next = None;
        }
        Ok(None)
    }
}
