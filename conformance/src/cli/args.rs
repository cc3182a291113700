//! What can be asked of the command.

use super::backends::{self, Backend};
use clap::{Parser, Subcommand};
use session_conformance::{Strategy, Suite, scenarios};
use session_core::{Clock as _, SystemClock};
use std::path::PathBuf;

/// Shows which session stores lose updates.
///
/// Each scenario is a claim ("N increments of one counter: final = acknowledged"), tried on each backend with each
/// strategy: `blind` and `lock-only` do what session handlers elsewhere do and are there to lose; `write` and
/// `exclusive` are this project's and must not; `driver` speaks to the store below them.
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
  3  a backend named by --require is absent";

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct RunArgs {
    /// A backend to judge; with a URL, that server, in a namespace of its own. All that are here, unless named.
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
        if self.backend.is_empty() {
            return backends::ALL.iter().map(|backend| (backend, None)).collect();
        }
        let mut chosen = self.backend.clone();
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
