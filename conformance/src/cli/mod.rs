//! The command line: what can be asked, and the order in which the answers count.

mod args;
mod backends;
mod output;

use args::{Args, Command, RunArgs};
use backends::{Backend, Running, Started};
use clap::{CommandFactory as _, Parser as _, error::ErrorKind};
use output::Output;
use session_conformance::{Cell, Report, RunSettings, Suite, worker, worker::Program};
use std::sync::Arc;

/// Everything that had to pass has passed.
const PASSED: i32 = 0;
/// A product or a driver lost, or nothing was proved of it; or the run was broken off.
const FAILED: i32 = 1;
/// A backend that was required is absent. (Wrong usage is 2, as clap has it.)
const ABSENT: i32 = 3;

pub(crate) async fn main() -> i32 {
    match Args::parse().command {
        Command::Run(args) => run(&args).await,
        Command::List => {
            output::list();
            PASSED
        }
        Command::Worker => worker::serve(|url| async move { session_store::connect(&url).await }).await,
    }
}

async fn run(args: &RunArgs) -> i32 {
    if let Err(why) = args.check() {
        usage(&why);
    }
    let output = Output::open(args).unwrap_or_else(|why| usage(&why));
    let report = tokio::select! {
        report = judge(args, &output) => report,
        // Servers, workers and directories go with what is dropped here.
        _ = tokio::signal::ctrl_c() => return FAILED,
    };
    if let Err(error) = output.finish(&report, args) {
        eprintln!("error: {error}");
        return FAILED;
    }
    let is_absent = |backend: &Backend| {
        report.cells.iter().any(|cell| cell.backend == backend.name && cell.scenario.is_empty())
    };
    if args.require.iter().any(|backend| is_absent(backend)) {
        ABSENT
    } else if report.cells.iter().any(Cell::is_bad) {
        FAILED
    } else {
        PASSED
    }
}

/// One backend after the other.
async fn judge(args: &RunArgs, output: &Output) -> Report {
    let mut report = Report::new(args.seed, RunSettings::new(args.ops, args.tasks, args.processes));
    for (backend, url) in args.backends() {
        match (backend.start)(url).await {
            Started::Absent(how) => {
                let cell = Cell::absent(backend.name, how);
                output.absent(&cell);
                report.cells.push(cell);
            }
            Started::Running(running) => {
                report.header.servers.insert(backend.name.to_owned(), running.describe());
                report.extend(suite(args, backend, running, output).run().await);
            }
        }
    }
    report
}

fn suite(args: &RunArgs, backend: &Backend, running: Arc<dyn Running>, output: &Output) -> Suite {
    let suite = Suite::new(move || {
        let running = Arc::clone(&running);
        async move { running.instance().await }
    });
    let suite = args.choose(suite).backend(backend.name);
    let suite = match std::env::current_exe() {
        _ if backend.private => suite.private(),
        Ok(program) => suite.workers(Program::new(program, ["worker"])),
        Err(error) => {
            eprintln!("no worker processes, since this program does not find itself: {error}");
            suite
        }
    };
    output.watch(suite)
}

/// Ends as clap does on wrong usage.
fn usage(why: &str) -> ! {
    Args::command().error(ErrorKind::ValueValidation, why).exit()
}
