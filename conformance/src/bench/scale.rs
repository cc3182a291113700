//! Many sessions: whether they make each one slower, what they weigh, and what it costs to sweep them.

use super::{
    Operation, Subject,
    load::{COUNT, Cart},
    run::{Measured, Place, Way, round},
};
use async_trait::async_trait;
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use serde::{Deserialize, Serialize};
use session_core::{Error, Key, Result, SessionId, Sessions};
use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};
use tokio::task::JoinSet;

/// Where the first look is taken.
const FIRST: usize = 10_000;
/// Bytes in a session, about.
const SIZE: usize = 256;
/// How many tasks fill.
const FILLERS: usize = 32;
/// Of how many that stay, one more is there that expires.
const PER_EXPIRED: usize = 20;
/// How long those live that expire.
const SHORT: Duration = Duration::from_secs(1);
/// How many are swept at once.
const BATCH: usize = 1000;
/// How many slices of time a look has. Two servers that answered in turn would each be given a processor, one
/// of them that of who asks.
const SLICES: u32 = 8;
/// How long to wait when there is nothing left to sweep.
const BETWEEN_SWEEPS: Duration = Duration::from_millis(10);
const SMALL: Key<Cart> = Key::new("cart");

/// Fills a store and measures on the way.
#[derive(Clone, Copy, Debug)]
pub struct Scale {
    /// How many sessions at the end, at least 10,000.
    pub sessions: usize,
    /// How long each look takes, for each operation.
    pub time: Duration,
    /// What choices are drawn from.
    pub seed: u64,
}

/// What a store weighs, and who is to hear how far it got.
#[async_trait(?Send)]
pub trait Watch {
    /// Bytes of memory or disk that the store takes now, where that can be known.
    async fn weigh(&self) -> Result<Option<u64>>;

    /// Waits until what was written is at rest, on a disk for one: what filling leaves to be done is not
    /// what is looked at.
    async fn settle(&self) -> Result<()>;

    /// So many sessions are there.
    fn filled(&self, sessions: usize);

    /// What begins now.
    fn begins(&self, what: &str);
}

/// One operation at one size of a store. Times are microseconds.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ScaleRow {
    /// The backend.
    pub backend: String,
    /// How many sessions are there.
    pub sessions: usize,
    /// What was done to one of them, chosen at random.
    pub operation: Operation,
    /// Whether expired sessions were swept meanwhile.
    pub sweeping: bool,
    /// Half of the operations took no longer.
    pub p50_us: f64,
    /// 99 of a hundred.
    pub p99_us: f64,
    /// Sessions that were swept in a second.
    pub swept_per_s: Option<f64>,
    /// Bytes of memory or disk for each session.
    pub bytes_per_session: Option<f64>,
    /// The median by that of ten thousand sessions.
    pub p50_by_small: Option<f64>,
    /// The same of `p99_us`.
    pub p99_by_small: Option<f64>,
}

const OPERATIONS: [Operation; 3] = [Operation::Read, Operation::Write, Operation::Exclusive];

/// A store that is looked at, and what was measured there.
struct Turn {
    place: Place,
    measured: Vec<Measured>,
    is_small: bool,
}

impl Turn {
    fn new(place: Place, is_small: bool) -> Result<Self> {
        let measured = OPERATIONS.into_iter().map(|_| Measured::new()).collect::<Result<_>>()?;
        Ok(Self { place, measured, is_small })
    }

    /// Operations in turn, on sessions at random.
    async fn take(&mut self, time: Duration, random: &mut StdRng) -> Result<()> {
        let start = Instant::now();
        while start.elapsed() < time {
            for (operation, measured) in OPERATIONS.into_iter().zip(&mut self.measured) {
                let session = random.random_range(0..self.place.len());
                let begun = Instant::now();
                self.place.run(Way::Operation(operation), session).await?;
                measured.record(begun.elapsed());
            }
        }
        Ok(())
    }
}

fn lasting(subject: &Subject) -> Result<Sessions> {
    let store = Arc::clone(&subject.instance.store);
    Sessions::builder(store).idle_timeout(Duration::from_hours(12)).build()
}

