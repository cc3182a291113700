//! Records around the end of their time.

use super::{super::late, SKEW, micros};
use crate::{
    Judgement,
    scenario::{Findings, Lab, Operation, Script, Task},
    system::Id,
    trouble::{Trial, Trouble},
};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use session_core::{
    Deleted, Grant, Inserted, Loaded, Put, Replaced, Result, StorageKey, Stored, Touched, Version,
};
use std::{future::Future, time::Duration};
use tokio::time::{Instant, sleep};

/// What a call saw of a record, and the time that it gave it.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Sight {
    what: String,
    seen: bool,
    ttl: Option<u64>,
}

/// How a record comes by its last ttl.
#[derive(Clone, Copy, Debug)]
enum Way {
    Insert,
    Replace,
    ReplaceUnderLock,
    TouchSooner,
    TouchLater,
}

const WAYS: [Way; 5] = [Way::Insert, Way::Replace, Way::ReplaceUnderLock, Way::TouchSooner, Way::TouchLater];

/// Much longer than the scenario.
const LONG: Duration = Duration::from_secs(600);

pub(super) struct ExpiresOnTime;

/// One record and the task that uses it.
struct Record<'a> {
    task: &'a Task<Sight>,
    number: usize,
    key: StorageKey,
}

fn put(ttl: Duration) -> Put {
    Put::new(Bytes::from_static(b"on time"), ttl)
}

impl<'a> Record<'a> {
    fn new(task: &'a Task<Sight>, plan: &[Id], rank: usize, way: usize) -> Trial<Self> {
        let number = WAYS.len() * rank + way;
        Ok(Self { task, number, key: plan[number].key()? })
    }

    /// A call, with what it says of the record: whether it is there, and whether it was given a new ttl.
    async fn look<T>(
        &self,
        what: &str,
        ttl: Duration,
        call: impl Future<Output = Result<T>> + Send,
        says: impl FnOnce(&T) -> (bool, bool),
    ) -> Trial<T> {
        let begun = self.task.begin(self.number);
        let answer = call.await?;
        let (seen, set) = says(&answer);
        let ttl = set.then_some(micros(ttl));
        begun.end(Sight { what: what.to_owned(), seen, ttl }, &Ok(()));
        Ok(answer)
    }

    async fn insert(&self, ttl: Duration) -> Trial<Option<Version>> {
        let put = put(ttl);
        let call = self.task.store().insert(&self.key, &put);
        let says = |inserted: &Inserted| match inserted {
            Inserted::Created(_) => (false, true),
            Inserted::Exists => (true, false),
        };
        Ok(match self.look("insert", ttl, call, says).await? {
            Inserted::Created(version) => Some(version),
            Inserted::Exists => None,
        })
    }

    async fn load(&self) -> Trial<Option<Stored>> {
        let call = self.task.store().load(&self.key);
        self.look("load", Duration::ZERO, call, |stored| (stored.is_some(), false)).await
    }

    async fn replace(&self, version: Version, ttl: Duration) -> Trial {
        let put = put(ttl);
        let call = self.task.store().replace(&self.key, version, &put);
        self.look("replace", ttl, call, replaced).await.map(drop)
    }

    async fn replace_under_lock(&self, ttl: Duration) -> Trial {
        let (store, token, put) = (self.task.store(), self.task.token()?, put(ttl));
        let call = store.acquire_and_load(&self.key, token, LONG, Duration::ZERO);
        let says = |loaded: &Loaded| (!matches!(loaded, Loaded::Missing), false);
        if let Loaded::Granted(grant, stored) = self.look("acquire_and_load", ttl, call, says).await? {
            let call = store.replace_and_release(&grant, stored.version, &put);
            let _seen = self.look("replace_and_release", ttl, call, replaced).await?;
            let _freed_or_lost = store.release(&Grant::new(self.key, token)).await?;
        }
        Ok(())
    }

    async fn touch(&self, version: Version, ttl: Duration) -> Trial {
        let call = self.task.store().touch(&self.key, version, ttl);
        let says = |touched: &Touched| (*touched != Touched::Missing, *touched == Touched::Extended);
        self.look("touch", ttl, call, says).await.map(drop)
    }

    async fn delete(&self) -> Trial {
        let call = self.task.store().delete(&self.key);
        let says = |deleted: &Deleted| (matches!(deleted, Deleted::Removed(_)), false);
        self.look("delete", Duration::ZERO, call, says).await.map(drop)
    }

    /// Gives the record its last ttl. Its version then.
    async fn begin(&self, way: Way, ttl: Duration) -> Trial<Version> {
        let first = if matches!(way, Way::Insert | Way::TouchLater) { ttl } else { LONG };
        let version = self.insert(first).await?.ok_or_else(|| Trouble::wrong("a fresh id exists already"))?;
        match way {
            Way::Insert => {}
            Way::Replace => self.replace(version, ttl).await?,
            Way::ReplaceUnderLock => self.replace_under_lock(ttl).await?,
            Way::TouchSooner => self.touch(version, ttl).await?,
            Way::TouchLater => self.touch(version, 2 * ttl).await?,
        }
        // What is no longer there has no version: whichever it is, the calls to come must say that nothing is
        // there.
        Ok(self.load().await?.map_or(version, |stored| stored.version))
    }
}

fn replaced(replaced: &Replaced) -> (bool, bool) {
    (!matches!(replaced, Replaced::Missing), matches!(replaced, Replaced::Done(_)))
}

impl Script for ExpiresOnTime {
    type Plan = Vec<Id>;
    type Note = Sight;

