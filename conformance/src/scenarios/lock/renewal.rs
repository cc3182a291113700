//! A holder that works for longer than its lease.

use super::lifeline::{Life, watched};
use crate::{
    Judgement, Outcome,
    scenario::{Findings, Lab, Script, Task, now},
    system::{Change, Id, Settings, Systems, values},
    trouble::{Trial, Trouble},
};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use session_core::{ErrorKind, Grant};
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// Renewals must come in time, which a machine that is slow prevents: such a round proves nothing, and is
/// tried again with a longer lease.
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

/// How long the next one may wait: longer than the longest of them holds.
const PATIENCE: Duration = Duration::from_secs(60);
/// For all of them, one after the other, on a machine that is slow.
pub(super) const LIMIT: Duration = Duration::from_secs(120);

/// Someone across wants the lock all the while, and gets it when the holder is done.
pub(super) struct RenewalOutlivesTheLease;

#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Part {
    /// When the holder was done with its work, the longest time for which the machine or the store stood
    /// still meanwhile, and what its own calls say of the lease.
    Holder { left: u64, stall: u64, life: Life },
    /// When the next one was inside.
    Next { entered: u64 },
}

/// Sleeps until then and looks again and again at how long that takes, together with a call to the store that
/// does nothing: how long, in microseconds, the longest one took.
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

    async fn hold(task: &Task<Part>, plan: &[Id]) -> Trial {
        for round in 0..LEASES.len() {
            let session = Self::session(task.ranks(), round, task.rank());
            let id = &plan[session];
            let lease = lease(round, task.store().capabilities().ttl_resolution);
            let (store, lifeline) = watched(task.store());
            // Sessions of its own: in one queue the next one would never ask the store.
            let system = Systems::new(store, Settings::DEFAULT.lease(lease))?.of(task.strategy());
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
            let life = lifeline.life(lease);
            begun.end(Part::Holder { left, stall, life }, &committed);
            let shown = shows(life, stall, lease, round);
            task.signal(format!("shown/{session}"), shown).await?;
            if shown {
                break;
            }
        }
        Ok(())
    }

    async fn want(task: &Task<Part>, plan: &[Id]) -> Trial {
        for round in 0..LEASES.len() {
            let session = Self::session(task.ranks(), round, task.across());
            // Its own lease is not what is tried here.
            let system = task.system_with(Settings::DEFAULT.lock_wait(PATIENCE))?;
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
            if task.wait(format!("shown/{session}")).await? == Value::Bool(true) {
                break;
            }
        }
        Ok(())
    }
}

/// Whether a round says anything about the claim.
fn shows(life: Life, stall: u64, lease: Duration, round: usize) -> bool {
    let stalled = Duration::from_micros(stall) > lease / 3;
    match life {
        Life::Whole | Life::Refused { .. } => true,
        Life::NotRenewed => !stalled,
        // A thread can stand still alone: for the most of the longest lease it does not.
        Life::Late { .. } => !stalled && round + 1 == LEASES.len(),
        Life::Open => false,
    }
}

/// Whether there was no answer, which says nothing about leases.
fn is_open(outcome: &Outcome) -> bool {
    outcome.is_unknown() || outcome.failed_with(ErrorKind::Unavailable)
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
            let round = session / lab.ranks();
            let lease = lease(round, lab.capabilities().ttl_resolution);
            let mut holder = None;
            let mut entered = None;
            for one in found.of_session(session) {
                match one.note {
                    Part::Holder { left, stall, life } => holder = Some((left, stall, life, &one.outcome)),
                    Part::Next { entered: at } => entered = Some((at, &one.outcome)),
                }
            }
            let Some((left, stall, life, committed)) = holder else { continue };
            let Some((entered, written)) = entered else {
                return Err(Trouble::unproven("nobody wanted the lock"));
            };
            let count = found.count(session);
            let stored = lab.system().number(id, "count").await?;
            judgement =
                judgement.compare(&format!("session {session}"), count.acknowledged, count.unknown, stored);
            if !shows(life, stall, lease, round) || is_open(written) {
                continue;
            }
            proven += 1;
            let ms = |from: u64, to: u64| to.saturating_sub(from) / 1000;
            let unkept = match life {
                Life::Whole | Life::Open => None,
                Life::Refused { after } => {
                    Some(format!("a renewal was refused {} ms after the last one", ms(0, after)))
                }
                Life::NotRenewed => Some("it was never renewed".to_owned()),
                Life::Late { after } => Some(format!("nothing renewed it for {} ms", ms(0, after))),
            };
            if let Some(unkept) = unkept {
                judgement = judgement.fault(format!("session {session}: a lease of {lease:?}, and {unkept}"));
                continue;
            }
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
            return Ok(judgement.unproven("the machine was too slow for leases to be renewed in time"));
        }
        Ok(judgement)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slow_machine_is_an_excuse_as_long_as_it_may_be_one() {
        let (lease, last) = (Duration::from_millis(300), LEASES.len() - 1);
        let (steady, stalled) = (100_000, 100_001);
        for stall in [steady, stalled] {
            assert!(
                shows(Life::Whole, stall, lease, 0) && shows(Life::Refused { after: 1 }, stall, lease, 0)
            );
            assert!(!shows(Life::Late { after: 1 }, stall, lease, last - 1));
            assert!(!shows(Life::Open, stall, lease, last));
        }
        assert!(shows(Life::NotRenewed, steady, lease, 0) && !shows(Life::NotRenewed, stalled, lease, last));
        assert!(shows(Life::Late { after: 1 }, steady, lease, last));
        assert!(!shows(Life::Late { after: 1 }, stalled, lease, last));
    }
}
