//! Where the servers are and how to use them, from a struct or from a URL.
//!
//! ```
//! use session_redis::{LockKind, RedisConfig};
//! use std::time::Duration;
//!
//! let config = RedisConfig::from_url("redis://app:secret@cache.example:6380/2?prefix=shop:&lock=spin")?;
//! assert_eq!((config.database, config.prefix.as_str(), config.lock), (2, "shop:", LockKind::Spin));
//!
//! let mut same = RedisConfig::server("cache.example", 6380);
//! same.response_timeout = Duration::from_millis(500);
//! assert!(!format!("{config:?}").contains("secret"));
//!
//! let error = RedisConfig::from_url("redis://localhost?prefex=shop:").unwrap_err();
//! assert!(error.to_string().contains("prefex") && error.to_string().contains("prefix"));
//! # Ok::<(), session_core::Error>(())
//! ```
//!
//! | URL | what it connects to |
//! |---|---|
//! | `redis://[user[:password]@]host[:6379][/database]` | one server |
//! | `rediss://…` | one server, over TLS (feature `tls`) |
//! | `redis+sentinel://host[:26379],host…/name[/database]` | the primary that these sentinels call `name` (feature `sentinel`) |
//! | `redis+cluster://host[:6379],host…` | the cluster to which these nodes belong (feature `cluster`) |
//! | `rediss+sentinel://…`, `rediss+cluster://…` | the same over TLS |
//!
//! | option | what | default | limits |
//! |---|---|---|---|
//! | `prefix` | what every key and channel begins with | `session:` | 1 to 64 letters, digits and `: _ . / -` |
//! | `lock` | `queue` or `spin`: see [`LockKind`] | `queue` | |
//! | `connect_timeout` | for a connection, before an operation fails without effect | `2s` | 1 ms to 60 s |
//! | `response_timeout` | for a reply, before an operation fails with an unknown effect | `2s` | 1 ms to 60 s |
//! | `poll` | how often a waiter looks for itself | `400ms` | 1 ms to half of `claim` |
//! | `claim` | how long a lock that was handed over waits for its waiter | `1s` | twice `poll` to 60 s |
//! | `ca`, `cert`, `key` | PEM files; with `rediss` alone | the system's authorities | |
//! | `sentinel_username`, `sentinel_password` | at the sentinels; with `redis+sentinel` alone | none | |
//!
//! They follow as `?name=value&…`, of two equal ones the last counts, and a duration is a number and `ms` or
//! `s`. What is special in a user's name, a password or a value is percent-encoded. An unknown option, a
//! value out of its limits and an option that does not go with the scheme are [`ErrorKind::Invalid`], and the
//! error says what would be right; it never shows the password.

use crate::url::Url;
use session_core::{Error, ErrorKind, Result};
use std::{fmt, path::PathBuf, time::Duration};

/// The port of a server, and of a node of a cluster.
pub const DEFAULT_PORT: u16 = 6379;
/// The port of a sentinel.
pub const DEFAULT_SENTINEL_PORT: u16 = 26379;
/// The longest prefix, in bytes.
pub const MAX_PREFIX: usize = 64;

/// How to use Redis. The fields have defaults that fit one server nearby.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct RedisConfig {
    /// Where the data is.
    pub topology: Topology,
    /// The ACL user; the server's default user when there is none.
    pub username: Option<String>,
    /// Its password.
    pub password: Option<Secret>,
    /// The database number. A cluster has only 0.
    pub database: u32,
    /// TLS, when set; needs the feature `tls`.
    pub tls: Option<Tls>,
    /// What every key and channel begins with: letters, digits and `: _ . / -`, at most [`MAX_PREFIX`].
    pub prefix: String,
    /// How long to try for a connection before an operation fails, without effect. Default 2 s.
    pub connect_timeout: Duration,
    /// How long to wait for a reply before an operation fails, its effect unknown. Default 2 s.
    pub response_timeout: Duration,
    /// How waiters get the lock.
    pub lock: LockKind,
    /// How often a waiter in the queue looks for itself, should its wake-up be lost. At most half of `claim`.
    /// Default 400 ms.
    pub poll: Duration,
    /// How long a lock that was handed over waits to be claimed before it passes on. Default 1 s.
    pub claim: Duration,
}

