//! Two servers over loopback behind one cookie, a client with a jar, and a store whose calls can be counted,
//! stopped and broken.

use crate::backends::Backend;
use async_trait::async_trait;
use axum::Router;
use bytes::Bytes;
use http::{
    HeaderMap, Method, Request, StatusCode,
    header::{COOKIE, HOST, SET_COOKIE},
};
use http_body_util::{BodyExt as _, Full};
use hyper::{body::Incoming, client::conn::http1};
use hyper_util::rt::TokioIo;
use session_core::*;
use session_tower::SessionLayer;
use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task::AbortHandle,
};

/// Longer than anything here takes: what would wait for a lease to run out fails instead.
pub(crate) const LONG: Duration = Duration::from_mins(2);

/// Two server instances, each with its own `Sessions`, on one backend.
pub(crate) struct Site<B> {
    pub(crate) a: Server,
    pub(crate) b: Server,
    pub(crate) faults: Arc<Faults>,
    pub(crate) sessions: Sessions,
    pub(crate) backend: B,
}

impl<B: Backend> Site<B> {
    pub(crate) async fn start(app: impl Fn(SessionLayer) -> Router) -> Self {
        Self::with(|settings| settings, app).await
    }

    /// Leases are long here: a lock that nobody frees makes a test fail, and not wait.
    pub(crate) async fn with(
        settings: impl Fn(SessionsBuilder) -> SessionsBuilder,
        app: impl Fn(SessionLayer) -> Router,
    ) -> Self {
        Self::on(B::fresh().await, settings, app).await
    }

    /// On a backend that was prepared.
    pub(crate) async fn on(
        backend: B,
        settings: impl Fn(SessionsBuilder) -> SessionsBuilder,
        app: impl Fn(SessionLayer) -> Router,
    ) -> Self {
        let faults = Arc::<Faults>::default();
        let sessions = async || {
            let store = Watched { inner: backend.open().await, faults: Arc::clone(&faults) };
            let builder = Sessions::builder(store).lease(LONG).max_hold(LONG * 2).lock_wait(LONG / 8);
            settings(builder).build().unwrap()
        };
        let own = sessions().await;
        let a = Server::start(app(SessionLayer::new(own.clone()))).await;
        let b = Server::start(app(SessionLayer::new(sessions().await))).await;
        Self { a, b, faults, sessions: own, backend }
    }

    pub(crate) fn either(&self, n: usize) -> &Server {
        if n.is_multiple_of(2) { &self.a } else { &self.b }
    }

    /// The stored session of this client.
    pub(crate) async fn stored(&self, client: &Client) -> Option<Snapshot> {
        self.sessions.read(&client.id()?).await.unwrap()
    }

    pub(crate) async fn stored_value<T: serde::de::DeserializeOwned>(
        &self,
        client: &Client,
        key: Key<T>,
    ) -> Option<T> {
        self.stored(client).await?.get(key).unwrap()
    }
}

/// A server over loopback; stopped when it is dropped.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    task: Option<AbortHandle>,
}

