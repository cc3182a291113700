//! How many hold a lock, and how many locks can be held.

use super::outcome;
use crate::{
    Judgement,
    scenario::{Batch, Findings, Lab, Script, Task, now},
    system::{Id, values},
    trouble::Trial,
};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use session_core::{
    Acquired, Error, ErrorKind, Grant, Inserted, Loaded, Put, Released, Renewed, Replaced, Result,
    StorageKey, Stored, SystemRandom, Version,
};
use std::time::Duration;

/// So long that none runs out under its holder.
const LEASE: Duration = Duration::from_secs(60);

/// Every other holder takes the lock with the record and writes with the release: under a lock that nobody
/// else has, that write is never refused. Every other of those first writes over a version that is not there:
/// it is refused, and the lock stays.
pub(super) struct OneHolderAtATime;

/// From when to when a lock was surely held; zeros when it never was.
#[derive(Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) struct Held {
    entered: u64,
    left: u64,
    /// How the holder was told that it held nothing.
    refused: Option<String>,
}

/// What a refused write leaves of the lock.
enum Vain {
    /// All of it.
    Holds,
    /// Nothing, and the holder was told so.
    Overtaken,
    /// Not what the answer said.
    Wrong(String),
}

impl OneHolderAtATime {
    const WAIT: Duration = Duration::from_secs(5);

    async fn hold(task: &Task<Held>, key: &StorageKey, writes: bool) -> Result<Held> {
        let (grant, stored) = Self::take(task, key, writes).await?;
        let entered = now();
        task.think().await;
        if let Some(stored) = stored.as_ref().filter(|_| task.draw(0..2) == 0) {
            let left = now();
            match Self::try_in_vain(task, &grant, stored).await? {
                Vain::Holds => task.think().await,
                Vain::Overtaken => return Ok(Held { entered, left, refused: None }),
                Vain::Wrong(refused) => {
                    let _freed_or_lost = task.store().release(&grant).await?;
                    return Ok(Held { entered, left, refused: Some(refused) });
                }
            }
        }
        let left = now();
        let refused = match stored {
            None => match task.store().release(&grant).await? {
                Released::Freed => None,
                Released::Lost => Some("its release: Lost".to_owned()),
            },
            Some(Stored { version, data, ttl, principal, .. }) => {
                let put = Put::new(data, ttl).principal(principal);
                match task.store().replace_and_release(&grant, version, &put).await? {
                    Replaced::Done(_) => None,
                    refused => {
                        let _freed_or_lost = task.store().release(&grant).await?;
                        Some(format!("its write: {}", outcome(&refused)))
                    }
                }
            }
        };
        Ok(Held { entered, left, refused })
    }

    /// A write that names a version that nobody has written: `Conflict` keeps the lock.
    async fn try_in_vain(task: &Task<Held>, grant: &Grant, stored: &Stored) -> Result<Vain> {
        let store = task.store();
        let put = Put::new(stored.data.clone(), stored.ttl).principal(stored.principal);
        Ok(match store.replace_and_release(grant, Version::random(&SystemRandom)?, &put).await? {
            Replaced::Conflict(_) => match store.renew(grant, LEASE).await? {
                Renewed::Extended => Vain::Holds,
                Renewed::Lost => Vain::Wrong("after a Conflict its renewal: Lost".to_owned()),
            },
            // Another was faster than the lock was kept: said, and nobody is two.
            Replaced::NotHolder(_) if !store.capabilities().fencing => Vain::Overtaken,
            other => Vain::Wrong(format!("its write over a version that is not there: {}", outcome(&other))),
        })
    }

    async fn take(task: &Task<Held>, key: &StorageKey, writes: bool) -> Result<(Grant, Option<Stored>)> {
        let (store, token) = (task.store(), task.token()?);
        loop {
            // `Held` may come early, where the backend cannot wake its waiters.
            if writes {
                match store.acquire_and_load(key, token, LEASE, Self::WAIT).await? {
                    Loaded::Granted(grant, stored) => return Ok((grant, Some(stored))),
                    Loaded::Missing => return Err(Error::new(ErrorKind::Gone, "acquire_and_load")),
                    Loaded::Held(_) => {}
                }
            } else if let Acquired::Granted(grant) = store.acquire(key, token, LEASE, Self::WAIT).await? {
                return Ok((grant, None));
            }
            task.think().await;
        }
    }
}

impl Script for OneHolderAtATime {
    type Plan = Vec<Batch>;
    type Note = Held;

    async fn setup(lab: &Lab) -> Trial<Vec<Batch>> {
        lab.batches(&values([("held", true.into())])).await
    }

