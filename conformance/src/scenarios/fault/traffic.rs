//! Requests that keep coming, whatever happens to the store, and what they were told.

use crate::{
    Judgement,
    scenario::Lab,
    system::{Change, Id, System, values},
    trouble::{Trial, Trouble},
};
use session_core::{Effect, Error, ErrorKind, Result};
use std::{collections::BTreeMap, sync::Arc, time::Duration};
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{Instant, sleep, timeout},
};

const WRITERS: usize = 4;
/// Two writers share a session, so that they meet.
const SESSIONS: usize = 2;
/// How long a client waits that was told of an error.
const AGAIN: Duration = Duration::from_millis(5);
/// How long a store that is back may still be out of reach.
const BACK: Duration = Duration::from_secs(15);

/// What a request may be told on a bad day.
const USUAL: [ErrorKind; 4] =
    [ErrorKind::Unavailable, ErrorKind::Busy, ErrorKind::Conflict, ErrorKind::LockLost];

/// Writers at work.
pub(super) struct Traffic {
    told: Arc<watch::Sender<Told>>,
    writers: JoinSet<()>,
}

/// What the writers were told so far.
#[derive(Clone, Debug, Default)]
pub(super) struct Told {
    counters: Vec<Counter>,
    /// By writer: answers of success, and of any kind but that.
    acknowledged: [u64; WRITERS],
    failed: [u64; WRITERS],
    errors: BTreeMap<String, u64>,
    /// Answers that no fault explains.
    strange: Vec<String>,
    longest: Duration,
    stop: bool,
}

/// A session, and what became of the requests that added one to its number.
#[derive(Clone, Debug)]
struct Counter {
    id: Id,
    acknowledged: u64,
    refused: u64,
    unknown: u64,
}

impl Traffic {
    pub(super) async fn begin(lab: &Lab) -> Trial<Self> {
        let system = lab.system();
        let mut told = Told::default();
        for _ in 0..SESSIONS {
            told.counters.push(Counter::new(create(&*system).await?));
        }
        let told = Arc::new(watch::Sender::new(told));
        let mut writers = JoinSet::new();
        for writer in 0..WRITERS {
            writers.spawn(write(Arc::clone(&system), Arc::clone(&told), writer));
        }
        Ok(Self { told, writers })
    }

    /// Until each writer was told of success so many times more.
    pub(super) async fn until_served(&self, more: u64) -> Trial {
        let before = self.told.borrow().acknowledged;
        let served =
            |told: &Told| told.acknowledged.iter().zip(&before).all(|(now, before)| *now >= before + more);
        let waited = timeout(BACK, self.until(served)).await;
        waited.map_err(|_| Trouble::wrong(format!("requests are not served for {BACK:?}; {}", self.errors())))
    }

    /// Until each writer was told of a failure; whether that was so within this time.
    pub(super) async fn until_refused(&self, limit: Duration) -> bool {
        let before = self.told.borrow().failed;
        let refused = |told: &Told| told.failed.iter().zip(&before).all(|(now, before)| now > before);
        timeout(limit, self.until(refused)).await.is_ok()
    }

    async fn until(&self, so: impl FnMut(&Told) -> bool) {
        // The sender is in this very value: it cannot be gone.
        drop(self.told.subscribe().wait_for(so).await);
    }

    fn errors(&self) -> String {
        format!("so far: {:?}", self.told.borrow().errors)
    }

    /// Lets the requests under way end, and begins no others.
    pub(super) async fn end(mut self) -> Told {
        self.told.send_modify(|told| told.stop = true);
        while self.writers.join_next().await.is_some() {}
        self.told.borrow().clone()
    }
}

impl Counter {
    const fn new(id: Id) -> Self {
        Self { id, acknowledged: 0, refused: 0, unknown: 0 }
    }
}

async fn create(system: &dyn System) -> Result<Id> {
    system.create(&values([("count", 0.into())])).await
}

async fn increment(system: &dyn System, id: &Id) -> Result<()> {
    let mut session = system.request(id).await?;
    session.change("count", Change::Add(1)).await?;
    session.commit().await.map(drop)
}

