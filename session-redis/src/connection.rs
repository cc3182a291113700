//! One connection to one server, shared by all: dialled by whoever needs it, and again after it was lost.
//!
//! Why not the `redis` crate's `ConnectionManager`: it cannot say whether a failed command was sent, it does
//! not look for the primary again, and a connection that only hangs is never given up.

use crate::config::{Node, RedisConfig, Secret};
use redis::{
    AsyncConnectionConfig, Client, Cmd, ConnectionAddr, ErrorKind as Kind, IntoConnectionInfo as _, Pipeline,
    ProtocolVersion, PushInfo, RedisConnectionInfo, RedisError, Value,
    aio::{MultiplexedConnection, SendError},
    io::tcp::TcpSettings,
};
use session_core::{Effect, Error, ErrorKind, Result};
use std::{
    fmt, io,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::{
    sync::{Notify, watch},
    time::Instant,
};

/// The first and the longest pause between two attempts to connect.
const REDIAL: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(250));

/// A command that failed, and what it may have done.
#[derive(Clone, Debug)]
pub(crate) struct Failure {
    pub(crate) error: RedisError,
    pub(crate) effect: Effect,
}

impl Failure {
    pub(crate) fn before_sending(error: RedisError) -> Self {
        Self { error, effect: Effect::None }
    }

    /// What the error of a command that was sent says about its effect.
    ///
    /// Redis refuses a write on a replica, while loading, or without memory at the first writing command of a
    /// script: none of ours has done anything by then. But any of its commands may be forbidden to a user:
    /// `NOPERM` is not among these.
    pub(crate) fn of(error: RedisError) -> Self {
        let refused = matches!(
            code(&error).as_deref(),
            Some(
                "ASK"
                    | "BUSY"
                    | "CLUSTERDOWN"
                    | "CROSSSLOT"
                    | "LOADING"
                    | "MASTERDOWN"
                    | "MISCONF"
                    | "MOVED"
                    | "NOAUTH"
                    | "NOREPLICAS"
                    | "NOSCRIPT"
                    | "OOM"
                    | "READONLY"
                    | "TRYAGAIN"
                    | "WRONGTYPE"
            )
        );
        Self { error, effect: if refused { Effect::None } else { Effect::Unknown } }
    }

    /// The word with which the server's error begins.
    pub(crate) fn code(&self) -> Option<String> {
        code(&self.error)
    }

    /// As the contract's error.
    pub(crate) fn into_error(self, operation: &'static str) -> Error {
        let kind = match self.code().as_deref() {
            Some("WRONGTYPE") => ErrorKind::Damaged,
            Some("NOAUTH" | "NOPERM" | "NOSCRIPT" | "CROSSSLOT") => ErrorKind::Backend,
            Some(_) if self.effect == Effect::None => ErrorKind::Unavailable, // loading, no memory, no replicas, …
            Some(_) => ErrorKind::Backend,
            None => match self.error.kind() {
                Kind::Io
                | Kind::ClusterConnectionNotFound
                | Kind::EmptySentinelList
                | Kind::MasterNameNotFoundBySentinel => ErrorKind::Unavailable,
                _ => ErrorKind::Backend,
            },
        };
        Error::new(kind, operation).with_effect(self.effect).with_source(self.error)
    }
}

/// Of several errors the first.
fn code(error: &RedisError) -> Option<String> {
    let errors = error.clone().into_server_errors()?;
    errors.first().map(|(_, error)| error.code().to_owned())
}

/// How to open a connection; the same for every server.
#[derive(Clone)]
pub(crate) struct Dialer(Arc<Dialing>);

struct Dialing {
    config: RedisConfig,
    #[cfg(feature = "tls")]
    certificates: redis::TlsCertificates,
}

impl fmt::Debug for Dialer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Dialer").field(&self.0.config.topology).finish()
    }
}

impl Dialer {
    pub(crate) fn new(config: &RedisConfig) -> Result<Self> {
        config.validate()?;
        Ok(Self(Arc::new(Dialing {
            config: config.clone(),
            #[cfg(feature = "tls")]
            certificates: crate::tls::certificates(config.tls.as_ref())?,
        })))
    }

    pub(crate) fn config(&self) -> &RedisConfig {
        &self.0.config
    }

    /// A connection to a server that holds sessions.
    pub(crate) async fn dial(
        &self,
        node: &Node,
        events: Events,
    ) -> Result<MultiplexedConnection, RedisError> {
        let config = self.config();
        let user = (config.username.as_deref(), config.password.as_ref());
        self.connect(node, user, config.database, events).await
    }

    /// The same, with somebody who listens to it.
    pub(crate) async fn dial_for_messages(
        &self,
        node: &Node,
        listener: Arc<Listener>,
    ) -> Result<(MultiplexedConnection, Events), RedisError> {
        let events = Events { listener: Some(listener), ..Events::none() };
        Ok((self.dial(node, events.clone()).await?, events))
    }

