//! What there is a record of, and what not.

use crate::{
    Judgement,
    scenario::{Check, Lab},
    system::{Change, Id, Values, values},
    trouble::{Trial, Trouble},
};
use async_trait::async_trait;
use bytes::Bytes;
use session_core::{
    Access, Acquired, Effect, Error, ErrorKind, Inserted, Loaded, LockingStore, Pair, Put, Replaced, Result,
    Sessions, StorageKey, SystemRandom, Token, Touched, Version,
};
use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

/// Longer than any scenario takes.
const LONG: Duration = Duration::from_secs(600);

fn put(data: &'static str) -> Put {
    Put::new(Bytes::from_static(data.as_bytes()), LONG)
}

pub(super) struct UnknownIdIsNotAdopted;

impl Check for UnknownIdIsNotAdopted {
    async fn check(lab: &Lab) -> Trial<Judgement> {
        let (store, sessions) = (lab.store(), lab.sessions());
        let (unknown, key) = {
            let id = lab.fresh_id()?;
            (id.session_id().ok_or_else(|| Trouble::unproven("not an id"))?, id.key()?)
        };
        let mut judgement = Judgement::default().acknowledged(1);
        for access in [Access::Read, Access::Write, Access::Exclusive] {
            let opened = sessions.open(&unknown, access).await?;
            judgement = judgement.require(opened.is_none(), || format!("opened for {access:?}, it is there"));
        }
        let updated = sessions.update(&unknown, |session| session.clear()).await;
        let gone = matches!(&updated, Err(error) if error.kind() == ErrorKind::Gone);
        judgement = judgement.require(gone, || format!("an update of it ended with {updated:?}"));

        // The driver: nothing to replace or to touch, no lock, no record.
        let version = Version::random(&SystemRandom)?;
        let replaced = store.replace(&key, version, &put("adopted")).await?;
        let touched = store.touch(&key, version, LONG).await?;
        let loaded =
            store.acquire_and_load(&key, Token::random(&SystemRandom)?, LONG, Duration::ZERO).await?;
        judgement = judgement
            .require(matches!(replaced, Replaced::Missing), || {
                format!("a replace of it answered {replaced:?}")
            })
            .require(touched == Touched::Missing, || format!("a touch of it answered {touched:?}"))
            .require(matches!(loaded, Loaded::Missing), || {
                format!("locked and loaded, it answered {loaded:?}")
            });
        let stored = store.load(&key).await?;
        let acquired = store.acquire(&key, Token::random(&SystemRandom)?, LONG, Duration::ZERO).await?;
        judgement = judgement
            .require(stored.is_none(), || format!("there is a record of it now: {stored:?}"))
            .require(matches!(acquired, Acquired::Granted(_)), || "a lock of it was left behind".to_owned());

        // Who comes with it and puts something in gets an id of its own.
        let id = lab.system().create(&values([("cart", 1.into())])).await?;
        Ok(judgement.require(id.session_id().as_ref() != Some(&unknown), || "the id was adopted".to_owned()))
    }
}

pub(super) struct EmptySessionIsNotStored;

impl Check for EmptySessionIsNotStored {
    async fn check(lab: &Lab) -> Trial<Judgement> {
        let system = lab.system();
        let id = system.create(&Values::new()).await?;
        let stored = system.read(&id).await?;
        Ok(Judgement::default().acknowledged(1).require(stored.is_none(), || {
            format!("a session in which nothing was put is stored: {stored:?}")
        }))
    }
}

pub(super) struct UnchangedIsNotRewritten;

impl UnchangedIsNotRewritten {
    async fn version(lab: &Lab, id: &Id) -> Trial<Version> {
        let stored = lab.store().load(&id.key()?).await?;
        stored.map(|stored| stored.version).ok_or_else(|| Trouble::wrong("the session is gone"))
    }
}

impl Check for UnchangedIsNotRewritten {
    async fn check(lab: &Lab) -> Trial<Judgement> {
        let system = lab.system();
        let id = system.create(&values([("theme", "dark".into())])).await?;
        let first = Self::version(lab, &id).await?;
        let mut session = system.request(&id).await?;
        let theme = session.get("theme").await?;
        session.commit().await?;
        let read = Self::version(lab, &id).await?;
        let mut session = system.request(&id).await?;
        session.change("theme", Change::Insert("light".into())).await?;
        session.change("theme", Change::Insert("dark".into())).await?;
        session.commit().await?;
        let put_back = Self::version(lab, &id).await?;
        let mut session = system.request(&id).await?;
        session.change("theme", Change::Insert("light".into())).await?;
        session.commit().await?;
        let changed = Self::version(lab, &id).await?;
        Ok(Judgement::default()
            .acknowledged(3)
            .require(theme == Some("dark".into()), || format!("it holds {theme:?}"))
            .require(read == first, || "a request that only read has rewritten the record".to_owned())
            .require(put_back == first, || {
                "a request that changed nothing in the end has rewritten it".to_owned()
            })
            .require(changed != first, || {
                "a request that changed it has left the version as it was".to_owned()
            }))
    }
}

