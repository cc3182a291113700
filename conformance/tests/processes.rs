//! The framework in several processes: workers that work, die, hang, talk nonsense, are stopped and killed.
//!
//! This program is the tests, and the workers of the tests: `worker` as its first argument makes it one.

#![allow(clippy::expect_used, clippy::panic, reason = "this is how a test fails")]

#[path = "../examples/dir_store/store.rs"]
mod store;

#[path = "processes/scripts.rs"]
mod scripts;

use scripts::SCENARIOS;
use session_conformance::{Cell, Instance, Report, Strategy, Suite, Verdict, worker, worker::Program};
use session_core::{Error, LockingStore, MemoryLock, Pair, Result};
use std::{
    env,
    future::Future,
    pin::Pin,
    process::Stdio,
    sync::Arc,
    time::{Duration, Instant},
};
use store::DirStore;

type Test = (&'static str, fn() -> Pin<Box<dyn Future<Output = ()>>>);

macro_rules! tests {
    ($($name:ident),* $(,)?) => { &[$((stringify!($name), || Box::pin($name()))),*] };
}

const TESTS: &[Test] = tests![
    a_store_that_checks_versions_keeps_everything_in_several_processes,
    a_lock_that_processes_do_not_share_is_convicted,
    without_workers_several_processes_are_absent,
    a_program_that_ends_at_once_proves_nothing,
    a_program_that_talks_nonsense_proves_nothing,
    a_program_that_is_not_there_proves_nothing,
    a_program_that_is_never_ready_does_not_hang_the_suite,
    tasks_meet_across_processes,
    a_worker_that_dies_proves_nothing_and_says_why,
    a_worker_that_panics_fails,
    a_worker_that_hangs_fails_within_the_limit,
    a_killed_worker_is_no_longer_waited_for,
    a_stopped_worker_stands_still,
    workers_die_with_their_parent,
];

#[tokio::main]
async fn main() {
    let argument = env::args().nth(1);
    match argument.as_deref() {
        Some("worker") => worker::serve_with(SCENARIOS, |dir| async move { open(&dir) }).await,
        Some("parent") => drop(mine("test/everyone_sleeps_stopped").run().await),
        filter => {
            for (name, test) in TESTS.iter().filter(|(name, _)| filter.is_none_or(|part| name.contains(part)))
            {
                print!("test {name} ... ");
                test().await;
                println!("ok");
            }
        }
    }
}

async fn a_store_that_checks_versions_keeps_everything_in_several_processes() {
    let report = suite().scenarios(["concurrency/increments_*"]).seed(7).run().await;
    report.assert_passed();
    for processes in [1, 4] {
        let of =
            |strategy: &str| find(&report, |cell| cell.strategy == strategy && cell.processes == processes);
        assert_eq!(of("blind").verdict, Verdict::Loses, "{report}");
        // Without a lock that processes share, a writer may give up after its replays; it never loses.
        let write = of("write");
        assert_eq!((write.verdict, write.acknowledged + write.rejected), (Verdict::Pass, 400), "{report}");
        assert!(write.acknowledged > 300, "{report}");
        assert_eq!(of("exclusive").verdict, Verdict::Pass, "{report}");
    }
}

async fn a_lock_that_processes_do_not_share_is_convicted() {
    let report = suite().scenarios(["lock/one_holder_*"]).run().await;
    assert_eq!(find(&report, |cell| cell.processes == 1).verdict, Verdict::Pass, "{report}");
    let convicted = find(&report, |cell| cell.processes == 4);
    assert_eq!(convicted.verdict, Verdict::Fail, "{report}");
    assert!(convicted.detail.contains("held the lock together"), "{report}");
}

async fn without_workers_several_processes_are_absent() {
    let report = Suite::new(|| async { fresh() }).scenarios(["lock/one_holder_*"]).run().await;
    assert_eq!(find(&report, |cell| cell.processes == 4).verdict, Verdict::Absent);
}

async fn a_program_that_ends_at_once_proves_nothing() {
    let cell = only(mine("test/tasks_meet").workers(sh("echo 'no such file' >&2; exit 3")).run().await);
    assert_eq!(cell.verdict, Verdict::Unknown);
    assert!(cell.detail.contains("ended before it was done; it complained: no such file"), "{}", cell.detail);
}

async fn a_program_that_talks_nonsense_proves_nothing() {
    let cell = only(mine("test/tasks_meet").workers(sh("echo hello; cat")).run().await);
    assert_eq!(cell.verdict, Verdict::Unknown);
    assert!(cell.detail.contains("what no worker says: hello"), "{}", cell.detail);
    // The right words at the wrong time are nonsense, too.
    let lie = r#"echo '{"done":{"rank":99,"result":{"Ok":[]}}}'; cat > /dev/null"#;
    let cell = only(mine("test/tasks_meet").workers(sh(lie)).run().await);
    assert_eq!(cell.verdict, Verdict::Unknown);
    assert!(cell.detail.contains("before it was ready"), "{}", cell.detail);
    let lie = r#"read job; echo '"ready"'; read go; echo '{"done":{"rank":99,"result":{"Ok":[]}}}'; cat > /dev/null"#;
    let cell = only(mine("test/tasks_meet").workers(sh(lie)).run().await);
    assert_eq!(cell.verdict, Verdict::Unknown);
    assert!(cell.detail.contains("not its own"), "{}", cell.detail);
}

async fn a_program_that_is_not_there_proves_nothing() {
    let cell = only(mine("test/tasks_meet").workers(Program::new("/no/such/program", [""; 0])).run().await);
    assert_eq!(cell.verdict, Verdict::Unknown);
    assert!(cell.detail.contains("/no/such/program"), "{}", cell.detail);
}

async fn a_program_that_is_never_ready_does_not_hang_the_suite() {
    let started = Instant::now();
    let cell = only(mine("test/one_task_never_comes").workers(sh("exec sleep 60")).run().await);
    assert_eq!(cell.verdict, Verdict::Fail);
    assert!(cell.detail.contains("hung"), "{}", cell.detail);
    assert!(started.elapsed() < Duration::from_secs(20));
}

async fn tasks_meet_across_processes() {
    let cell = only(mine("test/tasks_meet").run().await);
    assert_eq!(cell.verdict, Verdict::Pass, "{}", cell.detail);
    assert_eq!(cell.acknowledged, 6);
}

async fn a_worker_that_dies_proves_nothing_and_says_why() {
    let cell = only(mine("test/one_worker_dies").run().await);
    assert_eq!(cell.verdict, Verdict::Unknown);
    assert!(cell.detail.contains("worker 1 ended before it was done"), "{}", cell.detail);
    assert!(cell.detail.contains("farewell"), "{}", cell.detail);
}

async fn a_worker_that_panics_fails() {
    let cell = only(mine("test/one_task_panics").run().await);
    assert_eq!(cell.verdict, Verdict::Fail);
    assert!(cell.detail.contains("task 3 panicked: three is enough"), "{}", cell.detail);
}

async fn a_worker_that_hangs_fails_within_the_limit() {
    let started = Instant::now();
    let cell = only(mine("test/one_task_never_comes").run().await);
    assert_eq!(cell.verdict, Verdict::Fail);
    assert!(cell.detail.contains("hung") && cell.detail.contains("5 of 6 at barrier all"), "{}", cell.detail);
    assert!(started.elapsed() < Duration::from_secs(20));
}

async fn a_killed_worker_is_no_longer_waited_for() {
    let cell = only(mine("test/one_worker_is_killed").run().await);
    assert_eq!(cell.verdict, Verdict::Pass, "{}", cell.detail);
    assert_eq!(cell.acknowledged, 4, "the tasks of the other two workers");
}

async fn a_stopped_worker_stands_still() {
    let cell = only(mine("test/one_worker_is_stopped").run().await);
    assert_eq!(cell.verdict, Verdict::Pass, "{}", cell.detail);
}

/// Also when they are stopped: a parent is started that has all its workers stopped, and is killed then.
async fn workers_die_with_their_parent() {
    let here = env::current_exe().expect("this program");
    let dir = tempfile::tempdir().expect("a directory");
    let mut parent = std::process::Command::new(here)
        .arg("parent")
        .env("TEST_PIDS", dir.path())
        .stdout(Stdio::null())
        .spawn()
        .expect("this program again");
    let pids = || -> Vec<String> {
        let entries = std::fs::read_dir(dir.path()).expect("the directory").flatten();
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
    };
    let state = |pid: &str| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        stat.rsplit(')').next()?.trim_start().chars().next()
    };
    until("all workers are stopped", || {
        let pids = pids();
        pids.len() == 3 && pids.iter().all(|pid| state(pid) == Some('T'))
    })
    .await;
    parent.kill().expect("it lives");
    parent.wait().expect("it is ours");
    until("all workers are gone", || pids().iter().all(|pid| matches!(state(pid), None | Some('Z')))).await;
}

