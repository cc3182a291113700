//! One session, as one request sees it.
//!
//! Everything but [`Session::commit`] and [`Session::upgrade`] is sync: values are in memory, and nothing is
//! stored before the commit. What was done is remembered as operations, so that a commit that was refused can
//! do it again on fresh data.
//!
//! ```
//! use session_core::{Access, Key, MemoryStore, Sessions};
//!
//! const VISITS: Key<u64> = Key::new("visits");
//! const FLASH: Key<String> = Key::new("flash");
//!
//! # async fn run() -> session_core::Result<()> {
//! # let sessions = Sessions::builder(MemoryStore::default()).build()?;
//! # let new = sessions.create(); new.insert(FLASH, "saved")?; new.commit().await?; let id = new.id().unwrap();
//! let session = sessions.open(&id, Access::Write).await?.expect("it exists");
//! session.update(VISITS, |visits| *visits += 1)?; // never lost, whoever else counts
//! let message = session.take(FLASH)?;             // of parallel requests exactly one commits with it
//! session.commit().await?;
//! assert_eq!(message.as_deref(), Some("saved"));
//! # Ok(()) }
//! # tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(run()).unwrap();
//! ```

use crate::{
    Access, Error, ErrorKind, Key, PrincipalKey, Result, SessionId,
    commit::Work,
    engine::Core,
    found::{Base, Found},
    hold::Hold,
    log::{Log, Op},
    record::{Record, check_name},
};
use bytes::Bytes;
use serde::{Serialize, de::DeserializeOwned};
use std::{
    borrow::Borrow,
    fmt,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

/// One session, as one request sees it; clones share it. Nothing is stored before [`commit`](Self::commit).
#[must_use = "changes are stored by `commit`"]
#[derive(Clone)]
pub struct Session(Arc<Shared>);

struct Shared {
    core: Arc<Core>,
    /// The thread that is inside (see [`this_thread`]); zero when there is none.
    inside: AtomicUsize,
    state: Mutex<State>,
}

struct State {
    phase: Phase,
    access: Access,
    /// What the client should use from now on.
    id: Option<SessionId>,
    opened: Option<(SessionId, Base)>,
    hold: Option<Hold>,
    /// As the request sees it.
    record: Arc<Record>,
    log: Log,
    principal: Option<PrincipalKey>,
    rotate: bool,
    destroy: bool,
    /// How long it lives, if the commit has moved that.
    renewed: Option<Duration>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Open,
    /// Committed, being committed or discarded: can be read, no longer changed.
    Closed,
}

/// What [`Sessions::open`](crate::Sessions::open) found.
pub(crate) struct Opened {
    pub(crate) id: SessionId,
    pub(crate) base: Base,
    pub(crate) hold: Option<Hold>,
}

/// The address of a thread's own byte: names the thread, in one word, as long as it lives.
fn this_thread() -> usize {
    thread_local!(static MARK: u8 = const { 0 });
    MARK.with(|mark| std::ptr::from_ref(mark).addr())
}

impl Session {
    pub(crate) fn new(core: Arc<Core>, opened: Option<Opened>, access: Access) -> Self {
        let (opened, hold) = match opened {
            Some(Opened { id, base, hold }) => (Some((id, base)), hold),
            None => (None, None),
        };
        let record = match &opened {
            Some((_, base)) => Arc::clone(&base.live.record),
            None => Arc::new(Record::new(core.settings.codec)),
        };
        let state = State {
            phase: Phase::Open,
            access,
            id: opened.as_ref().map(|(id, _)| id.clone()),
            opened,
            hold,
            record,
            log: Log::default(),
            principal: None,
            rotate: false,
            destroy: false,
            renewed: None,
        };
        Self(Arc::new(Shared { core, inside: AtomicUsize::new(0), state: Mutex::new(state) }))
    }

    /// Works on the state; a call from inside such work (a closure of the user's) is an error and not a
    /// deadlock.
    fn with<R>(&self, operation: &'static str, work: impl FnOnce(&mut State) -> Result<R>) -> Result<R> {
        struct Inside<'a>(&'a AtomicUsize);
        impl Drop for Inside<'_> {
            fn drop(&mut self) {
                self.0.store(0, Relaxed); // also when a closure panics
            }
        }
        if self.0.inside.load(Relaxed) == this_thread() {
            return Err(Error::new(ErrorKind::Reentrant, operation));
        }
        // A closure that panicked has changed nothing: the record is written after it has returned.
        let mut state = self.0.state.lock().unwrap_or_else(PoisonError::into_inner);
        self.0.inside.store(this_thread(), Relaxed);
        let _inside = Inside(&self.0.inside);
        work(&mut state)
    }

    fn read<T, R>(
        &self,
        operation: &'static str,
        key: Key<T>,
        read: impl FnOnce(&mut State) -> Result<R>,
    ) -> Result<R> {
        check_name(key.name(), self.0.core.settings.max_key_name, operation)?;
        self.with(operation, read)
    }

    fn write<R>(&self, operation: &'static str, write: impl FnOnce(&mut State) -> Result<R>) -> Result<R> {
        self.with(operation, |state| match (state.phase, state.access) {
            (Phase::Closed, _) => Err(Error::new(ErrorKind::Closed, operation)),
            (_, Access::Read) => Err(Error::new(ErrorKind::ReadOnly, operation)),
            _ => write(state),
        })
    }

    fn write_key<T, R>(
        &self,
        operation: &'static str,
        key: Key<T>,
        write: impl FnOnce(&mut State) -> Result<R>,
    ) -> Result<R> {
        check_name(key.name(), self.0.core.settings.max_key_name, operation)?;
        self.write(operation, write)
    }

    /// The value, decoded. From now on the commit refuses if another request has changed it.
    ///
    /// So a counter that is read with `get` and written with [`insert`](Self::insert) is a conflict under
    /// load; [`update`](Self::update) is not.
    ///
    /// # Errors
    /// [`ErrorKind::Decode`] naming the key, unless it [discards](Key::discard_undecodable).
    pub fn get<T: DeserializeOwned>(&self, key: Key<T>) -> Result<Option<T>> {
        self.read("get", key, |state| {
            let value = state.record.get(key)?;
            state.seen(|record| Op::Seen(key.name().to_owned(), record.values.get(key.name()).cloned()))?;
            Ok(value)
        })
    }

    /// Whether there is a value. From now on the commit refuses if that is no longer so.
    ///
    /// # Errors
    /// Only for a bad name or too many operations.
    pub fn contains<T>(&self, key: Key<T>) -> Result<bool> {
        self.read("contains", key, |state| {
            let present = state.record.values.contains_key(key.name());
            state.seen(|_| Op::SeenPresence(key.name().to_owned(), present))?;
            Ok(present)
        })
    }

    /// How many values there are. From now on the commit refuses if it is another number.
    ///
    /// # Errors
    /// Only for too many operations.
    pub fn len(&self) -> Result<usize> {
        self.with("len", |state| {
            let len = state.record.values.len();
            state.seen(|_| Op::SeenLen(len))?;
            Ok(len)
        })
    }

    /// Whether there are no values. From now on the commit refuses if that is no longer so.
    ///
    /// # Errors
    /// Only for too many operations.
    pub fn is_empty(&self) -> Result<bool> {
        self.with("is_empty", |state| {
            let empty = state.record.values.is_empty();
            state.seen(|_| Op::SeenEmpty(empty))?;
            Ok(empty)
        })
    }

    /// The names of all values, ascending. From now on the commit refuses if there are others.
    ///
    /// # Errors
    /// Only for too many operations.
    pub fn names(&self) -> Result<Vec<String>> {
        self.with("names", |state| {
            let names = state.record.names();
            state.seen(|_| Op::SeenNames(names.clone()))?;
            Ok(names)
        })
    }

    /// Puts a value in, whatever any other request has put there: a blind write.
    ///
    /// # Errors
    /// [`ErrorKind::Encode`] naming the key; [`ErrorKind::TooLarge`].
    pub fn insert<T, Q>(&self, key: Key<T>, value: &Q) -> Result<()>
    where
        T: Borrow<Q>,
        Q: Serialize + ?Sized,
    {
        self.write_key("insert", key, |state| {
            let bytes = state.record.codec.encode(key.name(), value)?;
            state.insert(key, bytes)
        })
    }

    /// Takes a value out, whatever any other request has put there.
    ///
    /// # Errors
    /// Only for a bad name or too many operations.
    pub fn remove<T>(&self, key: Key<T>) -> Result<()> {
        self.write_key("remove", key, |state| state.remove(key))
    }

    /// Takes a value out and returns it: of parallel requests exactly one commits with it.
    ///
    /// # Errors
    /// As for [`get`](Self::get); nothing was taken out then.
    pub fn take<T: DeserializeOwned>(&self, key: Key<T>) -> Result<Option<T>> {
        self.write_key("take", key, |state| {
            let value = state.record.get(key)?;
            state.seen(|record| Op::Seen(key.name().to_owned(), record.values.get(key.name()).cloned()))?;
            state.remove(key)?;
            Ok(value)
        })
    }

    /// Changes a value, or its default when there is none. Never lost, and no conflict with others that do
    /// the same.
    ///
    /// The closure may run again on fresh data: no side effects in it. It moves in what it needs, and clones
    /// what it gives away:
    ///
    /// ```
    /// # use session_core::{Key, MemoryStore, Sessions};
    /// # const CART: Key<Vec<String>> = Key::new("cart");
    /// # let session = Sessions::builder(MemoryStore::default()).build()?.create();
    /// let item = String::from("book");
    /// session.update(CART, move |cart| cart.push(item.clone()))?;
    /// # session.discard();
    /// # Ok::<(), session_core::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`ErrorKind::Decode`] and [`ErrorKind::Encode`] naming the key; nothing was changed then.
    pub fn update<T>(&self, key: Key<T>, change: impl Fn(&mut T) + Send + 'static) -> Result<()>
    where
        T: Serialize + DeserializeOwned + Default + 'static,
    {
        self.update_with(key, move |value: &mut Option<T>| change(value.get_or_insert_default()))
    }

    /// Like [`update`](Self::update), with absence and a result. The result was shown to the caller, so a
    /// rerun must give the same one: otherwise the commit is a [`Conflict`](ErrorKind::Conflict).
    ///
    /// ```
    /// # use session_core::{Key, MemoryStore, Sessions};
    /// # const STOCK: Key<u32> = Key::new("stock");
    /// # let session = Sessions::builder(MemoryStore::default()).build()?.create();
    /// # session.insert(STOCK, &1)?;
    /// let sold = session.update_with(STOCK, |stock| match stock {
    ///     Some(left @ 1..) => { *left -= 1; true }
    ///     _ => false,
    /// })?;
    /// assert!(sold);
    /// # session.discard();
    /// # Ok::<(), session_core::Error>(())
    /// ```
    ///
    /// # Errors
    /// As for [`update`](Self::update).
    pub fn update_with<T, R>(
        &self,
        key: Key<T>,
        change: impl Fn(&mut Option<T>) -> R + Send + 'static,
    ) -> Result<R>
    where
        T: Serialize + DeserializeOwned + 'static,
        R: PartialEq + Clone + Send + 'static,
    {
        let apply = move |record: &mut Record| {
            let mut value = record.get(key)?;
            let result = change(&mut value);
            match value {
                Some(value) => {
                    let bytes = record.codec.encode(key.name(), &value)?;
                    record.values.insert(key.name().to_owned(), bytes);
                }
                None => {
                    record.values.remove(key.name());
                }
            }
            Ok(result)
        };
        self.write_key("update", key, move |state| {
            let mut record = (*state.record).clone();
            let result: R = apply(&mut record)?;
            let shown = result.clone();
            let rerun = Box::new(move |record: &mut Record| Ok(apply(record)? == shown));
            state.log.push(Op::Update(key.name(), rerun))?;
            state.record = Arc::new(record);
            Ok(result)
        })
    }

    /// Takes everything out, also what other requests put in meanwhile.
    ///
    /// # Errors
    /// Only for too many operations.
    pub fn clear(&self) -> Result<()> {
        self.write("clear", |state| {
            state.log.push(Op::Clear)?;
            Arc::make_mut(&mut state.record).values.clear();
            Ok(())
        })
    }

    /// Says whose session this is, for [`for_principal`](crate::Sessions::for_principal) and
    /// [`revoke_all`](crate::Sessions::revoke_all). Call it at login, together with [`rotate`](Self::rotate).
    /// The store sees a hash of the name.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] when the backend keeps no index.
    pub fn set_principal(&self, user: &str) -> Result<()> {
        self.0.core.index("set_principal")?;
        self.write("set_principal", |state| {
            state.principal = Some(PrincipalKey::of(user));
            Ok(())
        })
    }

    /// Gives the session a new id at the commit; the old one dies with it. Call it at every change of
    /// privilege.
    ///
    /// Of two rotations at once one wins; the other one's request is told [`Gone`](ErrorKind::Gone) (or goes
    /// on under the new id, within the grace). When the response with the new id is lost, so is the session:
    /// use a grace where that matters and no privilege changes.
    ///
    /// # Errors
    /// Only when the session cannot be written.
    pub fn rotate(&self) -> Result<()> {
        self.write("rotate", |state| {
            state.rotate = true;
            Ok(())
        })
    }

    /// Ends the session at the commit, whatever other requests do, and whoever holds its lock.
    ///
    /// # Errors
    /// Only when the session cannot be written.
    pub fn destroy(&self) -> Result<()> {
        self.write("destroy", |state| {
            state.destroy = true;
            Ok(())
        })
    }

    /// The id; `None` before the first commit, and after the session was destroyed. After a rotation was
    /// committed, or when the session was found within the grace of one, it is the new one: send it to the
    /// client.
    #[must_use]
    pub fn id(&self) -> Option<SessionId> {
        self.with("id", |state| Ok(state.id.clone())).ok().flatten()
    }

    /// How long the session lives from the commit on, if nobody uses it, when the commit has moved that: it
    /// stored something, or the idle timeout slid. For a cookie that is to end with its session. `None`
    /// before the commit, too.
    #[must_use]
    pub fn renewed(&self) -> Option<Duration> {
        self.with("renewed", |state| Ok(state.renewed)).ok().flatten()
    }

    /// What this request may do. [`Access::Read`] after [`OnBusy::ReadOnly`](crate::OnBusy::ReadOnly) stepped
    /// in.
    #[must_use]
    pub fn access(&self) -> Access {
        self.with("access", |state| Ok(state.access)).unwrap_or(Access::Read)
    }

    /// Whether it can still be changed: neither committed nor discarded.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.with("is_open", |state| Ok(state.phase == Phase::Open)).unwrap_or(true)
    }

    /// Stores what was done, as one atomic step. Afterwards the session can be read, and no longer changed.
    ///
    /// Nothing is written when nothing was changed; a new session in which nothing was put is not stored.
    /// With [`Access::Write`] a refused write is replayed, until it is stored or something that was shown has
    /// changed.
    ///
    /// # Errors
    /// Nothing was stored: [`Conflict`](ErrorKind::Conflict), [`Gone`](ErrorKind::Gone),
    /// [`LockLost`](ErrorKind::LockLost) (of an exclusive session, also when nothing was changed),
    /// [`Busy`](ErrorKind::Busy) (another's lease outlived `lock_wait`),
    /// [`TooLarge`](ErrorKind::TooLarge), whatever a rerun closure ends with, and the store's. Only when the
    /// [effect](Error::effect) is [`Unknown`](crate::Effect::Unknown) it may be stored, or may be later: a
    /// reply was lost, and could not be looked up.
    ///
    /// # Cancellation
    /// Dropped, it is applied as a whole or not at all, and the session is closed. Dropped in the middle of a
    /// rotation it may leave the client with a dead id, and a destroy that met another's rotation may leave
    /// the new id alive: run it in a task of its own where clients disconnect.
    #[tracing::instrument(name = "session.commit", level = "debug", skip_all, err(level = "debug"))]
    pub async fn commit(&self) -> Result<()> {
        let work = self.with("commit", State::close)?;
        let committed = self.0.core.commit(work).await?;
        self.with("commit", |state| {
            state.record = committed.record;
            state.id = committed.id;
            state.renewed = committed.renewed;
            Ok(())
        })
    }

    /// Nothing of this is stored; a lock is released, in the background.
    pub fn discard(&self) {
        // Inside one of its own closures there is nothing to discard yet: the error says so to who looks.
        if let Err(error) = self.with("discard", State::close) {
            tracing::debug!(%error, "nothing to discard");
        }
    }

    /// More access than the session was opened with. What was seen so far must still be so.
    ///
    /// To [`Access::Exclusive`] it waits for the lock for `lock_wait` and goes on with the fresh record; a
    /// new session needs none, since nobody knows its id. Less access than there is changes nothing.
    ///
    /// # Errors
    /// [`Conflict`](ErrorKind::Conflict), [`Gone`](ErrorKind::Gone), [`Busy`](ErrorKind::Busy), the store's:
    /// the access stays as it was.
    ///
    /// # Cancellation
    /// Dropped, the access stays as it was, and no lock is left.
    pub async fn upgrade(&self, access: Access) -> Result<()> {
        let locks = self.with("upgrade", |state| {
            if state.phase == Phase::Closed {
                return Err(Error::new(ErrorKind::Closed, "upgrade"));
            }
            let needs_lock = access == Access::Exclusive && state.hold.is_none();
            match state.opened.as_ref().filter(|_| needs_lock) {
                Some((id, _)) => Ok(Some(id.storage_key())),
                None => {
                    state.access = state.access.max(access);
                    Ok(None)
                }
            }
        })?;
        let Some(key) = locks else { return Ok(()) };
        let gone = || Error::new(ErrorKind::Gone, "upgrade");
        let (hold, stored) = self.0.core.lock(&key).await?.ok_or_else(gone)?;
        let Found::Live(base) = self.0.core.decode(stored).await? else { return Err(gone()) };
        if self.0.core.is_over(&base) {
            return Err(gone());
        }
        self.with("upgrade", |state| {
            if state.phase == Phase::Closed {
                return Err(Error::new(ErrorKind::Closed, "upgrade"));
            }
            let mut record = (*base.live.record).clone();
            state.log.replay(&mut record)?;
            state.record = Arc::new(record);
            if let Some((_, old)) = &mut state.opened {
                *old = base;
            }
            state.hold = Some(hold);
            state.access = Access::Exclusive;
            Ok(())
        })
    }
}

