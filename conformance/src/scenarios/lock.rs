//! Leases: who holds a lock, for how long, and what a former holder may still do.

use crate::{
    Judgement, Strategy,
    scenario::{Batch, Convictor, Findings, Lab, Scenario, Script, Task, now},
    trouble::Trial,
};
use session_core::{Acquired, Result, StorageKey};
use std::time::Duration;

pub(super) const SCENARIOS: &[Scenario] = &[Scenario::new::<OneHolderAtATime>(
    "lock/one_holder_at_a_time",
    "overlap of holders (by lease) never happens while leases are alive",
    Convictor::Mutant("two_holders"),
)
.strategies(Strategy::DRIVER)
.cap(400)
.overlap(10)];

struct OneHolderAtATime;

impl OneHolderAtATime {
    /// So long that none runs out under its holder.
    const LEASE: Duration = Duration::from_secs(60);
    const WAIT: Duration = Duration::from_secs(5);

    /// Takes the lock, works, releases it. From when to when it was surely held.
    async fn hold(task: &Task<(u64, u64)>, key: &StorageKey) -> Result<(u64, u64)> {
        let token = task.token()?;
        let grant = loop {
            // `Held` may come early, where the backend cannot wake its waiters.
            match task.store().acquire(key, token, Self::LEASE, Self::WAIT).await? {
                Acquired::Granted(grant) => break grant,
                Acquired::Held(_) => task.think().await,
            }
        };
        let entered = now();
        task.think().await;
        let left = now();
        let _freed_or_lost = task.store().release(&grant).await?;
        Ok((entered, left))
    }
}

impl Script for OneHolderAtATime {
    type Plan = Vec<Batch>;
    /// When it entered and left; zeros when it never got in.
    type Note = (u64, u64);

    async fn setup(lab: &Lab) -> Trial<Vec<Batch>> {
        lab.empty_batches()
    }

    async fn work(task: &Task<(u64, u64)>, plan: &Vec<Batch>) -> Trial {
        let mut turns = task.turns(plan);
        while let Some(turn) = turns.next().await? {
            let begun = task.begin(turn.session);
            let held = Self::hold(task, &turn.id.key()?).await;
            begun.end(*held.as_ref().unwrap_or(&(0, 0)), &held);
        }
        Ok(())
    }

    async fn judge(_: &Lab, plan: &Vec<Batch>, found: &Findings<(u64, u64)>) -> Trial<Judgement> {
        let mut judgement = found.judgement();
        for session in 0..plan.len() {
            let mut held: Vec<_> = found
                .of_session(session)
                .filter(|one| one.outcome.is_ok())
                .map(|one| (one.note, one.rank))
                .collect();
            held.sort_unstable();
            for pair in held.windows(2) {
                let [((_, left), first), ((entered, _), second)] = pair else { continue };
                judgement = judgement.require(entered >= left, || {
                    let together = left - entered;
                    format!("session {session}: tasks {first} and {second} held the lock together for {together} µs")
                });
            }
        }
        Ok(judgement)
    }
}
