//! Who tests the tester: each mutant is convicted by every scenario that names it, or that it names; each control loses where a
//! scenario says so.
//!
//! This program is the test, and the workers of the test: `worker` as its first argument makes it one. Any other argument is a part of the
//! names of the mutants to try; without one, all of them, and the controls.

#![allow(clippy::expect_used, clippy::panic, reason = "this is how a test fails")]

use session_conformance::{
    Cell, Instance, Report, Strategy, Suite, Verdict,
    mutants::{self, Mutant},
    scenario::{Convictor, Scenario},
    scenarios, worker,
    worker::Program,
};
use session_core::{Error, ErrorKind, LockingStore, MemoryStore, Result};
use std::{
    env, fmt,
    pin::Pin,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::{sync::Semaphore, task::JoinSet, time::timeout};

/// What takes longer for a store that is wrong about waiting proves no more.
const PATIENCE: Duration = Duration::from_secs(25);
/// Of a run as a whole: the scenarios that take no time, with few operations.
const WHOLE: [&str; 3] = ["concurrency/*", "lifecycle/*", "limits/*"];
const FEW: u64 = 100;
/// Runs at a time. Most of them wait most of their time.
const AT_ONCE: usize = 12;

#[tokio::main]
async fn main() {
    // What begins with a dash is for the standard harness, which this is not.
    let argument = env::args().nth(1).filter(|argument| !argument.starts_with('-'));
    if argument.as_deref() == Some("worker") {
        worker::serve(|address| async move { connect(&address).await }).await
    }
    let started = Instant::now();
    let mut rows = trials(argument.as_deref()).await;
    rows.sort_by(|one, other| (&one.who, &one.by).cmp(&(&other.who, &other.by)));
    for row in &rows {
        println!("{row}");
    }
    println!("{} trials in {:.0} s", rows.len(), started.elapsed().as_secs_f32());
    let acquitted: Vec<_> =
        rows.iter().filter(|row| !row.convicted).map(|row| format!("{} by {}", row.who, row.by)).collect();
    assert!(acquitted.is_empty(), "not convicted: {acquitted:?}");
    assert!(!rows.is_empty(), "nobody was tried");
}

/// One line of the table.
struct Row {
    who: String,
    by: String,
    convicted: bool,
    /// The verdict, and why.
    verdict: String,
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:<30} | {:<46} | {}", self.who, self.by, self.verdict)
    }
}

async fn trials(part: Option<&str>) -> Vec<Row> {
    let (turn, mut trials) = (Arc::new(Semaphore::new(AT_ONCE)), JoinSet::new());
    let mut spawn = |trial: Pin<Box<dyn Future<Output = Row> + Send>>| {
        let turn = Arc::clone(&turn);
        trials.spawn(async move {
            let _mine = turn.acquire_owned().await;
            trial.await
        });
    };
    for mutant in mutants::ALL.iter().filter(|mutant| part.is_none_or(|part| mutant.name().contains(part))) {
        let named = mutant.convicted_by().iter().filter_map(|name| exists(name));
        let named: Vec<_> = named.collect();
        if named.is_empty() {
            println!("{:<30} | {:?} still to come", mutant.name(), mutant.convicted_by());
            continue;
        }
        for scenario in named {
            spawn(Box::pin(convict(mutant, scenario)));
        }
        spawn(Box::pin(as_a_whole(mutant)));
    }
    if part.is_none() {
        for scenario in scenarios::all() {
            if let Convictor::Control(control) = scenario.convictor() {
                spawn(Box::pin(lose(control, scenario)));
            }
        }
    }
    trials.join_all().await
}

fn exists(name: &str) -> Option<&'static Scenario> {
    scenarios::all().find(|scenario| scenario.name() == name)
}

/// A scenario that names it: a product or driver cell that fails convicts; a control's is no use.
async fn convict(mutant: &'static Mutant, scenario: &'static Scenario) -> Row {
    let report = run(Some(mutant), scenario, &[Strategy::PRODUCT, Strategy::DRIVER].concat()).await;
    row(mutant.name(), scenario.name(), &report, Verdict::Fail)
}

