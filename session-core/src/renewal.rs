//! Renewing the locks that are held for long.
//!
//! Most are released long before their first renewal is due. They cost no task, whose start and end would
//! wake other threads: one task for each runtime waits until the first of the others is due, while there are
//! any.

use crate::{Grant, LockingStore, Renewed, telemetry};
use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::{
    runtime::{self, Handle},
    task::AbortHandle,
    time::{Instant, sleep, sleep_until},
};

/// The locks that are held, by runtime.
#[derive(Debug, Default)]
pub(crate) struct Renewals(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    next: u64,
    runtimes: HashMap<runtime::Id, Locks>,
}

#[derive(Debug, Default)]
struct Locks {
    /// By when their first renewal is due.
    waiting: BTreeMap<(Instant, u64), Renewal>,
    /// Each by a task of its own.
    renewed: HashMap<u64, AbortHandle>,
    /// Whether the task that waits for the first is there.
    watched: bool,
}

/// A lock that is renewed as long as this is there.
#[derive(Debug)]
pub(crate) struct Renewing {
    renewals: Arc<Renewals>,
    runtime: runtime::Id,
    due: Instant,
    number: u64,
}

/// What it takes to renew a lock, and what to do when it can no longer be renewed.
pub(crate) struct Renewal {
    store: Arc<dyn LockingStore>,
    grant: Arc<Grant>,
    lease: Duration,
    lease_end: Instant,
    /// Until when it may be held.
    end: Instant,
    over: Box<dyn FnOnce() + Send>,
}

impl std::fmt::Debug for Renewal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Renewal").field("grant", &self.grant).finish_non_exhaustive()
    }
}

impl Renewals {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on it is renewed at a third of its lease, by a task of the present runtime. Outside of one,
    /// never: it ends with its lease.
    pub(crate) fn enter(self: &Arc<Self>, renewal: Renewal) -> Option<Renewing> {
        let runtime = Handle::try_current().ok()?;
        let due = Instant::now() + renewal.lease / 3;
        let mut state = self.state();
        let number = state.next;
        state.next += 1;
        let locks = state.runtimes.entry(runtime.id()).or_default();
        // Leases of one length: it is due after all who wait already, so whoever waits for the first need not
        // be told.
        locks.waiting.insert((due, number), renewal);
        let watched = std::mem::replace(&mut locks.watched, true);
        drop(state); // a runtime that is ending drops the task at once, which then asks for it
        if !watched {
            runtime.spawn(Watch { renewals: Arc::clone(self), runtime: runtime.id(), over: false }.run());
        }
        Some(Renewing { renewals: Arc::clone(self), runtime: runtime.id(), due, number })
    }
}

impl Drop for Renewing {
    fn drop(&mut self) {
        let mut state = self.renewals.state();
        let Some(locks) = state.runtimes.get_mut(&self.runtime) else { return };
        if locks.waiting.remove(&(self.due, self.number)).is_none()
            && let Some(task) = locks.renewed.remove(&self.number)
        {
            task.abort();
        }
        state.tidy(self.runtime);
    }
}

impl State {
    fn tidy(&mut self, runtime: runtime::Id) {
        let unused = |locks: &Locks| locks.waiting.is_empty() && locks.renewed.is_empty() && !locks.watched;
        if self.runtimes.get(&runtime).is_some_and(unused) {
            self.runtimes.remove(&runtime);
        }
    }
}

/// The task that waits for the first that is due.
struct Watch {
    renewals: Arc<Renewals>,
    runtime: runtime::Id,
    /// Whether it has ended by itself, and not with its runtime.
    over: bool,
}

impl Watch {
    async fn run(mut self) {
        while let Some(due) = self.start_what_is_due() {
            sleep_until(due).await;
        }
    }

    /// When the next is due; `None` when there is none: then this task ends, and the next lock starts
    /// another.
    fn start_what_is_due(&mut self) -> Option<Instant> {
        let mut state = self.renewals.state();
        let locks = state.runtimes.get_mut(&self.runtime)?;
        while let Some(first) = locks.waiting.first_entry() {
            let (due, number) = *first.key();
            if due > Instant::now() {
                return Some(due);
            }
            locks.renewed.insert(number, tokio::spawn(first.remove().run()).abort_handle());
        }
        (locks.watched, self.over) = (false, true);
        state.tidy(self.runtime);
        None
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        if self.over {
            return;
        }
        let mut state = self.renewals.state();
        if let Some(locks) = state.runtimes.get_mut(&self.runtime) {
            locks.watched = false;
        }
        state.tidy(self.runtime); // its locks may have been the first to go
    }
}

