//! What is asserted in place of a scenario that a backend declares it cannot serve: "unsupported" is a claim,
//! too.

use super::{Lab, Need};
use crate::{
    Judgement, Strategy,
    system::Values,
    trouble::{Trial, Trouble},
};
use bytes::Bytes;
use session_core::{Acquired, ErrorKind, Inserted, Put, Replaced, SystemRandom, Token};
use std::time::Duration;

/// The judgement when the store under test lacks something that the scenario needs, or `None` when it lacks
/// nothing.
pub(crate) async fn declined(lab: &Lab, needs: &[Need]) -> Trial<Option<Judgement>> {
    for need in needs {
        let why = match need {
            Need::Fencing if !lab.capabilities().fencing => no_fencing(lab).await?,
            Need::Index if lab.store().index().is_none() => no_index(lab).await?,
            Need::Sweeper if lab.store().sweeper().is_none() => "nothing to sweep: it expires by itself",
            _ => continue,
        };
        return Ok(Some(Judgement::not_applicable(why)));
    }
    Ok(None)
}

/// A store that does not check the lock accepts a lock-free write during a lease.
async fn no_fencing(lab: &Lab) -> Trial<&'static str> {
    let (store, key) = (lab.store(), lab.fresh_id()?.key()?);
    let put = |data: &'static [u8]| Put::new(Bytes::from_static(data), Duration::from_secs(60));
    let Inserted::Created(version) = store.insert(&key, &put(b"before")).await? else {
        return Err(Trouble::wrong("a fresh id exists already"));
    };
    let (token, lease) = (Token::random(&SystemRandom)?, Duration::from_secs(30));
    let Acquired::Granted(grant) = store.acquire(&key, token, lease, Duration::ZERO).await? else {
        return Err(Trouble::wrong("the lock of a fresh session is held"));
    };
    let replaced = store.replace(&key, version, &put(b"after")).await?;
    let _freed_or_lost = store.release(&grant).await?;
    match replaced {
        Replaced::Done(_) => {
            Ok("no fencing, as declared: a write without the lock was accepted during a lease")
        }
        other => {
            Err(Trouble::wrong(format!("it declares no fencing, and yet a write during a lease: {other:?}")))
        }
    }
}

/// A store without an index says so, and nothing changes.
async fn no_index(lab: &Lab) -> Trial<&'static str> {
    let system = lab.system_of(Strategy::Write);
    let id = system.create(&Values::from([("kept".to_owned(), true.into())])).await?;
    match system.revoke_all("somebody").await {
        Err(error) if error.kind() == ErrorKind::Unsupported => {}
        other => return Err(Trouble::wrong(format!("it has no index, and yet revoke_all: {other:?}"))),
    }
    match system.read(&id).await? {
        Some(values) if values.contains_key("kept") => Ok("no index of users, as declared: Unsupported"),
        other => Err(Trouble::wrong(format!("revoke_all was refused, and yet there is now {other:?}"))),
    }
}
