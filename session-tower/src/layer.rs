//! The layer: gives every request its session, and stores it before the response goes out.

use crate::{
    CookieConfig, Failure, SessionHandle,
    cookie::Cookie,
    detach::{ToTheEnd, to_the_end},
    slot::Slot,
};
use bytes::Bytes;
use http::{
    HeaderMap, HeaderValue, Request, Response, StatusCode,
    header::{CACHE_CONTROL, RETRY_AFTER, SET_COOKIE, VARY},
    request::Parts,
};
use pin_project_lite::pin_project;
use session_core::{Error, Result, Sessions};
use std::{
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};
use tower_layer::Layer;
use tower_service::Service;

/// What readers get while the store cannot be reached. Writers always get the error: an empty session that is
/// then written would take the place of the real one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WhenDown {
    /// The error: 503.
    #[default]
    Fail,
    /// An empty session that cannot be written: a page for everybody goes on, its user looks logged out. A
    /// request that was shown one gets no other access any more.
    ReadEmpty,
}

type OnFailure = Arc<dyn Fn(&Error, Response<Bytes>) -> Response<Bytes> + Send + Sync>;
type Client = Arc<dyn Fn(&Parts) -> String + Send + Sync>;

/// Gives every request its session, and stores it before the response head goes out.
///
/// For any service with responses whose body can be made of bytes (`axum::body::Body`,
/// `http_body_util::Full<Bytes>`; map others to one of these).
///
/// - An answer from 100 to 499 commits: what a failed login has counted is kept. 101 commits before the
///   upgrade. An answer from 500 on discards, and so do a [`Rejection`](crate::Rejection) and 408: that is what
///   a timeout around the handler says, which has dropped it half-way.
/// - Success means stored: when the commit fails, its [`Rejection`](crate::Rejection) is the response, and
///   not the handler's.
/// - A commit that has begun runs to its end, also when the client disconnects. A handler whose client
///   disconnects before, or that panics, stores nothing and frees the lock.
/// - A request that does not ask for its session costs no round trip; neither does one without a cookie that
///   puts nothing in.
#[derive(Clone)]
pub struct SessionLayer(Arc<Config>);

#[derive(Clone)]
pub(crate) struct Config {
    pub(crate) sessions: Sessions,
    pub(crate) cookie: Cookie,
    pub(crate) when_down: WhenDown,
    on_failure: Option<OnFailure>,
    client: Option<Client>,
}

impl SessionLayer {
    /// These sessions, under the cookie [`CookieConfig::default`].
    #[must_use]
    pub fn new(sessions: Sessions) -> Self {
        let cookie = CookieConfig::default().render();
        let when_down = WhenDown::default();
        Self(Arc::new(Config { sessions, cookie, when_down, on_failure: None, client: None }))
    }

    /// Another cookie.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`](session_core::ErrorKind::Invalid), naming what browsers would refuse.
    pub fn cookie(self, cookie: CookieConfig) -> Result<Self> {
        cookie.check()?;
        Ok(self.with(|config| config.cookie = cookie.render()))
    }

    /// What readers get while the store cannot be reached ([`WhenDown::Fail`]).
    #[must_use]
    pub fn when_down(self, when_down: WhenDown) -> Self {
        self.with(|config| config.when_down = when_down)
    }

    /// Replaces responses to session errors: those of this layer, of the extractors, and each
    /// [`Rejection`](crate::Rejection) that a handler returned. It is given the one that is meant to go out.
    ///
    /// ```
    /// # use session_core::{ErrorKind, MemoryStore, Sessions};
    /// # let sessions = Sessions::builder(MemoryStore::default()).build()?;
    /// let layer = session_tower::SessionLayer::new(sessions).on_failure(|error, mut response| {
    ///     if error.kind() == ErrorKind::Conflict {
    ///         *response.body_mut() = "Somebody was faster. Please look again.".into();
    ///     }
    ///     response
    /// });
    /// # Ok::<(), session_core::Error>(())
    /// ```
    #[must_use]
    pub fn on_failure(
        self,
        map: impl Fn(&Error, Response<Bytes>) -> Response<Bytes> + Send + Sync + 'static,
    ) -> Self {
        self.with(|config| config.on_failure = Some(Arc::new(map)))
    }

