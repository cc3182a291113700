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
    attempt::{Attempt, Glance, Joined, Taken},
    exchange::{Look, Sight},
    store::{Inner, MemcachedStore},
    waiting::Pauses,
};
use async_trait::async_trait;
use session_core::{
    Acquired, Deleted, Grant, Held, Loaded, LockingStore, Put, Released, Renewed, Replaced, Result,
    SessionLock, StorageKey, Token, Version,
};
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// Longer waits are this long: time that is added to the clock has to stay within its range.
const LONGEST_WAIT: Duration = Duration::from_secs(24 * 60 * 60);

impl Inner {
    /// Asks until it is granted, there is no record, or `wait` is over; pauses in between without a
    /// connection.
    ///
    /// The record is looked at as `first` says, and by those who wait only for whether it is there: what they
    /// need is read when the lock is theirs.
    async fn take_within<'a>(
        &'a self,
        key: &'a StorageKey,
        token: &'a Token,
        length: Duration,
        wait: Duration,
        first: Look,
        operation: &'static str,
    ) -> Result<(Attempt<'a>, Taken)> {
        let deadline = Instant::now() + wait.min(LONGEST_WAIT);
        let mut pauses = Pauses::default();
        let mut look = first;
        loop {
            let mut attempt = Attempt::new(self, key, token, operation).await?;
            let mut state = match attempt.take(length, look).await? {
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
            let Joined::At(mut place) = attempt.join(&state).await? else { continue };
            drop(attempt);
            loop {
                let pause = pauses.next(state.holder, place, &*self.random)?.min(left);
                if !pause.is_zero() {
                    sleep(pause).await;
                    break;
                }
                // The next in line, behind a holder that is new: it looks at nothing but the lock.
                tokio::task::yield_now().await;
                let mut attempt = Attempt::new(self, key, token, operation).await?;
                match attempt.glance(&state, length, first).await? {
                    Glance::Same => {}
                    Glance::Ours(taken) => return Ok((attempt, taken)),
                    Glance::Changed(Some(now)) if let Some(at) = now.place_of(token) => {
                        (state, place) = (now, at);
                    }
                    Glance::Changed(_) => break,
                }
            }
        }
    }
}

#[async_trait]
impl SessionLock for MemcachedStore {
    /// One round trip where the lock is free. Otherwise it waits in the lock's queue, and looks again and
    /// again: memcached wakes nobody.
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

    /// After an [`acquire_and_load`](Self::acquire_and_load) of this process one round trip with the meta
    /// protocol, two when others wait or waited; three with the plain one.
    ///
    /// [`Replaced::NotHolder`]: the version is another one, and another holds the lock. That is so after a lease that ran out or a
    /// lock that was evicted; and, with the meta protocol, when another got the lock in the one round trip in
    /// which a refused write had freed it, too.
    async fn replace_and_release(&self, grant: &Grant, expected: Version, put: &Put) -> Result<Replaced> {
        const NAME: &str = "replace_and_release";
        let new = self.0.new_record(put, NAME)?;
        let mut attempt = Attempt::new(&self.0, grant.key(), grant.token(), NAME).await?;
        attempt.replace_and_release(expected, &new).await
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
