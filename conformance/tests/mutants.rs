//! Who tests the tester: each mutant is convicted by every scenario that names it, or that it names.
//!
//! This program is the test, and the workers of the test: `worker` as its first argument makes it one. Any other argument is a part of the
//! names of the mutants to try.

#![allow(clippy::expect_used, clippy::panic, reason = "this is how a test fails")]

use session_conformance::{
    Instance, Report, Suite, Verdict,
    mutants::{self, Mutant},
    worker,
    worker::Program,
};
use session_core::{Error, ErrorKind, LockingStore, MemoryStore, Result};
use std::{env, sync::Arc, time::Instant};

#[tokio::main]
async fn main() {
    let argument = env::args().nth(1);
    if argument.as_deref() == Some("worker") {
        worker::serve(|address| async move { connect(&address).await }).await
    }
    // What begins with a dash is for the standard harness, which this is not.
    let part = argument.as_deref().filter(|argument| !argument.starts_with('-'));
    let chosen = |mutant: &&Mutant| part.is_none_or(|part| mutant.name().contains(part));
    // At once: most of the time a mutant is waited for.
    let mut trials = tokio::task::JoinSet::new();
    for mutant in mutants::ALL.iter().filter(chosen) {
        for scenario in mutant.convicted_by() {
            trials.spawn(convict(mutant, scenario));
        }
    }
    let mut acquitted = Vec::new();
    while let Some(ended) = trials.join_next().await {
        let (name, verdict) = ended.expect("no panic");
        println!("{name}: {verdict}");
        if !verdict.starts_with("convicted") {
            acquitted.push(name);
        }
    }
    assert!(acquitted.is_empty(), "not convicted: {acquitted:?}");
}

async fn convict(mutant: &'static Mutant, scenario: &'static str) -> (String, String) {
    let started = Instant::now();
    let here = Suite::new(|| async { Ok(Instance::new(mutant.over(Arc::new(MemoryStore::default())))) });
    let mut report = here.private().scenarios([scenario]).run().await;
    if report.cells.iter().all(|cell| cell.verdict == Verdict::NotApplicable) {
        let program = Program::new(env::current_exe().expect("this program"), ["worker"]);
        let shared = Suite::new(|| async { shared(mutant).await });
        report = shared.workers(program).processes(4).scenarios([scenario]).run().await;
    }
    (format!("{} by {scenario}", mutant.name()), verdict(&report, started))
}

/// A product or driver cell that failed convicts; a control's is no use.
fn verdict(report: &Report, started: Instant) -> String {
    match report.cells.iter().find(|cell| cell.verdict == Verdict::Fail) {
        Some(cell) => {
            let why = cell.detail.lines().next().unwrap_or_default();
            format!("convicted in {:.1} s: {why}", started.elapsed().as_secs_f32())
        }
        None => format!("acquitted\n{report}"),
    }
}

/// On files, which processes share.
async fn shared(mutant: &Mutant) -> Result<Instance> {
    let dir = tempfile::tempdir().map_err(|error| Error::backend("open", error))?;
    let address = format!("{} file://{}", mutant.name(), dir.path().display());
    Ok(Instance::new(connect(&address).await?).guard(dir).address(address))
}

/// The name of a mutant, and the URL of what it is around.
async fn connect(address: &str) -> Result<Arc<dyn LockingStore>> {
    let unknown = || Error::new(ErrorKind::Invalid, "connect").with_context(address.to_owned());
    let (name, url) = address.split_once(' ').ok_or_else(unknown)?;
    let mutant = mutants::find(name).ok_or_else(unknown)?;
    Ok(mutant.over(session_store::connect(url).await?))
}
