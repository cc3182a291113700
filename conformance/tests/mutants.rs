//! Who tests the tester: each mutant is convicted by every scenario that names it, or that it names; each
//! control loses where a scenario says so.
//!
//! This program is the test, and the workers of the test: `worker` as its first argument makes it one. Any
//! other argument is a part of the names of the mutants to try; without one, all of them, and the controls.

#![allow(clippy::expect_used, clippy::panic, reason = "this is how a test fails")]

#[path = "../src/cli/backends/disk.rs"]
mod disk;

use session_conformance::{
    Instance, Progress, Report, Strategy, Suite, Verdict,
    disk::{Disk, Fault, Loss},
    mutants::{self, Mutant},
    scenario::{Convictor, Need, Scenario},
    scenarios,
    servers::redis::{self, RedisSentinels, RedisServer},
    worker,
    worker::Program,
};
use session_core::{Error, ErrorKind, LockingStore, MemoryStore, Result};
use std::{
    env, fmt, io,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};
use tokio::{sync::Semaphore, task::JoinSet, time::timeout};

/// What takes longer, on a store that is wrong about waiting, shows no more.
const PATIENCE: Duration = Duration::from_secs(15);
/// The scenarios that take little time, tried on all mutants.
const WHOLE: [&str; 3] = ["concurrency/*", "lifecycle/*", "limits/*"];
const FEW: u64 = 100;
const SEEDS: u64 = 3;
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
        for name in mutant.convicted_by() {
            let named = scenarios::all().find(|scenario| scenario.name() == *name);
            spawn(Box::pin(convict(mutant, named.unwrap_or_else(|| panic!("there is no {name}")))));
        }
        spawn(Box::pin(others(mutant)));
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

/// A scenario that names it: a product or driver cell that fails convicts; a control's is no use.
async fn convict(mutant: &'static Mutant, scenario: &'static Scenario) -> Row {
    let strategies = [Strategy::PRODUCT, Strategy::DRIVER].concat();
    run(mutant.name(), Some(mutant), scenario, &strategies, Verdict::Fail).await
}

/// A control where it is the convictor.
async fn lose(control: Strategy, scenario: &'static Scenario) -> Row {
    run(&format!("control {control}"), None, scenario, &[control], Verdict::Loses).await
}

/// The faults of a server or a disk are tried where there is one; the others in one process on memory. Where
/// that convicts nobody, in some on files: the product's own queue keeps those of one process apart whatever
/// the store does. What has to do with chance gets a few of them.
async fn run(
    who: &str,
    mutant: Option<&'static Mutant>,
    scenario: &'static Scenario,
    strategies: &[Strategy],
    guilty: Verdict,
) -> Row {
    let suite =
        |suite: Suite, seed| suite.strategies(strategies.to_vec()).scenarios([scenario.name()]).seed(seed);
    let mut last = None;
    for seed in 1..=SEEDS {
        if NEEDS_A_SERVER.contains(&scenario.name()) {
            let tried = row(who, scenario, &suite(serving(mutant), seed).private().run().await, guilty);
            if tried.convicted || redis::program().is_none() {
                return Row { convicted: tried.convicted || !is_required(), ..tried };
            }
            last = Some(tried);
            continue;
        }
        let here = Suite::new(move || async move { Ok(here(mutant)) });
        let tried = row(who, scenario, &suite(here, seed).private().run().await, guilty);
        if tried.convicted {
            return tried;
        }
        let program = Program::new(env::current_exe().expect("this program"), ["worker"]);
        let shared = Suite::new(move || async move { shared(mutant).await });
        let shared = suite(shared, seed).workers(program).processes(4);
        let tried = row(who, scenario, &shared.run().await, guilty);
        if tried.convicted {
            return tried;
        }
        last = Some(tried);
    }
    last.expect("it was tried")
}

fn row(who: &str, scenario: &Scenario, report: &Report, guilty: Verdict) -> Row {
    let cells: Vec<_> = report.cells.iter().filter(|cell| cell.verdict == guilty).collect();
    let verdict = match cells.first() {
        Some(cell) => {
            let strategies: Vec<_> = cells.iter().map(|cell| cell.strategy.as_str()).collect();
            let why = cell.detail.lines().next().unwrap_or_default();
            let processes = if cell.processes > 1 { " in processes" } else { "" };
            format!("{guilty} ({}{processes}; {:.1} s): {why}", strategies.join(", "), cell.seconds)
        }
        None => format!("acquitted\n{report}"),
    };
    Row { who: who.to_owned(), by: scenario.name().to_owned(), convicted: !cells.is_empty(), verdict }
}

