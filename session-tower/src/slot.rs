//! The one session of a request: opened on first use, shared by all who use it, committed once.

use crate::{
    ExclusiveSession, ReadSession, Session,
    detach::to_the_end,
    layer::{Config, WhenDown},
};
use http::HeaderValue;
use session_core::{Access, Effect, Error, ErrorKind, Key, Result, SessionId, Sessions};
use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use tokio::sync::Mutex as AsyncMutex;

/// What the client looked like when the session was made; see
/// [`SessionLayer::bind`](crate::SessionLayer::bind).
const CLIENT: Key<String> = Key::new("~client");

/// A request's access to its session, in the request's extensions: for services and middleware without
/// extractors.
///
/// ```
/// # async fn handle(request: http::Request<()>) -> Result<(), session_tower::Rejection> {
/// use session_core::Key;
/// use session_tower::SessionHandle;
///
/// const VISITS: Key<u64> = Key::new("visits");
///
/// let handle = request.extensions().get::<SessionHandle>().expect("SessionLayer is there");
/// let session = handle.write().await?; // the first use costs a round trip, the others none
/// session.update(VISITS, |visits| *visits += 1)?;
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct SessionHandle(pub(crate) Arc<Slot>);

impl SessionHandle {
    /// The session for reading. Without one it is empty.
    ///
    /// # Errors
    /// As for [`Sessions::open`]; [`ErrorKind::Closed`] when the request is over.
    pub async fn read(&self) -> Result<ReadSession> {
        self.0.read().await
    }

    /// The session, to change it; without one a new one, which is stored when something is put in.
    ///
    /// # Errors
    /// As for [`read`](Self::read).
    pub async fn write(&self) -> Result<Session> {
        Ok(Session { core: self.0.open(Access::Write).await?, slot: Arc::clone(&self.0) })
    }

    /// The same under its lock, for side effects. What this request was shown of it before must still be so.
    ///
    /// # Errors
    /// As for [`read`](Self::read), and [`ErrorKind::Busy`] when the lock is not had in time.
    pub async fn exclusive(&self) -> Result<ExclusiveSession> {
        let core = self.0.open(Access::Exclusive).await?;
        Ok(ExclusiveSession(Session { core, slot: Arc::clone(&self.0) }))
    }

    /// All sessions: to revoke others, or to write again after an early commit.
    #[must_use]
    pub fn sessions(&self) -> &Sessions {
        &self.0.config.sessions
    }
}

impl fmt::Debug for SessionHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SessionHandle(..)") // never an id
    }
}

pub(crate) struct Slot {
    pub(crate) config: Arc<Config>,
    /// What the client's cookie says.
    presented: Option<SessionId>,
    /// What the client looks like, where that is asked for.
    client: Option<String>,
    /// One opens, the others wait for what it finds. Never held while the request ends.
    opening: AsyncMutex<()>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    session: Option<session_core::Session>,
    /// The cookie named it.
    found: bool,
    /// It knows what its client looks like.
    bound: bool,
    /// The cookie named the session of another client.
    foreign: bool,
    /// The handler has had it under the lock.
    exclusive: bool,
    /// It was asked for with the lock and is for reading only, by
    /// [`OnBusy::ReadOnly`](session_core::OnBusy::ReadOnly).
    downgraded: bool,
    /// Somebody was shown an empty session because the store is down: so nobody writes any more.
    down: bool,
    /// The handler has ended the session, whether the cookie named one or not.
    ends: bool,
    ended: bool,
    /// The commit was refused because of another request.
    conflicted: bool,
    /// Reruns under contention take the lock from the first look on.
    locks: bool,
    /// The response is on its way, or nobody waits for it any more.
    over: bool,
}

impl fmt::Debug for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Slot(..)")
    }
}

impl Slot {
    pub(crate) fn new(config: Arc<Config>, presented: Option<SessionId>, client: Option<String>) -> Self {
        Self { config, presented, client, opening: AsyncMutex::default(), state: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner) // no caller leaves it half changed
    }

