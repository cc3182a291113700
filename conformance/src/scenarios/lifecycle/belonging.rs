//! Whose session it is, as the driver says it: the next write puts again what was shown, and the index is as
//! good as that.

use crate::{
    Judgement,
    scenario::Lab,
    trouble::{Trial, Trouble},
};
use bytes::Bytes;
use session_core::{
    Deleted, Inserted, Loaded, LockingStore, PrincipalKey, Put, Replaced, SessionIndex, StorageKey, Stored,
    SystemRandom, Token, Touched, Version,
};
use std::{fmt::Debug, sync::Arc, time::Duration};

/// Longer than any scenario takes.
const LONG: Duration = Duration::from_secs(600);

/// Every verb that shows a record says whose it is, and after every verb that writes one the index has it
/// still.
pub(super) async fn by_every_verb(lab: &Lab, mut judgement: Judgement) -> Trial<Judgement> {
    let id = lab.fresh_id()?;
    let (store, key, user) = (lab.store(), id.key()?, PrincipalKey::of(id.as_str()));
    let Some(index) = store.index() else { return Ok(judgement) };
    let put = Put::new(Bytes::from_static(b"somebody's"), LONG).principal(Some(user));
    let mut shown = Vec::new();

    let Inserted::Created(first) = store.insert(&key, &put).await? else {
        return Err(Trouble::wrong("a fresh id exists already"));
    };
    shown.push(("insert", stored(store, &key).await?, names(index, &user, &key).await?));
    let second = done("replace", store.replace(&key, first, &put).await?)?;
    shown.push(("replace", stored(store, &key).await?, names(index, &user, &key).await?));
    let Touched::Extended = store.touch(&key, second, LONG).await? else {
        return Err(Trouble::wrong("a living record could not be touched"));
    };
    shown.push(("touch", stored(store, &key).await?, names(index, &user, &key).await?));
    match store.replace(&key, first, &put).await? {
        Replaced::Conflict(fresh) => shown.push(("a refused replace", fresh, true)),
        other => return Err(unexpected("a stale replace", &other)),
    }
    let locked = store.acquire_and_load(&key, Token::random(&SystemRandom)?, LONG, Duration::ZERO).await?;
    let grant = match locked {
        Loaded::Granted(grant, stored) => {
            shown.push(("acquire_and_load", stored, true));
            grant
        }
        other => return Err(unexpected("acquire_and_load", &other)),
    };
    match store.replace_and_release(&grant, first, &put).await? {
        Replaced::Conflict(fresh) => shown.push(("a refused replace_and_release", fresh, true)),
        other => return Err(unexpected("a stale replace_and_release", &other)),
    }
    done("replace_and_release", store.replace_and_release(&grant, second, &put).await?)?;
    shown.push(("replace_and_release", stored(store, &key).await?, names(index, &user, &key).await?));
    match store.delete(&key).await? {
        Deleted::Removed(last) => shown.push(("delete", last, true)),
        other @ Deleted::Missing => return Err(unexpected("delete", &other)),
    }

    for (verb, stored, named) in shown {
        judgement = judgement
            .require(stored.principal == Some(user), || {
                format!("by {verb} the record of a user is shown as {:?}'s", stored.principal)
            })
            .require(named, || format!("after {verb} the index has lost a user's living session"));
    }
    Ok(judgement)
}

async fn stored(store: &Arc<dyn LockingStore>, key: &StorageKey) -> Trial<Stored> {
    store.load(key).await?.ok_or_else(|| Trouble::wrong("what was just stored is not there"))
}

/// Whether the index has this session of the user.
async fn names(index: &dyn SessionIndex, user: &PrincipalKey, key: &StorageKey) -> Trial<bool> {
    let mut after = None;
    loop {
        let page = index.keys_of(user, after, 100).await?;
        if page.keys.contains(key) {
            return Ok(true);
        }
        match page.next {
            Some(next) => after = Some(next),
            None => return Ok(false),
        }
    }
}

fn done(verb: &str, replaced: Replaced) -> Trial<Version> {
    match replaced {
        Replaced::Done(version) => Ok(version),
        other => Err(unexpected(verb, &other)),
    }
}

fn unexpected(verb: &str, answer: &dyn Debug) -> Trouble {
    Trouble::wrong(format!("{verb} answered {answer:?}"))
}
