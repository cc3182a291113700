//! Sessions that live for months. memcached takes more than 30 days for a date, in 1970.

use super::{super::late, micros};
use crate::{
    Judgement,
    scenario::{Findings, Lab, Script, Task},
    system::Id,
    trouble::{Trial, Trouble},
};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use session_core::{Inserted, Loaded, Put, Replaced, StorageKey, Touched};
use std::time::Duration;

const DAY: Duration = Duration::from_hours(24);
const TTLS: [Duration; 2] = [Duration::from_hours(31 * 24), Duration::from_hours(400 * 24)];

/// What clocks may be moved by meanwhile; a second of a month.
const TOLERANCE: Duration = Duration::from_secs(1);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Way {
    Insert,
    Replace,
    ReplaceUnderLock,
    Touch,
}

const WAYS: [Way; 4] = [Way::Insert, Way::Replace, Way::ReplaceUnderLock, Way::Touch];

pub(super) struct LongTtlIsKept;

#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Did {
    /// Whether it was accepted.
    Set(bool),
    /// What the store says is left, in microseconds, if it is there.
    Look(Option<u64>),
}

async fn set(task: &Task<Did>, key: &StorageKey, way: Way, ttl: Duration) -> Trial<bool> {
    let store = task.store();
    let put = |ttl| Put::new(Bytes::from_static(b"long"), ttl);
    let first = if way == Way::Insert { ttl } else { DAY };
    let Inserted::Created(version) = store.insert(key, &put(first)).await? else {
        return Err(Trouble::wrong("a fresh id exists already"));
    };
    Ok(match way {
        Way::Insert => true,
        Way::Replace => matches!(store.replace(key, version, &put(ttl)).await?, Replaced::Done(_)),
        Way::Touch => store.touch(key, version, ttl).await? == Touched::Extended,
        Way::ReplaceUnderLock => {
            match store.acquire_and_load(key, task.token()?, DAY, Duration::ZERO).await? {
                Loaded::Granted(grant, stored) => {
                    matches!(
                        store.replace_and_release(&grant, stored.version, &put(ttl)).await?,
                        Replaced::Done(_)
                    )
                }
                Loaded::Held(_) | Loaded::Missing => false,
            }
        }
    })
}

impl LongTtlIsKept {
    const EACH: usize = WAYS.len() * TTLS.len();

    fn of(record: usize) -> (Way, Duration) {
        let record = record % Self::EACH;
        (WAYS[record / TTLS.len()], TTLS[record % TTLS.len()])
    }
}

impl Script for LongTtlIsKept {
    type Plan = Vec<Id>;
    type Note = Did;

    async fn setup(lab: &Lab) -> Trial<Vec<Id>> {
        (0..Self::EACH * lab.ranks()).map(|_| lab.fresh_id()).collect()
    }

    async fn work(task: &Task<Did>, plan: &Vec<Id>) -> Trial {
        let records = |rank: usize| rank * Self::EACH..(rank + 1) * Self::EACH;
        for record in records(task.rank()) {
            let (way, ttl) = Self::of(record);
            let begun = task.begin(record);
            let done = set(task, &plan[record].key()?, way, ttl).await?;
            begun.end(Did::Set(done), &Ok(()));
        }
        task.barrier("set").await?;
        for record in records(task.across()) {
            let begun = task.begin(record);
            let found = task.store().load(&plan[record].key()?).await?;
            begun.end(Did::Look(found.map(|stored| micros(stored.ttl))), &Ok(()));
        }
        Ok(())
    }

    async fn judge(lab: &Lab, plan: &Vec<Id>, found: &Findings<Did>) -> Trial<Judgement> {
        let tolerance = micros(TOLERANCE + late(lab.capabilities().ttl_resolution));
        let mut judgement = found.judgement();
        for record in 0..plan.len() {
            let (way, ttl) = Self::of(record);
            let what = format!("record {record}, {} days by {way:?}", ttl.as_secs() / DAY.as_secs());
            let mut calls = found.of_session(record);
            let (Some(set), Some(look)) = (calls.next(), calls.next()) else {
                return Err(Trouble::unproven(format!("{what}: nobody looked")));
            };
            judgement = match (&set.note, &look.note) {
                (Did::Set(false), _) => judgement.fault(format!("{what}: refused")),
                (_, Did::Look(Some(left))) => {
                    let ttl = micros(ttl);
                    let least = ttl - (look.end - set.start) - tolerance;
                    judgement.require((least..=ttl + tolerance).contains(left), || {
                        format!("{what}: {:?} are left", Duration::from_micros(*left))
                    })
                }
                _ => judgement.fault(format!("{what}: gone at once")),
            };
        }
        Ok(judgement)
    }
}
