//! The two controls: what session handlers elsewhere do, on top of this project's drivers.
//!
//! A driver has no blind save, so the controls work for it: they take the version that they were refused for
//! and overwrite with that, which is what a `SET` does. They never exist in the product.

use super::{Change, Id, OpenSession, Settings, System, Values};
use async_trait::async_trait;
use bytes::Bytes;
use serde_json::Value;
use session_core::{
    Error, ErrorKind, Grant, Held, Inserted, Loaded, LockingStore, PrincipalKey, Put, Replaced, Result,
    SessionId, StorageKey, Stored, SystemRandom, Token, Version,
};
use std::{sync::Arc, time::Duration};
use tokio::time::{Instant, sleep};

/// How long to wait for another's lease when the store does not say.
const POLL: Duration = Duration::from_millis(5);

/// `blind`, or with locks `lock-only`.
#[derive(Clone, Debug)]
pub(super) struct Control {
    store: Arc<dyn LockingStore>,
    settings: Settings,
    locks: bool,
}

impl Control {
    pub(super) fn new(store: Arc<dyn LockingStore>, settings: Settings, locks: bool) -> Self {
        Self { store, settings, locks }
    }

    /// The name of a record: elsewhere any text that comes in a cookie is one.
    fn key(id: &Id) -> StorageKey {
        match id.session_id() {
            Some(id) => id.storage_key(),
            None => StorageKey::from_bytes(*PrincipalKey::of(id.as_str()).as_bytes()),
        }
    }

    fn put(&self, values: &Values, principal: Option<PrincipalKey>) -> Result<Put> {
        let data = serde_json::to_vec(values)
            .map_err(|error| Error::new(ErrorKind::Encode, "control").with_source(error))?;
        Ok(Put::new(data.into(), self.settings.idle_timeout).principal(principal))
    }

    /// Loads, behind the lock where there is one. No renewal: a lease that runs out under its holder is what
    /// `lock-only` is about.
    async fn load(&self, key: StorageKey) -> Result<Option<(Option<Grant>, Stored)>> {
        if !self.locks {
            return Ok(self.store.load(&key).await?.map(|stored| (None, stored)));
        }
        let (token, deadline) = (Token::random(&SystemRandom)?, Instant::now() + self.settings.lock_wait);
        loop {
            let wait = deadline.saturating_duration_since(Instant::now());
            match self.store.acquire_and_load(&key, token, self.settings.lease, wait).await? {
                Loaded::Granted(grant, stored) => return Ok(Some((Some(grant), stored))),
                Loaded::Missing => return Ok(None),
                Loaded::Held(_) if Instant::now() >= deadline => {
                    return Err(Error::new(ErrorKind::Busy, "open"));
                }
                Loaded::Held(held) => nap(held).await,
            }
        }
    }
}

#[async_trait]
impl System for Control {
    async fn create(&self, values: &Values) -> Result<Id> {
        let id = SessionId::random(&SystemRandom)?;
        match self.store.insert(&id.storage_key(), &self.put(values, None)?).await? {
            Inserted::Created(_) => Ok(Id::new(id.expose())),
            Inserted::Exists => Err(Error::new(ErrorKind::Backend, "create").with_context("a new id exists")),
        }
    }

    async fn open(&self, id: &Id) -> Result<Option<Box<dyn OpenSession>>> {
        let key = Self::key(id);
        let Some((grant, stored)) = self.load(key).await? else { return Ok(None) };
        let values = match decode(&stored.data) {
            Ok(values) => values,
            Err(error) => {
                // It is there to lose updates, and not its lock as well: whoever comes next would wait for
                // the lease.
                if let Some(grant) = grant {
                    let _freed_or_lost = self.store.release(&grant).await?;
                }
                return Err(error);
            }
        };
        Ok(Some(Box::new(Request {
            values,
            version: stored.version,
            principal: stored.principal,
            end: End::Store,
            changed: false,
            control: self.clone(),
            grant,
            key,
            id: id.clone(),
        })))
    }

    async fn read(&self, id: &Id) -> Result<Option<Values>> {
        self.store.load(&Self::key(id)).await?.map(|stored| decode(&stored.data)).transpose()
    }

    async fn destroy(&self, id: &Id) -> Result<bool> {
        Ok(matches!(self.store.delete(&Self::key(id)).await?, session_core::Deleted::Removed(_)))
    }

