//! The lock: a lease per session, and a queue of tickets that it is handed along.
//!
//! Who finds the lock held leaves a ticket (the token it asked with) and sleeps. Who releases gives the lock
//! to the oldest living ticket in the same script that writes the record, and tells it so. Who is told asks
//! again with the same ticket, and holds the lock only if the script says so: no message is ever believed. A
//! waiter looks for itself every [`poll`](crate::RedisConfig::poll), and when the lease of the present holder
//! should end; what was handed over and not claimed passes on after [`claim`](crate::RedisConfig::claim). So
//! a living waiter waits at most `claim + poll` after the last fault.
//!
//! An `acquire` that is dropped gives its ticket, or the lock that it was just granted, back in the
//! background: ask again with a new token. Until the deadline it outlives lost connections; the last error is
//! its answer then.
//!
//! ```no_run
//! use session_core::{Loaded, LockingStore, Put, Replaced, StorageKey, SystemRandom, Token};
//! use session_redis::RedisStore;
//! use std::time::Duration;
//!
//! # async fn run(store: RedisStore, key: StorageKey) -> session_core::Result<()> {
//! let (lease, wait) = (Duration::from_secs(10), Duration::from_secs(5));
//! let token = Token::random(&SystemRandom)?;
//! if let Loaded::Granted(grant, stored) = store.acquire_and_load(&key, token, lease, wait).await? {
//!     let put = Put::new("after".into(), Duration::from_secs(60));
//!     let Replaced::Done(_) = store.replace_and_release(&grant, stored.version, &put).await? else {
//!         return Ok(()); // destroyed, or the lease ran out
//!     };
//! }
//! # Ok(()) }
//! ```

use crate::{
    RedisStore,
    config::LockKind,
    layout::{hex, milliseconds},
    script::{ACQUIRE, COMMIT, RELEASE, RENEW, REPLACE},
    store::{Inner, Reply},
    waiters::Place,
};
use async_trait::async_trait;
use redis::Value;
use session_core::{
    Acquired, Deleted, Effect, Error, ErrorKind, Grant, Held, Loaded, LockingStore, Put, Released, Renewed,
    Replaced, Result, SessionLock, StorageKey, Stored, Token, Version,
};
use std::{sync::Arc, time::Duration};
use tokio::time::Instant;

/// The first and the longest pause of who spins, before jitter.
const SPIN: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(64));

/// What one call of the script said.
enum Step {
    Granted(Option<Stored>),
    Held(Option<Duration>),
    Gone,
}

/// How to ask.
#[derive(Clone, Copy)]
enum Ask {
    /// Take it if it is free.
    Try,
    /// And take a place in the queue if it is not.
    Queue,
    /// And give up the place if it is not.
    Leave,
}

/// One who asks for the lock, from the first command to the answer.
struct Asking {
    store: Arc<Inner>,
    key: StorageKey,
    token: Token,
    lease: String,
    /// Whether only a live record may be locked, which is then loaded.
    live: bool,
    /// Whether there may be a ticket or a lock in Redis of which the caller has not been told.
    untold: bool,
}

impl Asking {
    async fn ask(&mut self, ask: Ask) -> Result<Step> {
        let operation = if self.live { "acquire_and_load" } else { "acquire" };
        let keys = self.store.keys(&self.key);
        let ticket = hex(self.token.as_bytes());
        let arguments = [
            ticket.as_bytes(),
            self.lease.as_bytes(),
            self.store.claim.as_bytes(),
            if self.live { b"l" } else { b"" },
            match ask {
                Ask::Try => b"",
                Ask::Queue => self.store.place.as_bytes(),
                Ask::Leave => b"leave",
            },
        ];
        self.untold = true;
        let reply = self.store.call(operation, &ACQUIRE, &keys.all(), &arguments).await?;
        let mut reply = Reply::new(reply, operation)?;
        match &*reply.word {
            "granted" if self.live => reply.stored().map(|stored| Step::Granted(Some(stored))),
            "granted" => Ok(Step::Granted(None)),
            "held" => Ok(Step::Held(reply.left())),
            "gone" => Ok(Step::Gone),
            _ => Err(reply.unexpected()),
        }
    }