impl Server {
    pub(crate) async fn start(app: Router) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let task = tokio::spawn(async move { axum::serve(listener, app).await }).abort_handle();
        Self { address, task: Some(task) }
    }

    /// One that somebody else has started.
    pub(crate) fn at(address: SocketAddr) -> Self {
        Self { address, task: None }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

/// A browser: it sends its cookie, and keeps what it is given.
#[derive(Default)]
pub(crate) struct Client {
    cookie: Mutex<Option<String>>,
}

pub(crate) struct Reply {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: String,
}

impl Reply {
    pub(crate) fn set_cookie(&self) -> Option<&str> {
        self.headers.get(SET_COOKIE).map(|value| value.to_str().unwrap())
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }
}

impl Client {
    /// Another one with the same cookie: a second tab, or the first one before it was answered.
    pub(crate) fn copy(&self) -> Self {
        Self { cookie: Mutex::new(self.cookie()) }
    }

    /// `name=value`, as it is sent.
    pub(crate) fn cookie(&self) -> Option<String> {
        self.cookie.lock().unwrap().clone()
    }

    pub(crate) fn with_cookie(cookie: impl Into<String>) -> Self {
        Self { cookie: Mutex::new(Some(cookie.into())) }
    }

    pub(crate) fn id(&self) -> Option<SessionId> {
        SessionId::parse(self.cookie()?.split_once('=')?.1)
    }

    pub(crate) async fn get(&self, server: &Server, path: &str) -> Reply {
        self.send(server, self.request(Method::GET, path, "")).await.unwrap()
    }

    pub(crate) async fn post(&self, server: &Server, path: &str, body: &str) -> Reply {
        self.send(server, self.request(Method::POST, path, body)).await.unwrap()
    }

    pub(crate) fn request(&self, method: Method, path: &str, body: &str) -> Request<Full<Bytes>> {
        let body = Full::new(Bytes::copy_from_slice(body.as_bytes()));
        let request = Request::builder().method(method).uri(path).header(HOST, "localhost");
        let request = match self.cookie() {
            Some(cookie) => request.header(COOKIE, cookie),
            None => request,
        };
        request.body(body).unwrap()
    }

    /// Sends and reads it all. Dropped, it disconnects.
    pub(crate) async fn send<A>(&self, server: &Server, request: Request<A>) -> hyper::Result<Reply>
    where
        A: http_body::Body<Data = Bytes, Error: std::error::Error + Send + Sync> + Send + 'static,
    {
        let (response, connection) = self.head(server, request).await?;
        let (parts, body) = response.into_parts();
        let body = body.collect().await?.to_bytes();
        drop(connection);
        let body = String::from_utf8(body.to_vec()).unwrap();
        Ok(Reply { status: parts.status, headers: parts.headers, body })
    }

    /// Sends and reads the head; the connection closes when the guard is dropped.
    pub(crate) async fn head<A>(
        &self,
        server: &Server,
        request: Request<A>,
    ) -> hyper::Result<(http::Response<Incoming>, Connection)>
    where
        A: http_body::Body<Data = Bytes, Error: std::error::Error + Send + Sync> + Send + 'static,
    {
        let stream = TcpStream::connect(server.address).await.unwrap();
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        let connection = Connection(tokio::spawn(connection.with_upgrades()).abort_handle());
        let response = sender.send_request(request).await?;
        if let Some(set) = response.headers().get(SET_COOKIE) {
            let set = set.to_str().unwrap();
            let removed = set.contains("Max-Age=0");
            *self.cookie.lock().unwrap() = (!removed).then(|| set.split(';').next().unwrap().to_owned());
        }
        Ok((response, connection))
    }
}

pub(crate) struct Connection(AbortHandle);

impl Drop for Connection {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Holds whoever comes until it is opened, and tells that he is there.
pub(crate) struct Gate {
    entered: Semaphore,
    open: Semaphore,
}

impl Gate {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self { entered: Semaphore::new(0), open: Semaphore::new(0) })
    }

    pub(crate) async fn pass(&self) {
        self.entered.add_permits(1);
        self.open.acquire().await.unwrap().forget();
    }

    /// Waits until one more has come.
    pub(crate) async fn reached(&self) {
        self.entered.acquire().await.unwrap().forget();
    }

    /// Lets one through.
    pub(crate) fn open(&self) {
        self.open.add_permits(1);
    }
}

/// What is done to a store.
#[derive(Default)]
pub(crate) struct Faults {
    calls: Mutex<Vec<&'static str>>,
    down: Mutex<Option<Effect>>,
    gate: Mutex<Option<(&'static str, Arc<Gate>)>>,
}

impl Faults {
    /// The calls since the last time, without renewals.
    pub(crate) fn calls(&self) -> Vec<&'static str> {
        std::mem::take(&mut self.calls.lock().unwrap())
    }

