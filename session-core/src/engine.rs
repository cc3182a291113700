//! What opening and committing have in common: finding a record, taking its lock, creating and removing it.

use crate::{
    Clock, Deleted, Effect, Error, ErrorKind, Inserted, Loaded, LockingStore, PrincipalKey, Put, Random,
    Result, SessionId, StorageKey, Stored, Token, Touched,
    envelope::{Envelope, Live},
    environment::draw,
    found::{Base, Found},
    hold::{Asked, Hold},
    queue::Queue,
    renewal::Renewals,
    settings::Settings,
    telemetry,
};
use std::{sync::Arc, time::Duration};
use tokio::time::{Instant, sleep};

/// How many rotations are followed from one id. Each takes a request, and a tombstone lives for minutes.
const MAX_HOPS: usize = 64;

/// How often a request whose reply was lost is asked again or looked up, with pauses that double.
pub(crate) const MAX_LOST_REPLIES: u32 = 5;

/// How often a new id may be taken already. Once is a wonder; more is a broken source of randomness.
const MAX_TAKEN: u32 = 3;

#[derive(Debug)]
pub(crate) struct Core {
    pub(crate) store: Arc<dyn LockingStore>,
    pub(crate) settings: Settings,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) random: Arc<dyn Random>,
    pub(crate) queue: Arc<Queue>,
    pub(crate) renewals: Arc<Renewals>,
}

impl Core {
    /// # Errors
    /// The store's, without effect: looking changes nothing, and whoever is told so may look again.
    pub(crate) async fn load(&self, key: &StorageKey) -> Result<Option<Stored>> {
        self.store.load(key).await.map_err(|error| error.with_effect(Effect::None))
    }

    pub(crate) async fn decode(&self, stored: Stored) -> Result<Found> {
        telemetry::loaded(stored.data.len());
        let Stored { version, data, ttl, principal } = stored;
        let known = Instant::now();
        Ok(match Envelope::decode(data, self.settings.limits).await? {
            Envelope::Live(live) => Found::Live(Base { version, live, ttl, known, principal }),
            Envelope::Tombstone(tombstone) => Found::Tombstone(version, tombstone),
        })
    }

    /// Whether the maximum lifetime is over; a store whose clock is late may still have the record.
    pub(crate) fn is_over(&self, base: &Base) -> bool {
        base.live.deadline <= self.clock.now()
    }

    /// The session under this id, or, within the grace of a rotation, under its successor's.
    pub(crate) async fn find(&self, id: &SessionId) -> Result<Option<(SessionId, Base)>> {
        let mut id = id.clone();
        for _ in 0..MAX_HOPS {
            let Some(stored) = self.load(&id.storage_key()).await? else { return Ok(None) };
            match self.decode(stored).await? {
                Found::Live(base) => return Ok((!self.is_over(&base)).then_some((id, base))),
                Found::Tombstone(_, tombstone) => match tombstone.follow(&id, self.clock.now())? {
                    Some(successor) => id = successor,
                    None => return Ok(None),
                },
            }
        }
        Ok(None)
    }

    /// The same, with its lock.
    pub(crate) async fn find_locked(&self, id: &SessionId) -> Result<Option<(SessionId, Base, Hold)>> {
        let mut id = id.clone();
        for _ in 0..MAX_HOPS {
            let Some((hold, stored)) = self.lock(&id.storage_key()).await? else { return Ok(None) };
            match self.decode(stored).await? {
                Found::Live(base) if self.is_over(&base) => return Ok(None),
                Found::Live(base) => return Ok(Some((id, base, hold))),
                Found::Tombstone(_, tombstone) => {
                    hold.release().await;
                    match tombstone.follow(&id, self.clock.now())? {
                        Some(successor) => id = successor,
                        None => return Ok(None),
                    }
                }
            }
        }
        Ok(None)
    }

    /// Waits for the lock, here and in the store, for `lock_wait` in all. `None`: no live record, hence no
    /// lock.
    ///
    /// # Errors
    /// [`ErrorKind::Busy`] when it was not had in time, or the store's.
    pub(crate) async fn lock(&self, key: &StorageKey) -> Result<Option<(Hold, Stored)>> {
        let start = Instant::now();
        let locked = self.lock_until(key, start + self.settings.lock_wait).await;
        match &locked {
            Ok(_) => telemetry::locked(start.elapsed()),
            Err(error) if error.kind() == ErrorKind::Busy => telemetry::busy(),
            Err(_) => {}
        }
        locked
    }