/// A control where it is the convictor.
async fn lose(control: Strategy, scenario: &'static Scenario) -> Row {
    let report = run(None, scenario, &[control]).await;
    row(&format!("control {control}"), scenario.name(), &report, Verdict::Loses)
}

/// In one process on memory; where it needs processes, in some on files.
async fn run(mutant: Option<&'static Mutant>, scenario: &Scenario, strategies: &[Strategy]) -> Report {
    let suite = |suite: Suite| suite.strategies(strategies.to_vec()).scenarios([scenario.name()]);
    let here =
        Suite::new(move || async move { Ok(Instance::new(over(mutant, Arc::new(MemoryStore::default())))) });
    let report = suite(here).private().run().await;
    if !report.cells.iter().all(|cell| cell.verdict == Verdict::NotApplicable) {
        return report;
    }
    let program = Program::new(env::current_exe().expect("this program"), ["worker"]);
    let shared = Suite::new(move || async move { shared(mutant).await });
    suite(shared).workers(program).processes(4).run().await
}

fn row(who: &str, by: &str, report: &Report, guilty: Verdict) -> Row {
    let cells: Vec<_> = report.cells.iter().filter(|cell| cell.verdict == guilty).collect();
    let verdict = match cells.first() {
        Some(cell) => {
            let strategies: Vec<_> = cells.iter().map(|cell| cell.strategy.as_str()).collect();
            let why = cell.detail.lines().next().unwrap_or_default();
            format!("{guilty} ({}; {:.1} s): {why}", strategies.join(", "), cell.seconds)
        }
        None => format!("acquitted\n{report}"),
    };
    Row { who: who.to_owned(), by: by.to_owned(), convicted: !cells.is_empty(), verdict }
}

/// The suite as one runs it: who is convicted by its own scenario must not pass as a whole, and this shows who else convicts it.
async fn as_a_whole(mutant: &'static Mutant) -> Row {
    let named = mutant.convicted_by().iter().copied();
    let suite =
        Suite::new(
            move || async move { Ok(Instance::new(over(Some(mutant), Arc::new(MemoryStore::default())))) },
        )
        .private()
        .ops(FEW)
        .strategies([Strategy::PRODUCT, Strategy::DRIVER].concat());
    let whole = suite.scenarios(WHOLE.into_iter().chain(named));
    let row = |convicted, verdict| Row {
        who: mutant.name().to_owned(),
        by: "the run as a whole".to_owned(),
        convicted,
        verdict,
    };
    let Ok(report) = timeout(PATIENCE, whole.run()).await else {
        return row(true, format!("not done within {PATIENCE:?}"));
    };
    let fails = |cell: &&Cell| cell.verdict == Verdict::Fail;
    let mut by: Vec<_> = report.cells.iter().filter(fails).map(|cell| cell.scenario.as_str()).collect();
    by.dedup();
    if by.is_empty() {
        return row(false, format!("acquitted\n{report}"));
    }
    row(true, format!("FAIL: {}", by.join(", ")))
}

fn over(mutant: Option<&Mutant>, right: Arc<dyn LockingStore>) -> Arc<dyn LockingStore> {
    mutant.map_or_else(|| Arc::clone(&right), |mutant| mutant.over(Arc::clone(&right)))
}

/// On files, which processes share.
async fn shared(mutant: Option<&Mutant>) -> Result<Instance> {
    let dir = tempfile::tempdir().map_err(|error| Error::backend("open", error))?;
    let address = format!("{} file://{}", mutant.map_or("none", Mutant::name), dir.path().display());
    Ok(Instance::new(connect(&address).await?).guard(dir).address(address))
}

/// The name of a mutant, or `none`, and the URL of what it is around.
async fn connect(address: &str) -> Result<Arc<dyn LockingStore>> {
    let unknown = || Error::new(ErrorKind::Invalid, "connect").with_context(address.to_owned());
    let (name, url) = address.split_once(' ').ok_or_else(unknown)?;
    let mutant = match name {
        "none" => None,
        name => Some(mutants::find(name).ok_or_else(unknown)?),
    };
    Ok(over(mutant, session_store::connect(url).await?))
}