/// One writer. Whose session is gone gets a new one, as a user does.
async fn write(system: Arc<dyn System>, told: Arc<watch::Sender<Told>>, writer: usize) {
    let mut counter = writer % SESSIONS;
    loop {
        let (stop, id) = {
            let told = told.borrow();
            (told.stop, told.counters[counter].id.clone())
        };
        if stop {
            return;
        }
        let begun = Instant::now();
        let result = increment(&*system, &id).await;
        told.send_modify(|told| told.record(writer, counter, &result, begun.elapsed()));
        match result {
            Ok(()) => tokio::task::yield_now().await,
            Err(error) => {
                if error.kind() == ErrorKind::Gone
                    && let Ok(id) = create(&*system).await
                {
                    told.send_modify(|told| {
                        counter = told.counters.len();
                        told.counters.push(Counter::new(id));
                    });
                }
                sleep(AGAIN).await;
            }
        }
    }
}

impl Told {
    fn record(&mut self, writer: usize, counter: usize, result: &Result<()>, took: Duration) {
        let counter = &mut self.counters[counter];
        self.longest = self.longest.max(took);
        match result {
            Ok(()) => {
                counter.acknowledged += 1;
                self.acknowledged[writer] += 1;
            }
            Err(error) => {
                match error.effect() {
                    Effect::Unknown => counter.unknown += 1,
                    Effect::None => counter.refused += 1,
                }
                self.failed[writer] += 1;
                self.note(error);
            }
        }
    }

    fn note(&mut self, error: &Error) {
        *self.errors.entry(format!("{:?}", error.kind())).or_default() += 1;
        if error.kind() != ErrorKind::Gone && !USUAL.contains(&error.kind()) {
            self.strange.push(format!("{error:?}"));
        }
    }

    fn total(&self, of: fn(&Counter) -> u64) -> u64 {
        self.counters.iter().map(of).sum()
    }

    /// Compares what was told with what can be read. A store that `may_forget` has its losses shown, and no
    /// more; for any other, a session that is gone is a fault.
    pub(super) async fn judge(self, lab: &Lab, may_forget: bool) -> Trial<Judgement> {
        let mut judgement = Judgement::counted(
            self.total(|counter| counter.acknowledged),
            self.total(|counter| counter.refused),
            self.total(|counter| counter.unknown),
        );
        let mut forgotten = 0;
        for (session, counter) in self.counters.iter().enumerate() {
            let Counter { id, acknowledged, unknown, .. } = counter;
            let found = stored(&*lab.system(), id).await?;
            let what = format!("session {session}");
            if may_forget {
                forgotten += acknowledged.saturating_sub(found.unwrap_or_default());
                let most = acknowledged + unknown;
                judgement = judgement.require(found.unwrap_or_default() <= most, || {
                    format!("{what}: found {found:?} of {acknowledged} acknowledged ({unknown} unknown): applied twice")
                });
            } else {
                judgement = match found {
                    Some(found) => judgement.compare(&what, *acknowledged, *unknown, found),
                    None => judgement
                        .lost(*acknowledged, format!("{what} is gone"))
                        .require(*acknowledged > 0, || format!("{what} is gone")),
                };
            }
        }
        for strange in self.strange.iter().take(3) {
            judgement = judgement.fault(format!("a request was told of what no fault explains: {strange}"));
        }
        if may_forget {
            let acknowledged = judgement.acknowledged;
            judgement = judgement.note(format!("{forgotten} of {acknowledged} acknowledged are lost"));
        }
        Ok(judgement.note(format!("the longest answer took {:?}; refused: {:?}", self.longest, self.errors)))
    }
}

/// The number that a session holds; a store that has just come back may be out of reach a little longer.
async fn stored(system: &dyn System, id: &Id) -> Trial<Option<u64>> {
    let deadline = Instant::now() + BACK;
    loop {
        match system.read(id).await {
            Ok(None) => return Ok(None),
            Ok(Some(values)) => return Ok(values.get("count").and_then(serde_json::Value::as_u64)),
            Err(error) if error.kind() == ErrorKind::Unavailable && Instant::now() < deadline => {
                sleep(AGAIN).await
            }
            Err(error) => return Err(Trouble::wrong(format!("it cannot be read afterwards: {error:?}"))),
        }
    }
}
