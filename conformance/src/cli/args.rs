//! What can be asked of the command.

use super::backends::{self, Backend};
use clap::{Parser, Subcommand};
use session_conformance::{
    Strategy, Suite,
    bench::{Contention, Operation, Point},
    scenarios,
};
use session_core::{Clock as _, SystemClock};
use std::{path::PathBuf, time::Duration};

/// Shows which session stores lose updates.
///
/// Each scenario is a claim ("N increments of one counter: final = acknowledged"), tried on each backend with
/// each strategy: `blind` and `lock-only` do what session handlers elsewhere do and are there to lose;
/// `write` and `exclusive` are this project's and must not; `driver` speaks to the store below them.
#[derive(Debug, Parser)]
#[command(name = "session-conformance", version, arg_required_else_help = true)]
pub(super) struct Args {
    #[command(subcommand)]
    pub(super) command: Command,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Runs the scenarios and prints the matrix.
    Run(RunArgs),
    /// Names every scenario with its claim.
    List,
    /// Measures latency, against the same commands by hand and against the classical way.
    Bench(BenchArgs),
    /// Says in which verdicts the reports of several runs differ: exit code 1 when any does.
    Compare {
        /// What `run --json` wrote.
        #[arg(required = true, num_args = 2.., value_name = "REPORT")]
        reports: Vec<PathBuf>,
    },
    /// Makes one page of the JSON of a run, of a bench, or of both.
    Report(ReportArgs),
    /// Works for a parent; nothing for people.
    #[command(hide = true)]
    Worker,
}

const EXAMPLES: &str = "\
Examples:
  session-conformance run                                    everything that is here
  session-conformance run --backend file --processes 4       files, in four processes
  session-conformance run --scenario 'concurrency/*' --ops 20000
  session-conformance run --require redis --json report.json

Exit code:
  0  every product and driver cell passed
  1  one of them failed, or proved nothing
  2  wrong usage
  3  a backend named by --require is absent
  130, 143  it was broken off, by SIGINT or SIGTERM; what it had started is gone";

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct RunArgs {
    /// A backend to judge; with a URL, that server, in a namespace of its own. All that are here, unless
    /// named.
    #[arg(long, value_name = "NAME[=URL]", value_parser = backends::parse)]
    backend: Vec<(&'static Backend, Option<String>)>,

    /// Backends that must be here (comma-separated): exit code 3 when one is not.
    #[arg(long, value_name = "NAME,…", value_delimiter = ',', value_parser = backends::find)]
    pub(super) require: Vec<&'static Backend>,

    /// Only this strategy: blind, lock-only, write, exclusive or driver. May be repeated.
    #[arg(long, value_name = "S")]
    pub(super) strategy: Vec<Strategy>,

    /// Only scenarios whose group/id matches; `*` stands for any text. May be repeated.
    #[arg(long, value_name = "GLOB")]
    pub(super) scenario: Vec<String>,

    /// Operations of each cell, all its tasks together.
    #[arg(long, value_name = "N", default_value_t = 400, value_parser = clap::value_parser!(u64).range(1..=100_000_000))]
    pub(super) ops: u64,

    /// Tasks in each process.
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = number)]
    pub(super) tasks: usize,

    /// Processes of each cell. Without it each runs in one, and again in four (memory in one).
    #[arg(long, value_name = "N", value_parser = number)]
    pub(super) processes: Option<usize>,

    /// What choices are drawn from; each run has its own, and prints it, unless told.
    #[arg(long, value_name = "N", default_value_t = any_seed(), hide_default_value = true)]
    pub(super) seed: u64,

    /// Writes the report as JSON.
    #[arg(long, value_name = "FILE")]
    pub(super) json: Option<PathBuf>,

    /// Writes the report as one self-contained page.
    #[arg(long, value_name = "FILE")]
    pub(super) html: Option<PathBuf>,
}

const BENCH_EXAMPLES: &str = "\
Without --tasks, --size, --compression and --contention: one task with 1 KiB, and from there along each of the four.
With one of them: every combination of what is named; of the others the first.

