//! Wrong about who holds a lock.

use super::Store;
use crate::wrapper::{Wrapper, wrap};
use async_trait::async_trait;
use bytes::Bytes;
use session_core::{
    Acquired, Capabilities, Deleted, Grant, Held, Inserted, Loaded, Put, Released, Renewed, Replaced, Result,
    StorageKey, Token, Version,
};
use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::time::{Instant, sleep};

pub(super) fn two_holders(inner: Store) -> Store {
    wrap(Everybody(inner))
}

#[derive(Debug)]
struct Everybody(Store);

#[async_trait]
impl Wrapper for Everybody {
    fn inner(&self) -> &Store {
        &self.0
    }

    async fn acquire(
        &self,
        key: &StorageKey,
        token: Token,
        lease: Duration,
        _: Duration,
    ) -> Result<Acquired> {
        let _granted_or_held = self.0.acquire(key, token, lease, Duration::ZERO).await?;
        Ok(Acquired::Granted(Grant::new(*key, token)))
    }

    async fn acquire_and_load(
        &self,
        key: &StorageKey,
        token: Token,
        lease: Duration,
        _: Duration,
    ) -> Result<Loaded> {
        match self.0.acquire_and_load(key, token, lease, Duration::ZERO).await? {
            Loaded::Held(_) => Ok(match self.0.load(key).await? {
                Some(stored) => Loaded::Granted(Grant::new(*key, token), stored),
                None => Loaded::Missing,
            }),
            loaded => Ok(loaded),
        }
    }
}

pub(super) fn unlocks_before_it_writes(inner: Store) -> Store {
    wrap(Hasty(inner))
}

#[derive(Debug)]
struct Hasty(Store);

#[async_trait]
impl Wrapper for Hasty {
    fn inner(&self) -> &Store {
        &self.0
    }

    async fn replace_and_release(&self, grant: &Grant, expected: Version, put: &Put) -> Result<Replaced> {
        if self.0.release(grant).await? == Released::Lost {
            return Ok(Replaced::NotHolder(Held::default()));
        }
        tokio::task::yield_now().await;
        self.0.replace(grant.key(), expected, put).await
    }
}

pub(super) fn frees_when_it_refuses(inner: Store) -> Store {
    wrap(Refuser(inner))
}

#[derive(Debug)]
struct Refuser(Store);

#[async_trait]
impl Wrapper for Refuser {
    fn inner(&self) -> &Store {
        &self.0
    }

    async fn replace_and_release(&self, grant: &Grant, expected: Version, put: &Put) -> Result<Replaced> {
        let replaced = self.0.replace_and_release(grant, expected, put).await?;
        if matches!(replaced, Replaced::Conflict(_)) {
            let _freed_or_lost = self.0.release(grant).await?;
        }
        Ok(replaced)
    }
}

pub(super) fn refuses_renewals(inner: Store) -> Store {
    wrap(Expiring(inner, Renewed::Lost))
}

pub(super) fn renews_in_name_only(inner: Store) -> Store {
    wrap(Expiring(inner, Renewed::Extended))
}

/// A lease that ends when it was first to end, whatever is said of its renewal.
#[derive(Debug)]
struct Expiring(Store, Renewed);

#[async_trait]
impl Wrapper for Expiring {
    fn inner(&self) -> &Store {
        &self.0
    }

    async fn renew(&self, _: &Grant, _: Duration) -> Result<Renewed> {
        Ok(self.1)
    }
}

pub(super) fn writes_after_the_lease(inner: Store) -> Store {
    wrap(Lenient(inner))
}

#[derive(Debug)]
struct Lenient(Store);

#[async_trait]
impl Wrapper for Lenient {
    fn inner(&self) -> &Store {
        &self.0
    }

    async fn replace_and_release(&self, grant: &Grant, expected: Version, put: &Put) -> Result<Replaced> {
        match self.0.replace_and_release(grant, expected, put).await? {
            Replaced::NotHolder(_) => self.0.replace(grant.key(), expected, put).await,
            replaced => Ok(replaced),
        }
    }
}

pub(super) fn stale_release_frees(inner: Store) -> Store {
    wrap(Confused { inner, holders: Mutex::default(), mistake: Mistake::FreesIt })
}

pub(super) fn stale_renewal_shortens(inner: Store) -> Store {
    wrap(Confused { inner, holders: Mutex::default(), mistake: Mistake::ShortensIt })
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mistake {
    FreesIt,
    ShortensIt,
}

/// Takes one who held a lock for the one who holds it.
#[derive(Debug)]
struct Confused {
    inner: Store,
    holders: Mutex<HashMap<StorageKey, Token>>,
    mistake: Mistake,
}

impl Confused {
    fn holders(&self) -> MutexGuard<'_, HashMap<StorageKey, Token>> {
        self.holders.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, grant: &Grant) {
        self.holders().insert(*grant.key(), *grant.token());
    }

    fn holder(&self, key: &StorageKey) -> Option<Token> {
        self.holders().get(key).copied()
    }
}

#[async_trait]
impl Wrapper for Confused {
    fn inner(&self) -> &Store {
        &self.inner
    }