    /// Asks until there is an answer or the time is over.
    async fn until(mut self, wait: Duration) -> Result<Step> {
        let deadline = Instant::now().checked_add(wait).unwrap_or_else(far);
        let queue = self.store.lock == LockKind::Queue && !wait.is_zero();
        let place = queue.then(|| self.store.waiters.enter(self.token));
        let mut queued = false;
        let mut spins = 0;
        loop {
            let ask = match () {
                () if !wait.is_zero() && Instant::now() >= deadline => Ask::Leave,
                // The first ticket follows the subscription. Later, should it be lost, places are kept by
                // polling.
                () if queue && (queued || self.store.waiters.is_subscribed()) => Ask::Queue,
                () => Ask::Try,
            };
            queued |= matches!(ask, Ask::Queue);
            let over = wait.is_zero() || matches!(ask, Ask::Leave);
            let pause = match self.ask(ask).await {
                Ok(Step::Held(left)) if !over => {
                    if queue && !queued {
                        self.store.waiters.subscribe(self.store.poll).await;
                        queued = true;
                        continue;
                    }
                    self.pause(queue, left, &mut spins)
                }
                // Who waits outlives a connection: asking again with the same token does no harm.
                Err(error)
                    if !over && error.kind() == ErrorKind::Unavailable && Instant::now() < deadline =>
                {
                    tracing::debug!(%error, "asking for a lock failed; waiting goes on");
                    self.backoff(&mut spins)
                }
                // The lock is ours and of no use: it is given back as if we had gone away.
                Err(error) if error.kind() == ErrorKind::Damaged => return Err(error),
                result => {
                    self.untold = false;
                    return result;
                }
            };
            sleep(deadline.min(Instant::now() + pause), place.as_ref()).await;
        }
    }

    /// How long to sleep with this much left of the holder's lease.
    fn pause(&self, queued: bool, left: Option<Duration>, spins: &mut u32) -> Duration {
        if !queued {
            return self.backoff(spins);
        }
        // A millisecond more: Redis counts whole ones.
        left.map_or(self.store.poll, |left| self.store.poll.min(left + Duration::from_millis(1)))
    }

    /// Twice as long each time, of which a random part; the token is random enough to spread those who spin.
    fn backoff(&self, spins: &mut u32) -> Duration {
        let longest = (SPIN.0 * 2u32.saturating_pow(*spins)).min(SPIN.1);
        let byte = self.token.as_bytes()[*spins as usize % 16].wrapping_add((*spins / 16) as u8 * 37);
        *spins = spins.saturating_add(1);
        longest / 2 + longest * u32::from(byte) / 512
    }
}

impl Drop for Asking {
    /// Given up in the middle: the ticket is taken back, or the lock that was just granted. Should that fail,
    /// too, a ticket ends with its heartbeat and a lock with its lease.
    fn drop(&mut self) {
        if !self.untold {
            return;
        }
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            let (store, key, token) = (Arc::clone(&self.store), self.key, self.token);
            runtime.spawn(async move {
                if let Err(error) = store.release("release", &key, &token).await {
                    tracing::debug!(%error, "a place in a queue was left behind; it runs out");
                }
            });
        }
    }
}

async fn sleep(until: Instant, place: Option<&Place>) {
    match place {
        None => tokio::time::sleep_until(until).await,
        // Woken or not: look.
        Some(place) => drop(tokio::time::timeout_at(until, place.woken()).await),
    }
}

/// Longer than any process runs.
fn far() -> Instant {
    Instant::now() + Duration::from_secs(365 * 86_400)
}

impl Inner {
    fn asking(self: &Arc<Self>, key: &StorageKey, token: Token, lease: Duration, live: bool) -> Asking {
        Asking { store: Arc::clone(self), key: *key, token, lease: milliseconds(lease), live, untold: false }
    }

    async fn release(&self, operation: &'static str, key: &StorageKey, token: &Token) -> Result<Released> {
        let arguments = [hex(token.as_bytes()), self.claim.clone()];
        let keys = self.keys(key);
        let arguments = arguments.each_ref().map(String::as_bytes);
        let reply = self.call(operation, &RELEASE, &keys.all(), &arguments).await?;
        Ok(if reply == Value::Int(1) { Released::Freed } else { Released::Lost })
    }

