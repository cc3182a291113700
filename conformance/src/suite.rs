//! The suite itself: which cells there are, and running them one after the other.

use crate::{
    Cell, Instance, Judgement, Report, Strategy, Verdict,
    cell::{self, missing},
    report::RunSettings,
    scenario::{Need, Scenario, Terms},
    scenarios,
    worker::Program,
};
use session_core::Result;
use std::{fmt, future::Future, pin::Pin, time::Instant};

/// The processes of a cell that runs in several, unless told otherwise.
const SEVERAL: usize = 4;

type Make = dyn Fn() -> Pin<Box<dyn Future<Output = Result<Instance>> + Send>> + Send + Sync;

/// Judges a store by every scenario.
///
/// ```
/// use session_conformance::{Instance, Suite};
/// use session_core::MemoryStore;
/// use std::sync::Arc;
///
/// # async fn run() {
/// let report = Suite::new(|| async { Ok(Instance::new(Arc::new(MemoryStore::default()))) })
///     .private()
///     .scenarios(["concurrency/increments_*"])
///     .run()
///     .await;
/// report.assert_passed();
/// # }
/// # tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap().block_on(run());
/// ```
#[must_use = "`run` runs it"]
pub struct Suite {
    make: Box<Make>,
    backend: String,
    sharing: Sharing,
    ops: u64,
    tasks: usize,
    processes: Option<usize>,
    seed: u64,
    strategies: Vec<Strategy>,
    scenarios: Vec<String>,
    further: &'static [Scenario],
    special: Vec<(Need, Box<Make>)>,
    watch: Box<dyn Fn(Progress<'_>) + Send + Sync>,
}

/// Whether several processes can work on one store.
#[derive(Clone, Debug)]
enum Sharing {
    /// Nobody said how: such cells are absent.
    Unknown,
    /// The store lives in one process: there are no such cells.
    Private,
    /// By workers that run this program.
    Workers(Program),
}

/// What happens while a suite runs.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum Progress<'a> {
    /// A cell begins; all but its verdict is known.
    Begins(&'a Cell),
    /// A cell has ended.
    Ends(&'a Cell),
}

impl Suite {
    /// A suite for the store that the closure makes: a fresh one each time it is called.
    pub fn new<F>(make: impl Fn() -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Result<Instance>> + Send + 'static,
    {
        Self {
            make: Box::new(move || Box::pin(make())),
            backend: "store".to_owned(),
            sharing: Sharing::Unknown,
            ops: 400,
            tasks: 4,
            processes: None,
            seed: 1,
            strategies: Vec::new(),
            scenarios: Vec::new(),
            further: &[],
            special: Vec::new(),
            watch: Box::new(|_| {}),
        }
    }

    /// The name of the backend in the report.
    pub fn backend(mut self, name: impl Into<String>) -> Self {
        self.backend = name.into();
        self
    }

    /// The program whose processes are the workers: one that calls [`worker::serve`](crate::worker::serve).
    /// The instances say by [`Instance::address`] where it finds the store. Without workers, cells of several
    /// processes are `absent`.
    pub fn workers(mut self, program: Program) -> Self {
        self.sharing = Sharing::Workers(program);
        self
    }

    /// The store lives in the memory of one process: there is nothing that several could share.
    pub fn private(mut self) -> Self {
        self.sharing = Sharing::Private;
        self
    }

    /// Operations of a cell, all tasks together (400); a scenario may do fewer.
    pub fn ops(mut self, ops: u64) -> Self {
        self.ops = ops.max(1);
        self
    }

    /// Tasks in each process (4).
    pub fn tasks(mut self, tasks: usize) -> Self {
        self.tasks = tasks.max(1);
        self
    }

    /// Processes of each cell; without it, each runs in one process and again in four.
    pub fn processes(mut self, processes: usize) -> Self {
        self.processes = Some(processes.max(1));
        self
    }

    /// What the choices of a run are drawn from (1). Which task is first is up to the machine all the same.
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// Only these strategies.
    pub fn strategies(mut self, strategies: impl IntoIterator<Item = Strategy>) -> Self {
        self.strategies = strategies.into_iter().collect();
        self
    }

    /// Only scenarios whose `group/id` matches one of these patterns; `*` stands for any text.
    pub fn scenarios(mut self, patterns: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.scenarios = patterns.into_iter().map(Into::into).collect();
        self
    }

    /// Further scenarios, of one's own. Workers must know them, too:
    /// [`worker::serve_with`](crate::worker::serve_with).
    pub fn also(mut self, scenarios: &'static [Scenario]) -> Self {
        self.further = scenarios;
        self
    }

    /// How to make an instance for the scenarios that need one of its own: with [replicas](Need::Replicas),
    /// with [little memory](Need::LittleMemory). Without it, their cells are `absent`.
    pub fn special<F>(mut self, need: Need, make: impl Fn() -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Result<Instance>> + Send + 'static,
    {
        self.special.push((need, Box::new(move || Box::pin(make()))));
        self
    }

    /// Tells what happens, as it happens.
    pub fn watch(mut self, watch: impl Fn(Progress<'_>) + Send + Sync + 'static) -> Self {
        self.watch = Box::new(watch);
        self
    }

    /// How many cells there will be.
    #[must_use]
    pub fn len(&self) -> usize {
        self.cells().count()
    }

    /// Whether no scenario and strategy was chosen.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Runs every cell, one after the other.
    pub async fn run(&self) -> Report {
        let mut report = Report::new(self.seed, RunSettings::new(self.ops, self.tasks, self.processes));
        for planned in self.cells() {
            let mut cell =
                Cell::new(&self.backend, planned.strategy, planned.scenario, planned.terms.processes);
            (self.watch)(Progress::Begins(&cell));
            let started = Instant::now();
            let (verdict, judgement) = self.judge(&planned).await;
            cell.fill(verdict, &judgement, started.elapsed());
            (self.watch)(Progress::Ends(&cell));
            report.cells.push(cell);
        }
        report
    }

    async fn judge(&self, planned: &Planned) -> (Verdict, Judgement) {
        let absent = |why: String| (Verdict::Absent, Judgement::default().note(why));
        let Planned { scenario, strategy, terms, without } = planned;
        if let Some((verdict, why)) = without {
            return (*verdict, Judgement::default().note(*why));
        }
        let make = match scenario.needs_special() {
            None => &self.make,
            Some(need) => match self.special.iter().find(|(special, _)| *special == need) {
                Some((_, make)) => make,
                None => return absent(format!("no such instance here: {need:?} (see Suite::special)")),
            },
        };
        let instance = match make().await {
            Ok(instance) => instance,
            Err(error) => return (Verdict::Unknown, Judgement::default().note(format!("no store: {error}"))),
        };
        if let Some(why) = missing(scenario, &instance) {
            return absent(why.to_owned());
        }
        if terms.processes > 1 && instance.address.is_none() {
            return absent("the instance has no address that a worker could connect to".to_owned());
        }
        let program = match &self.sharing {
            Sharing::Workers(program) => Some(program),
            Sharing::Unknown | Sharing::Private => None,
        };
        let mut judgement = cell::run(scenario, *terms, instance, program).await;
        if terms.ops < self.ops {
            judgement = judgement.note(format!("capped at {} operations", terms.ops));
        }
        (judgement.verdict(*strategy, scenario.is_convicted_by(*strategy)), judgement)
    }

    /// All cells, in the order of the matrix's rows.
    fn cells(&self) -> impl Iterator<Item = Planned> {
        scenarios::matching(&self.scenarios, self.further).flat_map(move |scenario| {
            let strategies = scenario.strategies.iter().copied();
            let chosen =
                |strategy: &Strategy| self.strategies.is_empty() || self.strategies.contains(strategy);
            strategies.filter(chosen).flat_map(move |strategy| {
                self.processes_of(scenario).into_iter().map(move |(processes, without)| Planned {
                    scenario,
                    strategy,
                    terms: Terms {
                        strategy,
                        ops: scenario.capped(self.ops),
                        tasks: scenario.tasks.unwrap_or(self.tasks),
                        processes,
                        seed: seed_of(self.seed, &[&self.backend, scenario.name, strategy.name()], processes),
                    },
                    without,
                })
            })
        })
    }

    /// In how many processes a scenario runs, and why not, where it cannot.
    fn processes_of(&self, scenario: &Scenario) -> Vec<(usize, Option<(Verdict, &'static str)>)> {
        let private = matches!(self.sharing, Sharing::Private);
        let wanted = match self.processes {
            _ if private || scenario.needs_a(Need::OneProcess) => vec![1],
            Some(processes) => vec![processes],
            None => vec![1, SEVERAL],
        };
        let without = |processes: usize| match &self.sharing {
            Sharing::Unknown if processes > 1 => {
                Some((Verdict::Absent, "no worker program: see Suite::workers"))
            }
            _ if processes == 1 && scenario.needs_a(Need::Processes) => Some(if private {
                (Verdict::NotApplicable, "processes cannot share this store")
            } else {
                (Verdict::Absent, "it needs several processes")
            }),
            _ => None,
        };
        let several = wanted.iter().any(|processes| *processes > 1);
        // Where it runs in several, the cell of one process would only say that it needs them.
        let wanted = wanted
            .into_iter()
            .filter(|processes| *processes > 1 || !several || !scenario.needs_a(Need::Processes));
        wanted.map(|processes| (processes, without(processes))).collect()
    }
}

impl fmt::Debug for Suite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Suite")
            .field("backend", &self.backend)
            .field("seed", &self.seed)
            .finish_non_exhaustive()
    }
}

/// A cell to be run.
struct Planned {
    scenario: &'static Scenario,
    strategy: Strategy,
    terms: Terms,
    without: Option<(Verdict, &'static str)>,
}

/// The seed of a cell: of the run's and of the cell's name, so that it does not depend on what else was
/// chosen (FNV-1a).
fn seed_of(seed: u64, names: &[&str], processes: usize) -> u64 {
    let bytes = names.iter().flat_map(|name| name.bytes().chain([0])).chain([processes.to_le_bytes()[0]]);
    bytes.fold(seed ^ 0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}
