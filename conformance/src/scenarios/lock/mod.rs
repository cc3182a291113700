//! Leases: who holds a lock, for how long, and what a former holder may still do.

mod crosswise;
mod deaf;
mod holders;
mod lifeline;
mod processes;
mod renewal;
mod stale;
mod stale_driver;
mod waiters;
mod waiting;

use super::late;
use crate::{
    Judgement, Strategy,
    scenario::{Convictor, Findings, Lab, Need, Scenario, Task},
    system::Settings,
    trouble::Trial,
};
use serde::Serialize;
use session_core::{Acquired, Capabilities, Grant, Replaced, Result, StorageKey};
use std::time::Duration;
use tokio::time::Instant;

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario::new::<holders::OneHolderAtATime>(
        "lock/one_holder_at_a_time",
        "overlap of holders (by lease) never happens while leases are alive",
        Convictor::Mutant("two_holders"),
    )
    .strategies(Strategy::DRIVER)
    .cap(400)
    .overlap(10),
    Scenario::new::<stale::StaleHolderCannotWrite>(
        "lock/stale_holder_cannot_write",
        "a lease runs out mid-request and another writes: the first is told LockLost or Conflict, the other's write survives",
        Convictor::LOCK_ONLY,
    )
    .strategies(Strategy::ALL)
    .settings(Settings::DEFAULT.lease(stale::LEASE).lock_wait(stale::WAIT)),
    Scenario::new::<stale_driver::StaleHolderCannotRelease>(
        "lock/stale_holder_cannot_release",
        "a holder whose lease ran out can neither free nor shorten the next holder's lock",
        Convictor::Mutant("stale_release_frees"),
    )
    .strategies(Strategy::DRIVER),
    Scenario::new::<processes::PausedHolderCannotWrite>(
        "lock/paused_holder_cannot_write",
        "the holder's process is stopped (SIGSTOP) past its lease and continued: the next one gets in, and its write survives",
        Convictor::LOCK_ONLY,
    )
    .needs(&[Need::Processes])
    .tasks(1)
    .settings(Settings::DEFAULT.lease(processes::PAUSED_LEASE)),
    Scenario::new::<processes::KilledHolderFreesInTime>(
        "lock/killed_holder_frees_in_time",
        "the holder is killed (SIGKILL): the next one gets in within the lease (at once, where the backend sees the connection or file close)",
        Convictor::Mutant("locks_without_lease"),
    )
    .needs(&[Need::Processes])
    .strategies(&[Strategy::Exclusive])
    .tasks(1)
    .settings(Settings::DEFAULT.lease(processes::KILLED_LEASE).lock_wait(processes::KILLED_WAIT)),
    Scenario::new::<renewal::RenewalOutlivesTheLease>(
        "lock/renewal_outlives_the_lease",
        "a holder five leases long keeps its lock",
        Convictor::LOCK_ONLY,
    )
    .strategies(&[Strategy::LockOnly, Strategy::Exclusive])
    .tasks(2)
    .limit(renewal::LIMIT),
    Scenario::new::<waiting::WaitLimitIsKeptAndTyped>(
        "lock/wait_limit_is_kept_and_typed",
        "when lock_wait passes: Busy, or the read-only session if asked for; never an empty one",
        Convictor::Mutant("busy_is_missing"),
    )
    .strategies(&[Strategy::Write, Strategy::Exclusive, Strategy::Driver])
    .settings(Settings::DEFAULT.lock_wait(waiting::WAIT)),
    Scenario::new::<waiters::WaitersAreAllServed>(
        "lock/waiters_are_all_served",
        "no waiter starves; the longest wait is bounded by the queue before it",
        Convictor::Mutant("serves_the_last_first"),
    )
    .strategies(&[Strategy::Exclusive])
    .cap(200)
    .tasks(3)
    .overlap(10)
    .settings(Settings::DEFAULT.lock_wait(waiters::WAIT)),
    Scenario::new::<waiters::TooManyWaitersAreRefused>(
        "lock/too_many_waiters_are_refused",
        "the cap refuses at once",
        Convictor::LOCK_ONLY,
    )
    .strategies(&[Strategy::LockOnly, Strategy::Exclusive])
    .tasks(waiters::CROWD)
    .settings(Settings { max_waiters: waiters::MOST, ..Settings::DEFAULT }),
    Scenario::new::<holders::ManyLocksFewConnections>(
        "lock/many_locks_few_connections",
        "1,000 sessions locked at once on a pool of ten, and others are still served",
        Convictor::Mutant("a_connection_for_each_lock"),
    )
    .strategies(Strategy::DRIVER),
    Scenario::new::<crosswise::CollidingKeysDoNotDeadlock>(
        "lock/colliding_keys_do_not_deadlock",
        "two sessions whose keys differ in one bit are locked crosswise: each wait ends, each keeps its own record",
        Convictor::Mutant("waits_without_end"),
    )
    .strategies(Strategy::DRIVER)
    .cap(40)
    .tasks(2)
    .overlap(10),
];

/// How much later than it should a thing may happen on a busy machine before it is called too late.
const LATE: Duration = Duration::from_secs(3);

/// When a lease is surely over: a backend may be late with it, as with a ttl.
fn surely_over(lease: Duration, capabilities: Capabilities) -> Duration {
    lease + late(capabilities.ttl_resolution)
}

/// Asks for a lock until it is granted; `None` when it was not for `limit`.
async fn take<N: Serialize + Send>(
    task: &Task<N>,
    key: &StorageKey,
    lease: Duration,
    limit: Duration,
) -> Result<Option<Grant>> {
    let (token, end) = (task.token()?, Instant::now() + limit);
    loop {
        // `Held` may come early, where the backend cannot wake its waiters.
        let left = end.saturating_duration_since(Instant::now());
        match task.store().acquire(key, token, lease, left).await? {
            Acquired::Granted(grant) => return Ok(Some(grant)),
            Acquired::Held(_) if left.is_zero() => return Ok(None),
            Acquired::Held(_) => task.think().await,
        }
    }
}

/// An outcome without its data.
fn outcome(replaced: &Replaced) -> &'static str {
    match replaced {
        Replaced::Done(_) => "Done",
        Replaced::Conflict(_) => "Conflict",
        Replaced::Missing => "Missing",
        Replaced::NotHolder(_) => "NotHolder",
    }
}

/// What the tasks have seen go wrong, where each operation notes that itself.
fn breaches(lab: &Lab, found: &Findings<Vec<String>>) -> Trial<Judgement> {
    let mut judgement = found.judgement();
    for operation in &found.operations {
        for breach in &operation.note {
            judgement =
                judgement.fault(format!("session {} of {} tasks: {breach}", operation.session, lab.ranks()));
        }
    }
    Ok(judgement)
}
