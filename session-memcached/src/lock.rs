//! The lock: an item beside the record that is added with a token, and freed by who finds its token in it.
//!
//! ```no_run
//! use session_core::{Loaded, LockingStore, Put, Replaced, SessionId, SystemRandom, Token};
//! use session_memcached::{MemcachedConfig, MemcachedStore};
//! use std::time::Duration;
//!
//! # async fn run(id: SessionId) -> session_core::Result<()> {
//! let store = MemcachedStore::connect(&MemcachedConfig::from_url("memcached://localhost")?).await?;
//! let (key, token) = (id.storage_key(), Token::random(&SystemRandom)?);
//! let (lease, wait) = (Duration::from_secs(10), Duration::from_secs(5));
//! if let Loaded::Granted(grant, stored) = store.acquire_and_load(&key, token, lease, wait).await? {
//!     let put = Put::new(stored.data, Duration::from_secs(1800));
//!     let Replaced::Done(_) = store.replace_and_release(&grant, stored.version, &put).await? else { return Ok(()) };
//! }
//! # Ok(()) }
//! ```

use crate::{
    attempt::{Attempt, Joined, Taken},
    exchange::{Look, Sight},
    item::Swapped,
    store::{Inner, MemcachedStore, New, encode},
    waiting::Pauses,
};
use async_trait::async_trait;
use session_core::{
    Acquired, Deleted, Effect, Grant, Held, Loaded, LockingStore, Put, Released, Renewed, Replaced, Result,
    SessionLock, StorageKey, Token, Version,
};
use std::time::Duration;
use tokio::time::{Instant, sleep};

impl Inner {
    /// Asks until it is granted, there is no record, or `wait` is over; pauses in between without a connection.
    ///
    /// The record is looked at as `first` says, and by those who wait only for whether it is there: what they need is
    /// read when the lock is theirs.
    async fn take_within<'a>(
        &'a self,
        key: &'a StorageKey,
        token: &'a Token,
        length: Duration,
        wait: Duration,
        first: Look,
        operation: &'static str,
    ) -> Result<(Attempt<'a>, Taken)> {
        let deadline = Instant::now() + wait;
        let mut pauses = Pauses::default();
        let mut look = first;
        loop {
            let mut attempt = Attempt::new(self, key, token, operation).await?;
            let state = match attempt.take(length, look).await? {
                Taken::Held(state) => state,
                taken => return Ok((attempt, taken)),
            };
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                if state.place_of(token).is_some() {
                    let (Released::Freed | Released::Lost) = attempt.release().await?;
                }
                return Ok((attempt, Taken::Held(state)));
            }
            if look == Look::Read {
                look = Look::Probe;
            }
            let Joined::At(place) = attempt.join(&state).await? else { continue };
            drop(attempt);
            loop {
                let pause = pauses.next(state.holder, place, &*self.random)?.min(left);
                if !pause.is_zero() {
                    sleep(pause).await;
                    break;
                }
                // The next in line, behind a holder that is new: it looks at nothing else until the lock changes.
                tokio::task::yield_now().await;
                if Attempt::new(self, key, token, operation).await?.has_changed(&state).await? {
                    break;
                }
            }
        }
    }

    /// Writes and releases in one round trip, if both numbers are known and nobody waits. `None`: not so, or the write was refused; the
    /// lock is then held as before.
    ///
    /// The commands of one request do not depend on each other: the lock is deleted also when the write was refused. It is then
    /// taken again at once, for what was left of its lease. Somebody else can come in between; a write of ours has not
    /// happened then, and the version still decides about the next.
    async fn replace_and_release_at_once(
        &self,
        attempt: &mut Attempt<'_>,
        expected: Version,
        new: &New<'_>,
    ) -> Result<Option<Replaced>> {
        let (key, token) = (attempt.key, *attempt.token.as_bytes());
        let lease = &mut attempt.lease;
        let (version, lock) = (self.versions.get(key, expected.to_bytes()), self.tokens.get(key, token));
        let Some(cas) = lease.number(version) else { return Ok(None) };
        let (value, exptime) = encode(lease, key, new)?;
        let write = (attempt.keys.data.as_str(), value.as_slice(), exptime, cas);
        self.versions.forget(key, expected.to_bytes());
        let (Some(lock_cas), Some(hint), true) = (lease.number(lock), lock, lease.facts()?.meta) else {
            // Its number is not known: it was handed over, or somebody waits. It is read together with the write.
            let (written, lock) = lease.swap_and_get(write, &attempt.keys.lock).await?;
            let Some(replaced) = replaced(written?, new) else { return Ok(None) };
            match attempt.let_go(lock).await {
                Ok(Some(_)) => {}
                Ok(None) => attempt.release_after().await,
                Err(error) => tracing::warn!(%error, "a lock could not be released after the write"),
            }
            return Ok(Some(replaced));
        };
        let (written, freed) = lease.swap_and_remove(write, (&attempt.keys.lock, lock_cas)).await?;
        self.tokens.forget(key, token);
        let replaced = written.map(|written| replaced(written, new));
        match (&replaced, freed) {
            (Ok(Some(_)), Swapped::Changed) => attempt.release_after().await, // renewed, or waited for
            (Ok(None) | Err(_), Swapped::Done) => {
                // The write did not happen, whatever becomes of this.
                attempt.take_back(hint.ends).await.map_err(|error| error.with_effect(Effect::None))?;
            }
            _ => {}
        }
        replaced
    }
}