    async fn revoke_all(&self, user: &str) -> Result<usize> {
        let index = self.store.index().ok_or_else(|| Error::new(ErrorKind::Unsupported, "revoke_all"))?;
        // What others do: list once, delete what is listed.
        let page = index.keys_of(&PrincipalKey::of(user), None, usize::MAX >> 1).await?;
        for key in &page.keys {
            let _removed_or_gone = self.store.delete(key).await?;
        }
        Ok(page.keys.len())
    }
}

/// One request of a control.
#[derive(Debug)]
struct Request {
    control: Control,
    id: Id,
    key: StorageKey,
    grant: Option<Grant>,
    version: Version,
    values: Values,
    principal: Option<PrincipalKey>,
    changed: bool,
    end: End,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Store,
    Rotate,
    Destroy,
}

#[async_trait]
impl OpenSession for Request {
    async fn get(&mut self, name: &str) -> Result<Option<Value>> {
        Ok(self.values.get(name).cloned())
    }

    async fn change(&mut self, name: &str, change: Change) -> Result<()> {
        let mut value = self.values.remove(name);
        change.apply(&mut value);
        if let Some(value) = value {
            self.values.insert(name.to_owned(), value);
        }
        self.changed = true;
        Ok(())
    }

    async fn take(&mut self, name: &str) -> Result<Option<Value>> {
        self.changed = true;
        Ok(self.values.remove(name))
    }

    async fn set_principal(&mut self, user: &str) -> Result<()> {
        self.changed = true;
        self.principal = Some(PrincipalKey::of(user));
        Ok(())
    }

    async fn rotate(&mut self) -> Result<()> {
        self.end = End::Rotate;
        Ok(())
    }

    async fn destroy(&mut self) -> Result<()> {
        self.end = End::Destroy;
        Ok(())
    }

    async fn commit(mut self: Box<Self>) -> Result<Option<Id>> {
        let put = self.control.put(&self.values, self.principal)?;
        let id = match self.end {
            End::Destroy => {
                self.delete().await?;
                None
            }
            End::Rotate => {
                // Two steps, as elsewhere: the data under a new id, then the old one away.
                let new = SessionId::random(&SystemRandom)?;
                let _created = self.control.store.insert(&new.storage_key(), &put).await?;
                self.delete().await?;
                Some(Id::new(new.expose()))
            }
            End::Store if self.changed => {
                self.overwrite(&put).await?;
                Some(self.id.clone())
            }
            End::Store => Some(self.id.clone()),
        };
        self.release().await?;
        Ok(id)
    }
}

impl Request {
    /// Overwrites whatever is there, again and again until it is done.
    async fn overwrite(&mut self, put: &Put) -> Result<()> {
        let (store, key) = (Arc::clone(&self.control.store), self.key);
        let deadline = Instant::now() + self.control.settings.lock_wait;
        loop {
            let replaced = match &self.grant {
                Some(grant) => store.replace_and_release(grant, self.version, put).await?,
                None => store.replace(&key, self.version, put).await?,
            };
            match replaced {
                Replaced::Done(_) => {
                    self.grant = None; // released with the write
                    return Ok(());
                }
                Replaced::Conflict(fresh) => self.version = fresh.version,
                Replaced::NotHolder(held) => {
                    if Instant::now() >= deadline {
                        return Err(Error::new(ErrorKind::Busy, "commit"));
                    }
                    // Its own lease ran out, or another's lives: no reason to stop.
                    if self.grant.take().is_none() {
                        nap(held).await;
                    }
                    if let Some(fresh) = store.load(&key).await? {
                        self.version = fresh.version;
                    }
                }
                Replaced::Missing => {
                    self.grant = None;
                    if let Inserted::Created(_) = store.insert(&key, put).await? {
                        return Ok(()); // revived
                    }
                    if let Some(fresh) = store.load(&key).await? {
                        self.version = fresh.version;
                    }
                }
            }
        }
    }

    async fn delete(&mut self) -> Result<()> {
        let _removed_or_gone = match self.grant.take() {
            Some(grant) => self.control.store.delete_and_release(&grant).await?,
            None => self.control.store.delete(&self.key).await?,
        };
        Ok(())
    }

