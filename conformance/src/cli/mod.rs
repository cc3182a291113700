//! The command line: what can be asked, and the order in which the answers count.

mod args;
mod backends;
mod bench;
mod broken_off;
mod by_hand;
mod compare;
mod output;
mod report;

use args::{Args, Command, RunArgs};
use backends::{Backend, Running, Started};
use broken_off::BrokenOff;
use clap::{CommandFactory as _, Parser as _, error::ErrorKind};
use output::Output;
use session_conformance::{Cell, Report, RunSettings, Suite, worker, worker::Program};
use std::sync::Arc;
use url::Url;

/// Everything that had to pass has passed.
const PASSED: i32 = 0;
/// A product or a driver lost, or nothing was proved of it.
const FAILED: i32 = 1;
/// A backend that was required is absent. (Wrong usage is 2, as clap has it.)
const ABSENT: i32 = 3;

pub(crate) async fn main() -> i32 {
    match Args::parse().command {
        Command::Run(args) => run(&args).await,
        Command::List => said(&output::list(), PASSED),
        Command::Compare { reports } => compare::run(&reports),
        Command::Bench(args) => bench::run(&args).await,
        Command::Report(args) => report::run(&args),
        Command::Worker => worker::serve(|url| async move { session_store::connect(&url).await }).await,
    }
}

async fn run(args: &RunArgs) -> i32 {
    if let Err(why) = args.check() {
        usage(&why);
    }
    let output = Output::open(args).unwrap_or_else(|why| usage(&why));
    let mut broken_off = match BrokenOff::listen() {
        Ok(broken_off) => broken_off,
        Err(error) => return failed(&error),
    };
    let started = match broken_off.start(args.backends()).await {
        Ok(started) => started,
        Err(code) => return code,
    };
    let report = tokio::select! {
        report = judge(args, started, &output) => report,
        // Servers, workers and directories go with what is dropped here, and with the tasks that the runtime
        // drops at its end.
        code = broken_off.code() => return code,
    };
    match output.finish(&report, args) {
        Ok(()) => exit_code(&report, &args.require),
        Err(error) => failed(&error),
    }
}

/// This code, if the text could be said.
fn said(text: &str, code: i32) -> i32 {
    output::say(text).map_or_else(|error| failed(&error), |()| code)
}

fn failed(error: &dyn std::error::Error) -> i32 {
    eprintln!("error: {error}");
    FAILED
}

fn exit_code(report: &Report, required: &[&Backend]) -> i32 {
    let is_absent = |backend: &Backend| {
        report.cells.iter().any(|cell| cell.backend == backend.name && cell.scenario.is_empty())
    };
    if required.iter().any(|backend| is_absent(backend)) {
        ABSENT
    } else if report.cells.iter().any(Cell::is_bad) {
        FAILED
    } else {
        PASSED
    }
}

/// One after the other. All were started before, so that what is wrong with one is said before an hour is
/// spent on another.
async fn judge(args: &RunArgs, started: Vec<(&Backend, Started)>, output: &Output) -> Report {
    let mut report = Report::new(args.seed, RunSettings::new(args.ops, args.tasks, args.processes));
    for (backend, started) in started {
        match started {
            Started::Running(running) => {
                report.header.servers.insert(backend.name.to_owned(), describe(backend, &*running).await);
                report.extend(suite(args, backend, running, output).run().await);
            }
            Started::Absent(how) | Started::Refused(how) => {
                let cell = Cell::absent(backend.name, how);
                output.absent(&cell);
                report.cells.push(cell);
            }
        }
    }
    report
}

/// Where it is, and which version its server says it is. That it does not say so is no reason not to judge
/// it.
async fn describe(backend: &Backend, running: &dyn Running) -> String {
    let place = running.describe();
    let Ok(instance) = running.instance().await else { return place };
    let Some(Ok(address)) = instance.address.as_deref().map(Url::parse) else { return place };
    match by_hand::version(backend.name, &address).await {
        Ok(Some(version)) => format!("{version}, {place}"),
        _ => place,
    }
}

fn suite(args: &RunArgs, backend: &Backend, running: Arc<dyn Running>, output: &Output) -> Suite {
    let ordinary = Arc::clone(&running);
    let mut suite = Suite::new(move || {
        let running = Arc::clone(&ordinary);
        async move { running.instance().await }
    });
    for need in running.specials() {
        let running = Arc::clone(&running);
        suite = suite.special(*need, move || {
            let running = Arc::clone(&running);
            async move { running.special(*need).await }
        });
    }
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

#[cfg(test)]
mod tests {
    use super::{ABSENT, FAILED, PASSED, backends, exit_code};
    use session_conformance::{Cell, Report, RunSettings, Strategy, Verdict};

    fn report(cells: &[(Strategy, Verdict)]) -> Report {
        let mut report = Report::new(1, RunSettings::new(400, 4, None));
        for (strategy, verdict) in cells {
            let mut cell = Cell::absent("memory", "");
            cell.strategy = strategy.name().to_owned();
            cell.scenario = "group/id".to_owned();
            cell.verdict = *verdict;
            report.cells.push(cell);
        }
        report
    }

    #[test]
    fn products_and_drivers_decide() {
        for strategy in [Strategy::Write, Strategy::Exclusive, Strategy::Driver] {
            for (verdict, code) in [
                (Verdict::Pass, PASSED),
                (Verdict::NotApplicable, PASSED),
                (Verdict::Absent, PASSED),
                (Verdict::Fail, FAILED),
                (Verdict::Unknown, FAILED),
            ] {
                assert_eq!(exit_code(&report(&[(strategy, verdict)]), &[]), code, "{strategy} {verdict}");
            }
        }
    }

    #[test]
    fn controls_decide_nothing() {
        for verdict in [Verdict::Pass, Verdict::Loses, Verdict::Unknown] {
            assert_eq!(exit_code(&report(&[(Strategy::Blind, verdict)]), &[]), PASSED, "{verdict}");
        }
    }

    #[test]
    fn what_is_required_and_absent_comes_first() {
        let redis = backends::find("redis").expect("a backend");
        let memory = backends::find("memory").expect("a backend");
        let mut report = report(&[(Strategy::Write, Verdict::Fail)]);
        report.cells.push(Cell::absent("redis", "apt-get install redis-server"));
        assert_eq!(exit_code(&report, &[memory]), FAILED);
        assert_eq!(exit_code(&report, &[memory, redis]), ABSENT);
    }
}
