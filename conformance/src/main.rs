//! The command: the suite on every backend of this workspace.

mod cli;

use std::process::ExitCode;

#[tokio::main]
async fn main() -> ExitCode {
    let code = cli::main().await;
    // What hangs in a store that was judged must not keep the command from ending.
    std::process::exit(code)
}
