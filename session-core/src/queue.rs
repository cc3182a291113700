//! The queues of one process: for each session in use, one for the lock and one for commits without a lock.
//!
//! The lock's queue is first in, first out, and sends one contender per process to the backend. The commits'
//! queue saves conflicts, not updates: who leaves it leaves what was written, so that the next one builds on
//! it and is not refused. Whoever waits too long goes on without.

use crate::{Error, ErrorKind, Result, StorageKey, found::Base};
use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};
use tokio::{
    sync::{Mutex as AsyncMutex, OwnedMutexGuard, OwnedSemaphorePermit, Semaphore},
    time::{Instant, timeout_at},
};

#[derive(Debug)]
pub(crate) struct Queue {
    slots: Mutex<HashMap<StorageKey, Slot>>,
    max_waiters: usize,
}

/// What one session's users share; there as long as there is one.
#[derive(Debug)]
struct Slot {
    users: usize,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    lock: Arc<Semaphore>,
    waiting: AtomicUsize,
    turn: Arc<AsyncMutex<Option<Base>>>,
}

/// One user of a slot.
#[derive(Debug)]
struct User {
    queue: Arc<Queue>,
    key: StorageKey,
    shared: Arc<Shared>,
}

/// The place at the head of the lock's queue: the next one comes when it is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    _permit: OwnedSemaphorePermit,
    _user: User,
}

/// The turn to commit: the next one comes when it is dropped.
pub(crate) struct Turn {
    last: OwnedMutexGuard<Option<Base>>,
    _user: User,
}

impl Queue {
    pub(crate) fn new(max_waiters: usize) -> Arc<Self> {
        Arc::new(Self { slots: Mutex::default(), max_waiters })
    }

    fn slots(&self) -> MutexGuard<'_, HashMap<StorageKey, Slot>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn user(self: &Arc<Self>, key: &StorageKey) -> User {
        let mut slots = self.slots();
        let slot = slots.entry(*key).or_insert_with(|| Slot {
            users: 0,
            shared: Arc::new(Shared {
                lock: Arc::new(Semaphore::new(1)),
                waiting: AtomicUsize::new(0),
                turn: Arc::default(),
            }),
        });
        slot.users += 1;
        User { queue: Arc::clone(self), key: *key, shared: Arc::clone(&slot.shared) }
    }

    /// Waits for the head of the lock's queue.
    ///
    /// # Errors
    /// [`ErrorKind::Busy`]: at once when too many are waiting, or when `deadline` has come.
    pub(crate) async fn enter(self: &Arc<Self>, key: &StorageKey, deadline: Instant) -> Result<Place> {
        let user = self.user(key);
        let lock = Arc::clone(&user.shared.lock);
        if let Ok(permit) = Arc::clone(&lock).try_acquire_owned() {
            return Ok(Place { _permit: permit, _user: user });
        }
        let Some(waiting) = Waiting::enter(&user.shared, self.max_waiters) else {
            return Err(busy(format!("{} requests wait for it already (max_waiters)", self.max_waiters)));
        };
        let permit = timeout_at(deadline, lock.acquire_owned()).await;
        drop(waiting);
        match permit {
            Ok(Ok(permit)) => Ok(Place { _permit: permit, _user: user }),
            // The semaphore is never closed: both mean that the time is over.
            Ok(Err(_)) | Err(_) => Err(busy("not within lock_wait")),
        }
    }

    /// Whether somebody of this process holds the lock or waits for it.
    pub(crate) fn is_locked(&self, key: &StorageKey) -> bool {
        self.slots().get(key).is_some_and(|slot| slot.shared.lock.available_permits() == 0)
    }

    /// Waits for the turn to commit; `None` when it does not come in time.
    pub(crate) async fn turn(self: &Arc<Self>, key: &StorageKey, deadline: Instant) -> Option<Turn> {
        let user = self.user(key);
        let last = timeout_at(deadline, Arc::clone(&user.shared.turn).lock_owned()).await.ok()?;
        Some(Turn { last, _user: user })
    }
}

impl Turn {
    /// What the one before left, if it may still be what is stored. A hint: the store decides.
    pub(crate) fn last(&self) -> Option<&Base> {
        self.last.as_ref()
    }

    /// Leaves what was written to the next one.
    pub(crate) fn leave(mut self, written: Option<Base>) {
        *self.last = written;
    }
}

struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    fn enter(shared: &'a Shared, most: usize) -> Option<Self> {
        let entered =
            shared.waiting.try_update(Relaxed, Relaxed, |waiting| (waiting < most).then_some(waiting + 1));
        entered.ok().map(|_| Self(&shared.waiting))
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

impl Drop for User {
    fn drop(&mut self) {
        let mut slots = self.queue.slots();
        if let Some(slot) = slots.get_mut(&self.key) {
            slot.users -= 1;
            if slot.users == 0 {
                slots.remove(&self.key);
            }
        }
    }
}

fn busy(why: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::Busy, "lock").with_context(why)
}
