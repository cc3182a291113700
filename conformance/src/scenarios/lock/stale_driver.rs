//! A grant whose lease is over, and what it may still do to the store: nothing.

use super::{LATE, breaches, outcome, stale::Part, surely_over, take};
use crate::{
    Judgement,
    scenario::{Findings, Lab, Script, Task},
    system::Id,
    trouble::{Trial, Trouble},
};
use bytes::Bytes;
use serde::Serialize;
use session_core::{Acquired, Grant, Inserted, Loaded, Put, Released, Renewed, Replaced, StorageKey, Stored};
use std::time::Duration;
use tokio::time::sleep;

const LEASE: Duration = Duration::from_millis(150);
/// Of the next holder.
const LONG: Duration = Duration::from_secs(60);

fn put(data: &'static str) -> Put {
    Put::new(Bytes::from_static(data.as_bytes()), Duration::from_secs(600))
}

/// That many records for each task.
pub(super) async fn records(lab: &Lab, each: usize) -> Trial<Vec<Id>> {
    let mut ids = Vec::new();
    for _ in 0..each * lab.ranks() {
        let id = lab.fresh_id()?;
        let Inserted::Created(_) = lab.store().insert(&id.key()?, &put("before")).await? else {
            return Err(Trouble::wrong("a fresh id exists already"));
        };
        ids.push(id);
    }
    Ok(ids)
}

/// Takes a lock for a lease that nobody will renew.
async fn hold<N: Serialize + Send>(task: &Task<N>, key: &StorageKey) -> Trial<(Grant, Stored)> {
    match task.store().acquire_and_load(key, task.token()?, LEASE, Duration::ZERO).await? {
        Loaded::Granted(grant, stored) => Ok((grant, stored)),
        Loaded::Held(_) | Loaded::Missing => {
            Err(Trouble::wrong("the lock of a new record that nobody uses was refused"))
        }
    }
}

/// Takes the same lock from elsewhere when that lease is over.
async fn hold_next<N: Serialize + Send>(task: &Task<N>, key: &StorageKey) -> Trial<Grant> {
    let limit = surely_over(LEASE, task.store().capabilities()) + LATE;
    take(task, key, LONG, limit).await?.ok_or_else(|| {
        Trouble::wrong(format!(
            "a lock was not free {limit:?} after it was taken for {LEASE:?} and never renewed"
        ))
    })
}

/// What happens before the stale holder writes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Since {
    /// Nobody takes the lock.
    Nothing,
    /// Another holds it.
    Held,
    /// Another has held it and has written.
    Written,
}

const SINCE: [Since; 3] = [Since::Nothing, Since::Held, Since::Written];
pub(super) const WAYS: usize = SINCE.len();

/// The driver's part of `stale_holder_cannot_write`.
pub(super) async fn writes(task: &Task<Part>, plan: &[Id]) -> Trial {
    let (store, fencing) = (task.store(), task.store().capabilities().fencing);
    let session = |rank: usize, way: usize| WAYS * rank + way;
    let mut stale = Vec::new();
    for way in 0..WAYS {
        stale.push(hold(task, &plan[session(task.rank(), way)].key()?).await?);
    }
    task.barrier("held").await?;

    let mut next = None;
    for (way, since) in SINCE.iter().enumerate().filter(|(_, since)| **since != Since::Nothing) {
        let key = plan[session(task.across(), way)].key()?;
        let grant = hold_next(task, &key).await?;
        if *since == Since::Held {
            next = Some(grant);
            continue;
        }
        let version =
            store.load(&key).await?.ok_or_else(|| Trouble::wrong("a living record is gone"))?.version;
        let Replaced::Done(_) = store.replace_and_release(&grant, version, &put("next")).await? else {
            return Err(Trouble::wrong("the write of a new holder was refused"));
        };
    }
    sleep(surely_over(LEASE, store.capabilities()) + Duration::from_millis(20)).await;
    task.barrier("over").await?;

    for (way, (grant, stored)) in stale.iter().enumerate() {
        let begun = task.begin(session(task.rank(), way));
        let replaced = store.replace_and_release(grant, stored.version, &put("stale")).await?;
        let found = store.load(grant.key()).await?.map(|stored| stored.data).unwrap_or_default();
        let (allowed, data): (&[&str], _) = match (SINCE[way], fencing) {
            (Since::Written, true) => (&["NotHolder", "Conflict"], "next"),
            (Since::Written, false) => (&["Conflict"], "next"),
            (_, true) => (&["NotHolder"], "before"),
            // Without fencing the version alone decides, and it is as it was.
            (_, false) => (&["Done"], "stale"),
        };
        let since = match SINCE[way] {
            Since::Nothing => "nobody has taken the lock since",
            Since::Held => "another holds the lock",
            Since::Written => "another has written since",
        };
        let mut wrong = Vec::new();
        if !allowed.contains(&outcome(&replaced)) {
            wrong.push(format!("a write after the lease ({since}): {}", outcome(&replaced)));
        }
        if found != data {
            wrong
                .push(format!("after a write after the lease ({since}) there is {found:?} and not {data:?}"));
        }
        begun.end(Part::Driver(wrong), &Ok(()));
    }
    task.barrier("tried").await?;
    if let Some(grant) = next {
        let _freed_or_lost = store.release(&grant).await?;
    }
    Ok(())
}