Examples:
  session-conformance bench                                  a few minutes, everything that is here
  session-conformance bench --backend redis --operation write --seconds 5
  session-conformance bench --scale --backend file --backend redis
  session-conformance bench --tasks 1,8,64 --size 1,16,256 --compression off,on --json bench.json";

#[derive(Clone, Debug, clap::Args)]
#[command(after_help = BENCH_EXAMPLES)]
pub(super) struct BenchArgs {
    /// A backend to measure; with a URL, that server, in a namespace of its own. All that are here, unless
    /// named.
    #[arg(long, value_name = "NAME[=URL]", value_parser = backends::parse)]
    backend: Vec<(&'static Backend, Option<String>)>,

    /// Only these: read, write, exclusive, classical.
    #[arg(long, value_name = "OPERATION,…", value_delimiter = ',')]
    pub(super) operation: Vec<Operation>,

    /// Tasks at once.
    #[arg(long, value_name = "N,…", value_delimiter = ',', value_parser = number)]
    tasks: Vec<usize>,

    /// KiB in a session.
    #[arg(long, value_name = "KIB,…", value_delimiter = ',', value_parser = kibibytes)]
    size: Vec<usize>,

    /// Sessions as they are (off), compressed (on).
    #[arg(long, value_name = "off|on,…", value_delimiter = ',', value_parser = on_or_off)]
    compression: Vec<bool>,

    /// Each task its own session (uncontended), all on one (contended), or a thousand of which some are asked
    /// for more often (zipf).
    #[arg(long, value_name = "WHO,…", value_delimiter = ',')]
    contention: Vec<Contention>,

    /// How long each operation is measured at each point; with --scale 2, unless told.
    #[arg(long, value_name = "SECONDS", default_value = "0.5", value_parser = seconds,
        default_value_if("scale", clap::builder::ArgPredicate::IsPresent, "2"))]
    pub(super) seconds: Duration,

    /// Instead: whether many sessions make each one slower, from 10,000 to as many as this (a million unless
    /// told), in turn with a second server that stays small, unless a URL names one; what they weigh, and what
    /// sweeping costs. memcached forgets what does not fit: give it memory.
    #[arg(long, value_name = "SESSIONS", num_args = 0..=1, default_missing_value = "1000000",
        value_parser = clap::value_parser!(u64).range(10_000..=100_000_000),
        conflicts_with_all = ["operation", "tasks", "size", "compression", "contention"])]
    pub(super) scale: Option<u64>,

    /// Threads of the runtime that measures. Half of the processors, unless told: the servers need the
    /// others.
    #[arg(long, value_name = "N", value_parser = number)]
    workers: Option<usize>,

    /// What choices are drawn from.
    #[arg(long, value_name = "N", default_value_t = any_seed(), hide_default_value = true)]
    pub(super) seed: u64,

    /// Writes the rows as JSON.
    #[arg(long, value_name = "FILE")]
    pub(super) json: Option<PathBuf>,

    /// Writes the charts as one self-contained page.
    #[arg(long, value_name = "FILE")]
    pub(super) html: Option<PathBuf>,
}

impl BenchArgs {
    /// What is to be measured, and where.
    pub(super) fn backends(&self) -> Vec<(&'static Backend, Option<String>)> {
        chosen(&self.backend)
    }

    /// Of these, what can be started once more, for a store that stays small: what is named with a URL, if
    /// only once, has no second server like it.
    pub(super) fn beside(&self) -> Vec<(&'static Backend, Option<String>)> {
        let mut again = self.backends();
        let given: Vec<_> = again.iter().filter(|(_, url)| url.is_some()).map(|(of, _)| of.name).collect();
        again.retain(|(backend, _)| self.scale.is_some() && !given.contains(&backend.name));
        again
    }

    pub(super) fn workers(&self) -> usize {
        let half =
            || std::thread::available_parallelism().map_or(1, |processors| processors.get().div_ceil(2));
        self.workers.unwrap_or_else(half)
    }

