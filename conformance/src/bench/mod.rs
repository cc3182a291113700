//! Latency: the product's operations against the same commands by hand and against the classical way, in one
//! interleaved run.
//!
//! A [`Point`] is a load: how many tasks, how much in a session, who meets whom. At each point all ways take
//! turns, a slice of time each, and begin with another one each round: whatever else the machine does hits
//! all alike, so that ratios hold where microseconds don't. A task asks again as soon as it was answered (a
//! closed loop: a slow operation delays the next one); where all want the same session, after a pause of up
//! to 10 ms.
//!
//! ```
//! use session_conformance::{Instance, bench::{Bench, Operation, Point, Subject}};
//! use session_core::MemoryStore; // yours
//! use std::{sync::Arc, time::Duration};
//!
//! # async fn run() -> session_core::Result<()> {
//! let subject = Subject::new("mine", Instance::new(Arc::new(MemoryStore::default())));
//! let bench = Bench::new([Point::default()]).time(Duration::from_millis(50)).operations([Operation::Write]);
//! for row in bench.run(&subject, &|| ()).await? {
//!     println!("{}: p99 {} us", row.operation, row.p99_us);
//! }
//! # Ok(()) }
//! # tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap().block_on(run()).unwrap();
//! ```
//!
//! What is compared with it is a [`ByHand`]: a raw client of the backend, and none of this crate's business.

mod load;
mod point;
mod run;
mod scale;
mod table;

pub use point::{Contention, Point};
pub use run::Bench;
pub use scale::{Scale, ScaleRow, Watch};

use crate::{Instance, servers::Proxy};
use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use session_core::{LockingStore, Result};
use std::{collections::BTreeMap, fmt, str::FromStr, sync::Arc, time::Duration};

/// What is done to a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Operation {
    /// Read it: no lock, nothing to write.
    Read,
    /// Change a value, without a lock: versioned, replayed.
    Write,
    /// Change a value under the lock.
    Exclusive,
    /// Change it as session handlers elsewhere do: lock, read, overwrite, unlock.
    Classical,
}

impl Operation {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Read, Self::Write, Self::Exclusive, Self::Classical];

    /// As it is written.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Exclusive => "exclusive",
            Self::Classical => "classical",
        }
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Operation {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let known = Self::ALL.into_iter().find(|operation| operation.name() == name);
        known.ok_or_else(|| "read, write, exclusive or classical".to_owned())
    }
}

/// A raw client of the backend.
#[async_trait]
pub trait ByHand: Send + Sync {
    /// Creates that many sessions of these bytes: `stored` is what the product stores, and `plain` is for the
    /// classical way, which does not compress.
    async fn prepare(&self, sessions: usize, stored: &[u8], plain: &[u8]) -> Result<Arc<dyn Hands>>;
}

/// The same operations on a raw client, as somebody would write them who knows the backend well: without
/// retries, checks, encoding and compression. Sessions are numbers here, and their content is bytes.
#[async_trait]
pub trait Hands: Send + Sync {
    /// The command or commands that read a session.
    async fn read(&self, session: usize) -> Result<()>;

    /// Those that read it and replace it if its version is still the same. Not called by two tasks at once
    /// for one session.
    async fn write(&self, session: usize) -> Result<()>;

    /// Those that lock and read it, replace it and unlock. Not called by two tasks at once for one session.
    async fn exclusive(&self, session: usize) -> Result<()>;

    /// Lock (and wait for it as is usual there), read, overwrite, unlock.
    async fn classical(&self, session: usize) -> Result<()>;
}

/// What is measured.
#[non_exhaustive]
pub struct Subject {
    /// The backend's name.
    pub backend: String,
    /// Where the sessions are.
    pub instance: Instance,
    /// What they are compared with.
    pub by_hand: Option<Arc<dyn ByHand>>,
    /// The same store, reached through what counts round trips.
    pub counted: Option<Counted>,
}