/// What a stale holder does to the next one's lock, by accident.
#[derive(Clone, Copy, Debug)]
enum Attack {
    Release,
    Renew,
    /// A renewal that would end the lock at once.
    RenewShortly,
    AskAgain,
    Write,
    Delete,
}

const ATTACKS: [Attack; 6] =
    [Attack::Release, Attack::Renew, Attack::RenewShortly, Attack::AskAgain, Attack::Write, Attack::Delete];

pub(super) struct StaleHolderCannotRelease;

impl StaleHolderCannotRelease {
    fn session(rank: usize, attack: usize) -> usize {
        ATTACKS.len() * rank + attack
    }

    async fn attack(
        task: &Task<Vec<String>>,
        attack: Attack,
        grant: &Grant,
        stored: &Stored,
    ) -> Trial<Vec<String>> {
        let store = task.store();
        let shortly = Duration::from_millis(1);
        let answer = match attack {
            Attack::Release => match store.release(grant).await? {
                Released::Lost => None,
                Released::Freed => Some("a release after the lease: Freed"),
            },
            Attack::Renew | Attack::RenewShortly => {
                let lease = if matches!(attack, Attack::Renew) { LEASE } else { shortly };
                match store.renew(grant, lease).await? {
                    Renewed::Lost => None,
                    Renewed::Extended => Some("a renewal of what another holds: Extended"),
                }
            }
            Attack::AskAgain => {
                match store.acquire(grant.key(), *grant.token(), shortly, Duration::ZERO).await? {
                    Acquired::Held(_) => None,
                    Acquired::Granted(_) => Some("what another holds was granted"),
                }
            }
            // Their answers are other scenarios' claims.
            Attack::Write => {
                let _done_or_not = store.replace_and_release(grant, stored.version, &put("stale")).await?;
                None
            }
            Attack::Delete => {
                let _removed = store.delete_and_release(grant).await?;
                None
            }
        };
        Ok(answer.map(str::to_owned).into_iter().collect())
    }

    /// Whether the next one still holds its lock, whole.
    async fn look(task: &Task<Vec<String>>, attack: Attack, grant: &Grant) -> Trial<Vec<String>> {
        let (store, mut wrong) = (task.store(), Vec::new());
        match store.acquire(grant.key(), task.token()?, Duration::from_millis(10), Duration::ZERO).await? {
            Acquired::Granted(third) => {
                wrong.push(format!("after {attack:?} of a stale holder a third one got the lock"));
                let _freed_or_lost = store.release(&third).await?;
            }
            Acquired::Held(held) => {
                if let Some(left) = held.retry_after.filter(|left| *left < LONG / 2) {
                    wrong.push(format!("after {attack:?} of a stale holder {left:?} were left of {LONG:?}"));
                }
            }
        }
        if store.renew(grant, LONG).await? == Renewed::Lost {
            wrong.push(format!("after {attack:?} of a stale holder the next one's renewal: Lost"));
        }
        if store.release(grant).await? == Released::Lost {
            wrong.push(format!("after {attack:?} of a stale holder the next one's release: Lost"));
        }
        Ok(wrong)
    }
}

impl Script for StaleHolderCannotRelease {
    type Plan = Vec<Id>;
    type Note = Vec<String>;

    async fn setup(lab: &Lab) -> Trial<Vec<Id>> {
        records(lab, ATTACKS.len()).await
    }

    async fn work(task: &Task<Vec<String>>, plan: &Vec<Id>) -> Trial {
        let (mut stale, mut next) = (Vec::new(), Vec::new());
        for attack in 0..ATTACKS.len() {
            stale.push(hold(task, &plan[Self::session(task.rank(), attack)].key()?).await?);
        }
        task.barrier("held").await?;
        for attack in 0..ATTACKS.len() {
            next.push(hold_next(task, &plan[Self::session(task.across(), attack)].key()?).await?);
        }
        task.barrier("taken").await?;
        for (attack, (grant, stored)) in stale.iter().enumerate() {
            let begun = task.begin(Self::session(task.rank(), attack));
            begun.end(Self::attack(task, ATTACKS[attack], grant, stored).await?, &Ok(()));
        }
        task.barrier("attacked").await?;
        sleep(Duration::from_millis(10)).await; // a lease that was shortened would be over by now
        for (attack, grant) in next.iter().enumerate() {
            let begun = task.begin(Self::session(task.across(), attack));
            begun.end(Self::look(task, ATTACKS[attack], grant).await?, &Ok(()));
        }
        Ok(())
    }

    async fn judge(lab: &Lab, _: &Vec<Id>, found: &Findings<Vec<String>>) -> Trial<Judgement> {
        breaches(lab, found)
    }
}
