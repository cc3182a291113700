//! Locks that are asked for crosswise, of keys that are nearly the same.

use super::{LATE, breaches, outcome};
use crate::{
    Judgement,
    scenario::{Findings, Lab, Script, Task},
    system::Id,
    trouble::{Trial, Trouble},
};
use bytes::Bytes;
use session_core::{
    Acquired, Error, ErrorKind, Grant, Inserted, Loaded, Put, Released, Replaced, Result, StorageKey, Stored,
};
use std::time::Duration;
use tokio::time::{Instant, timeout};

/// So long that none runs out under its holder.
const LEASE: Duration = Duration::from_secs(60);
const TTL: Duration = Duration::from_secs(600);
/// How long the second lock is waited for.
const CROSS: Duration = Duration::from_millis(50);
/// How long the first one may take: everybody else is before, each with a wait of its own.
const FIRST: Duration = Duration::from_secs(20);

/// Each takes the lock of one of two keys and asks for that of the other, half of the ranks in the other order.
/// A store that tells locks apart by a part of the key, as advisory locks of 64 bits do, has one lock for both:
/// then who holds it is told that it is held.
pub(super) struct CollidingKeysDoNotDeadlock;

/// The session's key and one that differs from it in a single bit, in the last byte or in the first.
fn alike(session: usize, id: &Id) -> Trial<[StorageKey; 2]> {
    let key = id.key()?;
    let mut bytes = *key.as_bytes();
    let at = if session.is_multiple_of(2) { bytes.len() - 1 } else { 0 };
    bytes[at] ^= 1;
    Ok([key, StorageKey::from_bytes(bytes)])
}

/// What is stored under a key: the key.
fn put(key: &StorageKey) -> Put {
    Put::new(Bytes::copy_from_slice(key.as_bytes()), TTL)
}

async fn cross(task: &Task<Vec<String>>, mine: &StorageKey, other: &StorageKey) -> Result<Vec<String>> {
    let (store, mut breaches) = (task.store(), Vec::new());
    let (grant, stored) = first(task, mine).await?;
    if stored.data != put(mine).data {
        breaches.push("it was given the record of a key that is nearly its own".to_owned());
    }
    task.think().await;
    match timeout(CROSS + LATE, store.acquire(other, task.token()?, LEASE, CROSS)).await {
        Ok(Ok(Acquired::Granted(second))) => {
            if store.release(&second).await? != Released::Freed {
                breaches.push("the second lock was lost while it was held".to_owned());
            }
        }
        Ok(Ok(Acquired::Held(_))) => {}
        Ok(Err(error)) => return Err(error),
        Err(_) => breaches.push(format!("a wait of {CROSS:?} for the second lock had no end")),
    }
    match store.replace_and_release(&grant, stored.version, &put(mine)).await? {
        Replaced::Done(_) => {}
        refused => {
            let _freed_or_lost = store.release(&grant).await?;
            breaches.push(format!("the holder's write: {}", outcome(&refused)));
        }
    }
    Ok(breaches)
}

async fn first(task: &Task<Vec<String>>, key: &StorageKey) -> Result<(Grant, Stored)> {
    let (token, end) = (task.token()?, Instant::now() + FIRST);
    loop {
        let left = end.saturating_duration_since(Instant::now());
        match task.store().acquire_and_load(key, token, LEASE, left).await? {
            Loaded::Granted(grant, stored) => return Ok((grant, stored)),
            Loaded::Missing => return Err(Error::new(ErrorKind::Gone, "acquire_and_load")),
            Loaded::Held(_) if left.is_zero() => return Err(Error::new(ErrorKind::Busy, "acquire_and_load")),
            Loaded::Held(_) => task.think().await, // it may come early, where nobody can be woken
        }
    }
}

impl Script for CollidingKeysDoNotDeadlock {
    /// One of the keys of each pair.
    type Plan = Vec<Id>;
    type Note = Vec<String>;

    async fn setup(lab: &Lab) -> Trial<Vec<Id>> {
        let (mut plan, rounds) = (Vec::new(), lab.ops().div_ceil(lab.ranks() as u64));
        while (plan.len() as u64) < rounds {
            let id = lab.fresh_id()?;
            for key in alike(plan.len(), &id)? {
                let Inserted::Created(_) = lab.store().insert(&key, &put(&key)).await? else {
                    return Err(Trouble::wrong("a key that nobody has used is taken by one like it"));
                };
            }
            plan.push(id);
        }
        Ok(plan)
    }

    async fn work(task: &Task<Vec<String>>, plan: &Vec<Id>) -> Trial {
        let mut sound = true;
        for (session, id) in plan.iter().enumerate() {
            task.barrier(format!("pair {session}")).await?;
            if !sound {
                continue; // one wait without an end is enough
            }
            let [mut one, mut other] = alike(session, id)?;
            if !task.rank().is_multiple_of(2) {
                std::mem::swap(&mut one, &mut other);
            }
            let begun = task.begin(session);
            match cross(task, &one, &other).await {
                Ok(breaches) => {
                    sound = breaches.is_empty();
                    begun.end(breaches, &Ok(()));
                }
                Err(error) => begun.end(Vec::new(), &Err::<(), _>(error)),
            }
        }
        Ok(())
    }

    async fn judge(lab: &Lab, plan: &Vec<Id>, found: &Findings<Vec<String>>) -> Trial<Judgement> {
        let mut judgement = breaches(lab, found)?;
        for operation in found.operations.iter().filter(|one| !one.outcome.is_ok()) {
            judgement = judgement.fault(format!("session {}: {:?}", operation.session, operation.outcome));
        }
        for (session, id) in plan.iter().enumerate() {
            for key in alike(session, id)? {
                let stored = lab.store().load(&key).await?;
                judgement = judgement
                    .require(stored.is_some_and(|found| found.data == put(&key).data), || {
                        format!("session {session}: not its own record in the end")
                    });
            }
        }
        Ok(judgement)
    }
}
