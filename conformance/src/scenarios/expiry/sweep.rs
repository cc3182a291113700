//! Sweeping among the living.

use super::super::late;
use crate::{
    Judgement,
    scenario::{Findings, Lab, Script, Task},
    system::Id,
    trouble::{Trial, Trouble},
};
use bytes::Bytes;
use serde_json::Value;
use session_core::{
    Acquired, Error, ErrorKind, Grant, Inserted, PrincipalKey, Put, Released, Replaced, Result, StorageKey,
    Touched, Version,
};
use std::{
    collections::HashSet,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    time::Duration,
};
use tokio::time::sleep;

const LONG: Duration = Duration::from_secs(600);
const SHORT: Duration = Duration::from_millis(1);
const USER: &str = "swept";

/// One task of each process sweeps without end while all work: they write and touch records that live, and
/// they put new ones where an expired one was, which a sweep that has listed that one may take for it.
pub(super) struct SweepSparesTheLiving;

/// The records of each task: of each a part is written and touched, a part replaces expired ones, and a part
/// only expires.
const LIVING: usize = 4;
const RENEWED: usize = 30;
const DYING: usize = 20;
const EACH: usize = LIVING + RENEWED + DYING;

fn put(data: &str, ttl: Duration) -> Put {
    Put::new(Bytes::copy_from_slice(data.as_bytes()), ttl).principal(Some(PrincipalKey::of(USER)))
}

fn gone(what: &'static str) -> Error {
    Error::new(ErrorKind::Gone, what)
}

/// What is in a record from now on.
type Note = String;

struct Worker<'a> {
    task: &'a Task<Note>,
    plan: &'a [Id],
}

impl Worker<'_> {
    fn record(&self, number: usize) -> usize {
        EACH * self.task.rank() + number
    }

    fn key(&self, number: usize) -> Trial<StorageKey> {
        self.plan[self.record(number)].key()
    }

    async fn insert(&self, key: &StorageKey, put: &Put) -> Result<Version> {
        match self.task.store().insert(key, put).await? {
            Inserted::Created(version) => Ok(version),
            Inserted::Exists => {
                Err(Error::new(ErrorKind::Backend, "insert").with_context("it exists, though it has expired"))
            }
        }
    }

    /// Writes a living record under its lock, and touches it.
    async fn write(&self, key: &StorageKey, version: Version, data: &str) -> Result<Version> {
        let store = self.task.store();
        let (token, wait) = (self.task.token()?, Duration::from_secs(5));
        let Acquired::Granted(grant) = store.acquire(key, token, LONG, wait).await? else {
            return Err(Error::new(ErrorKind::Busy, "acquire"));
        };
        let Replaced::Done(version) = store.replace_and_release(&grant, version, &put(data, LONG)).await?
        else {
            return Err(gone("replace_and_release"));
        };
        match store.touch(key, version, LONG).await? {
            Touched::Extended => Ok(version),
            Touched::Missing | Touched::Conflict => Err(gone("touch")),
        }
    }

    async fn work(&self) -> Trial {
        let task = self.task;
        for number in LIVING + RENEWED..EACH {
            self.insert(&self.key(number)?, &put("dying", SHORT)).await?;
        }
        // A lock that is held all the while: no sweep takes it for one that is left behind.
        let held = self.key(0)?;
        let mut living = Vec::new();
        for number in 0..LIVING {
            let (key, record) = (self.key(number)?, self.record(number));
            living.push(task.attempt(record, "0".to_owned(), self.insert(&key, &put("0", LONG))).await);
        }
        let Acquired::Granted(grant) =
            task.store().acquire(&held, task.token()?, LONG, Duration::ZERO).await?
        else {
            return Err(Trouble::wrong("the lock of a new record is held"));
        };
        let resolution = task.store().capabilities().ttl_resolution;
        for round in 0..RENEWED {
            let (key, record) = (self.key(LIVING + round)?, self.record(LIVING + round));
            self.insert(&key, &put("expired", SHORT)).await?;
            sleep(SHORT + late(resolution) + Duration::from_millis(2)).await;
            task.attempt(record, "new".to_owned(), self.insert(&key, &put("new", LONG))).await;

            let number = 1 + round % (LIVING - 1);
            let Some(version) = living[number] else { continue };
            let (key, data) = (self.key(number)?, round.to_string());
            let written = self.write(&key, version, &data);
            living[number] = task.attempt(self.record(number), data.clone(), written).await;
        }
        let release = self.release(&grant);
        task.attempt(self.record(0), "0".to_owned(), release).await;
        Ok(())
    }

    async fn release(&self, grant: &Grant) -> Result<()> {
        match self.task.store().release(grant).await? {
            Released::Freed => Ok(()),
            Released::Lost => Err(Error::new(ErrorKind::LockLost, "release").with_context("swept away")),
        }
    }

    /// Sweeps until the work is done. How many were removed.
    async fn sweep(&self, done: &AtomicBool) -> Trial<usize> {
        let mut removed = 0;
        while !done.load(Relaxed) {
            removed += sweep(self.task.store().sweeper(), self.task.draw(1..40)).await?.0;
            self.task.think().await;
        }
        Ok(removed)
    }
}

