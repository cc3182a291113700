//! What handlers hold, and how axum gives it to them.
//!
//! | extractor | round trips | for |
//! |---|---|---|
//! | [`ReadSession`] | one | handlers that only look |
//! | `Option<ReadSession>` | one | the same, `None` when there is no session |
//! | [`Session`] | one, and one to write | everything that only changes the session |
//! | [`ExclusiveSession`] | the same, and it waits for the lock | side effects: charge, send |
//!
//! All of a request share one session: an extractor that authenticates and the handler's own cost one round
//! trip together, and what was opened for reading is upgraded.
//!
//! ```
//! # #[cfg(feature = "axum")] mod example {
//! use axum::{Router, extract::FromRequestParts, http::request::Parts, routing::get};
//! use session_core::Key;
//! use session_tower::{ReadSession, Rejection, Session};
//!
//! const USER: Key<u64> = Key::new("user");
//! const VISITS: Key<u64> = Key::new("visits");
//!
//! struct User(Option<u64>);
//!
//! impl<S: Send + Sync> FromRequestParts<S> for User {
//!     type Rejection = Rejection;
//!
//!     async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Rejection> {
//!         let session = ReadSession::from_request_parts(parts, state).await?;
//!         Ok(Self(session.get(USER)?))
//!     }
//! }
//!
//! async fn visit(user: User, session: Session) -> Result<String, Rejection> {
//!     session.update(VISITS, |visits| *visits += 1)?;
//!     Ok(format!("hello, {:?}", user.0))
//! }
//!
//! # fn routes() -> Router {
//! Router::new().route("/", get(visit))
//! # }
//! # }
//! ```

use crate::slot::{Slot, commit_early};
use serde::de::DeserializeOwned;
use session_core::{Key, Result, SessionId};
use std::{ops::Deref, sync::Arc};

/// The session of this request, to read and change: everything that [`session_core::Session`] can do. The
/// layer commits it.
#[derive(Clone, Debug)]
pub struct Session {
    pub(crate) core: session_core::Session,
    pub(crate) slot: Arc<Slot>,
}

impl Session {
    /// Stores what was done so far, now: before a long stretch of work, or to claim an effect before it is
    /// performed. The lock, if any, is free then, and the session can only be read. It runs to its end also
    /// when the client disconnects.
    ///
    /// To write once more, use [`SessionHandle::sessions`](crate::SessionHandle::sessions) with the
    /// [`id`](session_core::Session::id).
    ///
    /// # Errors
    /// As for [`session_core::Session::commit`].
    pub async fn commit(&self) -> Result<()> {
        commit_early(Arc::clone(&self.slot), self.core.clone()).await
    }

    /// Ends the session at the commit, and has the client remove its cookie; also the session that it was
    /// rotated into while this request was under way.
    ///
    /// # Errors
    /// As for [`session_core::Session::destroy`].
    pub fn destroy(&self) -> Result<()> {
        self.core.destroy()?;
        self.slot.end();
        Ok(())
    }
}

impl Deref for Session {
    type Target = session_core::Session;

    fn deref(&self) -> &session_core::Session {
        &self.core
    }
}

/// The session of this request under its lock: while the handler has it, nobody else has. For side effects;
/// everything that [`Session`] can do.
///
/// A lease can run out under its holder: an effect that must happen *once* is claimed by a
/// [`commit`](Session::commit) before it is performed, as [`session_core::Sessions::exclusive`] shows. With
/// [`OnBusy::ReadOnly`](session_core::OnBusy::ReadOnly) look at [`access`](session_core::Session::access)
/// first: the session may be for reading only. A request that has had its session before, in a middleware for
/// one, asks for the lock later than it opened: then who cannot have it is told `Busy` in either case.
#[derive(Clone, Debug)]
pub struct ExclusiveSession(pub(crate) Session);

impl Deref for ExclusiveSession {
    type Target = Session;

    fn deref(&self) -> &Session {
        &self.0
    }
}

/// The session of this request, to read: a type that cannot write. Without a session it is empty.
#[derive(Clone, Debug)]
pub struct ReadSession(pub(crate) session_core::Session);

impl ReadSession {
    /// The value, decoded. If this request writes, too, its commit refuses when another request has changed
    /// the value meanwhile.
    ///
    /// # Errors
    /// [`ErrorKind::Decode`](session_core::ErrorKind::Decode) naming the key, unless it discards.
    pub fn get<T: DeserializeOwned>(&self, key: Key<T>) -> Result<Option<T>> {
        self.0.get(key)
    }

    /// Whether there is a value.
    ///
    /// # Errors
    /// Only for a bad name or too many operations.
    pub fn contains<T>(&self, key: Key<T>) -> Result<bool> {
        self.0.contains(key)
    }

    /// How many values there are.
    ///
    /// # Errors
    /// Only for too many operations.
    pub fn len(&self) -> Result<usize> {
        self.0.len()
    }

    /// Whether there are none.
    ///
    /// # Errors
    /// Only for too many operations.
    pub fn is_empty(&self) -> Result<bool> {
        self.0.is_empty()
    }

    /// The names of all values, ascending.
    ///
    /// # Errors
    /// Only for too many operations.
    pub fn names(&self) -> Result<Vec<String>> {
        self.0.names()
    }

    /// The id; `None` when there is no session.
    #[must_use]
    pub fn id(&self) -> Option<SessionId> {
        self.0.id()
    }
}

#[cfg(feature = "axum")]
mod axum {
    use super::{ExclusiveSession, ReadSession, Session};
    use crate::{Rejection, SessionHandle};
    use axum_core::extract::{FromRequestParts, OptionalFromRequestParts};
    use http::request::Parts;
    use session_core::{Error, ErrorKind};

    impl SessionHandle {
        fn of(parts: &Parts) -> Result<Self, Rejection> {
            parts.extensions.get().cloned().ok_or_else(|| {
                let error =
                    Error::new(ErrorKind::Invalid, "extract").with_context("is SessionLayer missing?");
                tracing::error!(%error, "a handler asks for its session");
                Rejection(error)
            })
        }
    }

    impl<S: Sync> FromRequestParts<S> for SessionHandle {
        type Rejection = Rejection;

        async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Rejection> {
            Self::of(parts)
        }
    }

    impl<S: Sync> FromRequestParts<S> for Session {
        type Rejection = Rejection;

        async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Rejection> {
            Ok(SessionHandle::of(parts)?.write().await?)
        }
    }

    impl<S: Sync> FromRequestParts<S> for ExclusiveSession {
        type Rejection = Rejection;

        async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Rejection> {
            Ok(SessionHandle::of(parts)?.exclusive().await?)
        }
    }

    impl<S: Sync> FromRequestParts<S> for ReadSession {
        type Rejection = Rejection;

        async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Rejection> {
            Ok(SessionHandle::of(parts)?.read().await?)
        }
    }

    impl<S: Sync> OptionalFromRequestParts<S> for ReadSession {
        type Rejection = Rejection;

        async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Option<Self>, Rejection> {
            let session = SessionHandle::of(parts)?.read().await?;
            // New, but with something in it: another extractor of this request has put it there.
            Ok(if session.id().is_some() || !session.is_empty()? { Some(session) } else { None })
        }
    }
}