    async fn lock_until(&self, key: &StorageKey, deadline: Instant) -> Result<Option<(Hold, Stored)>> {
        let Settings { lease, max_hold, .. } = self.settings;
        let place = self.queue.enter(key, deadline).await?;
        let token = Token::random(&*self.random)?;
        // From here on the lock may be ours without our knowing: whichever way this ends, it is released.
        let mut asked = Asked::new(Arc::clone(&self.store), *key, token, place);
        let mut backoff = Backoff::new(Duration::from_millis(1), Duration::from_millis(32));
        let mut lost_replies = 0;
        loop {
            let wait = deadline.saturating_duration_since(Instant::now());
            let held_for = match self.store.acquire_and_load(key, token, lease, wait).await {
                Ok(Loaded::Granted(_, stored)) => {
                    return Ok(Some((Hold::new(asked, lease, max_hold, &self.renewals), stored)));
                }
                Ok(Loaded::Missing) => {
                    asked.disarm();
                    return Ok(None);
                }
                Ok(Loaded::Held(held)) => held.retry_after.unwrap_or(Duration::MAX),
                Err(error) if error.effect() == Effect::Unknown && lost_replies < MAX_LOST_REPLIES => {
                    lost_replies += 1;
                    telemetry::looked_up();
                    Duration::MAX
                }
                // The session is as it was; what may have been granted is released.
                Err(error) => return Err(error.with_effect(Effect::None)),
            };
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Error::new(ErrorKind::Busy, "lock").with_context("not within lock_wait"));
            }
            // Awake as soon as the lease can be over, but never in a tight loop.
            let longest = held_for.max(Duration::from_millis(1)).min(left);
            sleep(backoff.next(&*self.random)?.min(longest)).await;
        }
    }

    /// How long a session that is stored now may live: the idle timeout, or less at the end of the maximum
    /// lifetime.
    ///
    /// # Errors
    /// [`ErrorKind::Gone`] when that is over.
    pub(crate) fn ttl(&self, deadline: Duration) -> Result<Duration> {
        let left = deadline.saturating_sub(self.clock.now());
        if left.is_zero() {
            return Err(Error::new(ErrorKind::Gone, "commit").with_context("its maximum lifetime is over"));
        }
        Ok(self.settings.idle_timeout.map_or(left, |idle| idle.min(left)))
    }

    /// Slides the expiry of a session that was used and not changed, at most once in a tenth of the idle
    /// timeout. How long it lives from now on, when that was moved.
    pub(crate) async fn touch_if_due(&self, key: &StorageKey, base: &Base) -> Option<Duration> {
        let idle = self.settings.idle_timeout?;
        let ttl = self.ttl(base.live.deadline).ok()?;
        if base.left().saturating_add(idle / 10) > ttl {
            return None;
        }
        match self.store.touch(key, base.version, ttl).await {
            Ok(Touched::Extended) => Some(ttl),
            // Changed or gone in the meantime: then another request has seen to the expiry.
            Ok(Touched::Missing | Touched::Conflict) => None,
            // No reason to fail a request that was answered from data it has.
            Err(error) => {
                tracing::warn!(%error, "the expiry of a session could not be moved");
                None
            }
        }
    }

    /// Stores a session under an id that nobody has seen.
    pub(crate) async fn insert(
        &self,
        live: Live,
        principal: Option<PrincipalKey>,
    ) -> Result<(SessionId, Base)> {
        let ttl = self.ttl(live.deadline)?;
        let envelope = Envelope::Live(live);
        let put = Put::new(envelope.encode(self.settings.limits).await?, ttl).principal(principal);
        let Envelope::Live(live) = envelope else { return Err(Error::new(ErrorKind::Encode, "commit")) };
        let (mut lost_replies, mut taken) = (0, 0);
        loop {
            let id = SessionId::random(&*self.random)?;
            match self.store.insert(&id.storage_key(), &put).await {
                Ok(Inserted::Created(version)) => {
                    telemetry::committed(put.data.len());
                    let known = Instant::now();
                    return Ok((id, Base { version, live, ttl, known, principal }));
                }
                Ok(Inserted::Exists) if taken == MAX_TAKEN => {
                    return Err(Error::new(ErrorKind::Random, "commit")
                        .with_context("the ids that it draws are all taken"));
                }
                Ok(Inserted::Exists) => taken += 1,
                // That id is never used: a delayed copy of the insert could come after a destroy.
                Err(error) if error.effect() == Effect::Unknown && lost_replies < MAX_LOST_REPLIES => {
                    lost_replies += 1;
                    sleep(Duration::from_millis(10) * 2u32.pow(lost_replies)).await;
                }
                Err(error) if lost_replies > 0 => return Err(error.with_effect(Effect::Unknown)),
                Err(error) => return Err(error),
            }
        }
    }

    /// Removes a session under the key that its request has seen it under, or what it was rotated into.
    /// Whether there was one.
    ///
    /// # Errors
    /// As for [`destroy`](Self::destroy).
    pub(crate) async fn destroy_opened(&self, key: StorageKey, hold: Option<Hold>) -> Result<bool> {
        Walk { core: self, key, hold, live: true, passed: Vec::new(), cut: false }.destroy().await
    }

    /// Removes the session that this key leads to, from its end: the tombstones stand until it is gone, so
    /// that a destroy that was cut can be repeated, unless it has removed one by accident. Whether there was
    /// one.
    ///
    /// # Errors
    /// [`Effect::Unknown`] when a record is gone that may have named a successor: its reply was lost, it
    /// could not be read, or the successor could not be reached.
    pub(crate) async fn destroy(&self, key: StorageKey) -> Result<bool> {
        Walk { core: self, key, hold: None, live: false, passed: Vec::new(), cut: false }.destroy().await
    }

    async fn delete(&self, key: &StorageKey, hold: Option<Hold>) -> Result<Deleted> {
        let mut lost_replies = 0;
        loop {
            let deleted = match &hold {
                Some(hold) => self.store.delete_and_release(hold.grant()).await,
                None => self.store.delete(key).await,
            };
            match deleted {
                Ok(Deleted::Missing) if lost_replies > 0 => {
                    return Err(Error::new(ErrorKind::Unavailable, "destroy")
                        .with_effect(Effect::Unknown)
                        .with_context(
                            "a reply was lost: the record is gone, but it may have named a successor",
                        ));
                }
                Ok(deleted) => {
                    if let Some(hold) = hold {
                        hold.forget();
                    }
                    return Ok(deleted);
                }
                // Deleting again does no harm: an id is inserted once.
                Err(error) if error.effect() == Effect::Unknown && lost_replies < MAX_LOST_REPLIES => {
                    lost_replies += 1;
                    telemetry::looked_up();
                    sleep(Duration::from_millis(10) * 2u32.pow(lost_replies)).await;
                }
                // An earlier copy may still be under way, whatever became of this one.
                Err(error) if lost_replies > 0 => return Err(error.with_effect(Effect::Unknown)),
                Err(error) => return Err(error),
            }
        }
    }

    pub(crate) fn commit_id(&self) -> Result<[u8; 8]> {
        draw(&*self.random)
    }
}