    /// The session with at least this access; a new one when the cookie names none.
    pub(crate) async fn open(&self, access: Access) -> Result<session_core::Session> {
        let _turn = self.opening.lock().await;
        let (present, wanted, fixed) = {
            let state = self.state();
            if state.over {
                return Err(over());
            }
            if state.down && access != Access::Read {
                return Err(Error::new(ErrorKind::Unavailable, "open")
                    .with_context("this request has gone on without the store"));
            }
            let wanted = if state.locks { Access::Exclusive } else { access };
            (state.session.clone(), wanted, state.downgraded)
        };
        let (session, found) = match present {
            Some(session) => {
                if wanted > session.access() && !fixed {
                    session.upgrade(wanted).await.map_err(without_effect)?;
                }
                (session, None)
            }
            None => {
                let (session, found) = self.find(wanted).await.map_err(without_effect)?;
                (session, Some(found))
            }
        };
        if access == Access::Write && session.access() == Access::Read && !fixed && session.is_open() {
            session.upgrade(Access::Write).await?; // `OnBusy::ReadOnly` is not for who asked for no lock
        }
        let mut state = self.state();
        if state.over {
            session.discard();
            return Err(over());
        }
        if let Some(Found { named, bound, foreign }) = found {
            (state.found, state.bound, state.foreign) = (named, bound, foreign);
            state.session = Some(session.clone());
        }
        if access == Access::Exclusive {
            match session.access() {
                Access::Exclusive => state.exclusive = true,
                Access::Read | Access::Write => state.downgraded = true,
            }
        }
        Ok(session)
    }

    async fn find(&self, access: Access) -> Result<(session_core::Session, Found)> {
        let (sessions, mut foreign) = (&self.config.sessions, false);
        if let Some(id) = &self.presented
            && let Some(session) = sessions.open(id, access).await?
        {
            let Some(client) = &self.client else {
                return Ok((session, Found { named: true, bound: false, foreign }));
            };
            match session.get(CLIENT).inspect_err(|_| session.discard())? {
                Some(bound) if bound != *client => {
                    // Not ended: whoever has copied a cookie could log its owner out.
                    tracing::warn!("a session was presented by another client than it was made for");
                    session.discard();
                    foreign = true;
                }
                bound => return Ok((session, Found { named: true, bound: bound.is_some(), foreign })),
            }
        }
        // The id of the cookie is never adopted, and the cookie stays: a late response must not remove the
        // one that a rotation has set meanwhile.
        let session = sessions.create();
        session.upgrade(access).await?; // nobody knows its id, so there is no lock to wait for
        Ok((session, Found { named: false, bound: false, foreign }))
    }

    pub(crate) async fn read(&self) -> Result<ReadSession> {
        if self.state().down {
            return Ok(ReadSession(self.config.sessions.create()));
        }
        match self.open(Access::Read).await {
            Ok(session) => Ok(ReadSession(session)),
            Err(error)
                if error.kind() == ErrorKind::Unavailable && self.config.when_down == WhenDown::ReadEmpty =>
            {
                tracing::warn!(%error, "a request goes on without its session, for reading");
                self.state().down = true;
                Ok(ReadSession(self.config.sessions.create()))
            }
            Err(error) => Err(error),
        }
    }

    /// Ends the session, also when the cookie names one that was rotated away.
    pub(crate) fn end(&self) {
        self.state().ends = true;
    }

    /// What a handler's early commit and the layer's have in common.
    pub(crate) async fn commit(&self, session: &session_core::Session) -> Result<()> {
        self.bind(session)?;
        let committed = session.commit().await;
        if committed.as_ref().is_err_and(was_beaten) {
            self.state().conflicted = true;
        }
        committed
    }

    /// A new session with something in it remembers its client, and one that did so before goes on, also when
    /// it was cleared.
    fn bind(&self, session: &session_core::Session) -> Result<()> {
        let Some(client) = self.client.clone() else { return Ok(()) };
        let (found, bound) = {
            let state = self.state();
            (state.found, state.bound)
        };
        let binds = if found { bound } else { !session.is_empty()? };
        if binds && session.is_open() && session.access() != Access::Read {
            session.update_with(CLIENT, move |stored: &mut Option<String>| {
                stored.get_or_insert_with(|| client.clone());
            })?;
        }
        Ok(())
    }