async fn sweep(sweeper: Option<&dyn session_core::SessionSweeper>, limit: u64) -> Trial<(usize, bool)> {
    let sweeper = sweeper.ok_or_else(|| Trouble::unproven("there is nothing to sweep with"))?;
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    let swept = sweeper.sweep(limit).await?;
    if swept.removed > limit {
        return Err(Trouble::wrong(format!("a sweep of at most {limit} removed {}", swept.removed)));
    }
    Ok((swept.removed, swept.more))
}

impl Script for SweepSparesTheLiving {
    type Plan = Vec<Id>;
    type Note = Note;

    async fn setup(lab: &Lab) -> Trial<Vec<Id>> {
        (0..EACH * lab.ranks()).map(|_| lab.fresh_id()).collect()
    }

    async fn work(task: &Task<Note>, plan: &Vec<Id>) -> Trial {
        let worker = Worker { task, plan };
        if !task.rank().is_multiple_of(task.tasks()) {
            return worker.work().await;
        }
        let done = AtomicBool::new(false);
        let working = async {
            let worked = worker.work().await;
            done.store(true, Relaxed);
            worked
        };
        let (removed, ()) = tokio::try_join!(worker.sweep(&done), working)?;
        task.signal(format!("swept/{}", task.process()), removed).await
    }

    async fn judge(lab: &Lab, plan: &Vec<Id>, found: &Findings<Note>) -> Trial<Judgement> {
        let mut judgement = found.judgement();
        let mut alive = HashSet::new();
        for (record, id) in plan.iter().enumerate().filter(|(record, _)| record % EACH < LIVING + RENEWED) {
            let key = id.key()?;
            for failed in found.of_session(record).filter(|one| !one.outcome.is_ok()) {
                judgement = judgement.fault(format!("record {record}, which lives: {:?}", failed.outcome));
            }
            let Some(last) = found.of_session(record).filter(|one| one.outcome.is_ok()).last() else {
                continue;
            };
            match lab.store().load(&key).await? {
                Some(stored) if stored.data == last.note.as_bytes() => drop(alive.insert(key)),
                Some(stored) => {
                    judgement = judgement
                        .lost(1, format!("record {record}: found {:?} and not {:?}", stored.data, last.note));
                }
                None => judgement = judgement.lost(1, format!("record {record} was swept, and lives")),
            }
        }
        judgement = index_names(lab, &alive, judgement).await?;

        let meanwhile: u64 = found.signals.values().filter_map(Value::as_u64).sum();
        let mut removed = meanwhile;
        loop {
            let (here, more) = sweep(lab.store().sweeper(), 50).await?;
            removed += here as u64;
            if !more {
                break;
            }
        }
        let ranks = lab.ranks() as u64;
        let (least, most) = (DYING as u64 * ranks, (DYING + RENEWED) as u64 * ranks);
        let (again, _) = sweep(lab.store().sweeper(), 50).await?;
        judgement = judgement
            .require((least..=most).contains(&removed), || {
                format!(
                    "{removed} were removed; {least} have expired for good, and {} more for a while",
                    most - least
                )
            })
            .require(again == 0, || format!("after the last sweep {again} more were found"));
        for (record, id) in plan.iter().enumerate().filter(|(record, _)| record % EACH >= LIVING + RENEWED) {
            let there = lab.store().load(&id.key()?).await?.is_some();
            judgement = judgement.require(!there, || format!("record {record} has expired, and is there"));
        }
        if meanwhile == 0 {
            return Ok(judgement.unproven("nothing was swept while the living were written"));
        }
        Ok(judgement.note(format!("{meanwhile} of {removed} were swept while the living were written")))
    }
}

/// The index may name too many, never too few.
async fn index_names(lab: &Lab, alive: &HashSet<StorageKey>, judgement: Judgement) -> Trial<Judgement> {
    let Some(index) = lab.store().index() else { return Ok(judgement) };
    let (mut named, mut after) = (HashSet::new(), None);
    loop {
        let page = index.keys_of(&PrincipalKey::of(USER), after, 100).await?;
        named.extend(page.keys);
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    let missing = alive.difference(&named).count();
    Ok(judgement.require(missing == 0, || {
        format!("the index of users misses {missing} of {} sessions that live", alive.len())
    }))
}