/// Which servers.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Topology {
    /// One server.
    Server(Node),
    /// The primary that sentinels know by this name.
    Sentinel {
        /// The sentinels; one that answers is enough.
        sentinels: Vec<Node>,
        /// What they call the primary.
        name: String,
        /// The user at the sentinels, who have users of their own.
        username: Option<String>,
        /// Its password.
        password: Option<Secret>,
    },
    /// A cluster.
    Cluster {
        /// Some of its nodes; one that answers is enough.
        nodes: Vec<Node>,
    },
}

/// A host and its port.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Node {
    /// A name or an address.
    pub host: String,
    /// The TCP port.
    pub port: u16,
}

impl Node {
    /// A node.
    #[must_use]
    pub fn new(host: impl Into<String>, port: u16) -> Self {
        Self { host: host.into(), port }
    }
}

impl fmt::Display for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

/// A password. `Debug` hides it.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// A secret.
    #[must_use]
    pub fn new(secret: impl Into<String>) -> Self {
        Self(secret.into())
    }

    pub(crate) fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// TLS. Without files: the certificate authorities of the operating system, and no certificate of our own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Tls {
    /// The certificate authority to trust instead (PEM).
    pub ca: Option<PathBuf>,
    /// Our certificate (PEM), together with `key`.
    pub cert: Option<PathBuf>,
    /// Its private key (PEM).
    pub key: Option<PathBuf>,
}

/// How waiters get the lock. Both may be used on the same sessions at the same time: who only spins lets the
/// queue go first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum LockKind {
    /// First come, first served: the holder hands the lock to the oldest living waiter, whom a message wakes.
    #[default]
    Queue,
    /// Waiters try again and again, with a jittered backoff. No connection for messages, no order.
    Spin,
}

impl Default for RedisConfig {
    fn default() -> Self {
        Self {
            topology: Topology::Server(Node::new("127.0.0.1", DEFAULT_PORT)),
            username: None,
            password: None,
            database: 0,
            tls: None,
            prefix: "session:".to_owned(),
            connect_timeout: Duration::from_secs(2),
            response_timeout: Duration::from_secs(2),
            lock: LockKind::default(),
            poll: Duration::from_millis(400),
            claim: Duration::from_secs(1),
        }
    }
}

/// Whether a URL with this scheme is one for [`RedisConfig::from_url`].
#[must_use]
pub fn is_ours(scheme: &str) -> bool {
    SCHEMES.contains(&scheme)
}

const SCHEMES: [&str; 6] =
    ["redis", "rediss", "redis+sentinel", "rediss+sentinel", "redis+cluster", "rediss+cluster"];

impl RedisConfig {
    /// One server, everything else by default.
    #[must_use]
    pub fn server(host: impl Into<String>, port: u16) -> Self {
        Self { topology: Topology::Server(Node::new(host, port)), ..Self::default() }
    }

    /// Reads a URL; see the [module](self) for its forms and options.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`], naming what is wrong and what would be right; [`ErrorKind::Unsupported`] for
    /// what needs a feature of this crate that is off. The password is never part of the error.
    pub fn from_url(url: &str) -> Result<Self> {
        let url = Url::parse(url)?;
        let mut config = Self {
            username: url.username.clone(),
            password: url.password.clone().map(Secret),
            tls: url.scheme.starts_with("rediss").then(Tls::default),
            ..Self::default()
        };
        let mut path = url.path.iter();
        config.topology = match url.scheme.as_str() {
            "redis" | "rediss" => Topology::Server(one(url.nodes(DEFAULT_PORT)?)?),
            "redis+sentinel" | "rediss+sentinel" => Topology::Sentinel {
                sentinels: url.nodes(DEFAULT_SENTINEL_PORT)?,
                name: path.next().cloned().ok_or_else(|| {
                    invalid("a sentinel URL names the primary: redis+sentinel://host,host/name")
                })?,
                username: None,
                password: None,
            },
            "redis+cluster" | "rediss+cluster" => Topology::Cluster { nodes: url.nodes(DEFAULT_PORT)? },
            other => {
                let known = SCHEMES.join(", ");
                return Err(invalid(format!("unknown scheme {other:?}; known: {known}")));
            }
        };
        if let Some(database) = path.next() {
            config.database = database.parse().map_err(|_| invalid("the database is a number"))?; // never shown: see Url
        }
        if path.next().is_some() {
            return Err(invalid("the path of the URL has too many parts"));
        }
        for (name, value) in &url.options {
            config.set(name, value)?;
        }
        config.validate()?;
        Ok(config)
    }

