//! Measuring: slices of time, in turn.

use super::{
    ByHand, Contention, Hands, Operation, Point, Row, Subject,
    load::{COUNT, Choice, fill},
};
use hdrhistogram::Histogram;
use session_core::{Error, ErrorKind, LockingStore, Result, SessionId, Sessions};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::task::JoinSet;

/// In how many slices the time of one way is cut: many where one task does it, few where the last operations
/// of many tasks have to be waited for at the end of each.
const SLICES: (u32, u32) = (20, 5);
/// How many operations each task does while trips are counted.
const COUNTED: usize = 50;
/// The longest time that a histogram takes, in nanoseconds: a minute.
const LONGEST: u64 = 60_000_000_000;
/// The percentiles of a curve.
const CURVE: [f64; 12] = [1.0, 10.0, 25.0, 50.0, 75.0, 90.0, 95.0, 98.0, 99.0, 99.5, 99.9, 99.99];

/// What to measure, and for how long.
#[derive(Clone, Debug)]
#[must_use = "`run` measures"]
pub struct Bench {
    points: Vec<Point>,
    operations: Vec<Operation>,
    time: Duration,
    seed: u64,
}

/// One of those that take turns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// This project's, or the classical way.
    Operation(Operation),
    /// The same commands by hand.
    Floor(Operation),
}

/// What one way did.
pub(super) struct Measured {
    times: Histogram<u64>,
    failed: u64,
    /// Of all its slices, until the last task had ended.
    lasted: Duration,
}

/// A store with its sessions, and the raw client.
#[derive(Clone)]
pub(super) struct Place {
    sessions: Sessions,
    ids: Arc<Vec<SessionId>>,
    hands: Option<Arc<dyn Hands>>,
}

impl Bench {
    /// All operations at these points, half a second each.
    pub fn new(points: impl IntoIterator<Item = Point>) -> Self {
        Self {
            points: points.into_iter().collect(),
            operations: Operation::ALL.to_vec(),
            time: Duration::from_millis(500),
            seed: 1,
        }
    }

    /// Only these operations.
    pub fn operations(mut self, operations: impl IntoIterator<Item = Operation>) -> Self {
        self.operations = operations.into_iter().collect();
        self
    }

    /// How long each way is measured at each point.
    pub fn time(mut self, time: Duration) -> Self {
        self.time = time;
        self
    }

    /// What the choices of sessions are drawn from.
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// How often [`run`](Self::run) calls `progress`, with something to compare or without.
    #[must_use]
    pub fn len(&self, by_hand: bool) -> usize {
        self.points.iter().map(|point| self.ways(*point, by_hand).len() * (slices(*point) as usize + 1)).sum()
    }

    /// Measures; `progress` is called after each slice of time.
    ///
    /// # Errors
    /// When the sessions cannot be made, or when not one operation of a kind succeeds. Single ones that fail
    /// are counted.
    pub async fn run(&self, subject: &Subject, progress: &(dyn Fn() + Sync)) -> Result<Vec<Row>> {
        let mut rows = Vec::new();
        for point in &self.points {
            rows.extend(self.at(subject, *point, progress).await?);
        }
        Ok(rows)
    }

    /// The ways that take turns. By hand nobody queues and nobody replays, so that only who meets nobody can
    /// be compared.
    fn ways(&self, point: Point, by_hand: bool) -> Vec<Way> {
        let mut ways = Vec::new();
        for operation in Operation::ALL {
            let wanted = self.operations.contains(&operation);
            let ratio = self.operations.iter().any(|of| *of != Operation::Read);
            match operation {
                Operation::Classical => ways.extend((by_hand && ratio).then_some(Way::Operation(operation))),
                _ if !wanted => {}
                _ => {
                    ways.push(Way::Operation(operation));
                    let alone = point.contention == Contention::Uncontended;
                    ways.extend((by_hand && alone).then_some(Way::Floor(operation)));
                }
            }
        }
        ways
    }