    /// Binds sessions to what their client looks like: a network, a user agent. To any other client a session
    /// does not exist; it is not ended either, or whoever has copied a cookie could log its owner out. Off by
    /// default: networks of phones change, browsers update themselves, and none of it stops who sits in the
    /// same network with the same browser.
    ///
    /// What the closure says is stored in the session, as it is, under the name `~client`, when the session
    /// is made. Sessions from before are accepted.
    ///
    /// ```
    /// # use session_core::{MemoryStore, Sessions};
    /// # let sessions = Sessions::builder(MemoryStore::default()).build()?;
    /// let layer = session_tower::SessionLayer::new(sessions).bind(|request| {
    ///     let agent = request.headers.get(http::header::USER_AGENT);
    ///     agent.map(|agent| String::from_utf8_lossy(agent.as_bytes()).into_owned()).unwrap_or_default()
    /// });
    /// # Ok::<(), session_core::Error>(())
    /// ```
    #[must_use]
    pub fn bind(self, client: impl Fn(&Parts) -> String + Send + Sync + 'static) -> Self {
        self.with(|config| config.client = Some(Arc::new(client)))
    }

    fn with(mut self, change: impl FnOnce(&mut Config)) -> Self {
        change(Arc::make_mut(&mut self.0));
        self
    }
}

impl fmt::Debug for SessionLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Config { sessions, cookie, when_down, on_failure, client } = &*self.0;
        f.debug_struct("SessionLayer")
            .field("sessions", sessions)
            .field("cookie", cookie)
            .field("when_down", when_down)
            .field("on_failure", &on_failure.is_some())
            .field("bind", &client.is_some())
            .finish()
    }
}

impl<S> Layer<S> for SessionLayer {
    type Service = SessionService<S>;

    fn layer(&self, inner: S) -> SessionService<S> {
        SessionService { inner, config: Arc::clone(&self.0) }
    }
}

/// A service whose requests have sessions; see [`SessionLayer`].
#[derive(Clone)]
pub struct SessionService<S> {
    inner: S,
    config: Arc<Config>,
}

impl<S> fmt::Debug for SessionService<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SessionService(..)")
    }
}

impl<S, A, B> Service<Request<A>> for SessionService<S>
where
    S: Service<Request<A>, Response = Response<B>>,
    B: From<Bytes>,
{
    type Response = Response<B>;
    type Error = S::Error;
    type Future = ResponseFuture<S::Future, B>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<A>) -> Self::Future {
        let (mut parts, body) = request.into_parts();
        let presented = self.config.cookie.read(&parts.headers);
        let client = self.config.client.as_ref().map(|client| client(&parts));
        let slot = Arc::new(Slot::new(Arc::clone(&self.config), presented, client));
        parts.extensions.insert(SessionHandle(Arc::clone(&slot)));
        let request = Request::from_parts(parts, body);
        ResponseFuture { handler: self.inner.call(request), commit: None, request: InFlight(slot) }
    }
}

/// A request whose handler has not answered yet.
struct InFlight(Arc<Slot>);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.abandon();
    }
}

struct Commit<B> {
    work: ToTheEnd<Result<()>>,
    response: Option<Response<B>>,
}

pin_project! {
    /// The response, once the session is stored.
    #[must_use = "futures do nothing unless polled"]
    pub struct ResponseFuture<F, B> {
        #[pin]
        handler: F,
        commit: Option<Commit<B>>,
        // Dropped after the handler: what that still does to the session counts.
        request: InFlight,
    }
}

impl<F, B> fmt::Debug for ResponseFuture<F, B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ResponseFuture(..)")
    }
}

