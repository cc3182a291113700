//! The sessions of one application.
//!
//! ```
//! use session_core::{Key, MemoryStore, Sessions};
//!
//! const CART: Key<Vec<u64>> = Key::new("cart");
//!
//! # async fn run() -> session_core::Result<()> {
//! let sessions = Sessions::builder(MemoryStore::default()).build()?;
//!
//! let new = sessions.create();
//! new.update(CART, |cart| cart.push(7))?;
//! new.commit().await?;
//! let id = new.id().expect("it was stored");
//!
//! // Two requests at once: neither waits, neither loses what the other put in.
//! let item = 8;
//! let (a, b) = tokio::join!(
//!     sessions.update(&id, |session| session.update(CART, move |cart| cart.push(item))),
//!     sessions.update(&id, |session| session.update(CART, |cart| cart.push(9))),
//! );
//! a.and(b)?;
//! assert_eq!(sessions.read(&id).await?.unwrap().get(CART)?.unwrap().len(), 3);
//! # Ok(()) }
//! # tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(run()).unwrap();
//! ```

use crate::{
    Clock, Error, ErrorKind, Key, LockingStore, OnBusy, Random, Result, Session, SessionId, SessionsBuilder,
    StorageKey, Swept,
    engine::Core,
    queue::Queue,
    record::{Record, check_name},
    session::Opened,
    settings::Settings,
};
use serde::de::DeserializeOwned;
use std::{sync::Arc, time::Duration};

/// What a request may do with a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Access {
    /// One round trip, no lock; writes are refused with [`ErrorKind::ReadOnly`].
    Read,
    /// No lock. The commit names the version that it replaces; refused, it is replayed on the fresh record,
    /// and what the request was shown must come out the same.
    Write,
    /// The lock first, for side effects that must not happen twice at once. Never replayed: a refusal is
    /// returned.
    ///
    /// A request that holds the lock and opens the same session again, or commits to it through another
    /// handle, waits for itself until `lock_wait` is over: [`ErrorKind::Busy`].
    Exclusive,
}

/// The sessions of one application: cheap to clone, not generic.
#[derive(Clone, Debug)]
pub struct Sessions(Arc<Core>);

impl Sessions {
    /// Sessions in this store. (`Arc<dyn LockingStore>` is a store, and so is a [`Pair`](crate::Pair).)
    pub fn builder(store: impl LockingStore) -> SessionsBuilder {
        SessionsBuilder::new(Arc::new(store))
    }

    pub(crate) fn new(
        store: Arc<dyn LockingStore>,
        settings: Settings,
        clock: Arc<dyn Clock>,
        random: Arc<dyn Random>,
    ) -> Self {
        let queue = Queue::new(settings.max_waiters);
        Self(Arc::new(Core { store, settings, clock, random, queue, renewals: Arc::default() }))
    }

    /// A session that does not exist yet. The commit stores it, under a new id, when something was put in.
    pub fn create(&self) -> Session {
        Session::new(Arc::clone(&self.0), None, Access::Write)
    }

    /// The session under this id; `None` when there is none (unknown, expired, destroyed). The id is never
    /// adopted.
    ///
    /// [`Read`](Access::Read) and [`Write`](Access::Write) take one round trip.
    /// [`Exclusive`](Access::Exclusive) waits for the lock for `lock_wait`. Within the grace of a rotation
    /// the session is found under its old id, and [`Session::id`] tells the new one.
    ///
    /// # Errors
    /// [`ErrorKind::Busy`] when the lock was not had in time (or the session for reading only, with
    /// [`OnBusy::ReadOnly`]); [`ErrorKind::Damaged`]; the store's.
    ///
    /// # Cancellation
    /// Dropped, it leaves no lock: what may have been granted is released in the background.
    #[tracing::instrument(name = "session.open", level = "debug", skip_all, fields(?access), err(level = "debug"))]
    pub async fn open(&self, id: &SessionId, access: Access) -> Result<Option<Session>> {
        if access != Access::Exclusive {
            let found = self.0.find(id).await?;
            return Ok(found.map(|(id, base)| self.session(Opened { id, base, hold: None }, access)));
        }
        match self.open_locked(id, access).await {
            Err(error) if error.kind() == ErrorKind::Busy && self.0.settings.on_busy == OnBusy::ReadOnly => {
                let found = self.0.find(id).await?;
                Ok(found.map(|(id, base)| self.session(Opened { id, base, hold: None }, Access::Read)))
            }
            opened => opened,
        }
    }

    async fn open_locked(&self, id: &SessionId, access: Access) -> Result<Option<Session>> {
        let found = self.0.find_locked(id).await?;
        Ok(found.map(|(id, base, hold)| self.session(Opened { id, base, hold: Some(hold) }, access)))
    }