    async fn at(&self, subject: &Subject, point: Point, progress: &(dyn Fn() + Sync)) -> Result<Vec<Row>> {
        let place = self.place(&subject.instance.store, subject.by_hand.as_ref(), point).await?;
        let ways = self.ways(point, subject.by_hand.is_some());
        let mut measured = Vec::new();
        for _ in &ways {
            measured.push(Measured::new()?);
        }
        let slices = slices(point);
        let slice = self.time / slices;
        for round in 0..=slices {
            for turn in 0..ways.len() {
                let turn = (turn + round as usize) % ways.len();
                let warming_up = round == 0;
                let found = self.slice(&place, ways[turn], point, (round, slice)).await?;
                if !warming_up {
                    measured[turn].add(&found)?;
                }
                progress();
            }
        }
        let median = |way: Way| {
            let index = ways.iter().position(|other| *other == way)?;
            Some(measured[index].at(50.0)).filter(|time| *time > 0.0)
        };
        let classical = median(Way::Operation(Operation::Classical));
        let mut rows = Vec::new();
        for (way, measured) in ways.iter().zip(&measured) {
            if measured.times.is_empty() {
                let what = format!("not one {way:?} succeeded: {point}");
                return Err(Error::new(ErrorKind::Backend, "bench").with_context(what));
            }
            let Way::Operation(operation) = *way else { continue };
            if !self.operations.contains(&operation) {
                continue;
            }
            let mut row = measured.row(&subject.backend, operation, point);
            row.floor_us = median(Way::Floor(operation)).map(|time| round(time, 1));
            let by = |base: Option<f64>| base.map(|base| round(measured.at(50.0) / base, 3));
            row.vs_floor = by(median(Way::Floor(operation)));
            row.vs_classical = by(classical).filter(|_| operation != Operation::Read);
            row.trips = self.trips(subject, operation, point).await?;
            rows.push(row);
        }
        Ok(rows)
    }

    async fn place(
        &self,
        store: &Arc<dyn LockingStore>,
        by_hand: Option<&Arc<dyn ByHand>>,
        point: Point,
    ) -> Result<Place> {
        let sessions = Sessions::builder(Arc::clone(store))
            .compress_from(if point.compression { 1 << 10 } else { usize::MAX })
            .max_waiters(1024)
            .lock_wait(Duration::from_secs(30))
            .build()?;
        let ids = fill(&sessions, point, self.seed).await?;
        let mut hands = None;
        if let (Some(by_hand), Some(first)) = (by_hand, ids.first()) {
            let stored = store.load(&first.storage_key()).await?;
            let stored = stored.ok_or_else(|| Error::new(ErrorKind::Gone, "bench"))?.data;
            hands = Some(by_hand.prepare(ids.len(), &stored, &vec![b'x'; point.size]).await?);
        }
        Ok(Place { sessions, ids: Arc::new(ids), hands })
    }

    /// All tasks, one way, for a slice of time.
    async fn slice(
        &self,
        place: &Place,
        way: Way,
        point: Point,
        (round, time): (u32, Duration),
    ) -> Result<Measured> {
        let mut tasks = JoinSet::new();
        let start = Instant::now();
        for task in 0..point.tasks {
            let mut choice = Choice::new(point, task, self.seed.wrapping_add(round.into()));
            let place = place.clone();
            let mut measured = Measured::new()?;
            tasks.spawn(async move {
                while start.elapsed() < time {
                    let session = choice.next();
                    let begun = Instant::now();
                    match place.run(way, session).await {
                        Ok(()) => measured.record(begun.elapsed()),
                        Err(_) => measured.failed += 1,
                    }
                    if let Some(pause) = choice.pause() {
                        tokio::time::sleep(pause).await;
                    }
                }
                measured
            });
        }
        let mut all = Measured::new()?;
        while let Some(task) = tasks.join_next().await {
            all.add(&task.map_err(|error| Error::backend("bench", error))?)?;
        }
        all.lasted = start.elapsed();
        Ok(all)
    }

    /// Round trips of one operation, where they can be counted.
    async fn trips(&self, subject: &Subject, operation: Operation, point: Point) -> Result<Option<f64>> {
        let Some(counted) = &subject.counted else { return Ok(None) };
        let (tasks, contention) = match point.contention {
            Contention::Contended => (point.tasks, Contention::Contended),
            Contention::Uncontended | Contention::Zipf => (1, Contention::Uncontended),
        };
        let point = Point { tasks, contention, ..point };
        let place = self.place(&counted.store, counted.by_hand.as_ref(), point).await?;
        let run = async || -> Result<()> {
            let mut running = JoinSet::new();
            for task in 0..tasks {
                let place = place.clone();
                let session = task % place.ids.len();
                running.spawn(async move {
                    for _ in 0..COUNTED {
                        place.run(Way::Operation(operation), session).await?;
                    }
                    Ok::<_, Error>(())
                });
            }
            while let Some(task) = running.join_next().await {
                task.map_err(|error| Error::backend("bench", error))??;
            }
            Ok(())
        };
        run().await?; // statements are prepared, numbers are known
        let before = counted.proxy.traffic().trips;
        run().await?;
        let trips = counted.proxy.traffic().trips - before;
        Ok(Some(round(trips as f64 / (COUNTED * tasks) as f64, 2)))
    }
}