    /// The TCP connection, TLS, HELLO, SELECT: all within the time to connect.
    pub(crate) async fn connect(
        &self,
        node: &Node,
        (username, password): (Option<&str>, Option<&Secret>),
        database: u32,
        events: Events,
    ) -> Result<MultiplexedConnection, RedisError> {
        let config = self.config();
        // RESP3, so that the end of a connection is noticed when it happens and not by the next command.
        let mut login =
            RedisConnectionInfo::default().set_protocol(ProtocolVersion::RESP3).set_db(database.into());
        if let Some(username) = username {
            login = login.set_username(username);
        }
        if let Some(password) = password {
            login = login.set_password(password.expose());
        }
        let (host, port) = (node.host.clone(), node.port);
        let address = match config.tls {
            None => ConnectionAddr::Tcp(host, port),
            Some(_) => ConnectionAddr::TcpTls { host, port, insecure: false, tls_params: None },
        };
        let info = address
            .into_connection_info()?
            .set_redis_settings(login)
            .set_tcp_settings(TcpSettings::default().set_nodelay(true)); // off by default: 40 ms now and then
        #[cfg(feature = "tls")]
        let client = match config.tls {
            None => Client::open(info)?,
            Some(_) => Client::build_with_tls(info, self.0.certificates.clone())?,
        };
        #[cfg(not(feature = "tls"))]
        let client = Client::open(info)?;
        let owned = Lost(events);
        let settings = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(config.connect_timeout))
            .set_response_timeout(Some(config.response_timeout))
            .set_push_sender(move |event| {
                if let Some(listener) = &owned.0.listener {
                    listener(&event);
                }
                Ok::<_, SendError>(())
            });
        let dialled = client.get_multiplexed_async_connection_with_config(&settings);
        tokio::time::timeout(config.connect_timeout, dialled)
            .await
            .unwrap_or_else(|_| Err(io::Error::from(io::ErrorKind::TimedOut).into()))
    }
}

/// What a connection says by itself: messages, as they are read, and its end.
#[derive(Clone)]
pub(crate) struct Events {
    lost: Arc<AtomicBool>,
    ended: Arc<Notify>,
    listener: Option<Arc<Listener>>,
}

/// Called by the task that drives the connection: it must not block. No other task has to wake up in between.
pub(crate) type Listener = dyn Fn(&PushInfo) + Send + Sync;

impl Events {
    pub(crate) fn none() -> Self {
        Self { lost: Arc::default(), ended: Arc::default(), listener: None }
    }

    /// Returns when the connection has ended.
    pub(crate) async fn ended(&self) {
        self.ended.notified().await;
    }
}

/// Owned by the task that drives a connection: however that ends (cut, or with its runtime), the connection
/// is lost.
struct Lost(Events);

impl Drop for Lost {
    fn drop(&mut self) {
        self.0.lost.store(true, Relaxed);
        self.0.ended.notify_one(); // kept, should nobody wait yet
    }
}

/// A connection, and whether it is known to be of no use any more.
#[derive(Clone)]
struct Live {
    connection: MultiplexedConnection,
    lost: Arc<AtomicBool>,
}

type Dialled = Option<Result<Live, RedisError>>;

enum State {
    Idle,
    Dialing(watch::Receiver<Dialled>),
    Up(Live),
}

/// Where a link leads to; asked again for every new connection.
#[derive(Clone, Debug)]
pub(crate) enum Finder {
    Fixed(Node),
    #[cfg(feature = "sentinel")]
    Sentinel(Arc<crate::sentinel::Sentinels>),
}

impl Finder {
    async fn find(&self, _dialer: &Dialer) -> Result<Node, RedisError> {
        match self {
            Self::Fixed(node) => Ok(node.clone()),
            #[cfg(feature = "sentinel")]
            Self::Sentinel(sentinels) => sentinels.primary(_dialer).await,
        }
    }
}

/// The shared connection to one server.
#[derive(Clone)]
pub(crate) struct Link(Arc<Inner>);

struct Inner {
    dialer: Dialer,
    finder: Finder,
    state: Mutex<State>,
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Link").field(&self.0.finder).finish()
    }
}

impl Link {
    pub(crate) fn new(dialer: Dialer, finder: Finder) -> Self {
        Self(Arc::new(Inner { dialer, finder, state: Mutex::new(State::Idle) }))
    }

    pub(crate) async fn run(&self, command: &Cmd) -> Result<Value, Failure> {
        let mut live = self.live().await.map_err(Failure::before_sending)?;
        let reply = live.connection.send_packed_command(command).await.and_then(Value::extract_error);
        reply.map_err(|error| self.judge(&live, error))
    }