    fn session(&self, opened: Opened, access: Access) -> Session {
        Session::new(Arc::clone(&self.0), Some(opened), access)
    }

    /// A read-only view: one round trip, no lock, nothing to commit. At most once in a tenth of the idle
    /// timeout a second one slides the expiry.
    ///
    /// # Errors
    /// As for [`open`](Self::open).
    #[tracing::instrument(name = "session.read", level = "debug", skip_all, err(level = "debug"))]
    pub async fn read(&self, id: &SessionId) -> Result<Option<Snapshot>> {
        let Some((id, base)) = self.0.find(id).await? else { return Ok(None) };
        let key = id.storage_key();
        // A snapshot tells what was loaded, not what a touch has made of it.
        let _moved = self.0.touch_if_due(&key, &base).await;
        Ok(Some(self.snapshot(key, base.live.record, base.ttl)))
    }

    fn snapshot(&self, key: StorageKey, record: Arc<Record>, ttl: Duration) -> Snapshot {
        Snapshot { key, record, ttl, max_key_name: self.0.settings.max_key_name }
    }

    /// Opens, runs, commits; and runs again on fresh data when the commit conflicts. The result of the last
    /// run.
    ///
    /// `run` must do nothing but change the session: it may run more than once. After a few conflicts it runs
    /// under the lock, so that it comes to an end.
    ///
    /// ```
    /// # use session_core::{Key, MemoryStore, Sessions};
    /// # const STOCK: Key<u32> = Key::new("stock");
    /// # async fn run() -> session_core::Result<()> {
    /// # let sessions = Sessions::builder(MemoryStore::default()).build()?;
    /// # let new = sessions.create(); new.insert(STOCK, &3)?; new.commit().await?; let id = new.id().unwrap();
    /// let left = sessions.update(&id, |session| {
    ///     let left = session.get(STOCK)?.unwrap_or(0).saturating_sub(1); // seen: the commit checks that it still holds
    ///     session.insert(STOCK, &left)?;
    ///     Ok(left)
    /// }).await?;
    /// assert_eq!(left, 2);
    /// # Ok(()) }
    /// # tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(run()).unwrap();
    /// ```
    ///
    /// # Errors
    /// [`ErrorKind::Gone`] when there is no such session; what `run` returns; what [`Session::commit`]
    /// returns.
    pub async fn update<R>(&self, id: &SessionId, run: impl Fn(&Session) -> Result<R>) -> Result<R> {
        const WITHOUT_LOCK: u32 = 3;
        const AT_ALL: u32 = 8; // under the lock a conflict is another writer's that takes none, where nothing fences
        let mut tries = 0;
        loop {
            tries += 1;
            let opened = if tries <= WITHOUT_LOCK {
                self.open(id, Access::Write).await?
            } else {
                self.open_locked(id, Access::Write).await?
            };
            let session = opened.ok_or_else(|| Error::new(ErrorKind::Gone, "update"))?;
            let result = run(&session).inspect_err(|_| session.discard())?;
            match session.commit().await {
                Err(error) if error.is_conflict() && tries < AT_ALL => {}
                committed => return committed.map(|()| result),
            }
        }
    }

    /// Takes the lock, opens, runs, commits: for side effects. `run` runs once; while it runs nobody else has
    /// the lock.
    ///
    /// A lease can run out under its holder (a process that was stopped, a network that is gone): then the
    /// commit says [`ErrorKind::LockLost`] and stores nothing, also when nothing was changed, but the effect
    /// has happened. So an effect that must happen *once* is claimed by a commit before it is performed:
    ///
    /// ```
    /// # use session_core::{Key, MemoryStore, Sessions};
    /// # const PAID: Key<String> = Key::new("paid");
    /// # async fn charge() {}
    /// # async fn run() -> session_core::Result<()> {
    /// # let sessions = Sessions::builder(MemoryStore::default()).build()?;
    /// # let new = sessions.create(); new.insert(PAID, "no")?; new.commit().await?; let id = new.id().unwrap();
    /// let mine = sessions.exclusive(&id, async |session| {
    ///     if session.get(PAID)?.as_deref() != Some("no") {
    ///         return Ok(false); // another request has claimed it
    ///     }
    ///     session.insert(PAID, "claimed")?;
    ///     session.commit().await?; // from here on it is ours alone, whatever becomes of the lock
    ///     charge().await;
    ///     Ok(true)
    /// }).await?;
    /// assert!(mine);
    /// # Ok(()) }
    /// # tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(run()).unwrap();
    /// ```
    ///
    /// # Errors
    /// [`ErrorKind::Gone`] when there is no such session, [`ErrorKind::Busy`]; what `run` returns (nothing is
    /// stored then); what [`Session::commit`] returns.
    pub async fn exclusive<R>(
        &self,
        id: &SessionId,
        run: impl AsyncFnOnce(&Session) -> Result<R>,
    ) -> Result<R> {
        let opened = self.open_locked(id, Access::Exclusive).await?;
        let session = opened.ok_or_else(|| Error::new(ErrorKind::Gone, "exclusive"))?;
        let result = run(&session).await.inspect_err(|_| session.discard())?;
        if session.is_open() {
            session.commit().await?;
        }
        Ok(result)
    }