impl Scale {
    /// Fills, looks at ten thousand and at ten times as many until the end, sweeps.
    ///
    /// `beside` is a second store of the same kind, on a server of its own. It stays at ten thousand, and
    /// the two take turns, so that what else the machine does hits both. Without it the many are compared
    /// with the ten thousand that were there earlier.
    ///
    /// # Errors
    /// The store's.
    pub async fn run(
        self,
        subject: &Subject,
        beside: Option<&Subject>,
        watch: &dyn Watch,
    ) -> Result<Vec<ScaleRow>> {
        let store = &subject.instance.store;
        let (lasting, small) = (lasting(subject)?, beside.map(lasting).transpose()?);
        let passing = Sessions::builder(Arc::clone(store)).fixed_lifetime(SHORT).build()?;
        let mut rows: Vec<ScaleRow> = Vec::new();
        let mut ids = Vec::with_capacity(self.sessions);
        let empty = watch.weigh().await?;
        let small = match small {
            Some(small) => {
                watch.begins("filling another, to compare with");
                let mut ids = Vec::with_capacity(FIRST);
                self.fill(&small, &mut ids, FIRST, watch).await?;
                Some(Place::new(small, ids))
            }
            None => None,
        };
        let mut goal = FIRST.min(self.sessions);
        loop {
            watch.begins(&format!("filling to {goal}"));
            self.fill(&lasting, &mut ids, goal, watch).await?;
            let bytes = match (empty, watch.weigh().await?) {
                (Some(before), Some(now)) => Some(round(now.saturating_sub(before) as f64 / goal as f64, 0)),
                _ => None,
            };
            watch.settle().await?;
            watch.begins(&format!("measuring at {goal}"));
            let place = Place::new(lasting.clone(), ids);
            let turn = small.as_ref().filter(|_| goal > FIRST);
            let mut looked = self.look(&place, turn, &subject.backend).await?;
            for (nth, row) in looked.iter_mut().enumerate() {
                row.bytes_per_session = bytes;
                if let Some(earlier) = rows.get(nth).filter(|_| turn.is_none()) {
                    row.p50_by_small = Some(round(row.p50_us / earlier.p50_us, 2));
                    row.p99_by_small = Some(round(row.p99_us / earlier.p99_us, 2));
                }
            }
            rows.extend(looked);
            ids = place.into_ids();
            if goal >= self.sessions {
                break;
            }
            goal = (goal * 10).min(self.sessions);
        }
        if store.sweeper().is_some() {
            watch.begins("sweeping");
            let mut doomed = Vec::new();
            self.fill(&passing, &mut doomed, self.sessions / PER_EXPIRED, watch).await?;
            tokio::time::sleep(SHORT * 2).await; // until the last of them has expired
            watch.settle().await?;
            let place = Place::new(lasting, ids);
            rows.extend(self.swept(&place, &subject.backend).await?);
        }
        Ok(rows)
    }

    async fn fill(
        self,
        sessions: &Sessions,
        ids: &mut Vec<SessionId>,
        goal: usize,
        watch: &dyn Watch,
    ) -> Result<()> {
        const PORTION: usize = 64;
        let mut filling = JoinSet::new();
        let mut begun = ids.len();
        while ids.len() < goal {
            while begun < goal && filling.len() < FILLERS {
                let (sessions, portion) = (sessions.clone(), PORTION.min(goal - begun));
                let mut random = StdRng::seed_from_u64(self.seed ^ begun as u64);
                begun += portion;
                filling.spawn(async move {
                    let mut ids = Vec::with_capacity(portion);
                    for _ in 0..portion {
                        let session = sessions.create();
                        session.insert(SMALL, &Cart::of(SIZE, &mut random))?;
                        session.insert(COUNT, &0)?;
                        session.commit().await?;
                        ids.extend(session.id());
                    }
                    Ok::<_, Error>(ids)
                });
            }
            let Some(filled) = filling.join_next().await else { break };
            ids.extend(filled.map_err(|error| Error::backend("bench", error))??);
            watch.filled(ids.len());
        }
        Ok(())
    }

    /// One task, the stores in turn, a slice of time each: for this long in all for each operation of each.
    async fn look(self, place: &Place, small: Option<&Place>, backend: &str) -> Result<Vec<ScaleRow>> {
        let mut turns = vec![Turn::new(place.clone(), false)?];
        if let Some(small) = small {
            turns.push(Turn::new(small.clone(), true)?);
        }
        let (slice, seed) = (self.time * OPERATIONS.len() as u32 / SLICES, self.seed);
        // In a task, as a server's requests are.
        let looking = tokio::spawn(async move {
            let mut random = StdRng::seed_from_u64(seed);
            for _ in 0..SLICES {
                for turn in &mut turns {
                    turn.take(slice, &mut random).await?;
                }
                turns.reverse(); // nobody is always the first
            }
            turns.sort_by_key(|turn| turn.is_small);
            Ok::<_, Error>(turns)
        });
        let turns = looking.await.map_err(|error| Error::backend("bench", error))??;
        let row = |(nth, operation): (usize, Operation)| {
            let at = |percent: f64| turns.iter().map(move |turn| turn.measured[nth].at(percent));
            let by_small = |percent: f64| {
                let [many, few] = at(percent).collect::<Vec<_>>()[..] else { return None };
                Some(round(many / few, 2))
            };
            ScaleRow {
                backend: backend.to_owned(),
                sessions: place.len(),
                operation,
                sweeping: false,
                p50_us: at(50.0).next().map_or(0.0, |time| round(time, 1)),
                p99_us: at(99.0).next().map_or(0.0, |time| round(time, 1)),
                swept_per_s: None,
                bytes_per_session: None,
                p50_by_small: by_small(50.0),
                p99_by_small: by_small(99.0),
            }
        };
        Ok(OPERATIONS.into_iter().enumerate().map(row).collect())
    }

