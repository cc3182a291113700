//! A little that becomes a lot.

use super::LONG;
use crate::{
    Judgement, Strategy,
    scenario::{Check, Lab},
    trouble::{Trial, Trouble},
};
use bytes::Bytes;
use flate2::{
    Compression,
    write::{DeflateEncoder, GzEncoder, ZlibEncoder},
};
use session_core::{Access, ErrorKind, Inserted, Key, Put, Sessions};
use std::{
    io::{self, Write as _},
    sync::Arc,
};

/// What may come out, here: small, so that the bomb can be.
const LIMIT: usize = 256 << 10;
const BOMB: usize = 4 << 20;

const TEXT: Key<String> = Key::new("text");

pub(super) struct InflationIsBounded;

impl Check for InflationIsBounded {
    async fn check(lab: &Lab) -> Trial<Judgement> {
        if lab.strategy() == Strategy::Driver { by_the_driver(lab).await } else { by_the_product(lab).await }
    }
}

/// A record written under a generous limit is read under a strict one.
async fn by_the_product(lab: &Lab) -> Trial<Judgement> {
    let with = |limit| Sessions::builder(Arc::clone(lab.store())).max_inflated(limit).build();
    let (generous, strict) = (with(2 * BOMB)?, with(LIMIT)?);
    let session = |length| {
        let generous = generous.clone();
        async move {
            let session = generous.create();
            session.insert(TEXT, &" ".repeat(length))?;
            session.commit().await?;
            session.id().ok_or_else(|| Trouble::wrong("a session that was stored has no id"))
        }
    };
    let (small, bomb) = (session(LIMIT / 2).await?, session(BOMB).await?);
    let access = if lab.strategy() == Strategy::Exclusive { Access::Exclusive } else { Access::Write };

    let before = lab.store().load(&bomb.storage_key()).await?;
    let answers = [
        ("read", strict.read(&bomb).await.map(|found| found.is_some())),
        ("opened", strict.open(&bomb, access).await.map(|found| found.is_some())),
        ("changed", strict.update(&bomb, |session| session.clear()).await.map(|()| true)),
    ];
    let mut judgement = Judgement::default().acknowledged(1);
    for (how, answer) in answers {
        let refused = matches!(&answer, Err(error) if error.kind() == ErrorKind::TooLarge);
        judgement = judgement.require(refused, || format!("{how}, {BOMB} bytes of {LIMIT}: {answer:?}"));
    }
    let after = lab.store().load(&bomb.storage_key()).await?;
    let text = strict.read(&small).await?.map(|session| session.get(TEXT)).transpose()?.flatten();
    let length = before.as_ref().map_or(0, |stored| stored.data.len());
    let stays = before.zip(after).is_some_and(|(before, after)| before.version == after.version);
    Ok(judgement
        .require(stays, || "the bomb is gone or was rewritten".to_owned())
        .require(text.is_some_and(|text| text.len() == LIMIT / 2), || {
            "what is within the limit is not read".to_owned()
        })
        .note(format!("{length} bytes for {BOMB}")))
}

/// A driver stores bytes: what looks compressed to it is not its to inflate.
async fn by_the_driver(lab: &Lab) -> Trial<Judgement> {
    let mut judgement = Judgement::default();
    for (what, bomb) in bombs()? {
        let key = lab.fresh_id()?.key()?;
        let Inserted::Created(_) = lab.store().insert(&key, &Put::new(bomb.clone(), LONG)).await? else {
            return Err(Trouble::wrong("a fresh id exists already"));
        };
        let found = lab.store().load(&key).await?.map(|stored| stored.data);
        let length = found.as_ref().map_or(0, Bytes::len);
        judgement = judgement.acknowledged(1).require(found.as_ref() == Some(&bomb), || {
            format!("{what}: {} bytes were put, and {length} came back", bomb.len())
        });
    }
    Ok(judgement)
}

/// The same zeros in the formats that stores and their clients use.
fn bombs() -> io::Result<[(&'static str, Bytes); 3]> {
    let (zeros, best) = (vec![0; BOMB], Compression::best());
    let mut zlib = ZlibEncoder::new(Vec::new(), best);
    let mut gzip = GzEncoder::new(Vec::new(), best);
    let mut raw = DeflateEncoder::new(Vec::new(), best);
    zlib.write_all(&zeros)?;
    gzip.write_all(&zeros)?;
    raw.write_all(&zeros)?;
    Ok([("zlib", zlib.finish()?.into()), ("gzip", gzip.finish()?.into()), ("deflate", raw.finish()?.into())])
}