/// The way from a key to the living session that it leads to, which is to be removed.
struct Walk<'a> {
    core: &'a Core,
    key: StorageKey,
    hold: Option<Hold>,
    /// Whether there was a session under `key` a moment ago.
    live: bool,
    /// The tombstones behind.
    passed: Vec<StorageKey>,
    /// Something was removed. Unless that was the session it was a tombstone, by accident: a rotation had won
    /// by a moment. From there on nobody else finds the way.
    cut: bool,
}

impl Walk<'_> {
    async fn destroy(mut self) -> Result<bool> {
        match self.walk().await {
            Err(error) if self.cut => Err(error.with_effect(Effect::Unknown)),
            Ok(true) => {
                for tombstone in self.passed.iter().rev() {
                    if let Err(error) = self.core.store.delete(tombstone).await {
                        tracing::debug!(%error, "a tombstone that leads nowhere ends with its time");
                    }
                }
                Ok(true)
            }
            done => done,
        }
    }

    async fn walk(&mut self) -> Result<bool> {
        for _ in 0..2 * MAX_HOPS {
            let stored = if self.live {
                let deleted = self.core.delete(&self.key, self.hold.take()).await?;
                let Deleted::Removed(stored) = deleted else { return Ok(false) };
                self.cut = true; // also when it cannot be read: then nobody knows what it was
                stored
            } else {
                let Some(stored) = self.core.load(&self.key).await? else { return Ok(false) };
                stored
            };
            match self.core.decode(stored).await? {
                Found::Live(_) if self.live => return Ok(true),
                Found::Live(_) => self.live = true,
                Found::Tombstone(_, tombstone) => {
                    if !self.live {
                        self.passed.push(self.key);
                    }
                    (self.key, self.live) = (tombstone.successor, false);
                }
            }
        }
        Err(Error::new(ErrorKind::TooLarge, "destroy").with_context(format!("{MAX_HOPS} rotations in a row")))
    }
}

/// Pauses that double, each between half and all of its length, so that those who collide once do not do so
/// again.
pub(crate) struct Backoff {
    pause: Duration,
    longest: Duration,
}

impl Backoff {
    pub(crate) fn new(first: Duration, longest: Duration) -> Self {
        Self { pause: first, longest }
    }

    pub(crate) fn next(&mut self, random: &dyn Random) -> Result<Duration> {
        let [part] = draw(random)?;
        let pause = self.pause;
        self.pause = (pause * 2).min(self.longest);
        Ok(pause / 2 + pause * u32::from(part) / 510)
    }
}