    /// The same look while everything that has expired is swept.
    async fn swept(self, place: &Place, backend: &str) -> Result<Vec<ScaleRow>> {
        let (sessions, over) = (place.sessions().clone(), Arc::new(AtomicBool::new(false)));
        let looked = Arc::clone(&over);
        let sweeping = tokio::spawn(async move {
            let (start, mut removed, mut took) = (Instant::now(), 0, None);
            loop {
                let swept = sessions.sweep(BATCH).await?;
                removed += swept.removed;
                if !swept.more && took.is_none() && removed > 0 {
                    took = Some(start.elapsed());
                }
                if !swept.more {
                    tokio::time::sleep(BETWEEN_SWEEPS).await;
                } else {
                    tokio::task::yield_now().await;
                }
                if looked.load(Relaxed) {
                    let took = took.unwrap_or_else(|| start.elapsed());
                    return Ok::<_, Error>(removed as f64 / took.as_secs_f64());
                }
            }
        });
        let rows = self.look(place, None, backend).await;
        over.store(true, Relaxed);
        let rate = sweeping.await.map_err(|error| Error::backend("bench", error))??;
        let mut rows = rows?;
        for row in &mut rows {
            (row.sweeping, row.swept_per_s) = (true, Some(round(rate, 0)));
        }
        Ok(rows)
    }
}

/// The rows as text.
pub(super) fn write(rows: &[ScaleRow], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    for rows in rows.chunk_by(|one, other| one.backend == other.backend) {
        let Some(first) = rows.first() else { continue };
        writeln!(
            f,
            "{:<22}{:>10}{:>9}{:>9}{:>8}{:>8}{:>15}{:>9}",
            format!("{} ----", first.backend),
            "sessions",
            "p50",
            "p99",
            "p50 by",
            "p99 by",
            "bytes/session",
            "swept/s"
        )?;
        for row in rows {
            let some = |value: Option<f64>, digits| {
                value.map_or_else(|| "–".to_owned(), |value| format!("{value:.digits$}"))
            };
            let sweeping = if row.sweeping { ", swept" } else { "" };
            writeln!(
                f,
                "    {:<18}{:>10}{:>9}{:>9}{:>8}{:>8}{:>15}{:>9}",
                format!("{}{sweeping}", row.operation),
                row.sessions,
                row.p50_us,
                row.p99_us,
                some(row.p50_by_small, 2),
                some(row.p99_by_small, 2),
                some(row.bytes_per_session, 0),
                some(row.swept_per_s, 0)
            )?;
        }
    }
    if !rows.is_empty() {
        writeln!(f, "by: by that of ten thousand sessions")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Instance;
    use session_core::MemoryStore;
    use std::cell::RefCell;

    /// What was heard, in order.
    #[derive(Default)]
    struct Heard(RefCell<Vec<String>>);

    #[async_trait(?Send)]
    impl Watch for Heard {
        async fn weigh(&self) -> Result<Option<u64>> {
            Ok(None)
        }

        async fn settle(&self) -> Result<()> {
            self.begins("settled");
            Ok(())
        }

        fn filled(&self, _: usize) {}

        fn begins(&self, what: &str) {
            self.0.borrow_mut().push(what.to_owned());
        }
    }

    #[tokio::test]
    async fn each_size_is_looked_at() {
        let subject = Subject::new("memory", Instance::new(Arc::new(MemoryStore::default())));
        let scale = Scale { sessions: 12_000, time: Duration::from_millis(5), seed: 1 };
        let beside = Subject::new("memory", Instance::new(Arc::new(MemoryStore::default())));
        for beside in [None, Some(&beside)] {
            let heard = Heard::default();
            let rows = scale.run(&subject, beside, &heard).await.expect("a memory store");
            let looks = rows.iter().filter(|row| !row.sweeping);
            let sizes: Vec<_> = looks.map(|row| (row.sessions, row.p99_by_small.is_some())).collect();
            assert_eq!(sizes, [[(10_000, false); 3], [(12_000, true); 3]].concat());
            let heard = heard.0.into_inner();
            let another = heard.iter().filter(|what| what.starts_with("filling another")).count();
            assert_eq!(another, usize::from(beside.is_some()));
            let looks = heard.windows(2).filter(|pair| pair[1].starts_with("measuring"));
            assert!(looks.clone().all(|pair| pair[0] == "settled") && looks.count() == 2, "{heard:?}");
        }
    }
}
