//! What a run has to say: as data, as text, as a page.

mod matrix;
mod page;

use crate::{Judgement, Strategy, Verdict, scenario::Scenario};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, fmt, time::Duration};

/// The verdicts of a run. As JSON it is what `--json` writes; `Display` is the matrix.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Report {
    /// What was run.
    pub header: Header,
    /// What came of it, in the order in which it ran.
    pub cells: Vec<Cell>,
}

/// What was run.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Header {
    /// The version of the suite.
    pub version: String,
    /// What the choices were drawn from.
    pub seed: u64,
    /// The size of the run.
    pub settings: RunSettings,
    /// The servers, by the name of their backend: version and where they came from.
    pub servers: BTreeMap<String, String>,
}

/// The size of a run.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[non_exhaustive]
pub struct RunSettings {
    /// Operations of a cell.
    pub ops: u64,
    /// Tasks in each process.
    pub tasks: usize,
    /// Processes of each cell; null: one, and again several.
    pub processes: Option<usize>,
}

/// One cell of the matrix.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Cell {
    /// The backend.
    pub backend: String,
    /// The strategy; empty for a backend that is absent.
    pub strategy: String,
    /// `group/id`; empty for a backend that is absent.
    pub scenario: String,
    /// In how many processes it ran.
    pub processes: usize,
    /// What it says.
    pub verdict: Verdict,
    /// Operations answered with success.
    pub acknowledged: u64,
    /// Acknowledged operations whose effect is not there.
    pub lost: u64,
    /// Operations refused without effect.
    pub rejected: u64,
    /// Operations whose reply was lost.
    pub unknown: u64,
    /// How long it took.
    pub seconds: f64,
    /// The evidence, one finding a line.
    pub detail: String,
}

impl RunSettings {
    /// The size of a run.
    #[must_use]
    pub const fn new(ops: u64, tasks: usize, processes: Option<usize>) -> Self {
        Self { ops, tasks, processes }
    }
}

impl Cell {
    pub(crate) fn new(backend: &str, strategy: Strategy, scenario: &Scenario, processes: usize) -> Self {
        Self {
            strategy: strategy.name().to_owned(),
            scenario: scenario.name.to_owned(),
            processes,
            ..Self::absent(backend, "")
        }
    }

    /// A backend that is not here, and how to get it.
    #[must_use]
    pub fn absent(backend: &str, how: impl Into<String>) -> Self {
        Self {
            backend: backend.to_owned(),
            strategy: String::new(),
            scenario: String::new(),
            processes: 0,
            verdict: Verdict::Absent,
            acknowledged: 0,
            lost: 0,
            rejected: 0,
            unknown: 0,
            seconds: 0.0,
            detail: how.into(),
        }
    }

    pub(crate) fn fill(&mut self, verdict: Verdict, judgement: &Judgement, time: Duration) {
        self.verdict = verdict;
        self.acknowledged = judgement.acknowledged;
        self.lost = judgement.lost;
        self.rejected = judgement.rejected;
        self.unknown = judgement.unknown;
        self.seconds = (time.as_secs_f64() * 1000.0).round() / 1000.0;
        self.detail = judgement.detail();
    }

    /// Whether it is a control, whose verdict decides nothing.
    #[must_use]
    pub fn is_control(&self) -> bool {
        self.strategy.parse().is_ok_and(Strategy::is_control)
    }

    /// Whether this cell makes the whole run fail: a product or a driver that lost, or of which nothing was
    /// proved.
    #[must_use]
    pub fn is_bad(&self) -> bool {
        !self.is_control() && matches!(self.verdict, Verdict::Fail | Verdict::Unknown)
    }

    /// The verdict with the numbers that belong to it: `loses 311/400`.
    #[must_use]
    pub fn summary(&self) -> String {
        match self.verdict {
            Verdict::Fail | Verdict::Loses if self.lost > 0 => {
                format!("{} {}/{}", self.verdict, self.lost, self.acknowledged)
            }
            verdict => verdict.to_string(),
        }
    }

    /// The same in one line, with everything that was counted.
    #[must_use]
    pub fn line(&self) -> String {
        let Self { backend, strategy, scenario, processes, acknowledged, rejected, unknown, seconds, .. } =
            self;
        let plural = if *processes == 1 { "" } else { "es" };
        let mut line = format!(
            "{backend} {strategy} {scenario}, {processes} process{plural}: {} ({acknowledged} acknowledged",
            self.summary(),
        );
        for (number, word) in [(rejected, "rejected"), (unknown, "unknown")] {
            if *number > 0 {
                line.push_str(&format!(", {number} {word}"));
            }
        }
        line.push_str(&format!(", {seconds:.2} s)"));
        line
    }
}

