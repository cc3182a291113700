//! A disk that fails at every single call, and one that loses power.

use crate::{
    Judgement,
    disk::{Disk, Fault, Loss},
    scenario::{Check, Lab},
    trouble::{Trial, Trouble},
};
use bytes::Bytes;
use session_core::{
    Acquired, Deleted, Durability, Effect, Error, ErrorKind, Grant, Inserted, Loaded, LockingStore, Put,
    Replaced, Result, StorageKey, SystemRandom, Token, Touched, Version,
};
use std::{sync::Arc, time::Duration};

/// More calls than any verb makes.
const MOST_CALLS: usize = 500;
const LONG: Duration = Duration::from_secs(600);
const LONGER: Duration = Duration::from_secs(3600);

/// As long as a page, so that a part of it is a part.
fn old() -> Bytes {
    vec![b'o'; 6000].into()
}

fn new() -> Bytes {
    vec![b'n'; 5000].into()
}

fn put(data: Bytes) -> Put {
    Put::new(data, LONG)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verb {
    Insert,
    Replace,
    ReplaceAndRelease,
    Touch,
    Delete,
    DeleteAndRelease,
}

const VERBS: [Verb; 6] =
    [Verb::Insert, Verb::Replace, Verb::ReplaceAndRelease, Verb::Touch, Verb::Delete, Verb::DeleteAndRelease];

/// One record and what is done to it.
struct Victim {
    verb: Verb,
    key: StorageKey,
    version: Version,
    grant: Option<Grant>,
}

fn unexpected(what: &str, answer: impl std::fmt::Debug) -> Trouble {
    Trouble::wrong(format!("on a sound disk, {what} answered {answer:?}"))
}

impl Victim {
    async fn new(lab: &Lab, store: &Arc<dyn LockingStore>, verb: Verb) -> Trial<Self> {
        let (key, mut grant) = (lab.fresh_id()?.key()?, None);
        let mut version = Version::random(&SystemRandom)?;
        if verb != Verb::Insert {
            version = match store.insert(&key, &put(old())).await? {
                Inserted::Created(version) => version,
                other @ Inserted::Exists => return Err(unexpected("insert", other)),
            };
        }
        if matches!(verb, Verb::ReplaceAndRelease | Verb::DeleteAndRelease) {
            let token = Token::random(&SystemRandom)?;
            grant = match store.acquire_and_load(&key, token, LONG, Duration::ZERO).await? {
                Loaded::Granted(grant, _) => Some(grant),
                other => return Err(unexpected("acquire_and_load", other)),
            };
        }
        Ok(Self { verb, key, version, grant })
    }

    /// Does it. An outcome that is none of success is an error of the store's.
    async fn run(&self, store: &Arc<dyn LockingStore>) -> Result<()> {
        let Self { verb, key, version, grant } = self;
        let done = match (verb, grant) {
            (Verb::Insert, _) => matches!(store.insert(key, &put(new())).await?, Inserted::Created(_)),
            (Verb::Touch, _) => store.touch(key, *version, LONGER).await? == Touched::Extended,
            (Verb::ReplaceAndRelease, Some(grant)) => {
                matches!(store.replace_and_release(grant, *version, &put(new())).await?, Replaced::Done(_))
            }
            (Verb::DeleteAndRelease, Some(grant)) => {
                matches!(store.delete_and_release(grant).await?, Deleted::Removed(_))
            }
            (Verb::Delete | Verb::DeleteAndRelease, _) => {
                matches!(store.delete(key).await?, Deleted::Removed(_))
            }
            (Verb::Replace | Verb::ReplaceAndRelease, _) => {
                matches!(store.replace(key, *version, &put(new())).await?, Replaced::Done(_))
            }
        };
        if done {
            Ok(())
        } else {
            Err(Error::new(ErrorKind::Backend, "disk").with_context("refused for no reason"))
        }
    }

    /// Whether it happened, by what is there.
    async fn happened(&self, store: &Arc<dyn LockingStore>) -> Result<bool, String> {
        let stored = store.load(&self.key).await.map_err(|error| format!("it cannot be read: {error:?}"))?;
        let removes = matches!(self.verb, Verb::Delete | Verb::DeleteAndRelease);
        match stored {
            None if removes => Ok(true),
            None if self.verb == Verb::Insert => Ok(false),
            Some(stored) if self.verb == Verb::Touch && stored.data == old() => Ok(stored.ttl > LONG),
            Some(stored) if self.verb != Verb::Insert && stored.data == old() => Ok(false),
            Some(stored) if !removes && self.verb != Verb::Touch && stored.data == new() => Ok(true),
            None => Err("the record is gone".to_owned()),
            Some(stored) => Err(format!("a mixture, {} bytes", stored.data.len())),
        }
    }
}

pub(super) struct DiskFullAndTornWrite;

impl Check for DiskFullAndTornWrite {
    async fn check(lab: &Lab) -> Trial<Judgement> {
        let mut judgement = Judgement::default();
        for disk in lab.disks() {
            let name = disk.name();
            let (mut calls, mut lost, mut faults) = (0, 0, Vec::new());
            // The loss of power first: each copies what is on the disk.
            for loss in [Loss::Unsynced, Loss::UnsyncedData] {
                lost += power(lab, &**disk, loss, &mut faults).await?;
                calls += torn(lab, &**disk, loss, &mut faults).await?;
            }
            for verb in VERBS {
                for fault in [Fault::Full, Fault::Once, Fault::ForGood] {
                    calls += each_call(lab, &**disk, verb, fault, &mut faults).await?;
                }
            }
            judgement = judgement.acknowledged(calls as u64);
            for fault in faults {
                judgement = judgement.fault(format!("{name}: {fault}"));
            }
            judgement = judgement.note(format!(
                "{name}: {calls} calls failed; of 8 writes {lost} went with the power, unsynced"
            ));
        }
        Ok(judgement)
    }
}

/// Each call of a verb fails in turn. How many there are.
async fn each_call(
    lab: &Lab,
    disk: &dyn Disk,
    verb: Verb,
    fault: Fault,
    faults: &mut Vec<String>,
) -> Trial<usize> {
    let (store, other) = (disk.open()?, disk.open()?);
    for nth in 1..=MOST_CALLS {
        let victim = Victim::new(lab, &store, verb).await?;
        disk.fail(nth, fault);
        let result = victim.run(&store).await;
        if !disk.heal() {
            result?;
            return Ok(nth - 1);
        }
        let what = format!("{verb:?}, {fault:?} at call {nth}, told {result:?}");
        // As others see it, and the same store, which has not been opened again.
        let happened = match (victim.happened(&other).await, victim.happened(&store).await) {
            (Ok(others), Ok(own)) if others == own => own,
            (others, own) => {
                faults.push(format!("{what}: {others:?}, and by the same store {own:?}"));
                continue;
            }
        };
        let false_word = match &result {
            Ok(()) => !happened,
            Err(error) => error.effect() == Effect::None && happened,
        };
        if false_word {
            faults.push(format!("{what}: it {}", if happened { "happened" } else { "did not happen" }));
        }
        if result.is_err()
            && !happened
            && let Err(error) = victim.run(&store).await
        {
            faults.push(format!("{what}; and again, on a sound disk: {error:?}"));
        }
    }
    Err(Trouble::unproven(format!("{verb:?} makes more than {MOST_CALLS} calls")))
}

/// What was acknowledged, after the power went: how many of four writes are lost.
async fn power(lab: &Lab, disk: &dyn Disk, loss: Loss, faults: &mut Vec<String>) -> Trial<usize> {
    let store = disk.open()?;
    let durable = store.capabilities().durability == Durability::PowerLoss;
    let mut victims = Vec::new();
    for verb in [Verb::Insert, Verb::Replace, Verb::Delete, Verb::ReplaceAndRelease] {
        let victim = Victim::new(lab, &store, verb).await?;
        victim.run(&store).await?;
        victims.push(victim);
    }
    // And one whose lock is held meanwhile.
    let locked = Victim::new(lab, &store, Verb::ReplaceAndRelease).await?;
    drop(store);
    disk.lose_power(loss)?;
    let store = disk.open()?;
    let mut lost = 0;
    match store.acquire(&locked.key, Token::random(&SystemRandom)?, LONG, Duration::ZERO).await {
        Ok(Acquired::Granted(_) | Acquired::Held(_)) => {}
        Err(error) => faults.push(format!("a lock was held, the power went ({loss:?}): {error:?}")),
    }
    for victim in victims {
        let found = after(&victim, &store).await;
        lost += usize::from(found != Ok(true));
        if !(found == Ok(true) || !durable && found.is_ok()) {
            faults.push(format!("{:?} was acknowledged, the power went ({loss:?}): {found:?}", victim.verb));
        }
    }
    Ok(lost)
}

/// A write that stops at each call in turn, because the power goes. How many calls there are.
async fn torn(lab: &Lab, disk: &dyn Disk, loss: Loss, faults: &mut Vec<String>) -> Trial<usize> {
    for nth in 1..=MOST_CALLS {
        let store = disk.open()?;
        let durable = store.capabilities().durability == Durability::PowerLoss;
        let victim = Victim::new(lab, &store, Verb::Replace).await?;
        disk.fail(nth, Fault::ForGood);
        let result = victim.run(&store).await;
        let reached = disk.heal();
        drop(store);
        disk.lose_power(loss)?;
        let found = after(&victim, &disk.open()?).await;
        let whole = victim.happened(&disk.open()?).await;
        let kept =
            if durable { whole.is_ok() && (result.is_err() || whole == Ok(true)) } else { found.is_ok() };
        if !kept {
            faults.push(format!("the power went at call {nth} ({loss:?}), told {result:?}: {whole:?}"));
        }
        if !reached {
            return Ok(nth - 1);
        }
    }
    Err(Trouble::unproven(format!("a write makes more than {MOST_CALLS} calls")))
}

/// What is there after a loss of power: the write, or nothing wrong: an older record, none, or an error that
/// says that it is damaged.
async fn after(victim: &Victim, store: &Arc<dyn LockingStore>) -> Result<bool, String> {
    match store.load(&victim.key).await {
        Err(error) if error.kind() == ErrorKind::Damaged => Ok(false),
        Err(error) => Err(format!("it cannot be read: {error:?}")),
        Ok(None) => Ok(matches!(victim.verb, Verb::Delete)),
        Ok(Some(stored)) if stored.data == new() => Ok(true),
        Ok(Some(stored)) if stored.data == old() => Ok(false),
        Ok(Some(stored)) => Err(format!("a mixture, {} bytes", stored.data.len())),
    }
}
