//! What a client is told when its session could not be had or stored.
//!
//! | error | status | why |
//! |---|---|---|
//! | `Conflict`, `Gone`, `LockLost` | 409 | nothing was stored; a side effect may have happened, so nothing invites a repeat |
//! | `Busy`; `Unavailable` without effect | 503, `Retry-After` | nothing happened, and it may work in a moment |
//! | the same after the handler had the session exclusively | 500 | its side effect may have happened |
//! | an unknown effect | 500 | it may be stored: a repeat may do it twice |
//! | anything else | 500 | a limit, a damaged record, a mistake in the program |
//!
//! [`SessionLayer::on_failure`](crate::SessionLayer::on_failure) replaces any of them.
//!
//! ```
//! use http::StatusCode;
//! use session_core::{Effect, Error, ErrorKind};
//! use session_tower::Rejection;
//!
//! let busy = Rejection(Error::new(ErrorKind::Busy, "lock")).response::<Vec<u8>>();
//! assert_eq!(busy.status(), StatusCode::SERVICE_UNAVAILABLE);
//! assert_eq!(busy.headers()["retry-after"], "1");
//!
//! let lost = Error::new(ErrorKind::Unavailable, "commit").with_effect(Effect::Unknown);
//! assert_eq!(Rejection(lost).response::<Vec<u8>>().status(), StatusCode::INTERNAL_SERVER_ERROR);
//! ```
//!
//! # In an error type of your own
//!
//! Hand on the response of a [`Rejection`] as it is. By the [`Failure`] in it the layer knows that nothing is
//! to be stored; a response of your own with a status below 500 stores what was done so far.
//!
//! ```
//! # #[cfg(feature = "axum")] mod example {
//! use axum::{http::StatusCode, response::{IntoResponse, Response}};
//! use session_core::Key;
//! use session_tower::{Rejection, Session};
//!
//! const CART: Key<Vec<String>> = Key::new("cart");
//!
//! enum Failed {
//!     Session(Rejection),
//!     SoldOut,
//! }
//!
//! impl From<session_core::Error> for Failed {
//!     fn from(error: session_core::Error) -> Self {
//!         Self::Session(error.into())
//!     }
//! }
//!
//! impl IntoResponse for Failed {
//!     fn into_response(self) -> Response {
//!         match self {
//!             Self::Session(rejection) => rejection.into_response(),
//!             Self::SoldOut => (StatusCode::NOT_FOUND, "Sold out.").into_response(),
//!         }
//!     }
//! }
//!
//! async fn add(session: Session) -> Result<&'static str, Failed> {
//!     session.update(CART, |cart| cart.push("book".to_owned()))?;
//!     Err(Failed::SoldOut) // and the book is in the cart: call `session.discard()` to leave it out
//! }
//! # }
//! ```

use bytes::Bytes;
use http::{
    HeaderValue, Response, StatusCode,
    header::{CONTENT_TYPE, RETRY_AFTER},
};
use session_core::{Effect, Error, ErrorKind};
use std::{fmt, ops::Deref, sync::Arc};

/// A session error as a response; what handlers return and `?` makes.
#[derive(Debug)]
pub struct Rejection(pub Error);

impl Rejection {
    /// The response, with a short text and the error, as [`Failure`], in its extensions.
    #[must_use]
    pub fn response<B: From<Bytes>>(self) -> Response<B> {
        Failure(Arc::new(self.0)).response(false).map(B::from)
    }
}

impl From<Error> for Rejection {
    fn from(error: Error) -> Self {
        Self(error)
    }
}

impl fmt::Display for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl std::error::Error for Rejection {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.0)
    }
}

#[cfg(feature = "axum")]
impl axum_core::response::IntoResponse for Rejection {
    fn into_response(self) -> axum_core::response::Response {
        self.response()
    }
}

/// The error behind a response, in its extensions: for logs, and for layers further out.
#[derive(Clone, Debug)]
pub struct Failure(pub(crate) Arc<Error>);

impl Deref for Failure {
    type Target = Error;

    fn deref(&self) -> &Error {
        &self.0
    }
}

impl Failure {
    /// `late`: the handler had the session exclusively, so its side effect may have happened.
    pub(crate) fn response(&self, late: bool) -> Response<Bytes> {
        let status = self.status(late);
        let mut response = Response::new(Bytes::from_static(match status {
            StatusCode::CONFLICT => {
                b"The session was changed or ended by another request. Nothing was stored.\n"
            }
            StatusCode::SERVICE_UNAVAILABLE => b"The session is not available at the moment.\n",
            _ => b"The session could not be read or stored.\n",
        }));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
        if status == StatusCode::SERVICE_UNAVAILABLE {
            headers.insert(RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response.extensions_mut().insert(self.clone());
        response
    }

    pub(crate) fn status(&self, late: bool) -> StatusCode {
        match self.kind() {
            _ if self.effect() == Effect::Unknown => StatusCode::INTERNAL_SERVER_ERROR,
            ErrorKind::Conflict | ErrorKind::Gone | ErrorKind::LockLost => StatusCode::CONFLICT,
            ErrorKind::Busy | ErrorKind::Unavailable if !late => StatusCode::SERVICE_UNAVAILABLE,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_its_status() {
        use ErrorKind::*;
        // kind, effect, after the handler had it exclusively, status, whether a repeat is invited
        let cases = [
            (Conflict, Effect::None, false, 409, false),
            (Conflict, Effect::None, true, 409, false),
            (Gone, Effect::None, false, 409, false),
            (LockLost, Effect::None, true, 409, false),
            (LockLost, Effect::Unknown, true, 500, false),
            (Busy, Effect::None, false, 503, true),
            (Busy, Effect::None, true, 500, false),
            (Unavailable, Effect::None, false, 503, true),
            (Unavailable, Effect::None, true, 500, false),
            (Unavailable, Effect::Unknown, false, 500, false),
            (Backend, Effect::None, false, 500, false),
            (ReadOnly, Effect::None, false, 500, false),
            (Damaged, Effect::None, false, 500, false),
            (Decode, Effect::None, false, 500, false),
            (TooLarge, Effect::None, false, 500, false),
        ];
        for (kind, effect, late, status, retry) in cases {
            let failure = Failure(Arc::new(Error::new(kind, "test").with_effect(effect)));
            let response = failure.response(late);
            let got = (response.status().as_u16(), response.headers().contains_key(RETRY_AFTER));
            assert_eq!(got, (status, retry), "{kind:?} {effect:?} {late}");
            assert_eq!(response.extensions().get::<Failure>().map(|failure| failure.kind()), Some(kind));
        }
    }
}