    /// Sets one of the options of a URL.
    fn set(&mut self, name: &str, value: &str) -> Result<()> {
        match name {
            "prefix" => value.clone_into(&mut self.prefix),
            "connect_timeout" => self.connect_timeout = duration(name, value)?,
            "response_timeout" => self.response_timeout = duration(name, value)?,
            "poll" => self.poll = duration(name, value)?,
            "claim" => self.claim = duration(name, value)?,
            "lock" => {
                self.lock = match value {
                    "queue" => LockKind::Queue,
                    "spin" => LockKind::Spin,
                    _ => return Err(invalid(format!("lock={value:?}: known are queue and spin"))),
                }
            }
            "ca" => self.tls(name)?.ca = Some(value.into()),
            "cert" => self.tls(name)?.cert = Some(value.into()),
            "key" => self.tls(name)?.key = Some(value.into()),
            "sentinel_username" | "sentinel_password" => {
                let Topology::Sentinel { username, password, .. } = &mut self.topology else {
                    return Err(invalid(format!("{name} is for redis+sentinel URLs")));
                };
                if name == "sentinel_username" {
                    *username = Some(value.to_owned());
                } else {
                    *password = Some(Secret::new(value));
                }
            }
            _ => {
                return Err(invalid(format!(
                    "unknown option {name:?}; known: prefix, lock, connect_timeout, response_timeout, poll, claim, \
                     sentinel_username, sentinel_password, ca, cert, key"
                )));
            }
        }
        Ok(())
    }

    fn tls(&mut self, option: &str) -> Result<&mut Tls> {
        self.tls.as_mut().ok_or_else(|| invalid(format!("{option} is for rediss URLs")))
    }

    /// Checked before anything is connected.
    pub(crate) fn validate(&self) -> Result<()> {
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || b":_./-".contains(&byte);
        if self.prefix.is_empty() || self.prefix.len() > MAX_PREFIX || !self.prefix.bytes().all(fits) {
            return Err(invalid(format!(
                "prefix={:?}: 1 to {MAX_PREFIX} letters, digits and `: _ . / -`",
                self.prefix
            )));
        }
        let durations = [
            ("connect_timeout", self.connect_timeout),
            ("response_timeout", self.response_timeout),
            ("poll", self.poll),
            ("claim", self.claim),
        ];
        for (name, duration) in durations {
            if duration < Duration::from_millis(1) || duration > Duration::from_mins(1) {
                return Err(invalid(format!("{name} is between 1ms and 60s, not {duration:?}")));
            }
        }
        if self.poll * 2 > self.claim {
            return Err(invalid("claim is at least twice poll, or a living waiter loses its place"));
        }
        let (nodes, feature) = match &self.topology {
            Topology::Server(node) => (std::slice::from_ref(node), None),
            Topology::Sentinel { sentinels, .. } => {
                (&sentinels[..], (!cfg!(feature = "sentinel")).then_some("sentinel"))
            }
            Topology::Cluster { nodes } => (&nodes[..], (!cfg!(feature = "cluster")).then_some("cluster")),
        };
        if nodes.is_empty() || nodes.iter().any(|node| node.host.is_empty()) {
            return Err(invalid("a server has a name"));
        }
        if matches!(self.topology, Topology::Cluster { .. }) && self.database != 0 {
            return Err(invalid("a cluster has only database 0"));
        }
        let missing = feature.or_else(|| (self.tls.is_some() && !cfg!(feature = "tls")).then_some("tls"));
        match missing {
            None => Ok(()),
            Some(feature) => Err(Error::new(ErrorKind::Unsupported, "connect")
                .with_context(format!("build session-redis with the feature {feature:?}"))),
        }
    }
}

pub(crate) fn invalid(context: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::Invalid, "connect").with_context(context)
}

fn one(nodes: Vec<Node>) -> Result<Node> {
    match <[Node; 1]>::try_from(nodes) {
        Ok([node]) => Ok(node),
        Err(_) => Err(invalid("several hosts: use redis+sentinel or redis+cluster")),
    }
}

fn duration(name: &str, text: &str) -> Result<Duration> {
    let wrong = || invalid(format!("{name}={text:?}: a duration is a number and ms or s, as in 500ms"));
    let (number, unit): (_, fn(u64) -> Duration) = match text.strip_suffix("ms") {
        Some(number) => (number, Duration::from_millis),
        None => (text.strip_suffix('s').ok_or_else(wrong)?, Duration::from_secs),
    };
    number.parse().map(unit).map_err(|_| wrong())
}
