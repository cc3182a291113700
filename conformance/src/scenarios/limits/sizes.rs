//! What is longer than a store or a session may be.

use super::{LONG, counted::counted};
use crate::{
    Judgement, Strategy,
    scenario::{Check, Lab},
    servers::ServerControl,
    system::{Change, System, Systems, values},
    trouble::{Trial, Trouble},
};
use bytes::Bytes;
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use session_core::{
    Effect, Error, ErrorKind, Inserted, Loaded, Put, Released, Replaced, Result, SystemRandom, Token,
};
use std::{fmt::Debug, sync::Arc, time::Duration};

/// The largest value that is tried: a store without a limit of its own would be asked for all memory.
const LARGEST: usize = 256 << 20;

/// A session as stored, by default.
const SESSION: usize = 1 << 20;

pub(super) struct TooLargeIsRefused;

impl Check for TooLargeIsRefused {
    async fn check(lab: &Lab) -> Trial<Judgement> {
        if lab.strategy() == Strategy::Driver { by_the_driver(lab).await } else { by_the_product(lab).await }
    }
}

/// Refused, of the right kind, and without effect; what is wrong, if anything.
fn refused<T: Debug>(what: &str, result: &Result<T>) -> Option<String> {
    match result {
        Err(error) if error.kind() == ErrorKind::TooLarge && error.effect() == Effect::None => None,
        other => Some(format!("{what} was answered with {other:?}")),
    }
}

async fn by_the_driver(lab: &Lab) -> Trial<Judgement> {
    let (store, limit) = (lab.store(), lab.capabilities().max_value);
    if limit >= LARGEST {
        return Ok(Judgement::not_applicable(format!("it takes {limit} bytes: no more than that was tried")));
    }
    let put = |data: &Bytes| Put::new(data.clone(), LONG);
    let (before, long) = (Bytes::from_static(b"before"), Bytes::from(vec![b'x'; limit + 1]));
    let (key, free) = (lab.fresh_id()?.key()?, lab.fresh_id()?.key()?);
    let Inserted::Created(version) = store.insert(&key, &put(&before)).await? else {
        return Err(Trouble::wrong("a fresh id exists already"));
    };
    let mut judgement = Judgement::default().acknowledged(1);
    if let Some(wrong) = refused("replace", &store.replace(&key, version, &put(&long)).await) {
        // Whatever became of the record: it may no longer be there to be locked, kept and written again.
        return Ok(judgement.fault(format!("{} bytes of {limit}: {wrong}", limit + 1)));
    }
    let token = Token::random(&SystemRandom)?;
    let Loaded::Granted(grant, _) = store.acquire_and_load(&key, token, LONG, Duration::ZERO).await? else {
        return Err(Trouble::wrong("the lock of a fresh session is held"));
    };
    // From here on nothing can be sent, where there is power over the server.
    let paused = pause(lab.control()).await?;
    let inserted = store.insert(&free, &put(&long)).await;
    let held = store.replace_and_release(&grant, version, &put(&long)).await;
    resume(paused).await?;

    let refusals = [refused("insert", &inserted), refused("replace_and_release", &held)];
    for wrong in refusals.into_iter().flatten() {
        judgement = judgement.fault(format!("{} bytes of {limit}: {wrong}", limit + 1));
    }
    let stored = store.load(&key).await?;
    let stays = stored.as_ref().is_some_and(|stored| stored.version == version && stored.data == before);
    let released = store.release(&grant).await?;
    let next = store.replace(&key, version, &put(&before)).await?;
    Ok(judgement
        .require(stays, || "after the refusals the old record is another one, or gone".to_owned())
        .require(store.load(&free).await?.is_none(), || "a refused insert has left a record".to_owned())
        .require(released == Released::Freed, || "a refused write has given the lock away".to_owned())
        .require(matches!(next, Replaced::Done(_)), || {
            format!("a write that fits is then answered {next:?}")
        }))
}

/// A server that hangs, so that what is answered all the same was not sent to it.
async fn pause(control: Option<&Arc<dyn ServerControl>>) -> Trial<Option<Arc<dyn ServerControl>>> {
    if let Some(control) = control {
        control.pause().await?;
    }
    Ok(control.cloned())
}

async fn resume(paused: Option<Arc<dyn ServerControl>>) -> Trial {
    if let Some(control) = paused {
        control.resume().await?;
    }
    Ok(())
}

/// Text that hardly compresses: deflated it is three quarters as long.
fn noise(length: usize, seed: u64) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut random = StdRng::seed_from_u64(seed);
    (0..length).map(|_| char::from(DIGITS[random.random_range(0..DIGITS.len())])).collect()
}

async fn by_the_product(lab: &Lab) -> Trial<Judgement> {
    let limit = lab.capabilities().max_value.min(SESSION);
    let (store, calls) = counted(lab.store());
    let system = Systems::new(store, lab.systems.settings())?.of(lab.strategy());
    let id = system.create(&values([("kept", "before".into())])).await?;

    // It fits compressed, and is there afterwards.
    let fits = noise(limit, lab.seed());
    change(&*system, &id, "text", &fits).await?;
    let before = system.read(&id).await?.unwrap_or_default();
    let mut judgement = Judgement::default()
        .acknowledged(1)
        .require(before.get("text").and_then(|text| text.as_str()) == Some(&fits), || {
            format!("{limit} bytes that fit are not as they were put")
        });

    let written = calls.writes();
    let refusals = [
        refused("a change", &change(&*system, &id, "text", &noise(2 * limit, lab.seed())).await),
        refused("another value", &change(&*system, &id, "more", &noise(limit, lab.seed() + 1)).await),
        refused("a long name", &change(&*system, &id, LONG_NAME, "short").await),
        refused(
            "a new session",
            &system.create(&values([("text", noise(2 * limit, lab.seed()).into())])).await,
        ),
    ];
    for wrong in refusals.into_iter().flatten() {
        judgement = judgement.fault(wrong.chars().take(200).collect::<String>());
    }
    let sent = calls.writes() - written;
    let after = system.read(&id).await?.unwrap_or_default();
    change(&*system, &id, "kept", "after").await?;
    let last = system.read(&id).await?.unwrap_or_default();
    Ok(judgement
        .require(sent == 0, || format!("{sent} writes were sent for what was refused"))
        .require(after == before, || "after the refusals the old session is another one".to_owned())
        .require(last.get("kept") == Some(&"after".into()), || "the next request has no effect".to_owned()))
}

/// A byte more than a name may have.
const LONG_NAME: &str = match std::str::from_utf8(&[b'n'; 129]) {
    Ok(name) => name,
    Err(_) => "",
};

async fn change(system: &dyn System, id: &crate::system::Id, name: &str, text: &str) -> Result<(), Error> {
    let mut request = system.request(id).await?;
    request.change(name, Change::Insert(text.into())).await?;
    request.commit().await.map(drop)
}