fn slices(point: Point) -> u32 {
    if point.tasks == 1 { SLICES.0 } else { SLICES.1 }
}

impl Place {
    /// Without anything to compare.
    pub(super) fn new(sessions: Sessions, ids: Vec<SessionId>) -> Self {
        Self { sessions, ids: Arc::new(ids), hands: None }
    }

    pub(super) fn into_ids(self) -> Vec<SessionId> {
        Arc::try_unwrap(self.ids).unwrap_or_else(|ids| ids.to_vec())
    }

    pub(super) fn len(&self) -> usize {
        self.ids.len()
    }

    pub(super) fn sessions(&self) -> &Sessions {
        &self.sessions
    }

    pub(super) async fn run(&self, way: Way, session: usize) -> Result<()> {
        let id = &self.ids[session];
        let change = |session: &session_core::Session| session.update(COUNT, |count| *count += 1);
        let gone = || Error::new(ErrorKind::Gone, "bench");
        match (way, &self.hands) {
            (Way::Operation(Operation::Read), _) => {
                self.sessions.read(id).await?.ok_or_else(gone)?.get(COUNT).map(drop)
            }
            (Way::Operation(Operation::Write), _) => self.sessions.update(id, change).await,
            (Way::Operation(Operation::Exclusive), _) => {
                self.sessions.exclusive(id, async |session| change(session)).await
            }
            (Way::Floor(Operation::Read), Some(hands)) => hands.read(session).await,
            (Way::Floor(Operation::Write), Some(hands)) => hands.write(session).await,
            (Way::Floor(Operation::Exclusive), Some(hands)) => hands.exclusive(session).await,
            (_, Some(hands)) => hands.classical(session).await,
            (_, None) => Err(Error::new(ErrorKind::Unsupported, "bench")),
        }
    }
}

impl Measured {
    pub(super) fn new() -> Result<Self> {
        let times =
            Histogram::new_with_bounds(1, LONGEST, 3).map_err(|error| Error::backend("bench", error))?;
        Ok(Self { times, failed: 0, lasted: Duration::ZERO })
    }

    fn add(&mut self, other: &Self) -> Result<()> {
        self.failed += other.failed;
        self.lasted += other.lasted;
        self.times.add(&other.times).map_err(|error| Error::backend("bench", error))
    }

    pub(super) fn record(&mut self, time: Duration) {
        self.times.saturating_record(time.as_nanos() as u64);
    }

    /// A percentile, in microseconds.
    pub(super) fn at(&self, percentile: f64) -> f64 {
        self.times.value_at_percentile(percentile) as f64 / 1e3
    }

    fn row(&self, backend: &str, operation: Operation, point: Point) -> Row {
        let Point { tasks, size, compression, contention } = point;
        let count = self.times.len();
        // A percentile that rests on less than one operation says nothing.
        let known = |percentile: &f64| (100.0 - percentile) / 100.0 * count as f64 >= 1.0;
        let curve =
            CURVE.into_iter().filter(known).map(|percentile| (percentile, round(self.at(percentile), 1)));
        Row {
            backend: backend.to_owned(),
            operation,
            tasks,
            size,
            compression,
            contention,
            p50_us: round(self.at(50.0), 1),
            p90_us: round(self.at(90.0), 1),
            p99_us: round(self.at(99.0), 1),
            p999_us: round(self.at(99.9), 1),
            ops_per_s: round(count as f64 / self.lasted.as_secs_f64(), 1),
            trips: None,
            vs_floor: None,
            vs_classical: None,
            floor_us: None,
            count,
            failed: self.failed,
            curve: curve.collect(),
        }
    }
}

pub(super) fn round(value: f64, digits: i32) -> f64 {
    let scale = 10_f64.powi(digits);
    (value * scale).round() / scale
}