    /// Several commands in one trip; their replies.
    pub(crate) async fn run_all(&self, commands: &Pipeline) -> Result<Vec<Value>, Failure> {
        let mut live = self.live().await.map_err(Failure::before_sending)?;
        let replies = live.connection.send_packed_commands(commands, 0, commands.len()).await;
        let replies = replies.and_then(|all| all.into_iter().map(Value::extract_error).collect());
        replies.map_err(|error| self.judge(&live, error))
    }

    /// A connection of one's own to the same server, for messages.
    pub(crate) async fn dial_for_messages(
        &self,
        listener: Arc<Listener>,
    ) -> Result<(MultiplexedConnection, Events), RedisError> {
        let node = self.0.finder.find(&self.0.dialer).await?;
        self.0.dialer.dial_for_messages(&node, listener).await
    }

    /// After these a new connection is better than the old one: it was lost, it hangs, or the server is no
    /// primary (any more). Who still waits for a reply on it goes on waiting: it is not closed.
    fn judge(&self, live: &Live, error: RedisError) -> Failure {
        let failure = Failure::of(error);
        let replica = matches!(failure.code().as_deref(), Some("READONLY" | "MASTERDOWN"));
        if failure.error.is_io_error() || failure.error.is_unrecoverable_error() || replica {
            live.lost.store(true, Relaxed);
        }
        failure
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner) // every change is one assignment
    }

    /// The connection; whoever finds none starts to dial, and the others wait for the same attempt.
    async fn live(&self) -> Result<Live, RedisError> {
        let deadline = Instant::now() + self.0.dialer.config().connect_timeout;
        loop {
            let mut dialled = {
                let mut state = self.state();
                match &*state {
                    State::Up(live) if !live.lost.load(Relaxed) => return Ok(live.clone()),
                    // An attempt without a sender died with its runtime.
                    State::Dialing(dialled) if dialled.has_changed().is_ok() => dialled.clone(),
                    _ => {
                        let (send, receive) = watch::channel(None);
                        *state = State::Dialing(receive.clone());
                        tokio::spawn(self.clone().dial(send));
                        receive
                    }
                }
            };
            let waited = tokio::time::timeout_at(deadline, dialled.wait_for(Option::is_some)).await;
            match waited {
                Err(_) => return Err(io::Error::from(io::ErrorKind::TimedOut).into()),
                Ok(Ok(result)) => {
                    if let Some(result) = &*result {
                        return result.clone();
                    }
                }
                Ok(Err(_)) => {} // its runtime ended: once more, on ours
            }
        }
    }

    /// Tries until it works or the time to connect is over, on a task of its own: a caller that gives up ends
    /// nothing.
    async fn dial(self, send: watch::Sender<Dialled>) {
        let deadline = Instant::now() + self.0.dialer.config().connect_timeout;
        let mut pause = REDIAL.0;
        let result = loop {
            match tokio::time::timeout_at(deadline, self.attempt()).await {
                Ok(Ok(live)) => break Ok(live),
                Ok(Err(error)) if Instant::now() + pause >= deadline => break Err(error),
                Ok(Err(_)) => tokio::time::sleep(pause).await,
                Err(_) => break Err(io::Error::from(io::ErrorKind::TimedOut).into()),
            }
            pause = (pause * 2).min(REDIAL.1);
        };
        *self.state() = match &result {
            Ok(live) => State::Up(live.clone()),
            Err(error) => {
                tracing::debug!(%error, server = ?self.0.finder, "no connection");
                State::Idle
            }
        };
        send.send_replace(Some(result));
    }

    async fn attempt(&self) -> Result<Live, RedisError> {
        let node = self.0.finder.find(&self.0.dialer).await?;
        let events = Events::none();
        let lost = Arc::clone(&events.lost);
        let connection = self.0.dialer.dial(&node, events.clone()).await?;
        tokio::spawn(ring(self.0.dialer.config().response_timeout / 2, events));
        Ok(Live { connection, lost })
    }
}

/// Sets a timer again and again as long as a connection lives. tokio wakes its driver, by a system call, for a
/// timer that is to ring before all others; with this one the timers of commands never are.
async fn ring(pause: Duration, connection: Events) {
    while tokio::time::timeout(pause, connection.ended()).await.is_err() {}
}

/// A version like 7.0.15, from `INFO`.
pub(crate) fn check_version(info: &str) -> Result<()> {
    let version = field(info, "redis_version").unwrap_or_default();
    let mut parts = version.split('.').map(|part| part.parse::<u32>().unwrap_or(0));
    let found = (parts.next().unwrap_or(0), parts.next().unwrap_or(0));
    if found < (7, 0) {
        // Older ones hide what a script's command answered (READONLY, OOM) behind a general error.
        return Err(Error::new(ErrorKind::Unsupported, "connect")
            .with_context(format!("this is Redis {version}: upgrade to 7.0 or newer")));
    }
    Ok(())
}

/// A line of `INFO`.
pub(crate) fn field<'a>(info: &'a str, name: &str) -> Option<&'a str> {
    info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
}
