//! The suite on files, in one process and in four. As `… worker` this program is one of the four.

use session_conformance::{Instance, Suite, worker, worker::Program};
use session_core::{LockingStore, Result};
use session_file::{FileConfig, FileStore};
use std::{env, sync::Arc};
use tempfile::TempDir;

#[tokio::main]
async fn main() {
    if env::args().nth(1).as_deref() == Some("worker") {
        worker::serve(|path| async move { open(&path) }).await;
    }
    let workers = Program::new(env::current_exe().unwrap_or_default(), ["worker"]);
    Suite::new(|| async { fresh() }).backend("file").workers(workers).run().await.assert_passed();
}

fn open(path: &str) -> Result<Arc<dyn LockingStore>> {
    Ok(Arc::new(FileStore::open(FileConfig::new(path))?))
}

fn fresh() -> Result<Instance> {
    let directory = TempDir::new().map_err(|error| session_core::Error::backend("fresh", error))?;
    let path = directory.path().to_string_lossy().into_owned();
    Ok(Instance::new(open(&path)?).address(path).guard(directory))
}
