//! The lock: an item beside the record that is added with a token, and deleted by who finds its token in it.
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
    backoff::Backoff,
    exchange::{Asked, Look, Sight},
    hints::Hint,
    item::{Item, Swapped},
    key::Keys,
    layout::{self, Kind},
    server::Lease,
    store::{Inner, MemcachedStore, New, encode},
};
use async_trait::async_trait;
use session_core::{
    Acquired, Deleted, Effect, Error, ErrorKind, Grant, Held, Loaded, LockingStore, Put, Released, Renewed,
    Replaced, Result, SessionLock, StorageKey, Token, Version,
};
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// What came of asking for a lock once.
#[derive(Debug)]
enum Taken {
    Granted(Sight),
    Held(Held),
    /// There is no record, and the lock, if it was taken, is free again.
    Missing,
}

impl Inner {
    fn lock_value(
        &self,
        lease: &Lease<'_>,
        key: &StorageKey,
        token: &Token,
        ends: u64,
    ) -> Result<(Vec<u8>, u32)> {
        let clock = lease.facts()?.clock;
        let left = Duration::from_millis(ends.saturating_sub(clock.now()));
        Ok((layout::encode(Kind::Lock, key, token.as_bytes(), ends, b""), clock.exptime(left)))
    }

    /// The token in a lock, and when it says that it ends.
    fn read_lock(&self, key: &StorageKey, item: &Item, operation: &'static str) -> Result<(Token, u64)> {
        let value = layout::decode(Kind::Lock, key, &item.value)
            .ok_or_else(|| Error::new(ErrorKind::Damaged, operation).with_context("the lock"))?;
        Ok((Token::from_bytes(value.stamp), value.ends))
    }

    /// Asks once, and again only when the lock changed between two looks at it.
    async fn take(
        &self,
        lease: &mut Lease<'_>,
        key: &StorageKey,
        token: &Token,
        length: Duration,
        look: Look,
        operation: &'static str,
    ) -> Result<Taken> {
        let keys = self.keys(key);
        loop {
            let ends = lease.facts()?.clock.end_of(length);
            let (value, exptime) = self.lock_value(lease, key, token, ends)?;
            let Asked { added, lock, record } =
                lease.ask(&keys.lock, &value, exptime, &keys.data, look).await?;
            let held = match &lock {
                // Just added and not read, or evicted at once: the version check does not need it.
                None if added => None,
                None => continue,
                Some(item) => {
                    let (holder, until) = self.read_lock(key, item, operation)?;
                    if holder == *token {
                        self.tokens.keep(
                            key,
                            *token.as_bytes(),
                            Hint { cas: item.cas, asked: lease.asked(), ends },
                        );
                        None
                    } else {
                        let left = lease.left(item, until)?.max(Duration::from_secs(1));
                        Some(Held { retry_after: Some(left) })
                    }
                }
            };
            if matches!(record, Sight::Nothing) {
                if held.is_none() {
                    let (Released::Freed | Released::Lost) =
                        self.release(lease, key, token, operation).await?;
                }
                return Ok(Taken::Missing);
            }
            if let Some(held) = held {
                return Ok(Taken::Held(held));
            }
            // Ours since before: the lease begins anew.
            if !added && !self.renew(lease, key, &keys, token, ends, operation).await? {
                continue;
            }
            return Ok(Taken::Granted(record));
        }
    }

    /// Whether the lock was this token's, and now ends then.
    async fn renew(
        &self,
        lease: &mut Lease<'_>,
        key: &StorageKey,
        keys: &Keys,
        token: &Token,
        ends: u64,
        operation: &'static str,
    ) -> Result<bool> {
        let (value, exptime) = self.lock_value(lease, key, token, ends)?;
        loop {
            let Some(item) = lease.get(&keys.lock).await? else { return Ok(false) };
            if self.read_lock(key, &item, operation)?.0 != *token {
                return Ok(false);
            }
            self.tokens.forget(key, *token.as_bytes());
            match lease.swap(&keys.lock, &value, exptime, item.cas).await? {
                Swapped::Done => return Ok(true),
                Swapped::Missing => return Ok(false),
                Swapped::Changed => {}
            }
        }
    }