    async fn work(task: &Task<Held>, plan: &Vec<Batch>) -> Trial {
        let mut turns = task.turns(plan);
        while let Some(turn) = turns.next().await? {
            let begun = task.begin(turn.session);
            let key = turn.id.key()?;
            match Self::hold(task, &key, task.draw(0..2) == 0).await {
                Ok(held) => begun.end(held, &Ok(())),
                Err(error) => begun.end(Held::default(), &Err::<(), _>(error)),
            }
        }
        Ok(())
    }

    async fn judge(_: &Lab, plan: &Vec<Batch>, found: &Findings<Held>) -> Trial<Judgement> {
        let mut judgement = found.judgement();
        for session in 0..plan.len() {
            let mut held: Vec<_> = found
                .of_session(session)
                .filter(|one| one.outcome.is_ok())
                .map(|one| (&one.note, one.rank))
                .collect();
            held.sort_unstable();
            for pair in held.windows(2) {
                let [(one, first), (next, second)] = pair else { continue };
                judgement = judgement.require(next.entered >= one.left, || {
                    let together = one.left - next.entered;
                    format!("session {session}: tasks {first} and {second} held the lock together for {together} µs")
                });
            }
        }
        for one in &found.operations {
            if let Some(refused) = &one.note.refused {
                let Held { entered, left, .. } = one.note;
                judgement = judgement.fault(format!(
                    "session {}: task {} held the lock for {} µs of a lease of {LEASE:?}, and then {refused}",
                    one.session,
                    one.rank,
                    left - entered
                ));
            }
        }
        Ok(judgement)
    }
}

/// A backend that keeps a connection for each lock has none left for the rest.
pub(super) struct ManyLocksFewConnections;

impl ManyLocksFewConnections {
    const SESSIONS: usize = 1000;
    const WAIT: Duration = Duration::from_secs(2);

    async fn lock(task: &Task<()>, key: &StorageKey) -> Result<Grant> {
        let put = Put::new(Bytes::from_static(b"many"), LEASE);
        let Inserted::Created(_) = task.store().insert(key, &put).await? else {
            return Err(Error::new(ErrorKind::Backend, "insert").with_context("a fresh id exists"));
        };
        match task.store().acquire(key, task.token()?, LEASE, Self::WAIT).await? {
            Acquired::Granted(grant) => Ok(grant),
            Acquired::Held(_) => {
                Err(Error::new(ErrorKind::Busy, "acquire").with_context("nobody else wants this lock"))
            }
        }
    }

    /// What others do meanwhile.
    async fn use_another(task: &Task<()>, key: &StorageKey) -> Result<()> {
        let put = Put::new(Bytes::from_static(b"other"), LEASE);
        let store = task.store();
        let gone = || Error::new(ErrorKind::Gone, "another session");
        let Inserted::Created(version) = store.insert(key, &put).await? else { return Err(gone()) };
        let Replaced::Done(_) = store.replace(key, version, &put).await? else { return Err(gone()) };
        store.load(key).await?.ok_or_else(gone).map(drop)
    }
}

impl Script for ManyLocksFewConnections {
    /// The sessions, and one more for each task.
    type Plan = Vec<Id>;
    type Note = ();

    async fn setup(lab: &Lab) -> Trial<Vec<Id>> {
        (0..Self::SESSIONS + lab.ranks()).map(|_| lab.fresh_id()).collect()
    }

    async fn work(task: &Task<()>, plan: &Vec<Id>) -> Trial {
        let mut grants = Vec::new();
        for session in (task.rank()..Self::SESSIONS).step_by(task.ranks()) {
            let key = plan[session].key()?;
            match task.attempt(session, (), Self::lock(task, &key)).await {
                Some(grant) => grants.push((session, grant)),
                None => break, // one is enough, and each of the others would wait as long
            }
        }
        task.barrier("all are locked").await?;
        let other = Self::SESSIONS + task.rank();
        let key = plan[other].key()?;
        task.attempt(other, (), Self::use_another(task, &key)).await;
        task.barrier("all have looked").await?;
        for (session, grant) in grants {
            let release = async {
                match task.store().release(&grant).await? {
                    Released::Freed => Ok(()),
                    Released::Lost => Err(Error::new(ErrorKind::LockLost, "release")),
                }
            };
            task.attempt(session, (), release).await;
        }
        Ok(())
    }

    async fn judge(lab: &Lab, _: &Vec<Id>, found: &Findings<()>) -> Trial<Judgement> {
        let mut judgement = found.judgement();
        let (done, want) = (judgement.acknowledged, (2 * Self::SESSIONS + lab.ranks()) as u64);
        judgement = judgement.require(done == want, || format!("{done} of {want} steps succeeded"));
        for operation in found.operations.iter().filter(|one| !one.outcome.is_ok()) {
            judgement = judgement.fault(format!("session {}: {:?}", operation.session, operation.outcome));
        }
        Ok(judgement)
    }
}