/// An insert whose reply is lost and whose copy comes late: after the session that was made instead was
/// destroyed.
pub(super) struct AnIdIsInsertedOnce;

impl Check for AnIdIsInsertedOnce {
    async fn check(lab: &Lab) -> Trial<Judgement> {
        let judgement = Self::driver(lab).await?;
        Self::late_copy(lab, judgement).await
    }
}

impl AnIdIsInsertedOnce {
    async fn driver(lab: &Lab) -> Trial<Judgement> {
        let (store, key) = (lab.store(), lab.fresh_id()?.key()?);
        let Inserted::Created(version) = store.insert(&key, &put("first")).await? else {
            return Err(Trouble::wrong("a new id exists"));
        };
        let again = store.insert(&key, &put("second")).await?;
        let stored = store.load(&key).await?;
        let kept = stored.as_ref().is_some_and(|stored| stored.data == "first" && stored.version == version);
        Ok(Judgement::default()
            .acknowledged(1)
            .require(matches!(again, Inserted::Exists), || {
                format!("an insert of a living id answered {again:?}")
            })
            .require(kept, || format!("an insert has replaced a living record: {stored:?}")))
    }

    async fn late_copy(lab: &Lab, judgement: Judgement) -> Trial<Judgement> {
        let late = Arc::new(LateInserts { store: Arc::clone(lab.store()), held: Mutex::default() });
        let sessions = Sessions::builder(Pair(Arc::clone(&late), Arc::clone(lab.store()))).build()?;
        let session = sessions.create();
        session.insert(session_core::Key::<u32>::new("cart"), &1)?;
        session.commit().await?;
        let id = session.id().ok_or_else(|| Trouble::wrong("a session that was stored has no id"))?;
        sessions.destroy(&id).await?;
        let copies = std::mem::take(&mut *late.held.lock().unwrap_or_else(PoisonError::into_inner));
        let held = copies.len();
        for (key, put) in copies {
            let _whatever = lab.store().insert(&key, &put).await?;
        }
        let opened = sessions.open(&id, Access::Read).await?;
        Ok(judgement
            .acknowledged(1)
            .require(held == 1, || format!("{held} inserts were held back, one was to be"))
            .require(opened.is_none(), || {
                "a late copy of the insert has brought the session back".to_owned()
            }))
    }
}

/// Holds the first insert back and says that its reply was lost.
#[derive(Debug)]
struct LateInserts {
    store: Arc<dyn LockingStore>,
    held: Mutex<Vec<(StorageKey, Put)>>,
}

#[async_trait]
impl session_core::SessionStore for LateInserts {
    fn capabilities(&self) -> session_core::Capabilities {
        self.store.capabilities()
    }

    fn index(&self) -> Option<&dyn session_core::SessionIndex> {
        self.store.index()
    }

    fn sweeper(&self) -> Option<&dyn session_core::SessionSweeper> {
        self.store.sweeper()
    }

    async fn load(&self, key: &StorageKey) -> Result<Option<session_core::Stored>> {
        self.store.load(key).await
    }

    async fn insert(&self, key: &StorageKey, put: &Put) -> Result<Inserted> {
        {
            let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
            if held.is_empty() {
                held.push((*key, put.clone()));
                return Err(Error::new(ErrorKind::Unavailable, "insert").with_effect(Effect::Unknown));
            }
        }
        self.store.insert(key, put).await
    }

    async fn replace(&self, key: &StorageKey, expected: Version, put: &Put) -> Result<Replaced> {
        self.store.replace(key, expected, put).await
    }

    async fn touch(&self, key: &StorageKey, expected: Version, ttl: Duration) -> Result<Touched> {
        self.store.touch(key, expected, ttl).await
    }

    async fn delete(&self, key: &StorageKey) -> Result<session_core::Deleted> {
        self.store.delete(key).await
    }
}
