//! The command: the suite on every backend of this workspace.

mod cli;

use std::{process::ExitCode, time::Duration};
use tokio::runtime::Runtime;

/// How long is waited for what hangs in a store that was judged.
const PATIENCE: Duration = Duration::from_secs(5);

fn main() -> ExitCode {
    let runtime = match Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: {error}");
            return ExitCode::FAILURE;
        }
    };
    let code = runtime.block_on(cli::main());
    // Tasks that were broken off still have their part of a server or a directory: dropped here, it is the
    // last one.
    runtime.shutdown_timeout(PATIENCE);
    std::process::exit(code)
}
