//! Moving the expiry, and nothing else.

use super::super::late;
use crate::{
    Judgement,
    scenario::{Batch, Findings, Lab, Script, Task},
    trouble::{Trial, Trouble},
};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use session_core::{
    Error, ErrorKind, Inserted, LockingStore, PrincipalKey, Put, Replaced, Result, StorageKey, Stored,
    Touched,
};
use std::time::Duration;

const TTL: Duration = Duration::from_secs(600);

/// Half of the operations count, half touch. A touch that puts back what it has read takes a count away.
pub(super) struct TouchKeepsDataAndVersion;

#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Did {
    Count,
    /// With what was wrong about it.
    Touch(Option<String>),
}

fn put(count: u64) -> Put {
    Put::new(Bytes::from(count.to_string()), TTL).principal(Some(PrincipalKey::of("touched")))
}

fn counted(stored: &Stored) -> Result<u64> {
    let count = std::str::from_utf8(&stored.data).ok().and_then(|text| text.parse().ok());
    count.ok_or_else(|| Error::new(ErrorKind::Damaged, "load").with_context("not what was stored"))
}

async fn load(store: &dyn LockingStore, key: &StorageKey) -> Result<Stored> {
    store.load(key).await?.ok_or_else(|| Error::new(ErrorKind::Gone, "load"))
}

async fn count(task: &Task<Did>, key: &StorageKey) -> Result<()> {
    let store = task.store();
    loop {
        let stored = load(store, key).await?;
        match store.replace(key, stored.version, &put(counted(&stored)? + 1)).await? {
            Replaced::Done(_) => return Ok(()),
            Replaced::Missing => return Err(Error::new(ErrorKind::Gone, "replace")),
            Replaced::Conflict(_) | Replaced::NotHolder(_) => task.think().await,
        }
    }
}

async fn touch(task: &Task<Did>, key: &StorageKey) -> Result<Option<String>> {
    let before = load(task.store(), key).await?;
    task.think().await;
    if task.store().touch(key, before.version, TTL).await? == Touched::Missing {
        return Ok(Some("a touch of a living record: Missing".to_owned()));
    }
    let after = load(task.store(), key).await?;
    Ok((after.version == before.version).then(|| differs(&before, &after)).flatten())
}

/// What a touch has changed that it must not.
fn differs(before: &Stored, after: &Stored) -> Option<String> {
    if after.version != before.version {
        Some("a touch changed the version".to_owned())
    } else if after.data != before.data {
        Some(format!("a touch changed the data from {:?} to {:?}", before.data, after.data))
    } else if after.principal != before.principal {
        Some("a touch changed the principal".to_owned())
    } else {
        None
    }
}

impl Script for TouchKeepsDataAndVersion {
    type Plan = Vec<Batch>;
    type Note = Did;

    async fn setup(lab: &Lab) -> Trial<Vec<Batch>> {
        let batches = lab.empty_batches()?;
        for batch in &batches {
            let Inserted::Created(_) = lab.store().insert(&batch.id.key()?, &put(0)).await? else {
                return Err(Trouble::wrong("a fresh id exists already"));
            };
        }
        Ok(batches)
    }

    async fn work(task: &Task<Did>, plan: &Vec<Batch>) -> Trial {
        let mut turns = task.turns(plan);
        while let Some(turn) = turns.next().await? {
            let key = turn.id.key()?;
            if task.draw(0..2) == 0 {
                task.attempt(turn.session, Did::Count, count(task, &key)).await;
            } else {
                let begun = task.begin(turn.session);
                match touch(task, &key).await {
                    Ok(wrong) => begun.end(Did::Touch(wrong), &Ok(())),
                    Err(error) => begun.end(Did::Touch(None), &Err::<(), _>(error)),
                }
            }
        }
        Ok(())
    }

    async fn judge(lab: &Lab, plan: &Vec<Batch>, found: &Findings<Did>) -> Trial<Judgement> {
        let mut judgement = found.judgement();
        for (session, batch) in plan.iter().enumerate() {
            let of = found.of_session(session).filter(|one| one.outcome.is_ok());
            let counts = of.filter(|one| matches!(one.note, Did::Count)).count() as u64;
            let unknown = found.count(session).unknown;
            let stored = counted(&load(lab.store(), &batch.id.key()?).await?)?;
            judgement = judgement.compare(&format!("session {session}"), counts, unknown, stored);
        }
        for one in &found.operations {
            if let Did::Touch(Some(wrong)) = &one.note {
                judgement = judgement.fault(format!("session {}: {wrong}", one.session));
            }
            judgement = judgement.require(one.outcome.is_ok(), || {
                format!("session {}: {:?}: {:?}", one.session, one.note, one.outcome)
            });
        }
        match plan.first() {
            Some(batch) => quietly(lab, &batch.id.key()?, judgement).await,
            None => Ok(judgement),
        }
    }
}

/// The same with nobody in the way, where each answer is certain.
async fn quietly(lab: &Lab, key: &StorageKey, mut judgement: Judgement) -> Trial<Judgement> {
    let (store, grace) = (lab.store(), late(lab.capabilities().ttl_resolution));
    let first = load(store, key).await?;
    let touched = store.touch(key, first.version, 2 * TTL).await?;
    let second = load(store, key).await?;
    judgement = judgement
        .require(touched == Touched::Extended, || {
            format!("a touch of the version that is there: {touched:?}")
        })
        .require(second.ttl > TTL && second.ttl <= 2 * TTL + grace, || {
            format!("a touch for {:?}, and {:?} are left", 2 * TTL, second.ttl)
        });
    if let Some(wrong) = differs(&first, &second) {
        judgement = judgement.fault(wrong);
    }

    // Of a version that is no longer there: a session that was rotated meanwhile, say.
    let Replaced::Done(version) = store.replace(key, second.version, &put(7)).await? else {
        return Ok(judgement.fault("a write of the version that a touch left there was refused"));
    };
    let touched = store.touch(key, first.version, 3 * TTL).await?;
    let third = load(store, key).await?;
    judgement = judgement
        .require(touched == Touched::Conflict, || format!("a touch of a former version: {touched:?}"))
        .require(third.ttl <= TTL + grace, || {
            format!("a touch of a former version left it {:?} and not {TTL:?}", third.ttl)
        })
        .require(third.version == version && third.data == "7", || {
            "a touch of a former version changed the record".to_owned()
        });

    let _removed = store.delete(key).await?;
    let touched = store.touch(key, version, TTL).await?;
    let left = store.load(key).await?;
    Ok(judgement.require(touched == Touched::Missing && left.is_none(), || {
        format!("a touch of what was deleted: {touched:?}, and then there is {left:?}")
    }))
}
