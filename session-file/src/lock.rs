//! The lock of a session: a lease in a file beside the record, read and written in the same step as the
//! record.
//!
//! A lease is alive until its deadline, and as long as its owner is. A plain write is refused while it lives,
//! and a holder whose lease has ended is refused even when nobody took it: one look at the lock file in the
//! step that writes.
//!
//! Nobody can wake a process that waits, so those who wait come and look: after 1 ms, later every 5 to 10 ms.
//! Whoever comes first gets the lock, which is quick, and unfair to a process that looks in vain while
//! another one passes the lock on inside. So who has waited for 50 ms writes its token into the lock file:
//! the next turn is then kept for it, and it looks every 2 ms. A kept turn that nobody comes for ends after
//! 100 ms.

use crate::{
    FileStore,
    format::{Lease, Lock, Turn},
    shard::Shard,
    store::Draft,
};
use async_trait::async_trait;
use session_core::{
    Acquired, Deleted, Effect, Grant, Held, Loaded, LockingStore, Put, Released, Renewed, Replaced, Result,
    SessionLock, StorageKey, Stored, Token, Version,
};
use std::time::Duration;
use tokio::time::{Instant, sleep};

const FIRST_PAUSE: Duration = Duration::from_millis(1);
const LONGEST_PAUSE: Duration = Duration::from_millis(10);

/// Who has waited so long has the next turn kept.
const PATIENCE: Duration = Duration::from_millis(50);
/// How often who has the next turn looks whether it has come.
const TURN_PAUSE: Duration = Duration::from_millis(2);
/// How long a turn is kept for someone who does not come: many pauses, as a busy machine stretches them.
const TURN: Duration = Duration::from_millis(100);

/// The outcome of one look at the lock.
enum Taken {
    Granted(Grant, Option<Stored>),
    Held(Held),
    Missing,
}

/// What is asked for.
#[derive(Clone, Copy)]
struct Request {
    key: StorageKey,
    token: Token,
    lease: Duration,
    /// Whether the record is wanted, too; without one there is no lock then.
    with_record: bool,
}

impl FileStore {
    /// Looks, sleeps, looks again. Between two looks a waiter occupies nothing.
    async fn take(&self, operation: &'static str, request: Request, wait: Duration) -> Result<Taken> {
        let begun = Instant::now();
        let mut pause = FIRST_PAUSE;
        loop {
            let patient = begun.elapsed() < PATIENCE;
            let taken =
                self.step(operation, &request.key, move |shard| shard.take(&request, patient)).await?;
            let Taken::Held(held) = taken else { return Ok(taken) };
            let left = wait.saturating_sub(begun.elapsed());
            if left.is_zero() {
                return Ok(taken);
            }
            let end = held.retry_after.unwrap_or(LONGEST_PAUSE).max(FIRST_PAUSE);
            let next = if patient { self.shared.jittered(pause) } else { TURN_PAUSE };
            sleep(next.min(left).min(end)).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }
}

impl Shard<'_> {
    fn now(&self) -> Duration {
        self.shared.config.lease_clock.now()
    }

    fn take(&self, request: &Request, patient: bool) -> Result<Taken> {
        let Request { key, token, lease, with_record } = *request;
        let stored = if with_record {
            let Some(record) = self.live(&key)? else {
                self.free(&key, token)?;
                return Ok(Taken::Missing);
            };
            Some(record.stored(self.shared.config.clock.now()))
        } else {
            None
        };
        let now = self.now();
        let lock = self.shared.read_lock(self.operation, &key)?;
        let holder = self.holder(&lock, now)?;
        let others_turn = kept(&lock, now).filter(|turn| turn.token != token);
        match (holder, others_turn) {
            (Some(holder), _) if holder.token != token => {
                if !patient && others_turn.is_none() {
                    self.keep_turn(&key, lock, token, now)?;
                }
                Ok(Taken::Held(held_until(holder.until, now)))
            }
            (None, Some(turn)) => Ok(Taken::Held(held_until(turn.until, now))),
            (_, next) => {
                let owner = &self.shared.owner;
                let path = self.shared.layout.owner(owner.id);
                owner.ensure().map_err(|error| self.failed(Effect::None, &path, error))?;
                let lease = Lease { token, owner: owner.id, until: now.saturating_add(lease) };
                self.write_lock(&key, &Lock { holder: Some(lease), next })?;
                Ok(Taken::Granted(Grant::new(key, token), stored))
            }
        }
    }

    /// Keeps the next turn, and keeps it again in time.
    fn keep_turn(&self, key: &StorageKey, lock: Lock, token: Token, now: Duration) -> Result<()> {
        if lock.next.is_some_and(|turn| turn.token == token && turn.until > now + TURN / 2) {
            return Ok(());
        }
        let next = Some(Turn { token, until: now.saturating_add(TURN) });
        self.write_lock(key, &Lock { next, ..lock })
    }