    /// Writes if the version and the lock allow it: held with this token, or by nobody.
    pub(crate) async fn commit(
        &self,
        operation: &'static str,
        key: &StorageKey,
        token: Option<&Token>,
        expected: Version,
        put: &Put,
    ) -> Result<Replaced> {
        let (version, record) = self.record(put, operation)?;
        let keys = self.keys(key);
        let ttl = milliseconds(put.ttl);
        let index = self.index_first(operation, key, put.principal.as_ref(), &ttl).await?;
        let expected = expected.to_bytes();
        let write = [&expected[..], &record, ttl.as_bytes()];
        let reply = match token {
            None => self.call(operation, &REPLACE, &with(&keys.all()[..2], &index), &write).await?,
            Some(token) => {
                let token = hex(token.as_bytes());
                let [expected, record, ttl] = write;
                let write = [token.as_bytes(), expected, record, ttl, self.claim.as_bytes()];
                self.call(operation, &COMMIT, &with(&keys.all(), &index), &write).await?
            }
        };
        let mut reply = Reply::new(reply, operation)?;
        match &*reply.word {
            "stored" => Ok(Replaced::Done(version)),
            "missing" => Ok(Replaced::Missing),
            "not_holder" => Ok(Replaced::NotHolder(Held { retry_after: reply.left() })),
            "conflict" => reply.stored().map(Replaced::Conflict),
            _ => Err(reply.unexpected()),
        }
    }
}

/// The keys of a session, and that of its user's index if the same script writes it.
fn with<'a>(keys: &[&'a [u8]], index: &'a Option<String>) -> Vec<&'a [u8]> {
    keys.iter().copied().chain(index.as_ref().map(String::as_bytes)).collect()
}

#[async_trait]
impl SessionLock for RedisStore {
    async fn acquire(
        &self,
        key: &StorageKey,
        token: Token,
        lease: Duration,
        wait: Duration,
    ) -> Result<Acquired> {
        Ok(match self.0.asking(key, token, lease, false).until(wait).await? {
            Step::Granted(_) => Acquired::Granted(Grant::new(*key, token)),
            Step::Held(left) => Acquired::Held(Held { retry_after: left }),
            Step::Gone => Acquired::Held(Held::default()), // not asked for, hence not answered
        })
    }

    async fn renew(&self, grant: &Grant, lease: Duration) -> Result<Renewed> {
        let keys = self.0.keys(grant.key());
        let arguments = [hex(grant.token().as_bytes()), milliseconds(lease)];
        let arguments = arguments.each_ref().map(String::as_bytes);
        let reply = self.0.call("renew", &RENEW, &[keys.lock()], &arguments).await?;
        Ok(if reply == Value::Int(1) { Renewed::Extended } else { Renewed::Lost })
    }

    async fn release(&self, grant: &Grant) -> Result<Released> {
        self.0.release("release", grant.key(), grant.token()).await
    }
}

#[async_trait]
impl LockingStore for RedisStore {
    async fn acquire_and_load(
        &self,
        key: &StorageKey,
        token: Token,
        lease: Duration,
        wait: Duration,
    ) -> Result<Loaded> {
        match self.0.asking(key, token, lease, true).until(wait).await? {
            Step::Granted(Some(stored)) => Ok(Loaded::Granted(Grant::new(*key, token), stored)),
            Step::Held(left) => Ok(Loaded::Held(Held { retry_after: left })),
            Step::Gone => Ok(Loaded::Missing),
            Step::Granted(None) => {
                Err(Error::new(ErrorKind::Backend, "acquire_and_load").with_effect(Effect::Unknown))
            }
        }
    }

    async fn replace_and_release(&self, grant: &Grant, expected: Version, put: &Put) -> Result<Replaced> {
        self.0.commit("replace_and_release", grant.key(), Some(grant.token()), expected, put).await
    }

    async fn delete_and_release(&self, grant: &Grant) -> Result<Deleted> {
        self.0.delete("delete_and_release", grant.key(), &hex(grant.token().as_bytes())).await
    }
}