    pub(super) fn points(&self) -> Vec<Point> {
        let axes = [self.tasks.len(), self.size.len(), self.compression.len(), self.contention.len()];
        if axes == [0; 4] {
            return Point::quick();
        }
        let first = Point::default();
        Point::cross(
            or(&self.size, &[first.size]),
            or(&self.compression, &[first.compression]),
            or(&self.tasks, &[first.tasks]),
            or(&self.contention, &[first.contention]),
        )
    }

    pub(super) fn operations(&self) -> &[Operation] {
        or(&self.operation, &Operation::ALL)
    }
}

#[derive(Debug, clap::Args)]
pub(super) struct ReportArgs {
    /// What `run --json` and `bench --json` wrote. Several of a kind are joined.
    #[arg(value_name = "JSON", required = true)]
    pub(super) json: Vec<PathBuf>,

    /// The page.
    #[arg(long, value_name = "FILE")]
    pub(super) html: PathBuf,
}

fn or<'a, T>(named: &'a [T], otherwise: &'a [T]) -> &'a [T] {
    if named.is_empty() { otherwise } else { named }
}

/// Those that were named, or all.
fn chosen(named: &[(&'static Backend, Option<String>)]) -> Vec<(&'static Backend, Option<String>)> {
    if named.is_empty() {
        backends::ALL.iter().map(|backend| (backend, None)).collect()
    } else {
        named.to_vec()
    }
}

fn kibibytes(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(number @ 1..=512) => Ok(number << 10),
        Ok(0_usize) | Err(_) => Err("a number of KiB, at least 1".to_owned()),
        Ok(_) => Err("at most 512: memcached takes no more than 1 MiB".to_owned()),
    }
}

fn on_or_off(text: &str) -> Result<bool, String> {
    match text {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => Err("on or off".to_owned()),
    }
}

fn seconds(text: &str) -> Result<Duration, String> {
    match text.parse() {
        Ok(seconds @ 0.05..=600.0) => Ok(Duration::from_secs_f64(seconds)),
        _ => Err("a number of seconds, 0.05 to 600".to_owned()),
    }
}

/// Another one each time.
fn any_seed() -> u64 {
    u64::from(SystemClock.now().subsec_micros())
}

/// A number of tasks or processes.
fn number(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(number @ 1..=1000) => Ok(number),
        Ok(_) => Err("at least 1, at most 1000".to_owned()),
        Err(_) => Err("not a number".to_owned()),
    }
}

impl RunArgs {
    /// What clap cannot know.
    pub(super) fn check(&self) -> Result<(), String> {
        for pattern in &self.scenario {
            if scenarios::matching(std::slice::from_ref(pattern), &[]).next().is_none() {
                return Err(format!(
                    "no scenario matches '{pattern}'; `session-conformance list` names them all"
                ));
            }
        }
        let chosen = |strategy: &Strategy| self.strategy.is_empty() || self.strategy.contains(strategy);
        if !scenarios::matching(&self.scenario, &[]).any(|scenario| scenario.runs_with().iter().any(chosen)) {
            return Err("no scenario of this choice runs with a strategy of this choice; \
                        `session-conformance list` says which do"
                .to_owned());
        }
        Ok(())
    }

    /// What is to be judged, and where: what is required is judged, too.
    pub(super) fn backends(&self) -> Vec<(&'static Backend, Option<String>)> {
        let mut chosen = chosen(&self.backend);
        for required in &self.require {
            if chosen.iter().all(|(backend, _)| backend.name != required.name) {
                chosen.push((required, None));
            }
        }
        chosen
    }

    /// The same choice for a suite.
    pub(super) fn choose(&self, suite: Suite) -> Suite {
        let suite = suite
            .ops(self.ops)
            .tasks(self.tasks)
            .seed(self.seed)
            .strategies(self.strategy.iter().copied())
            .scenarios(self.scenario.iter().cloned());
        match self.processes {
            Some(processes) => suite.processes(processes),
            None => suite,
        }
    }
}