/// A second way to the same store.
pub struct Counted {
    /// What counts.
    pub proxy: Proxy,
    /// The store behind it.
    pub store: Arc<dyn LockingStore>,
    /// The raw client behind it.
    pub by_hand: Option<Arc<dyn ByHand>>,
}

impl Subject {
    /// A store alone: nothing to compare with, no round trips.
    #[must_use]
    pub fn new(backend: &str, instance: Instance) -> Self {
        Self { backend: backend.to_owned(), instance, by_hand: None, counted: None }
    }
}

/// What was measured. As JSON it is what `bench --json` writes; `Display` is the table.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[non_exhaustive]
pub struct BenchReport {
    /// What was run.
    pub header: BenchHeader,
    /// One for each operation at each point, in the order in which they ran.
    pub rows: Vec<Row>,
    /// The same for each size of a store (`--scale`).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub scale: Vec<ScaleRow>,
}

/// What was run.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[non_exhaustive]
pub struct BenchHeader {
    /// The version of the suite.
    pub version: String,
    /// What the choices of sessions were drawn from.
    pub seed: u64,
    /// How it was measured.
    pub settings: BenchSettings,
    /// The servers, by the name of their backend: version and where they came from.
    pub servers: BTreeMap<String, String>,
}

/// How it was measured.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[non_exhaustive]
pub struct BenchSettings {
    /// How long each operation was measured at each point.
    pub seconds: f64,
    /// Processors of the machine.
    pub processors: usize,
    /// Threads that the tasks ran on; the servers had the rest.
    pub workers: usize,
}

impl BenchReport {
    /// A report without rows.
    #[must_use]
    pub fn new(seed: u64, time: Duration, workers: usize) -> Self {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let settings = BenchSettings { seconds: time.as_secs_f64(), processors, workers };
        let version = env!("CARGO_PKG_VERSION").to_owned();
        Self {
            header: BenchHeader { version, seed, settings, servers: BTreeMap::new() },
            rows: Vec::new(),
            scale: Vec::new(),
        }
    }
}

impl BenchReport {
    /// Adds what was measured in another run.
    pub fn extend(&mut self, other: Self) {
        self.rows.extend(other.rows);
        self.scale.extend(other.scale);
        self.header.servers.extend(other.header.servers);
    }
}

impl fmt::Display for BenchReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        table::write(self, f)
    }
}

/// One operation at one point. Times are microseconds.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Row {
    /// The backend.
    pub backend: String,
    /// What was done.
    pub operation: Operation,
    /// Tasks that did it at once.
    pub tasks: usize,
    /// Bytes in a session.
    pub size: usize,
    /// Whether it was compressed (the classical way never is).
    pub compression: bool,
    /// Who met whom.
    pub contention: Contention,
    /// Half of the operations took no longer.
    pub p50_us: f64,
    /// Nine of ten.
    pub p90_us: f64,
    /// 99 of a hundred.
    pub p99_us: f64,
    /// 999 of a thousand.
    pub p999_us: f64,
    /// Operations a second, all tasks together.
    pub ops_per_s: f64,
    /// Round trips of one operation: how often a client spoke after the server had. Counted with one task,
    /// unless contended.
    pub trips: Option<f64>,
    /// p50 by that of the same commands by hand.
    pub vs_floor: Option<f64>,
    /// p50 by that of the classical way.
    pub vs_classical: Option<f64>,
    /// p50 of the same commands by hand.
    pub floor_us: Option<f64>,
    /// How many were measured.
    pub count: u64,
    /// How many failed: they are not in the times.
    pub failed: u64,
    /// Percentile and time, for the curve.
    pub curve: Vec<(f64, f64)>,
}

impl Row {
    /// Where it was measured.
    #[must_use]
    pub fn point(&self) -> Point {
        Point {
            tasks: self.tasks,
            size: self.size,
            compression: self.compression,
            contention: self.contention,
        }
    }
}