    /// Frees the lock iff it is this token's. By the number that it had when it was taken, where that means something; else it is
    /// read, its token compared, and deleted by the number just read.
    async fn release(
        &self,
        lease: &mut Lease<'_>,
        key: &StorageKey,
        token: &Token,
        operation: &'static str,
    ) -> Result<Released> {
        let keys = self.keys(key);
        let mut number = lease.number(self.tokens.get(key, *token.as_bytes()));
        self.tokens.forget(key, *token.as_bytes());
        loop {
            let cas = match number.take() {
                Some(cas) => cas,
                None => {
                    let Some(item) = lease.get(&keys.lock).await? else { return Ok(Released::Lost) };
                    if self.read_lock(key, &item, operation)?.0 != *token {
                        return Ok(Released::Lost);
                    }
                    item.cas
                }
            };
            match lease.remove(&keys.lock, cas).await? {
                Swapped::Done => return Ok(Released::Freed),
                Swapped::Missing => return Ok(Released::Lost),
                Swapped::Changed => {}
            }
        }
    }

    /// A release that is no reason to call the write before it failed: the lock ends with its lease.
    async fn release_after(&self, lease: &mut Lease<'_>, grant: &Grant, operation: &'static str) {
        if let Err(error) = self.release(lease, grant.key(), grant.token(), operation).await {
            tracing::warn!(%error, "a lock could not be released after the write");
        }
    }

    /// Writes and releases in one round trip, if both numbers are known. `None`: not so, or the write was refused; the lock is
    /// then held as before.
    ///
    /// The commands of one request do not depend on each other: the lock is deleted also when the write was refused. It is then
    /// taken again at once, for what was left of its lease. Somebody else can come in between; a write of ours has not
    /// happened then, and the version still decides about the next.
    async fn replace_and_release_at_once(
        &self,
        lease: &mut Lease<'_>,
        grant: &Grant,
        expected: Version,
        new: &New<'_>,
        operation: &'static str,
    ) -> Result<Option<Replaced>> {
        let (key, token) = (grant.key(), *grant.token().as_bytes());
        let (version, lock) = (self.versions.get(key, expected.to_bytes()), self.tokens.get(key, token));
        let (Some(cas), Some(lock_cas), true) =
            (lease.number(version), lease.number(lock), lease.facts()?.meta)
        else {
            return Ok(None);
        };
        let keys = self.keys(key);
        let (value, exptime) = encode(lease, key, new)?;
        let record = (keys.data.as_str(), value.as_slice(), exptime, cas);
        let (written, freed) = lease.swap_and_remove(record, (&keys.lock, lock_cas)).await?;
        self.tokens.forget(key, token);
        self.versions.forget(key, expected.to_bytes());
        let replaced = match written {
            Ok(Swapped::Done) => Replaced::Done(new.version),
            Ok(Swapped::Missing) => Replaced::Missing,
            Ok(Swapped::Changed) | Err(_) => {
                if freed == Swapped::Done
                    && let Some(hint) = lock
                {
                    let back = self.take_back(lease, grant, hint.ends, operation).await;
                    back.map_err(|error| error.with_effect(Effect::None))?; // the write did not happen
                }
                return written.map(|_| None);
            }
        };
        if freed == Swapped::Changed {
            self.release_after(lease, grant, operation).await; // renewed since, or another's
        }
        Ok(Some(replaced))
    }

    async fn take_back(
        &self,
        lease: &mut Lease<'_>,
        grant: &Grant,
        ends: u64,
        operation: &'static str,
    ) -> Result<()> {
        let (value, exptime) = self.lock_value(lease, grant.key(), grant.token(), ends)?;
        let keys = self.keys(grant.key());
        if !lease.add(&keys.lock, &value, exptime).await? {
            tracing::debug!(operation, "a lock was lost to another while its write was refused");
        }
        Ok(())
    }
}

impl Inner {
    /// Asks until it is granted, there is no record, or `wait` is over; sleeps in between, without a connection.
    ///
    /// The record is looked at as `first` says, and by those who wait only for whether it is there: what they need is
    /// read when the lock is theirs.
    async fn take_within(
        &self,
        key: &StorageKey,
        token: &Token,
        length: Duration,
        wait: Duration,
        first: Look,
        operation: &'static str,
    ) -> Result<(Lease<'_>, Taken)> {
        let deadline = Instant::now() + wait;
        let mut backoff = Backoff::default();
        let mut look = first;
        loop {
            let mut lease = self.lease(key, operation).await?;
            let taken = self.take(&mut lease, key, token, length, look, operation).await?;
            let left = deadline.saturating_duration_since(Instant::now());
            if !matches!(taken, Taken::Held(_)) || left.is_zero() {
                return Ok((lease, taken));
            }
            drop(lease);
            sleep(backoff.next(&*self.random)?.min(left)).await;
            if look == Look::Read {
                look = Look::Probe;
            }
        }
    }
}