impl<F, B, E> Future for ResponseFuture<F, B>
where
    F: Future<Output = Result<Response<B>, E>>,
    B: From<Bytes>,
{
    type Output = Result<Response<B>, E>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let slot = &this.request.0;
        if this.commit.is_none() {
            let response = ready!(this.handler.poll(context))?;
            if !slot.was_used() && response.extensions().get::<Failure>().is_none() {
                return Poll::Ready(Ok(response));
            }
            slot.finish();
            let keep = keeps(&response);
            let work = Arc::clone(slot);
            let work = to_the_end(async move { work.settle(keep).await });
            *this.commit = Some(Commit { work, response: Some(response) });
        }
        let Some(commit) = this.commit else { return Poll::Pending };
        let settled = ready!(Pin::new(&mut commit.work).poll(context));
        match commit.response.take() {
            Some(response) => Poll::Ready(Ok(answer(slot, response, settled))),
            None => Poll::Pending, // it was ready before
        }
    }
}

/// Whether what the handler did to the session is to be stored.
pub(crate) fn keeps<B>(response: &Response<B>) -> bool {
    let status = response.status();
    // What a timeout has cut off is not what the handler meant to store.
    let is_whole = !status.is_server_error() && status != StatusCode::REQUEST_TIMEOUT;
    is_whole && response.extensions().get::<Failure>().is_none()
}

/// The handler's response, or what is said instead; with the cookie, if that changes.
fn answer<B: From<Bytes>>(slot: &Slot, response: Response<B>, settled: Result<()>) -> Response<B> {
    let (cookie, settled) = match slot.cookie() {
        Ok(cookie) => (cookie, settled),
        Err(error) => (None, settled.and(Err(error))),
    };
    let mut response = match settled {
        Err(error) => say(slot, &Failure(Arc::new(error))),
        Ok(()) => match response.extensions().get::<Failure>().cloned() {
            // Of its own making: it is replaced only if there is something else to say.
            Some(failure) if slot.config.on_failure.is_some() || is_late(slot, &response) => {
                say(slot, &failure)
            }
            _ => response,
        },
    };
    if response.status().is_server_error()
        && let Some(failure) = response.extensions().get::<Failure>()
    {
        tracing::warn!(error = %**failure, "a request failed because of its session");
    }
    let headers = response.headers_mut();
    if let Some(cookie) = cookie {
        keep_to_one_client(headers);
        headers.append(SET_COOKIE, cookie);
    }
    if slot.was_used() {
        vary_by_cookie(headers);
    }
    response
}

/// A repeat was invited by who did not know that the handler had the session exclusively.
fn is_late<B>(slot: &Slot, response: &Response<B>) -> bool {
    response.status() == StatusCode::SERVICE_UNAVAILABLE
        && response.headers().contains_key(RETRY_AFTER)
        && slot.was_exclusive()
}

fn say<B: From<Bytes>>(slot: &Slot, failure: &Failure) -> Response<B> {
    let response = failure.response(slot.was_exclusive());
    let mut response = match &slot.config.on_failure {
        Some(map) => map(failure, response),
        None => response,
    };
    response.extensions_mut().insert(failure.clone());
    response.map(B::from)
}

/// A response with an id in it is for one client. Caches that are shared may store it all the same (RFC 9111,
/// section 7.3): so they are told, unless the handler has, and what it has said to the contrary is overruled.
fn keep_to_one_client(headers: &mut HeaderMap) {
    let told = headers.get_all(CACHE_CONTROL).iter().any(|value| {
        value.as_bytes().split(|byte| *byte == b',').any(|directive| {
            let directive = directive.trim_ascii();
            directive.eq_ignore_ascii_case(b"no-store") || directive.eq_ignore_ascii_case(b"private")
        })
    });
    if !told {
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    }
}

/// What was made with a look at the session is another page for another cookie, with or without a new cookie
/// in it.
fn vary_by_cookie(headers: &mut HeaderMap) {
    let told = headers.get_all(VARY).iter().any(|value| {
        value.as_bytes().split(|byte| *byte == b',').any(|name| {
            let name = name.trim_ascii();
            name == b"*" || name.eq_ignore_ascii_case(b"cookie")
        })
    });
    if !told {
        headers.append(VARY, HeaderValue::from_static("cookie"));
    }
}