/// Who else convicts it: to see, when its own scenario does not. The run as a whole is never kinder than its
/// strictest cell.
async fn others(mutant: &'static Mutant) -> Row {
    let found = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&found);
    let whole = Suite::new(move || async move { Ok(here(Some(mutant))) })
        .private()
        .ops(FEW)
        .strategies([Strategy::PRODUCT, Strategy::DRIVER].concat())
        .scenarios(WHOLE)
        .watch(move |progress| {
            if let Progress::Ends(cell) = progress
                && cell.verdict == Verdict::Fail
                && !mutant.convicted_by().contains(&cell.scenario.as_str())
            {
                seen.lock().unwrap_or_else(PoisonError::into_inner).push(cell.scenario.clone());
            }
        });
    let done = timeout(PATIENCE, whole.run()).await.is_ok();
    let mut by = found.lock().unwrap_or_else(PoisonError::into_inner).clone();
    by.dedup();
    let verdict = match (by.is_empty(), done) {
        (false, _) => format!("FAIL: {}", by.join(", ")),
        (true, true) => "nobody".to_owned(),
        (true, false) => format!("nobody within {PATIENCE:?}"),
    };
    Row {
        who: mutant.name().to_owned(),
        by: "~ of others, with few operations".to_owned(),
        convicted: true,
        verdict,
    }
}

/// What is broken by a server that dies, and by a disk.
const NEEDS_A_SERVER: [&str; 6] = [
    "fault/server_restart",
    "fault/server_pause",
    "fault/connection_storm",
    "fault/failover",
    "fault/eviction",
    "fault/disk_full_and_torn_write",
];

fn is_required() -> bool {
    env::var("SESSION_REQUIRE").is_ok_and(|names| names.contains("redis"))
}

/// On private servers that keep nothing over a restart, and on disks of files.
fn serving(mutant: Option<&'static Mutant>) -> Suite {
    Suite::new(move || redis(mutant, &[]))
        .special(Need::LittleMemory, move || {
            redis(mutant, &["--maxmemory", "8mb", "--maxmemory-policy", "allkeys-lru"])
        })
        .special(Need::Replicas, move || async move {
            let servers = Arc::new(RedisSentinels::start().await.map_err(down)?);
            let store = over(mutant, session_store::connect(&servers.url()).await?);
            Ok(Instance::new(store).control(servers))
        })
}

async fn redis(mutant: Option<&'static Mutant>, arguments: &[&str]) -> Result<Instance> {
    let server = Arc::new(RedisServer::with(arguments).await.map_err(down)?);
    let store = over(mutant, session_store::connect(&server.url()).await?);
    let disks = disk::disks().into_iter().map(|disk| Arc::new(Under { mutant, disk }) as Arc<dyn Disk>);
    Ok(Instance::new(store).control(server).disks(disks.collect()))
}

fn down(error: io::Error) -> Error {
    Error::unavailable("start", error)
}

/// A disk, with a mutant on it.
#[derive(Debug)]
struct Under {
    mutant: Option<&'static Mutant>,
    disk: Arc<dyn Disk>,
}

impl Disk for Under {
    fn name(&self) -> String {
        self.disk.name()
    }

    fn open(&self) -> Result<Arc<dyn LockingStore>> {
        Ok(over(self.mutant, self.disk.open()?))
    }

    fn fail(&self, nth: usize, fault: Fault) {
        self.disk.fail(nth, fault);
    }

    fn heal(&self) -> bool {
        self.disk.heal()
    }

    fn lose_power(&self, loss: Loss) -> io::Result<()> {
        self.disk.lose_power(loss)
    }
}

fn over(mutant: Option<&Mutant>, right: Arc<dyn LockingStore>) -> Arc<dyn LockingStore> {
    mutant.map_or_else(|| Arc::clone(&right), |mutant| mutant.over(Arc::clone(&right)))
}

/// In this process's memory.
fn here(mutant: Option<&Mutant>) -> Instance {
    Instance::new(over(mutant, Arc::new(MemoryStore::default())))
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
