//! Scenarios in several processes: the worker's side, and what is said between it and the parent.
//!
//! A worker is a program that calls [`serve`] and nothing else; the command of this crate is one, and a third
//! party makes its own:
//!
//! ```no_run
//! use session_conformance::worker;
//! use session_core::MemoryStore;
//! use std::sync::Arc;
//!
//! #[tokio::main]
//! async fn main() {
//!     // The address is what `Instance::address` said: a path, a URL. (Memory cannot be shared: use your own store.)
//!     worker::serve(|address| async move { Ok(Arc::new(MemoryStore::default()) as _) }).await;
//! }
//! ```
//!
//! # The protocol
//! JSON, one message a line. The parent writes to the worker's standard input, the worker to its standard
//! output, where a store must therefore print nothing. The parent sends the job; the worker connects to the
//! backend by its address and says that it is ready; when all are, the parent lets them go together.
//! Barriers, signals and requests to be stopped or killed go to the parent and are answered. The results of
//! each task are the last thing said. A worker ends when its standard input does, and with its parent.

mod crew;
mod line;

pub use crew::Program;

pub(crate) use crew::work;
pub(crate) use line::Line;

use crate::{
    Strategy,
    scenario::{Link, Operation, Request, Scenario, Seat, Terms},
    scenarios,
    system::Systems,
    trouble::{Trial, Trouble},
};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use session_core::{LockingStore, Result};
use std::{future::Future, process, sync::Arc};
use tokio::task::JoinSet;

/// What the parent says.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum ToWorker {
    Job(Box<Job>),
    Go,
    Answer { id: u64, reply: Trial<Value> },
}

/// What a worker says.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum FromWorker {
    Ready,
    Ask { id: u64, request: Request },
    Done { rank: usize, result: Trial<Vec<Operation<Value>>> },
    Failed(Trouble),
}

/// The part of a cell that one process does.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Job {
    pub(crate) scenario: String,
    pub(crate) address: String,
    pub(crate) strategy: Strategy,
    pub(crate) ops: u64,
    pub(crate) tasks: usize,
    pub(crate) processes: usize,
    pub(crate) seed: u64,
    pub(crate) plan: Value,
    /// Which of the processes this is.
    pub(crate) process: usize,
}

/// Does what the parent says on standard input, with the scenarios of this suite, until the parent is gone.
/// Never returns.
pub async fn serve<F>(connect: impl Fn(String) -> F + Send + Sync) -> !
where
    F: Future<Output = Result<Arc<dyn LockingStore>>> + Send,
{
    serve_with(&[], connect).await
}

/// The same, with further scenarios: those of [`Suite::also`](crate::Suite::also).
pub async fn serve_with<F>(further: &'static [Scenario], connect: impl Fn(String) -> F + Send + Sync) -> !
where
    F: Future<Output = Result<Arc<dyn LockingStore>>> + Send,
{
    die_with_parent();
    let (line, mut orders) = Line::open();
    if let Err(trouble) = carry_out(&line, &mut orders, further, connect).await {
        line.say(&FromWorker::Failed(trouble));
    }
    // The parent reads to the end and closes; the line then ends this process.
    std::future::pending().await
}

async fn carry_out<F>(
    line: &Arc<Line>,
    orders: &mut line::Orders,
    further: &'static [Scenario],
    connect: impl Fn(String) -> F,
) -> Trial
where
    F: Future<Output = Result<Arc<dyn LockingStore>>>,
{
    let job = orders.job().await?;
    let scenario = scenarios::all()
        .chain(further)
        .find(|scenario| scenario.name() == job.scenario)
        .ok_or_else(|| Trouble::unproven(format!("this worker has no scenario {}", job.scenario)))?;
    let store = scenario.steps.wrap(connect(job.address.clone()).await?, job.seed ^ job.process as u64);
    let systems = Systems::new(store, scenario.settings)?;
    let Job { strategy, ops, tasks, processes, seed, process, .. } = job;
    let terms = Terms { strategy, ops, tasks, processes, seed };
    line.say(&FromWorker::Ready);
    orders.go().await?;

    let mut working = JoinSet::new();
    for rank in process * tasks..(process + 1) * tasks {
        let seat = Seat { rank, terms, systems: systems.clone(), link: Link::Parent(Arc::clone(line)) };
        let (line, plan) = (Arc::clone(line), job.plan.clone());
        working.spawn(async move {
            // In a task of its own, so that a panic is a result like any other.
            let result = tokio::spawn(scenario.steps.work(seat, plan)).await;
            let result = result.unwrap_or_else(|error| Err(panicked(rank, error)));
            line.say(&FromWorker::Done { rank, result });
        });
    }
    while working.join_next().await.is_some() {}
    Ok(())
}

/// What a task that did not return has to say.
pub(crate) fn panicked(rank: usize, error: tokio::task::JoinError) -> Trouble {
    let what = match error.try_into_panic() {
        Ok(panic) => panic
            .downcast_ref::<String>()
            .cloned()
            .or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()))
            .unwrap_or_else(|| "without a word".to_owned()),
        Err(_) => "cancelled".to_owned(),
    };
    Trouble::wrong(format!("task {rank} panicked: {what}"))
}

/// Also when this process is stopped and the parent is killed: nobody would be left to continue it. The end
/// of standard input does the rest, on every system.
fn die_with_parent() {
    #[cfg(target_os = "linux")]
    if let Err(error) = rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))
    {
        eprintln!("this worker may outlive its parent while it is stopped: {error}");
    }
}

/// Ends this process when the parent is gone, whatever its tasks are doing.
fn end() -> ! {
    process::exit(0)
}
