//! The lock, and its steps together with the record; what both modes have in common.

use crate::{
    advisory::Wanted,
    lease::Asked,
    line::{Answer, Line, Replacement, Write, Written},
    record::micros,
    store::{Mode, PostgresStore},
    turns::{Place, Turn},
};
use async_trait::async_trait;
use session_core::{
    Acquired, Deleted, Grant, Held, Loaded, LockingStore, Put, Released, Renewed, Replaced, Result,
    SessionLock, SessionStore as _, StorageKey, Stored, Token, Version,
};
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// How often a lock of another process is asked for when nobody can wait for it: at first, and at most. In
/// lease mode it has to be much more often than every 50 ms, for which a waiter's place in the row counts.
const POLL: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(8));
/// How long a lock that nobody holds may look taken, because writes without a lock are just being committed.
const FENCE: Duration = Duration::from_millis(250);
/// Longer leases and waits are this long: time that is added to the clock has to stay within its range.
const LONGEST: Duration = Duration::from_secs(24 * 60 * 60);

enum Taken {
    Granted(Grant, Option<Stored>),
    Held(Held),
    Missing,
}

/// One attempt, in either mode.
enum Attempt {
    Granted(Place, Instant, Option<Stored>),
    Missing,
    /// The remaining time of the present holder, where it is known.
    Held(Option<Duration>),
    Fenced,
}

impl PostgresStore {
    async fn take(
        &self,
        key: &StorageKey,
        token: Token,
        lease: Duration,
        wait: Duration,
        load: bool,
    ) -> Result<Taken> {
        let lock = self.lock_key(key);
        let since_us = (!wait.is_zero()).then_some(0);
        let mut wanted = Wanted { lock, key, token, lease: lease.min(LONGEST), load, since_us };
        let started = Instant::now();
        let patience = started + wait.min(LONGEST);
        let mut pause = POLL.0;
        // The right to ask is kept from here on, and passed on however this ends.
        let asking = loop {
            match self.inner.turns.turn(lock, token, patience).await? {
                Turn::Asking(asking) => break asking,
                // Of this process. Whether the record is there is for the server to say.
                Turn::Held(_) if load && self.load(key).await?.is_none() => return Ok(Taken::Missing),
                Turn::Held(retry_after) => return Ok(Taken::Held(Held { retry_after })),
                Turn::Mine(place) => match self.attempt(&mut wanted, Some(&place)).await? {
                    Attempt::Granted(_, until, stored) => {
                        self.inner.turns.renewed(lock, token, until);
                        return Ok(Taken::Granted(Grant::new(*key, token), stored));
                    }
                    Attempt::Missing => {
                        // Nor is there a lock any more.
                        self.inner.turns.free(lock, token);
                        return Ok(Taken::Missing);
                    }
                    // Its end came in between.
                    Attempt::Held(retry_after) if Instant::now() >= patience => {
                        return Ok(Taken::Held(Held { retry_after }));
                    }
                    Attempt::Held(_) | Attempt::Fenced => sleep(pause).await,
                },
            }
        };
        loop {
            let mut attempt = self.attempt(&mut wanted, None).await?;
            let left = match &attempt {
                Attempt::Fenced => patience.max(started + FENCE),
                _ => patience,
            }
            .saturating_duration_since(Instant::now());
            if let (Mode::Advisory(advisory), Attempt::Held(_) | Attempt::Fenced, false) =
                (&self.inner.mode, &attempt, left.is_zero())
                && let Some(answer) = advisory.wait(wanted, left).await
            {
                attempt = answer?.into();
            }
            let busy = match attempt {
                Attempt::Granted(place, until, stored) => {
                    asking.granted(place, until);
                    return Ok(Taken::Granted(Grant::new(*key, token), stored));
                }
                Attempt::Missing => return Ok(Taken::Missing),
                Attempt::Held(busy) if Instant::now() >= patience => {
                    return Ok(Taken::Held(Held { retry_after: busy }));
                }
                Attempt::Fenced if left.is_zero() => return Ok(Taken::Held(Held::default())),
                Attempt::Held(busy) => busy,
                Attempt::Fenced => None,
            };
            sleep(pause.min(left).min(busy.unwrap_or(pause).max(POLL.0))).await;
            pause = (pause * 2).min(POLL.1);
        }
    }

    async fn attempt(&self, wanted: &mut Wanted<'_>, held: Option<&Place>) -> Result<Attempt> {
        match &self.inner.mode {
            Mode::Advisory(advisory) => {
                let line = match held {
                    Some(Place::Line(line)) => Some(line),
                    Some(Place::Row) | None => None,
                };
                Ok(advisory.ask(*wanted, line).await?.into())
            }
            Mode::Lease(rows) => Ok(match rows.ask(*wanted).await? {
                Asked::Granted(grant, until, stored) => {
                    grant.keep();
                    Attempt::Granted(Place::Row, until, stored)
                }
                Asked::Missing => Attempt::Missing,
                Asked::Held(busy, since_us) => {
                    wanted.since_us = wanted.since_us.map(|_| since_us);
                    Attempt::Held(Some(busy))
                }
            }),
        }
    }

    /// The connection that holds this grant's lock.
    fn line_of(&self, grant: &Grant) -> Option<Line> {
        match self.inner.turns.holder(self.lock_key(grant.key()), *grant.token()) {
            Some(Place::Line(line)) => Some(line),
            Some(Place::Row) | None => None,
        }
    }

