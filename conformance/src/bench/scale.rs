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
}

/// Room for the row of one look, and what belongs to all of it.
struct Look {
    sessions: usize,
    sweeping: bool,
    swept_per_s: Option<f64>,
    bytes_per_session: Option<f64>,
}

impl Scale {
    /// Fills, looks at ten thousand and at ten times as many until the end, sweeps.
    ///
    /// # Errors
    /// The store's.
    pub async fn run(self, subject: &Subject, watch: &dyn Watch) -> Result<Vec<ScaleRow>> {
        let store = &subject.instance.store;
        let lasting = Sessions::builder(Arc::clone(store)).idle_timeout(Duration::from_hours(12)).build()?;
        let passing = Sessions::builder(Arc::clone(store)).fixed_lifetime(SHORT).build()?;
        let mut rows = Vec::new();
        let mut ids = Vec::with_capacity(self.sessions);
        let empty = watch.weigh().await?;
        let mut goal = FIRST.min(self.sessions);
        loop {
            watch.begins(&format!("filling to {goal}"));
            self.fill(&lasting, &mut ids, goal, watch).await?;
            let bytes = match (empty, watch.weigh().await?) {
                (Some(before), Some(now)) => Some(round(now.saturating_sub(before) as f64 / goal as f64, 0)),
                _ => None,
            };
            watch.begins(&format!("measuring at {goal}"));
            let place = Place::new(lasting.clone(), ids);
            let look = Look { sessions: goal, sweeping: false, swept_per_s: None, bytes_per_session: bytes };
            rows.extend(self.look(&place, &subject.backend, look).await?);
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

    /// One task, operations in turn, on sessions at random, for this long each.
    async fn look(self, place: &Place, backend: &str, look: Look) -> Result<Vec<ScaleRow>> {
        const OPERATIONS: [Operation; 3] = [Operation::Read, Operation::Write, Operation::Exclusive];
        let (place, seed) = (place.clone(), self.seed);
        let time = self.time * OPERATIONS.len() as u32;
        // In a task, as a server's requests are.
        let looking = tokio::spawn(async move {
            let mut random = StdRng::seed_from_u64(seed);
            let mut measured = Vec::new();
            for _ in OPERATIONS {
                measured.push(Measured::new()?);
            }
            let start = Instant::now();
            while start.elapsed() < time {
                for (operation, measured) in OPERATIONS.into_iter().zip(&mut measured) {
                    let session = random.random_range(0..place.len());
                    let begun = Instant::now();
                    place.run(Way::Operation(operation), session).await?;
                    measured.record(begun.elapsed());
                }
            }
            Ok::<_, Error>(measured)
        });
        let measured = looking.await.map_err(|error| Error::backend("bench", error))??;
        let row = |(operation, measured): (Operation, &Measured)| ScaleRow {
            backend: backend.to_owned(),
            sessions: look.sessions,
            operation,
            sweeping: look.sweeping,
            p50_us: round(measured.at(50.0), 1),
            p99_us: round(measured.at(99.0), 1),
            swept_per_s: look.swept_per_s,
            bytes_per_session: look.bytes_per_session,
        };
        Ok(OPERATIONS.into_iter().zip(&measured).map(row).collect())
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
        let look = Look { sessions: place.len(), sweeping: true, swept_per_s: None, bytes_per_session: None };
        let rows = self.look(place, backend, look).await;
        over.store(true, Relaxed);
        let rate = sweeping.await.map_err(|error| Error::backend("bench", error))??;
        let mut rows = rows?;
        for row in &mut rows {
            row.swept_per_s = Some(round(rate, 0));
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
            "{:<22}{:>12}{:>10}{:>10}{:>16}{:>12}",
            format!("{} ----", first.backend),
            "sessions",
            "p50",
            "p99",
            "bytes/session",
            "swept/s"
        )?;
        for row in rows {
            let some =
                |value: Option<f64>| value.map_or_else(|| "–".to_owned(), |value| format!("{value:.0}"));
            let sweeping = if row.sweeping { ", swept" } else { "" };
            writeln!(
                f,
                "    {:<18}{:>12}{:>10}{:>10}{:>16}{:>12}",
                format!("{}{sweeping}", row.operation),
                row.sessions,
                row.p50_us,
                row.p99_us,
                some(row.bytes_per_session),
                some(row.swept_per_s)
            )?;
        }
        for operation in [Operation::Read, Operation::Write, Operation::Exclusive] {
            let mut looks = rows.iter().filter(|row| row.operation == operation && !row.sweeping);
            if let (Some(small), Some(large)) = (looks.next(), looks.next_back()) {
                writeln!(
                    f,
                    "    {operation}: at {} by at {}: p50 {:.2}, p99 {:.2}",
                    large.sessions,
                    small.sessions,
                    large.p50_us / small.p50_us,
                    large.p99_us / small.p99_us
                )?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Instance;
    use session_core::MemoryStore;

    struct Nobody;

    #[async_trait(?Send)]
    impl Watch for Nobody {
        async fn weigh(&self) -> Result<Option<u64>> {
            Ok(None)
        }

        fn filled(&self, _: usize) {}

        fn begins(&self, _: &str) {}
    }

    #[tokio::test]
    async fn each_size_is_looked_at() {
        let subject = Subject::new("memory", Instance::new(Arc::new(MemoryStore::default())));
        let scale = Scale { sessions: 12_000, time: Duration::from_millis(5), seed: 1 };
        let rows = scale.run(&subject, &Nobody).await.expect("a memory store");
        let sizes: Vec<_> = rows.iter().filter(|row| !row.sweeping).map(|row| row.sessions).collect();
        assert_eq!(sizes, [10_000, 10_000, 10_000, 12_000, 12_000, 12_000]);
    }
}
