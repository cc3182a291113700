//! Records in which a byte was changed behind the back of everybody.

use super::LONG;
use crate::{
    Judgement,
    scenario::{Check, Lab},
    system::{Id, Values, values},
    trouble::{Trial, Trouble},
};
use bytes::Bytes;
use session_core::{ErrorKind, Put, Replaced, Result, Stored, Version};
use std::{fmt::Debug, time::Duration};
use tokio::time::{Instant, sleep};

/// How long a lock may still be held by a request that has ended.
const FREED: Duration = Duration::from_secs(5);

pub(super) struct DamagedRecordIsAnError;

/// The bytes, each with one bit or all bits changed; and too few or too many of them.
fn damages(data: &Bytes) -> impl Iterator<Item = (String, Bytes)> + '_ {
    let changed = (0..data.len()).map(|at| {
        let by = [0x01, 0x80, 0xff][at % 3];
        let mut damaged = data.to_vec();
        damaged[at] ^= by;
        (format!("byte {at} of {}, changed by {by:#x}", data.len()), damaged.into())
    });
    let torn = [0, 1, data.len() / 2, data.len() - 1]
        .map(|length| (format!("torn after {length} of {} bytes", data.len()), data.slice(..length)));
    let longer = (format!("{} bytes and one more", data.len()), [&data[..], b"\0"].concat().into());
    changed.chain(torn).chain([longer])
}

/// What is wrong with an answer about a damaged record, if anything.
fn wrong<T: Debug>(answer: &Result<Option<T>>) -> Option<String> {
    match answer {
        Err(error) if error.kind() == ErrorKind::Damaged => None,
        Err(error) => Some(format!("an error of another kind, {error:?}")),
        Ok(None) => Some("it was taken for no session".to_owned()),
        Ok(Some(_)) => Some("it was served as if it were whole".to_owned()),
    }
}

/// Puts raw bytes in the place of a record.
async fn put(lab: &Lab, id: &Id, version: Version, data: &Bytes) -> Trial<Version> {
    let (key, deadline) = (id.key()?, Instant::now() + FREED);
    loop {
        match lab.store().replace(&key, version, &Put::new(data.clone(), LONG)).await? {
            Replaced::Done(version) => return Ok(version),
            // A request that has ended with an error frees its lock in the background.
            Replaced::NotHolder(_) if Instant::now() < deadline => sleep(Duration::from_millis(1)).await,
            Replaced::NotHolder(_) => {
                return Err(Trouble::wrong("the lock of a request that failed is held on"));
            }
            other => return Err(Trouble::wrong(format!("the record is no longer what was put: {other:?}"))),
        }
    }
}

async fn stored(lab: &Lab, id: &Id) -> Trial<Stored> {
    lab.store().load(&id.key()?).await?.ok_or_else(|| Trouble::wrong("the record is gone"))
}

impl Check for DamagedRecordIsAnError {
    async fn check(lab: &Lab) -> Trial<Judgement> {
        let system = lab.system();
        let sessions: [Values; 2] =
            [values([("user", "somebody".into())]), values([("text", "long ".repeat(400).into())])];
        let (mut judgement, mut tried) = (Judgement::default(), 0);
        for whole in sessions {
            let id = system.create(&whole).await?;
            let Stored { data, mut version, .. } = stored(lab, &id).await?;
            // What compresses is short; where nothing does, a part of the long one is enough.
            for (what, damaged) in damages(&data).step_by(data.len().div_ceil(200)) {
                version = put(lab, &id, version, &damaged).await?;
                tried += 1;
                let answers =
                    [("read", wrong(&system.read(&id).await)), ("opened", wrong(&system.open(&id).await))];
                for (how, wrong) in answers {
                    if let Some(wrong) = wrong {
                        judgement = judgement.fault(format!("{what}; {how}: {wrong}"));
                    }
                }
                let now = stored(lab, &id).await?;
                judgement = judgement.require(now.version == version && now.data == damaged, || {
                    format!("{what}: the record did not stay as it was")
                });
            }
            // The last word is no error of ours: whole again, it is read again.
            put(lab, &id, version, &data).await?;
            let read = system.read(&id).await?;
            judgement = judgement
                .acknowledged(1)
                .require(read.as_ref() == Some(&whole), || "put right again, it is another one".to_owned());
        }
        Ok(judgement.note(format!("{tried} damages")))
    }
}