    /// What a write gets that comes without a lock of its own.
    async fn not_holder(&self, key: &StorageKey) -> Result<Replaced> {
        Ok(match self.load(key).await? {
            None => Replaced::Missing,
            Some(_) => Replaced::NotHolder(Held { retry_after: self.inner.turns.busy(self.lock_key(key)) }),
        })
    }

    /// Forgets a lock that its row no longer has.
    fn forget(&self, grant: &Grant) {
        self.inner.turns.free(self.lock_key(grant.key()), *grant.token());
    }
}

impl From<Answer> for Attempt {
    fn from(answer: Answer) -> Self {
        match answer {
            Answer::Granted(owned, until, stored) => Self::Granted(Place::Line(owned.keep()), until, stored),
            Answer::Missing => Self::Missing,
            Answer::Held(left) => Self::Held(left),
            Answer::Fenced => Self::Fenced,
        }
    }
}

#[async_trait]
impl SessionLock for PostgresStore {
    async fn acquire(
        &self,
        key: &StorageKey,
        token: Token,
        lease: Duration,
        wait: Duration,
    ) -> Result<Acquired> {
        Ok(match self.take(key, token, lease, wait, false).await? {
            Taken::Granted(grant, _) => Acquired::Granted(grant),
            Taken::Held(held) => Acquired::Held(held),
            Taken::Missing => Acquired::Held(Held::default()),
        })
    }

    async fn renew(&self, grant: &Grant, lease: Duration) -> Result<Renewed> {
        let lease = lease.min(LONGEST);
        let (lock, token) = (self.lock_key(grant.key()), *grant.token());
        let until = match &self.inner.mode {
            Mode::Advisory(_) => match self.line_of(grant) {
                Some(line) => line.renew(lock, token, lease).await?,
                None => None,
            },
            Mode::Lease(rows) => rows.renew(grant, lease).await?,
        };
        Ok(match until {
            Some(until) => {
                self.inner.turns.renewed(lock, token, until);
                Renewed::Extended
            }
            None => Renewed::Lost,
        })
    }

    async fn release(&self, grant: &Grant) -> Result<Released> {
        let freed = match &self.inner.mode {
            Mode::Advisory(_) => match self.line_of(grant) {
                Some(line) => line.release(self.lock_key(grant.key()), *grant.token()).await?,
                None => false,
            },
            Mode::Lease(rows) => {
                let freed = rows.release(grant).await;
                // Whatever became of it: that the lock may still be taken, its row says to who asks next.
                self.forget(grant);
                freed?
            }
        };
        Ok(if freed { Released::Freed } else { Released::Lost })
    }
}

#[async_trait]
impl LockingStore for PostgresStore {
    async fn acquire_and_load(
        &self,
        key: &StorageKey,
        token: Token,
        lease: Duration,
        wait: Duration,
    ) -> Result<Loaded> {
        Ok(match self.take(key, token, lease, wait, true).await? {
            Taken::Granted(grant, Some(stored)) => Loaded::Granted(grant, stored),
            Taken::Held(held) => Loaded::Held(held),
            Taken::Missing | Taken::Granted(_, None) => Loaded::Missing,
        })
    }

    async fn replace_and_release(&self, grant: &Grant, expected: Version, put: &Put) -> Result<Replaced> {
        const OPERATION: &str = "replace_and_release";
        let (key, token) = (grant.key(), grant.token());
        if let Mode::Lease(_) = self.inner.mode {
            let replaced = self.replace_row(OPERATION, key, expected, put, Some(token)).await?;
            if !matches!(replaced, Replaced::Conflict(_)) {
                self.forget(grant);
            }
            return Ok(replaced);
        }
        let version = self.new_version(put, OPERATION)?;
        let Some(line) = self.line_of(grant) else { return self.not_holder(key).await };
        let replacement = Replacement {
            expected,
            version,
            data: put.data.clone(),
            ttl_us: micros(put.ttl),
            principal: put.principal,
        };
        let write = Write { key: *key, put: Some(replacement) };
        Ok(match line.commit(OPERATION, self.lock_key(key), *token, write).await? {
            Written::Done => Replaced::Done(version),
            Written::Conflict(stored) | Written::Removed(stored) => Replaced::Conflict(stored),
            Written::Missing => Replaced::Missing,
            Written::NotHolder => self.not_holder(key).await?,
        })
    }

    async fn delete_and_release(&self, grant: &Grant) -> Result<Deleted> {
        const OPERATION: &str = "delete_and_release";
        let (key, token) = (grant.key(), grant.token());
        if let Mode::Lease(_) = self.inner.mode {
            let deleted = self.delete_row(OPERATION, key, Some(token)).await?;
            self.forget(grant);
            return Ok(deleted);
        }
        let Some(line) = self.line_of(grant) else { return self.delete_row(OPERATION, key, None).await };
        let write = Write { key: *key, put: None };
        Ok(match line.commit(OPERATION, self.lock_key(key), *token, write).await? {
            Written::Removed(stored) => Deleted::Removed(stored),
            Written::Missing => Deleted::Missing,
            // Whoever holds the lock: destroy wins.
            Written::NotHolder | Written::Done | Written::Conflict(_) => {
                self.delete_row(OPERATION, key, None).await?
            }
        })
    }
}