    /// Every call fails from now on, with this effect.
    pub(crate) fn goes_down(&self, effect: Effect) {
        *self.down.lock().unwrap() = Some(effect);
    }

    pub(crate) fn comes_back(&self) {
        *self.down.lock().unwrap() = None;
    }

    /// Whoever makes this call must pass the gate first.
    pub(crate) fn stop_at(&self, call: &'static str) -> Arc<Gate> {
        let gate = Gate::new();
        *self.gate.lock().unwrap() = Some((call, Arc::clone(&gate)));
        gate
    }

    async fn enter(&self, call: &'static str) -> Result<()> {
        self.calls.lock().unwrap().push(call);
        let gate = self.gate.lock().unwrap().as_ref().filter(|(stopped, _)| *stopped == call).cloned();
        if let Some((_, gate)) = gate {
            gate.pass().await;
        }
        match *self.down.lock().unwrap() {
            Some(effect) => Err(Error::new(ErrorKind::Unavailable, call).with_effect(effect)),
            None => Ok(()),
        }
    }
}

struct Watched {
    inner: Arc<dyn LockingStore>,
    faults: Arc<Faults>,
}

impl std::fmt::Debug for Watched {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Watched")
    }
}

#[async_trait]
impl SessionStore for Watched {
    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    fn index(&self) -> Option<&dyn SessionIndex> {
        self.inner.index()
    }

    fn sweeper(&self) -> Option<&dyn SessionSweeper> {
        self.inner.sweeper()
    }

    async fn load(&self, key: &StorageKey) -> Result<Option<Stored>> {
        self.faults.enter("load").await?;
        self.inner.load(key).await
    }

    async fn insert(&self, key: &StorageKey, put: &Put) -> Result<Inserted> {
        self.faults.enter("insert").await?;
        self.inner.insert(key, put).await
    }

    async fn replace(&self, key: &StorageKey, expected: Version, put: &Put) -> Result<Replaced> {
        self.faults.enter("replace").await?;
        self.inner.replace(key, expected, put).await
    }

    async fn touch(&self, key: &StorageKey, expected: Version, ttl: Duration) -> Result<Touched> {
        self.faults.enter("touch").await?;
        self.inner.touch(key, expected, ttl).await
    }

    async fn delete(&self, key: &StorageKey) -> Result<Deleted> {
        self.faults.enter("delete").await?;
        self.inner.delete(key).await
    }
}

#[async_trait]
impl SessionLock for Watched {
    async fn acquire(
        &self,
        key: &StorageKey,
        token: Token,
        lease: Duration,
        wait: Duration,
    ) -> Result<Acquired> {
        self.faults.enter("acquire").await?;
        self.inner.acquire(key, token, lease, wait).await
    }

    async fn renew(&self, grant: &Grant, lease: Duration) -> Result<Renewed> {
        self.inner.renew(grant, lease).await
    }

    async fn release(&self, grant: &Grant) -> Result<Released> {
        self.faults.enter("release").await?;
        self.inner.release(grant).await
    }
}

#[async_trait]
impl LockingStore for Watched {
    async fn acquire_and_load(
        &self,
        key: &StorageKey,
        token: Token,
        lease: Duration,
        wait: Duration,
    ) -> Result<Loaded> {
        self.faults.enter("acquire_and_load").await?;
        self.inner.acquire_and_load(key, token, lease, wait).await
    }

    async fn replace_and_release(&self, grant: &Grant, expected: Version, put: &Put) -> Result<Replaced> {
        self.faults.enter("replace_and_release").await?;
        self.inner.replace_and_release(grant, expected, put).await
    }

    async fn delete_and_release(&self, grant: &Grant) -> Result<Deleted> {
        self.faults.enter("delete_and_release").await?;
        self.inner.delete_and_release(grant).await
    }
}
