//! Running a handler once more when its commit was refused.
//!
//! `update` is replayed by the commit itself. A handler that reads with `get` and writes with `insert` cannot
//! be: it may have decided on what it read. Then the client is told 409, or this layer runs the handler
//! again:
//!
//! ```
//! # #[cfg(feature = "axum")] mod example {
//! use axum::{Router, routing::post};
//! use session_core::{Key, Sessions};
//! use session_tower::{Rejection, RetryLayer, Session, SessionLayer};
//!
//! const VISITS: Key<u64> = Key::new("visits");
//!
//! async fn visit(session: Session) -> Result<String, Rejection> {
//!     let visits = session.get(VISITS)?.unwrap_or(0) + 1;
//!     session.insert(VISITS, &visits)?;
//!     Ok(visits.to_string())
//! }
//!
//! # fn routes(sessions: Sessions) -> Router {
//! Router::new()
//!     .route("/", post(visit))
//!     .layer(RetryLayer::default()) // inside of the session's layer: axum runs the last one first
//!     .layer(SessionLayer::new(sessions))
//! # }
//! # }
//! ```

use crate::{
    Failure, Rejection, SessionHandle,
    detach::to_the_end,
    layer::keeps,
    slot::{Slot, was_beaten},
};
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header::UPGRADE};
use http_body::Body;
use http_body_util::BodyExt as _;
use session_core::{Error, ErrorKind, Result};
use std::{
    fmt,
    future::poll_fn,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};
use tower_layer::Layer;
use tower_service::Service;

/// After so many runs the next ones take the session's lock: then it is their turn for certain.
const WITHOUT_LOCK: u32 = 2;

/// Runs a handler again, on fresh data, when its commit stored nothing because of another request's: a
/// conflict, or the loss of the lock that this layer took for the run. To be put inside of
/// [`SessionLayer`](crate::SessionLayer), around the routes that are to have it.
///
/// Only for handlers that do nothing but change the session: what else they do, they do once more. A handler
/// that asked for the session exclusively is never run again, nor one whose body is larger than
/// [`max_body`](Self::max_body) or of unknown length, nor an upgrade. What it would have been told otherwise,
/// 409, it is told then.
///
/// The request's body must be made of bytes (`axum::body::Body`, `http_body_util::Full<Bytes>`), its
/// extensions are cloned.
#[derive(Clone, Copy, Debug)]
pub struct RetryLayer {
    attempts: u32,
    max_body: u64,
}

impl Default for RetryLayer {
    fn default() -> Self {
        Self { attempts: 8, max_body: 64 << 10 }
    }
}

impl RetryLayer {
    /// How often a handler runs at the most (8). From the third time on with the session's lock.
    #[must_use]
    pub fn attempts(mut self, attempts: u32) -> Self {
        self.attempts = attempts;
        self
    }

    /// The longest body that is kept for another run, in bytes (64 KiB).
    #[must_use]
    pub fn max_body(mut self, bytes: u64) -> Self {
        self.max_body = bytes;
        self
    }
}

impl<S> Layer<S> for RetryLayer {
    type Service = RetryService<S>;

    fn layer(&self, inner: S) -> RetryService<S> {
        RetryService { inner, settings: *self }
    }
}

/// A service that runs again when its commit conflicted; see [`RetryLayer`].
#[derive(Clone)]
pub struct RetryService<S> {
    inner: S,
    settings: RetryLayer,
}

impl<S> fmt::Debug for RetryService<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RetryService").field("settings", &self.settings).finish_non_exhaustive()
    }
}

impl<S, A, B> Service<Request<A>> for RetryService<S>
where
    S: Service<Request<A>, Response = Response<B>, Future: Send> + Clone + Send + 'static,
    A: Body<Data: Send> + From<Bytes> + Send + 'static,
    B: From<Bytes> + Send + 'static,
{
    type Response = Response<B>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<B>, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<A>) -> Self::Future {
        let clone = self.inner.clone();
        let inner = std::mem::replace(&mut self.inner, clone); // the one that is ready
        Box::pin(run(inner, self.settings, request))
    }
}

async fn run<S, A, B>(
    mut inner: S,
    settings: RetryLayer,
    request: Request<A>,
) -> Result<Response<B>, S::Error>
where
    S: Service<Request<A>, Response = Response<B>>,
    A: Body + From<Bytes>,
    B: From<Bytes>,
{
    let Some(SessionHandle(slot)) = request.extensions().get().cloned() else {
        let error =
            Error::new(ErrorKind::Invalid, "retry").with_context("is SessionLayer missing around it?");
        tracing::error!(%error, "a route is to be retried");
        return Ok(Rejection(error).response());
    };
    if !is_repeatable(&request, settings.max_body) {
        return inner.call(request).await;
    }
    let (parts, body) = request.into_parts();
    let Ok(body) = body.collect().await else {
        // The client did not send what it had announced; nobody reads this.
        let mut response = Response::new(B::from(Bytes::new()));
        *response.status_mut() = StatusCode::BAD_REQUEST;
        return Ok(response);
    };
    let body = body.to_bytes();
    let mut attempt = 1;
    loop {
        let response = inner.call(Request::from_parts(parts.clone(), A::from(body.clone()))).await?;
        let settled = settle(&slot, keeps(&response)).await;
        let refused = match &settled {
            Ok(()) => response.extensions().get().is_some_and(|failure: &Failure| was_beaten(failure)),
            Err(error) => was_beaten(error),
        };
        if !(refused && attempt < settings.attempts && slot.start_again(attempt >= WITHOUT_LOCK)) {
            return Ok(match settled {
                Ok(()) => response,
                Err(error) => Rejection(error).response(),
            });
        }
        tracing::debug!(attempt, "a handler runs again: another request has changed what it had read");
        attempt += 1;
        poll_fn(|context| inner.poll_ready(context)).await?;
    }
}

async fn settle(slot: &Arc<Slot>, keep: bool) -> Result<()> {
    let slot = Arc::clone(slot);
    to_the_end(async move { slot.settle(keep).await }).await
}

/// Whether the request can be given to a handler twice.
fn is_repeatable<A: Body>(request: &Request<A>, max_body: u64) -> bool {
    let small = request.body().size_hint().upper().is_some_and(|longest| longest <= max_body);
    small && request.method() != Method::CONNECT && !request.headers().contains_key(UPGRADE)
}