    /// Whether there is anything to do when the handler has answered.
    pub(crate) fn was_used(&self) -> bool {
        let state = self.state();
        state.session.is_some() || state.down
    }

    pub(crate) fn was_exclusive(&self) -> bool {
        self.state().exclusive
    }

    /// Stores what the handler did, or discards it. What was committed early stays so.
    pub(crate) async fn settle(&self, keep: bool) -> Result<()> {
        let Some(session) = self.state().session.clone() else { return Ok(()) };
        if !keep {
            discard(&session);
            return Ok(());
        }
        if session.is_open() {
            self.commit(&session).await?;
        }
        let logout = {
            let state = self.state();
            state.ends && !state.found && !state.ended && !state.foreign
        };
        if logout && let Some(id) = &self.presented {
            // There is no such session any more, but it may have been rotated while this request was under
            // way: who logs out means that one, too.
            self.config.sessions.destroy(id).await?;
            self.state().ended = true;
        }
        Ok(())
    }

    /// What the client's cookie is to become; `None`: it stays as it is.
    pub(crate) fn cookie(&self) -> Result<Option<HeaderValue>> {
        let state = self.state();
        let Some(session) = &state.session else { return Ok(None) };
        let cookie = &self.config.cookie;
        match (&self.presented, session.id()) {
            (Some(_), None) if state.found || state.ended => cookie.remove().map(Some),
            (_, None) => Ok(None),
            (Some(presented), Some(id)) if *presented == id => match session.renewed() {
                renewed @ Some(_) if cookie.is_persistent() => cookie.set(&id, renewed).map(Some),
                _ => Ok(None),
            },
            // New, rotated, or found by its old id within the grace of a rotation (then its lifetime is not
            // known here, and the cookie ends with the browser until it is renewed).
            (_, Some(id)) => cookie.set(&id, session.renewed()).map(Some),
        }
    }

    /// Whether the handler may run once more: its commit was refused because of another request, and it did
    /// not ask for the lock, so it has no side effects. Then everything is as before its first run.
    pub(crate) fn start_again(&self, locks: bool) -> bool {
        let mut state = self.state();
        if state.over || !state.conflicted || state.exclusive || state.downgraded {
            return false;
        }
        *state = State { locks, ..State::default() };
        true
    }

    /// From now on nothing is opened any more.
    pub(crate) fn finish(&self) {
        self.state().over = true;
    }

    /// The handler ended without an answer (a panic, an error, a client that is gone): nothing is stored, and
    /// the lock is free, also when something that it has started still has the session.
    pub(crate) fn abandon(&self) {
        self.finish();
        let session = self.state().session.clone();
        if let Some(session) = session {
            discard(&session);
        }
    }
}

struct Found {
    named: bool,
    bound: bool,
    foreign: bool,
}

/// Stores what was done even when the one who waits for it goes away.
pub(crate) async fn commit_early(slot: Arc<Slot>, session: session_core::Session) -> Result<()> {
    to_the_end(async move { slot.commit(&session).await }).await
}

fn discard(session: &session_core::Session) {
    if session.is_open() {
        session.discard();
    }
}

/// Whether nothing was stored because of another request: what does nothing but change the session may run
/// again. A lock that was taken for such a run can be lost, too, to a write without a lock where nothing
/// fences, and to a machine that stands still.
pub(crate) fn was_beaten(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Conflict | ErrorKind::LockLost) && error.effect() == Effect::None
}

/// Opening stores nothing, and a lock that may have been granted is released: whatever the driver knows, it
/// may be tried again.
fn without_effect(error: Error) -> Error {
    error.with_effect(Effect::None)
}

fn over() -> Error {
    Error::new(ErrorKind::Closed, "open").with_context("the request is over")
}
