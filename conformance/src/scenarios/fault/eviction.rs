//! A store that has more to keep than it has room for.

use crate::{
    Judgement,
    scenario::{Check, Lab},
    trouble::{Trial, Trouble},
};
use bytes::Bytes;
use session_core::{
    Deleted, Effect, Inserted, Loaded, LockingStore, Put, Replaced, StorageKey, Stored, SystemRandom, Token,
    Touched, Version,
};
use std::{sync::Arc, time::Duration};

const RECORD: usize = 16 << 10;
/// What surely is more than a server with little memory can keep.
const MOST: usize = (96 << 20) / RECORD;
/// How often it is looked whether something has gone.
const LOOK: usize = 64;
/// How many of the missing are tried with every verb.
const TRIED: usize = 50;
const LONG: Duration = Duration::from_secs(600);

pub(super) struct Eviction;

struct Record {
    key: StorageKey,
    version: Version,
    data: Bytes,
}

fn data_of(key: &StorageKey) -> Bytes {
    key.as_bytes().iter().copied().cycle().take(RECORD).collect()
}

impl Check for Eviction {
    async fn check(lab: &Lab) -> Trial<Judgement> {
        let (store, may_evict) = (lab.store(), lab.capabilities().may_evict);
        let (records, refused) = fill(lab).await?;
        let mut judgement = Judgement::default().acknowledged(records.len() as u64);
        let mut missing = Vec::new();
        for record in &records {
            match store.load(&record.key).await? {
                None => missing.push(record),
                Some(Stored { data, version, .. }) => {
                    judgement = judgement.require(data == record.data && version == record.version, || {
                        format!("a record is another one now, of {} bytes", data.len())
                    });
                }
            }
        }
        for record in missing.iter().take(TRIED) {
            if let Some(wrong) = revived(store, record).await? {
                judgement = judgement.fault(format!("an evicted record: {wrong}"));
            }
        }
        let evicted = missing.len();
        let full = refused.as_ref().map_or_else(String::new, |why| format!("; then refused: {why}"));
        judgement = judgement.note(format!("{evicted} of {} records were evicted{full}", records.len()));
        Ok(match (may_evict, evicted, refused) {
            (false, 1.., _) => judgement.lost(evicted as u64, "it declares that it does not evict"),
            (true, 0, _) | (false, 0, None) => judgement.unproven("it was never short of memory"),
            _ => judgement,
        })
    }
}

/// Stores records until one is gone or refused: what was acknowledged, and how the last one was refused.
async fn fill(lab: &Lab) -> Trial<(Vec<Record>, Option<String>)> {
    let store = lab.store();
    let mut records: Vec<Record> = Vec::new();
    let mut oldest = 0;
    while records.len() < MOST {
        let key = lab.fresh_id()?.key()?;
        let data = data_of(&key);
        match store.insert(&key, &Put::new(data.clone(), LONG)).await {
            Ok(Inserted::Created(version)) => records.push(Record { key, version, data }),
            Ok(Inserted::Exists) => return Err(Trouble::wrong("a fresh id exists already")),
            Err(error) if error.effect() == Effect::None => return Ok((records, Some(error.to_string()))),
            Err(error) => return Err(Trouble::wrong(format!("out of memory, it says: {error:?}"))),
        }
        // The oldest goes first, or some at random.
        if records.len().is_multiple_of(LOOK) {
            let from = records.len() - LOOK;
            for record in records[oldest..].iter().take(1).chain(records[from / 2..].iter().take(4)) {
                if store.load(&record.key).await?.is_none() {
                    oldest = records.len();
                }
            }
            if oldest > 0 {
                return Ok((records, None));
            }
        }
    }
    Ok((records, None))
}

/// What is wrong with how a record that is gone is treated: nothing may bring it back.
async fn revived(store: &Arc<dyn LockingStore>, record: &Record) -> Trial<Option<String>> {
    let Record { key, version, data } = record;
    let put = Put::new(data.clone(), LONG);
    let (token, no_wait) = (Token::random(&SystemRandom)?, Duration::ZERO);
    let replaced = store.replace(key, *version, &put).await?;
    let touched = store.touch(key, *version, LONG).await?;
    let locked = store.acquire_and_load(key, token, LONG, no_wait).await?;
    let deleted = store.delete(key).await?;
    Ok(match (replaced, touched, locked, deleted) {
        (Replaced::Missing, Touched::Missing, Loaded::Missing, Deleted::Missing) => None,
        // Not the records, which are long.
        (replaced, touched, locked, deleted) => Some(format!(
            "not Missing for every verb: replace {}, touch {touched:?}, lock and load {}, delete {}",
            matches!(replaced, Replaced::Missing),
            matches!(locked, Loaded::Missing),
            matches!(deleted, Deleted::Missing),
        )),
    })
}