#[async_trait]
impl SessionLock for MemcachedStore {
    /// One round trip where the lock is free. Waits by asking again, after pauses of a few milliseconds.
    async fn acquire(
        &self,
        key: &StorageKey,
        token: Token,
        lease: Duration,
        wait: Duration,
    ) -> Result<Acquired> {
        let (_, taken) = self.0.take_within(key, &token, lease, wait, Look::Away, "acquire").await?;
        Ok(match taken {
            Taken::Granted(_) => Acquired::Granted(Grant::new(*key, token)),
            Taken::Held(held) => Acquired::Held(held),
            Taken::Missing => Acquired::Held(Held::default()), // nobody looked
        })
    }

    /// Two round trips: the token is read, and written again if it is still what was read.
    async fn renew(&self, grant: &Grant, length: Duration) -> Result<Renewed> {
        let (key, token) = (grant.key(), grant.token());
        let mut lease = self.0.lease(key, "renew").await?;
        let ends = lease.facts()?.clock.end_of(length);
        let renewed = self.0.renew(&mut lease, key, &self.0.keys(key), token, ends, "renew").await?;
        Ok(if renewed { Renewed::Extended } else { Renewed::Lost })
    }

    /// One round trip where the lock's number is still known here, else two.
    async fn release(&self, grant: &Grant) -> Result<Released> {
        let mut lease = self.0.lease(grant.key(), "release").await?;
        self.0.release(&mut lease, grant.key(), grant.token(), "release").await
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
        let (mut lease, taken) = self.0.take_within(key, &token, length, wait, Look::Read, NAME).await?;
        let found = match taken {
            Taken::Held(held) => return Ok(Loaded::Held(held)),
            Taken::Missing => return Ok(Loaded::Missing),
            Taken::Granted(Sight::Record(item)) => self.0.read(&lease, key, &item, NAME).map(Some),
            Taken::Granted(_) => self.0.look(&mut lease, key, &self.0.keys(key), NAME).await,
        };
        let grant = Grant::new(*key, token);
        match found {
            Ok(Some(found)) => return Ok(Loaded::Granted(grant, found.stored)),
            Ok(None) => self.0.release(&mut lease, key, &token, NAME).await.map(|_| Loaded::Missing),
            Err(error) => {
                self.0.release_after(&mut lease, &grant, NAME).await;
                Err(error)
            }
        }
    }

    /// One round trip after an [`acquire_and_load`](Self::acquire_and_load) of this process, with the meta protocol.
    ///
    /// A write that is refused there has released the lock, too: it is taken again before `Conflict` is answered. In between,
    /// for one round trip, another can get it; then this grant has lost it, as it can at any time on a server that evicts.
    async fn replace_and_release(&self, grant: &Grant, expected: Version, put: &Put) -> Result<Replaced> {
        const NAME: &str = "replace_and_release";
        let new = self.0.new_record(put, NAME)?;
        let mut lease = self.0.lease(grant.key(), NAME).await?;
        if let Some(replaced) =
            self.0.replace_and_release_at_once(&mut lease, grant, expected, &new, NAME).await?
        {
            return Ok(replaced);
        }
        let replaced = self.0.replace(&mut lease, grant.key(), expected, &new, NAME).await?;
        if matches!(replaced, Replaced::Done(_) | Replaced::Missing) {
            self.0.release_after(&mut lease, grant, NAME).await;
        }
        Ok(replaced)
    }

    /// Three round trips: the record is read, deleted if it is still that, and then the lock.
    async fn delete_and_release(&self, grant: &Grant) -> Result<Deleted> {
        const NAME: &str = "delete_and_release";
        let mut lease = self.0.lease(grant.key(), NAME).await?;
        let deleted = self.0.delete(&mut lease, grant.key(), NAME).await?;
        self.0.release_after(&mut lease, grant, NAME).await;
        Ok(deleted)
    }
}