    async fn release(&mut self) -> Result<()> {
        if let Some(grant) = self.grant.take() {
            let _freed_or_lost = self.control.store.release(&grant).await?;
        }
        Ok(())
    }
}

impl Drop for Request {
    /// A request that ends without a commit frees its lock in the background.
    fn drop(&mut self) {
        if let (Some(grant), Ok(runtime)) = (self.grant.take(), tokio::runtime::Handle::try_current()) {
            let store = Arc::clone(&self.control.store);
            runtime.spawn(async move { store.release(&grant).await });
        }
    }
}

async fn nap(held: Held) {
    sleep(held.retry_after.unwrap_or(POLL).clamp(Duration::from_millis(1), POLL)).await;
}

fn decode(data: &Bytes) -> Result<Values> {
    serde_json::from_slice(data).map_err(|error| Error::new(ErrorKind::Damaged, "control").with_source(error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        Strategy,
        system::{Systems, values},
    };
    use session_core::MemoryStore;

    fn systems(lease: Duration) -> Systems {
        let settings = Settings::DEFAULT.lease(lease).lock_wait(Duration::from_secs(5));
        Systems::new(Arc::new(MemoryStore::default()), settings).expect("good settings")
    }

    /// Two requests that both read before either writes: what is left of their two increments.
    async fn race(system: &dyn System, pause: Duration) -> u64 {
        let id = system.create(&values([("n", 0.into())])).await.expect("stored");
        let mut first = system.request(&id).await.expect("there");
        tokio::time::sleep(pause).await;
        let mut second = system.request(&id).await.expect("there");
        for session in [&mut first, &mut second] {
            session.change("n", Change::Add(1)).await.expect("changed");
        }
        first.commit().await.expect("acknowledged");
        second.commit().await.expect("acknowledged");
        system.number(&id, "n").await.expect("there")
    }

    #[tokio::test]
    async fn blind_loses_an_update() {
        assert_eq!(race(&*systems(Duration::from_secs(9)).of(Strategy::Blind), Duration::ZERO).await, 1);
    }

    #[tokio::test]
    async fn lock_only_loses_an_update_when_its_lease_runs_out() {
        let lease = Duration::from_millis(20);
        assert_eq!(race(&*systems(lease).of(Strategy::LockOnly), 2 * lease).await, 1);
    }

    #[tokio::test]
    async fn lock_only_waits_for_a_lease_that_lives() {
        let systems = systems(Duration::from_secs(9));
        let system = systems.of(Strategy::LockOnly);
        let id = system.create(&values([])).await.expect("stored");
        let first = system.request(&id).await.expect("there");
        let second = tokio::spawn({
            let (system, id) = (Arc::clone(&system), id.clone());
            async move { system.request(&id).await.map(drop) }
        });
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert!(!second.is_finished());
        drop(first); // releases in the background
        second.await.expect("no panic").expect("locked");
    }

    #[tokio::test]
    async fn lock_only_frees_what_it_cannot_read() {
        let systems = systems(Duration::from_secs(9));
        let (store, id) = (systems.store(), SessionId::random(&SystemRandom).expect("randomness"));
        let put = Put::new(Bytes::from_static(b"{"), Duration::from_secs(60));
        let _created = store.insert(&id.storage_key(), &put).await.expect("stored");
        let opened = systems.of(Strategy::LockOnly).open(&Id::new(id.expose())).await;
        assert_eq!(opened.map(drop).expect_err("half a record").kind(), ErrorKind::Damaged);
        let token = Token::random(&SystemRandom).expect("randomness");
        let next = store.acquire_and_load(&id.storage_key(), token, put.ttl, Duration::ZERO).await;
        assert!(matches!(next, Ok(Loaded::Granted(..))), "{next:?}");
    }

    #[tokio::test]
    async fn both_revive_what_was_destroyed() {
        for strategy in [Strategy::Blind, Strategy::LockOnly] {
            let system = systems(Duration::from_secs(9)).of(strategy);
            let id = system.create(&values([])).await.expect("stored");
            let mut late = system.request(&id).await.expect("there");
            assert!(system.destroy(&id).await.expect("destroyed"));
            late.change("n", Change::Add(1)).await.expect("changed");
            late.commit().await.expect("acknowledged");
            assert!(system.read(&id).await.expect("read").is_some(), "{strategy}");
        }
    }
}