impl State {
    /// Remembers what was shown, also to a reader, who may upgrade. After the commit there is none to come.
    fn seen(&mut self, op: impl FnOnce(&Record) -> Op) -> Result<()> {
        if self.phase == Phase::Closed {
            return Ok(());
        }
        self.log.push(op(&self.record))
    }

    fn insert<T>(&mut self, key: Key<T>, bytes: Bytes) -> Result<()> {
        self.log.push(Op::Insert(key.name().to_owned(), bytes.clone()))?;
        Arc::make_mut(&mut self.record).values.insert(key.name().to_owned(), bytes);
        Ok(())
    }

    fn remove<T>(&mut self, key: Key<T>) -> Result<()> {
        self.log.push(Op::Remove(key.name().to_owned()))?;
        Arc::make_mut(&mut self.record).values.remove(key.name());
        Ok(())
    }

    fn is_changed(&self) -> bool {
        let stored = self.opened.as_ref().map(|(_, base)| &base.live.record);
        let same = stored.map_or(self.record.values.is_empty(), |stored| *stored == self.record);
        self.destroy || self.rotate || self.principal.is_some() || !same
    }

    /// Hands over what was done; from now on the session is only read.
    fn close(&mut self) -> Result<Work> {
        if self.phase == Phase::Closed {
            return Err(Error::new(ErrorKind::Closed, "commit"));
        }
        self.phase = Phase::Closed;
        Ok(Work {
            opened: self.opened.clone(),
            record: Arc::clone(&self.record),
            log: std::mem::take(&mut self.log),
            principal: self.principal,
            rotate: self.rotate,
            destroy: self.destroy,
            exclusive: self.access == Access::Exclusive,
            hold: self.hold.take(),
        })
    }
}

impl Drop for State {
    fn drop(&mut self) {
        if self.phase == Phase::Open && self.is_changed() {
            tracing::warn!("a session was dropped with changes that were neither committed nor discarded");
        }
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Session(..)") // never what is in it
    }
}