impl Renewal {
    /// `over` is called when the lease has ended, or will not be renewed any more and has.
    pub(crate) fn new(
        store: Arc<dyn LockingStore>,
        grant: Arc<Grant>,
        (lease, max_hold): (Duration, Duration),
        over: impl FnOnce() + Send + 'static,
    ) -> Self {
        let now = Instant::now();
        Self { store, grant, lease, lease_end: now + lease, end: now + max_hold, over: Box::new(over) }
    }

    async fn run(mut self) {
        self.renew().await;
        (self.over)();
    }

    /// Renews until it may no longer, and returns when the lease is over.
    async fn renew(&mut self) {
        loop {
            let now = Instant::now();
            if now + self.lease > self.end {
                tracing::warn!("a lock is held for longer than max_hold; it is no longer renewed");
                return sleep_until(self.lease_end).await;
            }
            match self.store.renew(&self.grant, self.lease).await {
                Ok(Renewed::Extended) => self.lease_end = Instant::now() + self.lease,
                Ok(Renewed::Lost) => {
                    telemetry::lease_lost();
                    return tracing::warn!("a lease ran out under its holder; its write will be refused");
                }
                // There are two more tries before the lease runs out, and the write checks it in any case.
                Err(error) if now < self.lease_end => {
                    tracing::warn!(%error, "a lock could not be renewed");
                }
                Err(error) => {
                    telemetry::lease_lost();
                    return tracing::warn!(%error, "a lease ran out: it could not be renewed");
                }
            }
            sleep(self.lease / 3).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Acquired, Clock, MemoryStore, StorageKey, SystemRandom, Token};
    use tokio::runtime::{Builder, Runtime};

    const LEASE: Duration = Duration::from_secs(10);

    #[derive(Debug)]
    struct TokioClock(Instant);

    impl Clock for TokioClock {
        fn now(&self) -> Duration {
            Duration::from_secs(1_700_000_000) + self.0.elapsed()
        }
    }

    fn runtime() -> Runtime {
        Builder::new_current_thread().enable_time().start_paused(true).build().unwrap()
    }

    async fn hold(renewals: &Arc<Renewals>) -> (Arc<dyn LockingStore>, Option<Renewing>) {
        let clock = Arc::new(TokioClock(Instant::now()));
        let store: Arc<dyn LockingStore> = Arc::new(MemoryStore::new(clock, Arc::new(SystemRandom)));
        let Acquired::Granted(grant) = ask(&store).await else { panic!("it is free") };
        let renewal = Renewal::new(Arc::clone(&store), Arc::new(grant), (LEASE, LEASE * 100), || {});
        (store, renewals.enter(renewal))
    }

    async fn ask(store: &Arc<dyn LockingStore>) -> Acquired {
        let token = Token::random(&SystemRandom).unwrap();
        store.acquire(&StorageKey::from_bytes([7; 32]), token, LEASE, Duration::ZERO).await.unwrap()
    }

    #[test]
    fn a_runtime_that_ends_takes_no_other_with_it() {
        let renewals = Arc::default();
        let kept = {
            let first = runtime();
            first.block_on(async { hold(&renewals).await.1 })
        };
        runtime().block_on(async {
            let (store, renewing) = hold(&renewals).await;
            sleep(LEASE * 5).await;
            assert!(matches!(ask(&store).await, Acquired::Held(_)));
            drop(renewing);
            sleep(LEASE).await;
            assert!(matches!(ask(&store).await, Acquired::Granted(_)));
        });
        drop(kept);
        assert!(renewals.state().runtimes.is_empty());
    }

    #[test]
    fn a_runtime_that_ends_after_its_locks_leaves_nothing() {
        let renewals = Arc::default();
        runtime().block_on(async { drop(hold(&renewals).await) });
        assert!(renewals.state().runtimes.is_empty());
    }

    #[test]
    fn locks_that_are_held_for_a_short_time_share_one_task() {
        runtime().block_on(async {
            let renewals = Arc::default();
            for _ in 0..100 {
                drop(hold(&renewals).await);
                assert_eq!(Handle::current().metrics().num_alive_tasks(), 1);
            }
            sleep(LEASE).await;
            assert_eq!(Handle::current().metrics().num_alive_tasks(), 0);
            assert!(renewals.state().runtimes.is_empty());
        });
    }
}