    async fn acquire(
        &self,
        key: &StorageKey,
        token: Token,
        lease: Duration,
        wait: Duration,
    ) -> Result<Acquired> {
        let acquired = self.inner.acquire(key, token, lease, wait).await?;
        if let Acquired::Granted(grant) = &acquired {
            self.note(grant);
        }
        Ok(acquired)
    }

    async fn acquire_and_load(
        &self,
        key: &StorageKey,
        token: Token,
        lease: Duration,
        wait: Duration,
    ) -> Result<Loaded> {
        let loaded = self.inner.acquire_and_load(key, token, lease, wait).await?;
        if let Loaded::Granted(grant, _) = &loaded {
            self.note(grant);
        }
        Ok(loaded)
    }

    async fn release(&self, grant: &Grant) -> Result<Released> {
        let released = self.inner.release(grant).await?;
        match self.holder(grant.key()) {
            Some(holder) if released == Released::Lost && self.mistake == Mistake::FreesIt => {
                self.inner.release(&Grant::new(*grant.key(), holder)).await
            }
            _ => Ok(released),
        }
    }

    async fn renew(&self, grant: &Grant, lease: Duration) -> Result<Renewed> {
        let renewed = self.inner.renew(grant, lease).await?;
        if let Some(holder) = self.holder(grant.key())
            && renewed == Renewed::Lost
            && self.mistake == Mistake::ShortensIt
        {
            let _shortened = self.inner.renew(&Grant::new(*grant.key(), holder), lease).await?;
        }
        Ok(renewed)
    }
}

/// The lock is a record of the same store, of which nothing but a release makes an end.
pub(super) fn locks_without_lease(inner: Store) -> Store {
    wrap(Forever(inner))
}

#[derive(Debug)]
struct Forever(Store);

impl Forever {
    const POLL: Duration = Duration::from_millis(2);
    const LONG: Duration = Duration::from_hours(24 * 366);

    /// The name of the record that is the lock.
    fn lock(key: &StorageKey) -> StorageKey {
        StorageKey::from_bytes(key.as_bytes().map(|byte| byte ^ 0xa5))
    }

    async fn is_held_by(&self, key: &StorageKey, token: &Token) -> Result<bool> {
        let lock = self.0.load(&Self::lock(key)).await?;
        Ok(lock.is_some_and(|lock| lock.data == token.as_bytes()[..]))
    }

    async fn free(&self, grant: &Grant) -> Result<bool> {
        let held = self.is_held_by(grant.key(), grant.token()).await?;
        if held {
            let _removed = self.0.delete(&Self::lock(grant.key())).await?;
        }
        Ok(held)
    }
}

#[async_trait]
impl Wrapper for Forever {
    fn inner(&self) -> &Store {
        &self.0
    }

    fn capabilities(&self) -> Capabilities {
        let mut capabilities = self.0.capabilities();
        capabilities.fencing = false;
        capabilities
    }

    async fn acquire(&self, key: &StorageKey, token: Token, _: Duration, wait: Duration) -> Result<Acquired> {
        let end = Instant::now() + wait;
        let put = Put::new(Bytes::copy_from_slice(token.as_bytes()), Self::LONG);
        loop {
            let inserted = self.0.insert(&Self::lock(key), &put).await?;
            if matches!(inserted, Inserted::Created(_)) || self.is_held_by(key, &token).await? {
                return Ok(Acquired::Granted(Grant::new(*key, token)));
            }
            if Instant::now() >= end {
                return Ok(Acquired::Held(Held::default()));
            }
            sleep(Self::POLL).await;
        }
    }

    async fn renew(&self, grant: &Grant, _: Duration) -> Result<Renewed> {
        let held = self.is_held_by(grant.key(), grant.token()).await?;
        Ok(if held { Renewed::Extended } else { Renewed::Lost })
    }

    async fn release(&self, grant: &Grant) -> Result<Released> {
        Ok(if self.free(grant).await? { Released::Freed } else { Released::Lost })
    }

    async fn acquire_and_load(
        &self,
        key: &StorageKey,
        token: Token,
        lease: Duration,
        wait: Duration,
    ) -> Result<Loaded> {
        let grant = match self.acquire(key, token, lease, wait).await? {
            Acquired::Granted(grant) => grant,
            Acquired::Held(held) => return Ok(Loaded::Held(held)),
        };
        match self.0.load(key).await? {
            Some(stored) => Ok(Loaded::Granted(grant, stored)),
            None => {
                self.free(&grant).await?;
                Ok(Loaded::Missing)
            }
        }
    }

    async fn replace_and_release(&self, grant: &Grant, expected: Version, put: &Put) -> Result<Replaced> {
        let replaced = self.0.replace(grant.key(), expected, put).await?;
        if matches!(replaced, Replaced::Done(_) | Replaced::Missing) {
            self.free(grant).await?;
        }
        Ok(replaced)
    }

    async fn delete_and_release(&self, grant: &Grant) -> Result<Deleted> {
        let deleted = self.0.delete(grant.key()).await?;
        self.free(grant).await?;
        Ok(deleted)
    }
}
