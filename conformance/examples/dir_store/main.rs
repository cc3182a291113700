//! A third party judges a store of its own: `cargo run -p session-conformance --example dir_store`.
//!
//! In a test it is these ten lines (`run().await.assert_passed()`); here the matrix is printed. The example
//! is its own worker, so that the scenarios run in several processes, too. There, the store loses nothing,
//! since each write names its version; its lock, which lives in the memory of one process, is convicted.

mod store;

use session_conformance::{Instance, Suite, worker, worker::Program};
use session_core::{Error, LockingStore, MemoryLock, Pair, Result};
use std::{env, process::ExitCode, sync::Arc};
use store::DirStore;

#[tokio::main]
async fn main() -> ExitCode {
    if env::args().nth(1).as_deref() == Some("worker") {
        worker::serve(|dir| async move { open(&dir) }).await
    }
    let suite = Suite::new(|| async { fresh() }).backend("dir-store");
    let suite = match env::current_exe() {
        Ok(program) => suite.workers(Program::new(program, ["worker"])),
        Err(_) => suite, // without workers, what needs several processes is absent
    };
    let report = suite.run().await;
    print!("{report}");
    if report.passed() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn fresh() -> Result<Instance> {
    let dir = tempfile::tempdir().map_err(|error| Error::backend("open", error))?;
    let path = dir.path().display().to_string();
    Ok(Instance::new(open(&path)?).guard(dir).address(path))
}

fn open(dir: &str) -> Result<Arc<dyn LockingStore>> {
    Ok(Arc::new(Pair(DirStore::open(dir)?, MemoryLock::default())))
}