impl Report {
    /// A report without cells.
    #[must_use]
    pub fn new(seed: u64, settings: RunSettings) -> Self {
        let version = env!("CARGO_PKG_VERSION").to_owned();
        Self { header: Header { version, seed, settings, servers: BTreeMap::new() }, cells: Vec::new() }
    }

    /// Adds another backend's cells to this report.
    pub fn extend(&mut self, other: Self) {
        self.cells.extend(other.cells);
        self.header.servers.extend(other.header.servers);
    }

    /// Whether every product and driver cell that ran has passed, and at least one did.
    #[must_use]
    pub fn passed(&self) -> bool {
        self.cells.iter().all(|cell| !cell.is_bad())
            && self.cells.iter().any(|cell| !cell.is_control() && cell.verdict == Verdict::Pass)
    }

    /// For tests.
    ///
    /// # Panics
    /// With the matrix and the evidence, unless it [`passed`](Self::passed).
    #[expect(clippy::panic, reason = "this is how a test fails")]
    pub fn assert_passed(&self) {
        if !self.passed() {
            panic!("the store does not pass (seed {})\n\n{self}", self.header.seed);
        }
    }

    /// The matrix, at most this many columns wide, with the evidence below.
    #[must_use]
    pub fn to_text(&self, width: usize) -> String {
        matrix::render(self, width)
    }

    /// One self-contained page.
    #[must_use]
    pub fn to_html(&self) -> String {
        page::of_run(self)
    }

    /// The command that runs one cell again. A backend that was given by URL needs it again: it may hold a
    /// password, and is not kept.
    #[must_use]
    pub fn again(&self, cell: &Cell) -> String {
        let Header { seed, settings, .. } = &self.header;
        format!(
            "session-conformance run --backend {} --strategy {} --scenario '{}' --processes {} --tasks {} --ops {} --seed {seed}",
            cell.backend, cell.strategy, cell.scenario, cell.processes, settings.tasks, settings.ops
        )
    }

    /// The backends, in the order in which they ran.
    fn backends(&self) -> Vec<&str> {
        self.distinct(|cell| &cell.backend)
    }

    /// The scenarios, in the order in which they ran.
    fn scenarios(&self) -> Vec<&str> {
        self.distinct(|cell| &cell.scenario)
    }

    fn distinct<'a>(&'a self, what: impl Fn(&'a Cell) -> &'a str) -> Vec<&'a str> {
        let mut seen = Vec::new();
        for name in self.cells.iter().map(what).filter(|name| !name.is_empty()) {
            if !seen.contains(&name) {
                seen.push(name);
            }
        }
        seen
    }

    /// The strategies that ran on a backend, in the order of the columns.
    fn strategies(&self, backend: &str) -> Vec<Strategy> {
        let ran = |strategy: &&Strategy| {
            self.cells.iter().any(|cell| cell.backend == backend && cell.strategy == strategy.name())
        };
        Strategy::ALL.iter().filter(ran).copied().collect()
    }

    /// The cells of one place of the matrix: one for each number of processes.
    fn place(&self, backend: &str, strategy: Strategy, scenario: &str) -> Vec<&Cell> {
        let here = |cell: &&Cell| {
            cell.backend == backend && cell.strategy == strategy.name() && cell.scenario == scenario
        };
        self.cells.iter().filter(here).collect()
    }
}

#[cfg(feature = "bench")]
impl crate::bench::BenchReport {
    /// One self-contained page; with the verdicts of a run before what it costs.
    #[must_use]
    pub fn to_html(&self, run: Option<&Report>) -> String {
        page::of_bench(run, self)
    }
}

/// The worst of several cells: what a summary must not hide. Which of two equals lost more counts, too.
fn worst<'a>(cells: &[&'a Cell]) -> Option<&'a Cell> {
    cells.iter().copied().max_by_key(|cell| (cell.verdict.weight(), cell.lost))
}

/// What stands in one place of the matrix; with the number of processes where they differ.
fn summary(cells: &[&Cell]) -> String {
    let Some(worst) = worst(cells) else { return "·".to_owned() };
    if cells.iter().all(|cell| cell.verdict == worst.verdict) {
        return worst.summary();
    }
    format!("{} ({}p)", worst.summary(), worst.processes)
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.to_text(100))
    }
}
