//! A holder that works for longer than its lease.

use crate::{
    Judgement,
    scenario::{Findings, Lab, Script, Task, now},
    system::{Change, Id, Settings, System, values},
    trouble::{Trial, Trouble},
};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use session_core::Grant;
use std::{sync::Arc, time::Duration};
use tokio::time::{Instant, sleep};

/// While the holder works, its renewals must come in time, which a machine that stands still prevents: such a round proves nothing,
/// and is tried again with a longer lease.
const LEASES: [Duration; 4] = [
    Duration::from_millis(200),
    Duration::from_millis(600),
    Duration::from_millis(1800),
    Duration::from_millis(5400),
];

/// How long a holder works, in leases.
const HELD: u32 = 5;

/// The lease of a round: one that the backend can tell from none.
fn lease(round: usize, resolution: Duration) -> Duration {
    LEASES[round].max(resolution)
}

/// Someone across wants the lock all the while, and gets it when the holder is done.
pub(super) struct RenewalOutlivesTheLease;

#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Part {
    /// When the holder was done with its work, and the longest time for which the machine or the store stood still meanwhile.
    Holder { left: u64, stall: u64 },
    /// When the next one was inside.
    Next { entered: u64 },
}

/// Sleeps until then and looks again and again at how long that takes, together with a call to the store that does nothing: how long,
/// in microseconds, the longest one took.
async fn watch(task: &Task<Part>, id: &Id, until: Instant) -> Trial<u64> {
    let nobodys = Grant::new(id.key()?, task.token()?);
    let (mut longest, mut last) = (0, now());
    while Instant::now() < until {
        sleep(Duration::from_millis(25)).await;
        let _lost = task.store().release(&nobodys).await?;
        let this = now();
        longest = longest.max(this - last);
        last = this;
    }
    Ok(longest)
}

impl RenewalOutlivesTheLease {
    fn session(ranks: usize, round: usize, rank: usize) -> usize {
        round * ranks + rank
    }

    /// The lease of a round, and sessions of its own: in one queue the next one would never ask the store.
    fn system(task: &Task<Part>, round: usize) -> Trial<(Duration, Arc<dyn System>)> {
        let lease = lease(round, task.store().capabilities().ttl_resolution);
        Ok((lease, task.system_with(Settings::DEFAULT.lease(lease))?))
    }

    async fn hold(task: &Task<Part>, plan: &[Id]) -> Trial {
        for round in 0..LEASES.len() {
            let session = Self::session(task.ranks(), round, task.rank());
            let id = &plan[session];
            let (lease, system) = Self::system(task, round)?;
            let begun = task.begin(session);
            let mut request = system.request(id).await?;
            let until = Instant::now() + HELD * lease;
            task.signal(format!("held/{session}"), true).await?;
            let stall = watch(task, id, until).await?;
            let left = now();
            let commit = async {
                request.change("count", Change::Add(1)).await?;
                request.commit().await
            };
            let committed = commit.await;
            begun.end(Part::Holder { left, stall }, &committed);
            let proven = stalled(stall, lease).is_none();
            task.signal(format!("proven/{session}"), proven).await?;
            if proven {
                break;
            }
        }
        Ok(())
    }

    async fn want(task: &Task<Part>, plan: &[Id]) -> Trial {
        for round in 0..LEASES.len() {
            let session = Self::session(task.ranks(), round, task.across());
            let (_, system) = Self::system(task, round)?;
            task.wait(format!("held/{session}")).await?;
            let begun = task.begin(session);
            let mut entered = 0;
            let write = async {
                let mut request = system.request(&plan[session]).await?;
                entered = now();
                request.change("count", Change::Add(1)).await?;
                request.commit().await
            };
            let written = write.await;
            begun.end(Part::Next { entered }, &written);
            if task.wait(format!("proven/{session}")).await? == Value::Bool(true) {
                break;
            }
        }
        Ok(())
    }
}

/// How long it stood still, when that was long enough for a renewal to be late without anyone's fault.
fn stalled(stall: u64, lease: Duration) -> Option<Duration> {
    let stall = Duration::from_micros(stall);
    (stall > lease / 3).then_some(stall)
}

impl Script for RenewalOutlivesTheLease {
    type Plan = Vec<Id>;
    type Note = Part;

    async fn setup(lab: &Lab) -> Trial<Vec<Id>> {
        let mut ids = Vec::new();
        for _ in 0..LEASES.len() * lab.ranks() {
            ids.push(lab.system().create(&values([("count", 0.into())])).await?);
        }
        Ok(ids)
    }

    async fn work(task: &Task<Part>, plan: &Vec<Id>) -> Trial {
        tokio::try_join!(Self::hold(task, plan), Self::want(task, plan)).map(drop)
    }

    async fn judge(lab: &Lab, plan: &Vec<Id>, found: &Findings<Part>) -> Trial<Judgement> {
        let mut judgement = found.judgement();
        let mut proven = 0;
        for (session, id) in plan.iter().enumerate() {
            let lease = lease(session / lab.ranks(), lab.capabilities().ttl_resolution);
            let mut holder = None;
            let mut entered = None;
            for one in found.of_session(session) {
                match one.note {
                    Part::Holder { left, stall } => holder = Some((left, stall, &one.outcome)),
                    Part::Next { entered: at } => entered = Some((at, &one.outcome)),
                }
            }
            let Some((left, stall, committed)) = holder else { continue };
            let Some((entered, written)) = entered else {
                return Err(Trouble::unproven("nobody wanted the lock"));
            };
            let count = found.count(session);
            let stored = lab.system().number(id, "count").await?;
            judgement =
                judgement.compare(&format!("session {session}"), count.acknowledged, count.unknown, stored);
            if stalled(stall, lease).is_some() {
                continue;
            }
            proven += 1;
            let ms = |from: u64, to: u64| to.saturating_sub(from) / 1000;
            judgement = judgement
                .require(committed.is_ok(), || {
                    format!("session {session}: the holder, {HELD} leases of {lease:?} long, was told {committed:?}")
                })
                .require(written.is_ok(), || format!("session {session}: the next one was told {written:?}"))
                .require(!written.is_ok() || entered >= left, || {
                    let early = ms(entered, left);
                    format!("session {session}: another was inside {early} ms before the holder was done ({HELD} leases of {lease:?})")
                });
        }
        if proven == 0 {
            return Ok(judgement.unproven("the machine stood still for longer than leases bear"));
        }
        Ok(judgement)
    }
}