    /// Ends the session under this id, or the one that it was rotated into. Whether there was one. Two round
    /// trips.
    ///
    /// # Errors
    /// The store's. [`Effect::Unknown`](crate::Effect::Unknown): this id is dead, but what stood under it may
    /// have named a successor that still lives.
    ///
    /// # Cancellation
    /// Dropped, it can be repeated; but not when a rotation came in between the two round trips. Then what
    /// named the new id may be gone, and the next call finds none: run it in a task of its own where clients
    /// disconnect.
    pub async fn destroy(&self, id: &SessionId) -> Result<bool> {
        self.0.destroy(id.storage_key()).await
    }

    /// The same by storage key, as [`Snapshot::storage_key`] tells it: "log out that device".
    ///
    /// # Errors
    /// As for [`destroy`](Self::destroy), and so is its cancellation.
    pub async fn revoke(&self, key: &StorageKey) -> Result<bool> {
        self.0.destroy(*key).await
    }

    /// The living sessions of this user.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] when the backend keeps no index; the store's.
    pub async fn for_principal(&self, user: &str) -> Result<Vec<Snapshot>> {
        let found = self.0.sessions_of(user).await?;
        Ok(found.into_iter().map(|(key, base)| self.snapshot(key, base.live.record, base.ttl)).collect())
    }

    /// Ends all sessions of this user ("log out everywhere"), whatever is in flight. How many there were.
    ///
    /// Lists and deletes until a whole list has nothing left, and follows rotations. A login that begins
    /// after it has ended is a new session.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] when the backend keeps no index; the store's, after all that could be
    /// removed was.
    #[tracing::instrument(name = "session.revoke_all", level = "debug", skip_all, err(level = "debug"))]
    pub async fn revoke_all(&self, user: &str) -> Result<usize> {
        self.0.revoke_all(user).await
    }

    /// Removes up to `limit` expired records, where the backend does not do so by itself. Call it now and
    /// then, from one task; again at once while [`Swept::more`].
    ///
    /// # Errors
    /// The store's.
    pub async fn sweep(&self, limit: usize) -> Result<Swept> {
        match self.0.store.sweeper() {
            Some(sweeper) => sweeper.sweep(limit).await,
            None => Ok(Swept::default()),
        }
    }
}

/// A read-only view of a session: no lock, never written.
#[derive(Clone, Debug)]
pub struct Snapshot {
    key: StorageKey,
    record: Arc<Record>,
    ttl: Duration,
    max_key_name: usize,
}

impl Snapshot {
    /// The value, decoded.
    ///
    /// # Errors
    /// [`ErrorKind::Decode`] naming the key.
    pub fn get<T: DeserializeOwned>(&self, key: Key<T>) -> Result<Option<T>> {
        check_name(key.name(), self.max_key_name, "get")?;
        self.record.get(key)
    }

    /// Whether there is a value.
    #[must_use]
    pub fn contains<T>(&self, key: Key<T>) -> bool {
        self.record.values.contains_key(key.name())
    }

    /// How many values there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.record.values.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.record.values.is_empty()
    }

    /// The names of all values, ascending.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        self.record.names()
    }

    /// What the store knows the session by: to name it in a list of devices and to
    /// [`revoke`](Sessions::revoke) it.
    #[must_use]
    pub fn storage_key(&self) -> StorageKey {
        self.key
    }

    /// How long it would have lived from when it was loaded, if nobody had used it.
    #[must_use]
    pub fn ttl(&self) -> Duration {
        self.ttl
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::MemoryStore;

    #[test]
    fn every_future_can_move_between_threads() -> Result<()> {
        fn send(_: &impl Send) {}
        let sessions = Sessions::builder(MemoryStore::default()).build()?;
        let (session, id) = (sessions.create(), SessionId::random(&crate::SystemRandom)?);
        send(&sessions.open(&id, Access::Exclusive));
        send(&sessions.read(&id));
        send(&sessions.update(&id, |_| Ok(())));
        send(&sessions.exclusive(&id, async |_| Ok(())));
        send(&sessions.destroy(&id));
        send(&sessions.revoke(&id.storage_key()));
        send(&sessions.for_principal("user"));
        send(&sessions.revoke_all("user"));
        send(&sessions.sweep(1));
        send(&session.commit());
        send(&session.upgrade(Access::Exclusive));
        Ok(())
    }
}