async fn until(what: &str, reached: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !reached() {
        assert!(Instant::now() < deadline, "not so after 20 s: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// The whole suite on the example's store, whose workers are this program.
fn suite() -> Suite {
    let here = env::current_exe().expect("this program");
    Suite::new(|| async { fresh() }).workers(Program::new(here, ["worker"])).also(SCENARIOS)
}

/// One scenario of the tests', in three processes of two tasks.
fn mine(scenario: &str) -> Suite {
    suite().scenarios([scenario]).strategies([Strategy::Driver]).processes(3).tasks(2)
}

fn sh(script: &str) -> Program {
    Program::new("sh", ["-c", script])
}

fn only(report: Report) -> Cell {
    assert_eq!(report.cells.len(), 1, "{report}");
    find(&report, |_| true)
}

fn find(report: &Report, which: impl Fn(&Cell) -> bool) -> Cell {
    report.cells.iter().find(|cell| which(cell)).expect("such a cell").clone()
}

fn fresh() -> Result<Instance> {
    let dir = tempfile::tempdir().map_err(|error| Error::backend("open", error))?;
    let path = dir.path().display().to_string();
    Ok(Instance::new(open(&path)?).guard(dir).address(path))
}

fn open(dir: &str) -> Result<Arc<dyn LockingStore>> {
    Ok(Arc::new(Pair(DirStore::open(dir)?, MemoryLock::default())))
}
