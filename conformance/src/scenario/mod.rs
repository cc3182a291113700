//! What a scenario is, and what it works with. How to write one is told in [`crate::scenarios`].

mod declared;
mod hub;
mod lab;
mod record;
mod steps;
mod task;

pub use lab::{Batch, Lab};
pub use record::{Count, Findings, Operation, now};
pub use steps::{Check, Script};
pub use task::{Begun, Task, Turn, Turns};

pub(crate) use declared::declined;
pub(crate) use hub::{Hub, Request};
pub(crate) use record::overlapping;
pub(crate) use steps::Steps;
pub(crate) use task::{Link, Seat};

use crate::{Strategy, system::Settings};
use std::{fmt, time::Duration};

/// Who is known to break a scenario's claim. A scenario that convicts nobody proves nothing, so none can be
/// made without.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Convictor {
    /// A control: its cell is `unknown` when it lost nothing.
    Control(Strategy),
    /// A wrong store of this name in [`mutants`](crate::mutants), convicted in the tests of this crate.
    Mutant(&'static str),
}

impl Convictor {
    /// The control that overwrites.
    pub const BLIND: Self = Self::Control(Strategy::Blind);
    /// The control that locks and overwrites.
    pub const LOCK_ONLY: Self = Self::Control(Strategy::LockOnly);
}

impl fmt::Display for Convictor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Control(strategy) => write!(f, "{strategy}"),
            Self::Mutant(name) => write!(f, "mutant {name}"),
        }
    }
}

/// What a scenario cannot do without.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// Workers in processes of their own, to be stopped or killed. Without: `absent`; on a store that
    /// processes cannot share: `n/a`.
    Processes,
    /// One process: the scenario needs no more, or what it measures is within a process.
    OneProcess,
    /// A store whose writes check the lock. Without: `n/a`, and a lock-free replace during a lease is
    /// accepted.
    Fencing,
    /// An index of users. Without: `n/a`, and it says `Unsupported` and nothing changes.
    Index,
    /// A store that has to be swept. Without: `n/a`.
    Sweeper,
    /// A server that can be restarted, paused and cut. Without: `absent`.
    Control,
    /// A server with replicas, one of which takes its place when it is restarted: an instance of its own, by
    /// [`Suite::special`](crate::Suite::special). Without: `absent`.
    Replicas,
    /// A server with little memory: an instance of its own, by [`Suite::special`](crate::Suite::special).
    /// Without: `absent`.
    LittleMemory,
    /// Disks below stores, to be treated badly. Without: `absent`.
    Disk,
}

/// One claim, as data: what it says, whom it runs with, who breaks it, and its steps.
#[derive(Clone, Copy)]
pub struct Scenario {
    pub(crate) name: &'static str,
    pub(crate) claim: &'static str,
    pub(crate) convictor: Convictor,
    pub(crate) strategies: &'static [Strategy],
    pub(crate) needs: &'static [Need],
    pub(crate) cap: Option<u64>,
    pub(crate) tasks: Option<usize>,
    pub(crate) overlap: u64,
    pub(crate) limit: Duration,
    pub(crate) settings: Settings,
    pub(crate) steps: &'static dyn Steps,
}

impl Scenario {
    /// A scenario for every session strategy. `name` is `group/id`; the claim is one line.
    #[must_use]
    pub const fn new<S: Script>(name: &'static str, claim: &'static str, convictor: Convictor) -> Self {
        Self {
            name,
            claim,
            convictor,
            strategies: Strategy::SESSIONS,
            needs: &[],
            cap: None,
            tasks: None,
            overlap: 0,
            limit: Duration::from_secs(30),
            settings: Settings::DEFAULT,
            steps: steps::of::<S>(),
        }
    }

    /// A scenario that a single caller checks, without tasks; for the driver unless other strategies are
    /// named.
    #[must_use]
    pub const fn check<C: Check>(name: &'static str, claim: &'static str, convictor: Convictor) -> Self {
        Self::new::<steps::Alone<C>>(name, claim, convictor)
            .strategies(Strategy::DRIVER)
            .needs(&[Need::OneProcess])
            .tasks(1)
    }

    /// The strategies that it makes sense for.
    #[must_use]
    pub const fn strategies(mut self, strategies: &'static [Strategy]) -> Self {
        self.strategies = strategies;
        self
    }

    /// What it cannot do without.
    #[must_use]
    pub const fn needs(mut self, needs: &'static [Need]) -> Self {
        self.needs = needs;
        self
    }

    /// The most operations of a cell, where more would prove nothing or take too long.
    #[must_use]
    pub const fn cap(mut self, ops: u64) -> Self {
        self.cap = Some(ops);
        self
    }

    /// The number of tasks per process, where the claim names one.
    #[must_use]
    pub const fn tasks(mut self, tasks: usize) -> Self {
        self.tasks = Some(tasks);
        self
    }

    /// The least part of the operations, in percent, that must overlap with another task's on the same
    /// session: with less the run proved nothing.
    #[must_use]
    pub const fn overlap(mut self, percent: u64) -> Self {
        self.overlap = percent;
        self
    }

    /// How long its tasks may take before they are taken to hang; 20 ms for each operation come on top. 30 s
    /// unless it says so.
    #[must_use]
    pub const fn limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// How its sessions are set up, in every process.
    #[must_use]
    pub const fn settings(mut self, settings: Settings) -> Self {
        self.settings = settings;
        self
    }

    /// `group/id`.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        self.name
    }

    /// The part of the name before the slash.
    #[must_use]
    pub fn group(&self) -> &'static str {
        self.name.split_once('/').map_or("", |(group, _)| group)
    }

    /// What it claims, in one line.
    #[must_use]
    pub const fn claim(&self) -> &'static str {
        self.claim
    }

    /// Who is known to break the claim.
    #[must_use]
    pub const fn convictor(&self) -> Convictor {
        self.convictor
    }

    /// The strategies that it runs with.
    #[must_use]
    pub const fn runs_with(&self) -> &'static [Strategy] {
        self.strategies
    }

    /// The most operations of a cell, where there is such a limit.
    #[must_use]
    pub const fn most_operations(&self) -> Option<u64> {
        self.cap
    }

    /// What it needs that is no ordinary instance.
    pub(crate) fn needs_special(&self) -> Option<Need> {
        self.needs.iter().copied().find(|need| matches!(need, Need::Replicas | Need::LittleMemory))
    }

    pub(crate) fn needs_a(&self, need: Need) -> bool {
        self.needs.contains(&need)
    }

    pub(crate) fn is_convicted_by(&self, strategy: Strategy) -> bool {
        self.convictor == Convictor::Control(strategy)
    }

    /// How many operations a cell does when `ops` are asked for.
    pub(crate) fn capped(&self, ops: u64) -> u64 {
        self.cap.map_or(ops, |cap| cap.min(ops))
    }

    /// How long its tasks may take.
    pub(crate) fn time_limit(&self, ops: u64) -> Duration {
        self.limit + Duration::from_millis(20 * ops)
    }
}

impl fmt::Debug for Scenario {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Scenario").field("name", &self.name).finish_non_exhaustive()
    }
}

/// The size and shape of one cell.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Terms {
    pub(crate) strategy: Strategy,
    pub(crate) ops: u64,
    pub(crate) tasks: usize,
    pub(crate) processes: usize,
    pub(crate) seed: u64,
}

impl Terms {
    pub(crate) const fn ranks(&self) -> usize {
        self.tasks * self.processes
    }
}