/// `None`: the number was not right.
fn replaced(written: Swapped, new: &New<'_>) -> Option<Replaced> {
    match written {
        Swapped::Done => Some(Replaced::Done(new.version)),
        Swapped::Missing => Some(Replaced::Missing),
        Swapped::Changed => None,
    }
}

#[async_trait]
impl SessionLock for MemcachedStore {
    /// One round trip where the lock is free. Otherwise it waits in the lock's queue, and looks again and again: memcached wakes
    /// nobody.
    async fn acquire(
        &self,
        key: &StorageKey,
        token: Token,
        length: Duration,
        wait: Duration,
    ) -> Result<Acquired> {
        let (_, taken) = self.0.take_within(key, &token, length, wait, Look::Away, "acquire").await?;
        Ok(match taken {
            Taken::Granted(_) => Acquired::Granted(Grant::new(*key, token)),
            Taken::Held(state) => Acquired::Held(Held { retry_after: Some(state.left) }),
            Taken::Missing => Acquired::Held(Held::default()), // nobody looked
        })
    }

    /// Two round trips: the token is read, and written again if it is still what was read.
    async fn renew(&self, grant: &Grant, length: Duration) -> Result<Renewed> {
        let mut attempt = Attempt::new(&self.0, grant.key(), grant.token(), "renew").await?;
        let ends = attempt.end_of(length)?;
        Ok(if attempt.renew(ends).await? { Renewed::Extended } else { Renewed::Lost })
    }

    /// One round trip where the lock's number is still known here and nobody waits, else two.
    async fn release(&self, grant: &Grant) -> Result<Released> {
        Attempt::new(&self.0, grant.key(), grant.token(), "release").await?.release().await
    }
}

#[async_trait]
impl LockingStore for MemcachedStore {
    /// One round trip where the lock is free (meta protocol), or two (plain).
    async fn acquire_and_load(
        &self,
        key: &StorageKey,
        token: Token,
        length: Duration,
        wait: Duration,
    ) -> Result<Loaded> {
        const NAME: &str = "acquire_and_load";
        let (mut attempt, taken) = self.0.take_within(key, &token, length, wait, Look::Read, NAME).await?;
        let found = match taken {
            Taken::Held(state) => return Ok(Loaded::Held(Held { retry_after: Some(state.left) })),
            Taken::Missing => return Ok(Loaded::Missing),
            Taken::Granted(Sight::Record(item)) => self.0.read(&attempt.lease, key, &item, NAME).map(Some),
            Taken::Granted(_) => self.0.look(&mut attempt.lease, key, &attempt.keys, NAME).await,
        };
        match found {
            Ok(Some(found)) => Ok(Loaded::Granted(Grant::new(*key, token), found.stored)),
            Ok(None) => attempt.release().await.map(|_| Loaded::Missing),
            Err(error) => {
                attempt.release_after().await;
                Err(error)
            }
        }
    }

    /// After an [`acquire_and_load`](Self::acquire_and_load) of this process one round trip with the meta protocol, two when others wait
    /// or waited; three with the plain one.
    ///
    /// A write that is refused there has released the lock, too: it is taken again before `Conflict` is answered. In between,
    /// for one round trip, another can get it; then this grant has lost it, as it can at any time on a server that evicts.
    async fn replace_and_release(&self, grant: &Grant, expected: Version, put: &Put) -> Result<Replaced> {
        const NAME: &str = "replace_and_release";
        let new = self.0.new_record(put, NAME)?;
        let mut attempt = Attempt::new(&self.0, grant.key(), grant.token(), NAME).await?;
        if let Some(replaced) = self.0.replace_and_release_at_once(&mut attempt, expected, &new).await? {
            return Ok(replaced);
        }
        let replaced = self.0.replace(&mut attempt.lease, grant.key(), expected, &new, NAME).await?;
        if matches!(replaced, Replaced::Done(_) | Replaced::Missing) {
            attempt.release_after().await;
        }
        Ok(replaced)
    }

    /// Three round trips: the record is read, deleted if it is still that, and then the lock.
    async fn delete_and_release(&self, grant: &Grant) -> Result<Deleted> {
        const NAME: &str = "delete_and_release";
        let mut attempt = Attempt::new(&self.0, grant.key(), grant.token(), NAME).await?;
        let deleted = self.0.delete(&mut attempt.lease, grant.key(), NAME).await?;
        attempt.release_after().await;
        Ok(deleted)
    }
}