    async fn setup(lab: &Lab) -> Trial<Vec<Id>> {
        (0..WAYS.len() * lab.ranks()).map(|_| lab.fresh_id()).collect()
    }

    async fn work(task: &Task<Sight>, plan: &Vec<Id>) -> Trial {
        let resolution = task.store().capabilities().ttl_resolution;
        let ttl = Duration::from_millis(250).max(resolution);
        let mut versions = Vec::new();
        for (way, how) in WAYS.into_iter().enumerate() {
            versions.push(Record::new(task, plan, task.rank(), way)?.begin(how, ttl).await?);
        }
        task.barrier("set").await?;

        // The longest lives twice as long, and began before this barrier opened.
        let end = Instant::now() + 2 * ttl + late(resolution) + 2 * SKEW;
        while Instant::now() < end {
            for way in 0..WAYS.len() {
                Record::new(task, plan, task.across(), way)?.load().await?;
            }
            sleep(Duration::from_millis(20)).await;
        }
        task.barrier("watched").await?;

        for (way, version) in versions.into_iter().enumerate() {
            let record = Record::new(task, plan, task.rank(), way)?;
            record.load().await?;
            record.replace(version, LONG).await?;
            record.touch(version, LONG).await?;
            record.replace_under_lock(LONG).await?;
            record.delete().await?;
            record.insert(LONG).await?;
            record.load().await?;
        }
        Ok(())
    }

    async fn judge(lab: &Lab, plan: &Vec<Id>, found: &Findings<Sight>) -> Trial<Judgement> {
        let grace = micros(late(lab.capabilities().ttl_resolution) + SKEW);
        let mut judgement = found.judgement();
        let (mut alive, mut dead) = (0, 0);
        for record in 0..plan.len() {
            let calls: Vec<_> = found.of_session(record).collect();
            for call in &calls {
                let Sight { what, seen, .. } = &call.note;
                let fault = match certain(&calls, call, grace) {
                    Some(Certain::Alive { left }) => {
                        alive += 1;
                        (!seen).then(|| {
                            format!("record {record}: {what} found nothing {left} µs before its end")
                        })
                    }
                    Some(Certain::Dead { since }) => {
                        dead += 1;
                        seen.then(|| format!("record {record}: {what} found it {since} µs after its end"))
                    }
                    None => None,
                };
                if let Some(fault) = fault {
                    judgement = judgement.fault(fault);
                }
            }
        }
        if alive < plan.len() || dead < plan.len() {
            return Ok(judgement.unproven(format!(
                "too few calls were certain: {alive} on the living, {dead} on the dead, of {} records",
                plan.len()
            )));
        }
        Ok(judgement.note(format!("{alive} calls on the living, {dead} on the dead")))
    }
}

/// What is certain of a record while a call was under way, in microseconds.
enum Certain {
    Alive { left: u64 },
    Dead { since: u64 },
}

/// By the last call before that gave the record its time, if no other one did so meanwhile. The clock counts
/// microseconds, and a store in memory answers in less: of two calls in the same one nobody knows which was
/// first.
fn certain(calls: &[&Operation<Sight>], call: &Operation<Sight>, grace: u64) -> Option<Certain> {
    let mut sets = calls.iter().filter(|set| set.note.ttl.is_some() && !std::ptr::eq(**set, call));
    if sets.clone().any(|set| set.start <= call.end && set.end >= call.start) {
        return None;
    }
    let set = sets.rfind(|set| set.end < call.start)?;
    let ttl = set.note.ttl?;
    let (first, last) = (set.start + ttl, set.end + ttl + grace);
    if call.end + micros(SKEW) < first {
        Some(Certain::Alive { left: first - call.end })
    } else if call.start > last {
        Some(Certain::Dead { since: call.start - set.end - ttl })
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Outcome;

    /// A call of a ttl of a second that began and ended at these milliseconds.
    fn call(start: u64, end: u64, sets: bool) -> Operation<Sight> {
        let note = Sight { what: String::new(), seen: true, ttl: sets.then_some(1_000_000) };
        Operation { rank: 0, session: 0, start: start * 1000, end: end * 1000, outcome: Outcome::Ok, note }
    }

    /// Set from 0 to 100, so it ends between 1000 and 1100; and perhaps once more.
    fn verdict(again: Option<(u64, u64)>, start: u64, end: u64) -> Option<bool> {
        let (first, look) = (call(0, 100, true), call(start, end, false));
        let again = again.map(|(start, end)| call(start, end, true));
        let calls: Vec<_> = [Some(&first), again.as_ref(), Some(&look)].into_iter().flatten().collect();
        certain(&calls, &look, 10_000).map(|certain| matches!(certain, Certain::Alive { .. }))
    }

    #[test]
    fn only_what_is_certain_convicts() {
        assert_eq!(verdict(None, 101, 900), Some(true));
        assert_eq!(verdict(None, 100, 900), None, "in the same microsecond");
        assert_eq!(verdict(None, 101, 999), None, "the clocks may differ by that");
        assert_eq!(verdict(None, 900, 1050), None, "it began in time, and was answered later");
        assert_eq!(verdict(None, 1105, 1200), None, "two resolutions are granted");
        assert_eq!(verdict(None, 1111, 1200), Some(false));
        assert_eq!(verdict(None, 50, 90), None, "before the first was answered");
    }

    #[test]
    fn the_last_call_counts_unless_it_is_under_way() {
        assert_eq!(verdict(Some((800, 900)), 1200, 1700), Some(true));
        assert_eq!(verdict(Some((800, 900)), 1911, 1912), Some(false));
        assert_eq!(verdict(Some((1150, 1250)), 1200, 1300), None);
    }
}