    fn renew(&self, key: &StorageKey, token: Token, lease: Duration) -> Result<Renewed> {
        let now = self.now();
        let lock = self.shared.read_lock(self.operation, key)?;
        match self.holder(&lock, now)? {
            Some(holder) if holder.token == token => {
                let holder = Some(Lease { until: now.saturating_add(lease), ..holder });
                self.write_lock(key, &Lock { holder, ..lock })?;
                Ok(Renewed::Extended)
            }
            _ => Ok(Renewed::Lost),
        }
    }

    /// Takes this token out of the lock file, dead or alive; whether it held the lock.
    fn free(&self, key: &StorageKey, token: Token) -> Result<bool> {
        let now = self.now();
        let lock = self.shared.read_lock(self.operation, key)?;
        let held = self.holder(&lock, now)?.is_some_and(|holder| holder.token == token);
        let rest = Lock {
            holder: lock.holder.filter(|holder| holder.token != token),
            next: kept(&lock, now).filter(|turn| turn.token != token),
        };
        if rest != lock {
            self.write_lock(key, &rest)?;
        }
        Ok(held)
    }

    /// After the step is decided: a lock that cannot be freed ends with its lease, and is no reason to call
    /// the step failed.
    fn free_at_last(&self, key: &StorageKey, token: Option<Token>) {
        if let Some(Err(error)) = token.map(|token| self.free(key, token)) {
            tracing::warn!(%error, "a lock could not be released; it ends with its lease");
        }
    }

    pub(crate) fn replace(
        &self,
        key: &StorageKey,
        expected: Version,
        draft: Draft,
        by: Option<Token>,
    ) -> Result<Replaced> {
        let Some(record) = self.live(key)? else {
            self.free_at_last(key, by);
            return Ok(Replaced::Missing);
        };
        let now = self.now();
        let holder = self.holder(&self.shared.read_lock(self.operation, key)?, now)?;
        if holder.map(|lease| lease.token) != by {
            let held = holder.map(|lease| held_until(lease.until, now));
            return Ok(Replaced::NotHolder(held.unwrap_or_default()));
        }
        let now = self.shared.config.clock.now();
        if record.version != expected {
            return Ok(Replaced::Conflict(record.stored(now)));
        }
        let new = draft.at(now);
        self.write(key, record.principal, &new)?;
        self.free_at_last(key, by);
        Ok(Replaced::Done(new.version))
    }
}

/// The turn that is kept, if one is. One that is kept for longer than any is was written by another clock:
/// before the machine was started again.
pub(crate) fn kept(lock: &Lock, now: Duration) -> Option<Turn> {
    lock.next.filter(|turn| turn.until > now && turn.until <= now.saturating_add(TURN))
}

fn held_until(until: Duration, now: Duration) -> Held {
    Held { retry_after: Some(until.saturating_sub(now)) }
}

#[async_trait]
impl SessionLock for FileStore {
    async fn acquire(
        &self,
        key: &StorageKey,
        token: Token,
        lease: Duration,
        wait: Duration,
    ) -> Result<Acquired> {
        let request = Request { key: *key, token, lease, with_record: false };
        Ok(match self.take("acquire", request, wait).await? {
            Taken::Granted(grant, _) => Acquired::Granted(grant),
            Taken::Held(held) => Acquired::Held(held),
            Taken::Missing => Acquired::Held(Held::default()),
        })
    }

    async fn renew(&self, grant: &Grant, lease: Duration) -> Result<Renewed> {
        let (key, token) = (*grant.key(), *grant.token());
        self.step("renew", &key, move |shard| shard.renew(&key, token, lease)).await
    }

    async fn release(&self, grant: &Grant) -> Result<Released> {
        let (key, token) = (*grant.key(), *grant.token());
        let freed = self.step("release", &key, move |shard| shard.free(&key, token)).await?;
        Ok(if freed { Released::Freed } else { Released::Lost })
    }
}

#[async_trait]
impl LockingStore for FileStore {
    async fn acquire_and_load(
        &self,
        key: &StorageKey,
        token: Token,
        lease: Duration,
        wait: Duration,
    ) -> Result<Loaded> {
        let request = Request { key: *key, token, lease, with_record: true };
        Ok(match self.take("acquire_and_load", request, wait).await? {
            Taken::Granted(grant, Some(stored)) => Loaded::Granted(grant, stored),
            Taken::Held(held) => Loaded::Held(held),
            Taken::Missing | Taken::Granted(_, None) => Loaded::Missing,
        })
    }

    async fn replace_and_release(&self, grant: &Grant, expected: Version, put: &Put) -> Result<Replaced> {
        const OPERATION: &str = "replace_and_release";
        let (draft, key, token) = (self.draft(put, OPERATION)?, *grant.key(), *grant.token());
        self.step(OPERATION, &key, move |shard| shard.replace(&key, expected, draft, Some(token))).await
    }

    async fn delete_and_release(&self, grant: &Grant) -> Result<Deleted> {
        let (key, token) = (*grant.key(), *grant.token());
        self.step("delete_and_release", &key, move |shard| {
            let deleted = shard.delete(&key)?;
            shard.free_at_last(&key, Some(token));
            Ok(deleted)
        })
        .await
    }
}
