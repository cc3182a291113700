//! The suite on files, in one process and in four. As `… worker` this program is one of the four.

use session_conformance::{Instance, Suite, worker, worker::Program};
use session_core::{LockingStore, Result};
use session_file::{FileConfig, FileStore};
use std::{env, sync::Arc, time::Duration};
use tempfile::TempDir;

#[tokio::main]
async fn main() {
    if env::args().nth(1).as_deref() == Some("worker") {
        worker::serve(|path| async move { open(&path) }).await;
    }
    let workers = Program::new(env::current_exe().unwrap_or_default(), ["worker"]);
    Suite::new(|| async { fresh() }).backend("file").workers(workers).run().await.assert_passed();
}

/// How fast the disk is has no part in any claim.
fn open(path: &str) -> Result<Arc<dyn LockingStore>> {
    let config = FileConfig::new(path).busy_timeout(Duration::from_secs(30));
    Ok(Arc::new(FileStore::open(config)?))
}

fn fresh() -> Result<Instance> {
    let directory = TempDir::new().map_err(|error| session_core::Error::backend("fresh", error))?;
    let path = directory.path().to_string_lossy().into_owned();
    Ok(Instance::new(open(&path)?).address(path).guard(directory))
}
