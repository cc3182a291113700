//! Which servers, and how to use them, from a struct or from a URL.

use session_core::{Error, ErrorKind, Result};
use std::{fmt, num::NonZeroUsize, ops::RangeInclusive, str::FromStr, time::Duration};

/// memcached's own port.
pub const DEFAULT_PORT: u16 = 11211;
/// The longest prefix, in bytes: with it a key has at most 133, and memcached allows 250.
pub const MAX_PREFIX: usize = 64;
/// How many servers at most.
pub const MAX_SERVERS: usize = 1024;
/// How many connections to each server at most.
const MAX_POOL: usize = 1000;
/// The shortest and the longest timeout.
const TIMEOUTS: RangeInclusive<Duration> = Duration::from_millis(1)..=Duration::from_secs(600);

const OPTIONS: &str = "prefix, protocol, timeout, pool, max_value";

/// How to use memcached. The fields have defaults that fit a server nearby.
///
/// As a URL it is `memcached://host[:11211][,host[:port]]…[?option=value&…]`, a host being a name, an IPv4
/// address or an IPv6 address in brackets. The options are the fields:
///
/// | option | value | default | |
/// |---|---|---|---|
/// | `prefix` | at most [`MAX_PREFIX`] letters, digits and `: _ . / -` | `session:` | what every key begins with |
/// | `protocol` | `auto`, `plain`, `meta` | `auto` | which commands are used |
/// | `timeout` | a whole number with its unit, `1ms` to `600s` | `2s` | for an operation, waiting for a connection included |
/// | `pool` | 1 to 1000 | `16` | connections to each server |
/// | `max_value` | bytes | what the servers' item limit leaves | the longest record |
///
/// Nothing is percent-decoded: no value needs it. There is no user and no password: memcached's own access
/// control is the network, and a URL that names them is refused. So is an unknown option, with the names of
/// those that there are.
///
/// ```
/// use session_memcached::{MemcachedConfig, Protocol};
/// use std::time::Duration;
///
/// let config = MemcachedConfig::from_url("memcached://10.0.0.1,10.0.0.2:11311?prefix=shop:&timeout=500ms")?;
/// assert_eq!(config.servers.len(), 2);
/// assert_eq!((config.servers[0].port, config.servers[1].port), (11211, 11311));
/// assert_eq!((config.prefix.as_str(), config.timeout), ("shop:", Duration::from_millis(500)));
///
/// let mut same = MemcachedConfig::server("10.0.0.1", 11211);
/// same.protocol = Protocol::Plain;
///
/// let error = MemcachedConfig::from_url("memcached://localhost?prefex=shop:").unwrap_err();
/// assert!(error.to_string().contains("prefex") && error.to_string().contains("prefix"));
/// # Ok::<(), session_core::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct MemcachedConfig {
    /// Where the data is: at least one server, at most [`MAX_SERVERS`], none twice.
    ///
    /// With several, a session is on the one that its key and *these names* choose: every process must be
    /// given the same names, in any order. A server that is added or taken away moves the sessions between it
    /// and its neighbours on the ring: they are gone for their users, the others are untouched.
    pub servers: Vec<Node>,
    /// What every key begins with: letters, digits and `: _ . / -`, at most [`MAX_PREFIX`]. Default
    /// `session:`.
    pub prefix: String,
    /// Which commands are used.
    pub protocol: Protocol,
    /// How long an operation may take, from waiting for a connection to the last byte of the reply, before it
    /// fails. The time spent waiting for a lock is not counted. 1 ms to 10 minutes, default 2 s.
    pub timeout: Duration,
    /// How many connections to each server. At most 1,000, default 16.
    pub pool: NonZeroUsize,
    /// The longest record, in bytes. By default what the servers' item limit (`-I`) leaves: the smallest of
    /// those that can be reached at connect.
    pub max_value: Option<usize>,
}

/// Which commands are used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Protocol {
    /// The meta commands where a server speaks them (1.6.18 and later, as tested), the plain ones otherwise:
    /// decided for each connection when it is opened.
    #[default]
    Auto,
    /// Only the plain commands: `gets`, `add`, `cas`. Locked updates take more round trips, and a touch
    /// rewrites the record.
    Plain,
    /// Only the meta commands; a server that does not speak them is refused.
    Meta,
}

/// A host and its port.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Node {
    /// A name or an address, without brackets.
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
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

impl FromStr for Node {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let bad = || invalid(format!("{text:?} is not host[:port]"));
        let (host, port) = match text.strip_prefix('[').map(|rest| rest.split_once(']')) {
            Some(Some((host, ""))) => (host, None),
            Some(Some((host, rest))) => (host, Some(rest.strip_prefix(':').ok_or_else(bad)?)),
            Some(None) => return Err(bad()),
            None => text.split_once(':').map_or((text, None), |(host, port)| (host, Some(port))),
        };
        let port = port.map_or(Ok(DEFAULT_PORT), |port| port.parse().map_err(|_| bad()))?;
        Ok(Self::new(host, port))
    }
}

impl MemcachedConfig {
    /// One server.
    #[must_use]
    pub fn server(host: impl Into<String>, port: u16) -> Self {
        Self::servers([Node::new(host, port)])
    }

    /// Several servers.
    #[must_use]
    pub fn servers(servers: impl IntoIterator<Item = Node>) -> Self {
        Self {
            servers: servers.into_iter().collect(),
            prefix: "session:".to_owned(),
            protocol: Protocol::Auto,
            timeout: Duration::from_secs(2),
            pool: const { NonZeroUsize::new(16).unwrap() },
            max_value: None,
        }
    }

    /// Reads a URL, as described [above](Self).
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`], naming what is wrong; for an unknown option, naming those that there are.
    pub fn from_url(url: &str) -> Result<Self> {
        let rest = url
            .strip_prefix("memcached://")
            .ok_or_else(|| invalid("the URL must begin with memcached://"))?;
        let (nodes, options) = rest.split_once('?').unwrap_or((rest, ""));
        let nodes = nodes.strip_suffix('/').unwrap_or(nodes);
        if nodes.contains('@') {
            // Its text is not repeated: it may be a password.
            return Err(invalid("a user or a password is not supported"));
        }
        let mut config = Self::servers(nodes.split(',').map(Node::from_str).collect::<Result<Vec<_>>>()?);
        for option in options.split('&').filter(|option| !option.is_empty()) {
            let (name, value) = option.split_once('=').unwrap_or((option, ""));
            config.set(name, value)?;
        }
        config.validate()?;
        Ok(config)
    }

    fn set(&mut self, name: &str, value: &str) -> Result<()> {
        let bad = |wanted: &str| invalid(format!("{name}={value}: it must be {wanted}"));
        match name {
            "prefix" => value.clone_into(&mut self.prefix),
            "protocol" => {
                self.protocol = match value {
                    "auto" => Protocol::Auto,
                    "plain" => Protocol::Plain,
                    "meta" => Protocol::Meta,
                    _ => return Err(bad("auto, plain or meta")),
                };
            }
            "timeout" => {
                self.timeout = duration(value).ok_or_else(|| bad("a duration such as 500ms or 2s"))?
            }
            "pool" => self.pool = value.parse().map_err(|_| bad("a number of connections, 1 to 1000"))?,
            "max_value" => {
                self.max_value = Some(value.parse().map_err(|_| bad("a number of bytes"))?);
            }
            _ => return Err(invalid(format!("there is no option {name:?}; there are {OPTIONS}"))),
        }
        Ok(())
    }

    /// The fields are public, so this is asked again at connect.
    pub(crate) fn validate(&self) -> Result<()> {
        if self.servers.is_empty() || self.servers.len() > MAX_SERVERS {
            return Err(invalid(format!("{} servers; 1 to {MAX_SERVERS} are possible", self.servers.len())));
        }
        for (index, node) in self.servers.iter().enumerate() {
            let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ':' | '%');
            if node.host.is_empty() || !node.host.chars().all(plain) || node.port == 0 {
                return Err(invalid(format!("{:?} is not a host and a port", node.to_string())));
            }
            if self.servers[..index].contains(node) {
                return Err(invalid(format!("the server {node} is named twice")));
            }
        }
        let harmless = |c: u8| c.is_ascii_alphanumeric() || b":_./-".contains(&c);
        if self.prefix.len() > MAX_PREFIX || !self.prefix.bytes().all(harmless) {
            let allowed = "letters, digits and : _ . / -";
            return Err(invalid(format!("prefix {:?}: at most {MAX_PREFIX} of {allowed}", self.prefix)));
        }
        if self.pool.get() > MAX_POOL {
            return Err(invalid(format!("pool={}: 1 to {MAX_POOL} connections", self.pool)));
        }
        if !TIMEOUTS.contains(&self.timeout) {
            let (shortest, longest) = (TIMEOUTS.start(), TIMEOUTS.end());
            return Err(invalid(format!("timeout={:?}: {shortest:?} to {longest:?}", self.timeout)));
        }
        Ok(())
    }
}

fn duration(text: &str) -> Option<Duration> {
    let digits = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = text.split_at(digits);
    let number = number.parse().ok()?;
    match unit {
        "ms" => Some(Duration::from_millis(number)),
        "s" => Some(Duration::from_secs(number)),
        _ => None,
    }
}

fn invalid(why: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::Invalid, "configuration").with_context(why)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_option_is_read() {
        let config = MemcachedConfig::from_url(
            "memcached://[::1]:1,cache-1,127.0.0.1:3/?prefix=a/b:&protocol=plain&timeout=2s&pool=3&max_value=9000",
        )
        .unwrap();
        let names: Vec<_> = config.servers.iter().map(Node::to_string).collect();
        assert_eq!(names, ["[::1]:1", "cache-1:11211", "127.0.0.1:3"]);
        assert_eq!((config.prefix.as_str(), config.protocol), ("a/b:", Protocol::Plain));
        assert_eq!((config.timeout, config.pool.get()), (Duration::from_secs(2), 3));
        assert_eq!(config.max_value, Some(9000));
    }

    #[test]
    fn what_cannot_be_used_is_named() {
        for (url, named) in [
            ("redis://localhost", "memcached://"),
            ("memcached://", "not a host"),
            ("memcached://a,,b", "not a host"),
            ("memcached://a:b", "host[:port]"),
            ("memcached://a:99999", "host[:port]"),
            ("memcached://a:0", "not a host"),
            ("memcached://[::1", "host[:port]"),
            ("memcached://[::1]x", "host[:port]"),
            ("memcached://a b", "not a host"),
            ("memcached://a\r\nflush_all", "not a host"),
            ("memcached://a,a:11211", "twice"),
            ("memcached://user:secret@a", "password"),
            ("memcached://a?timeout=0s", "timeout=0ns: 1ms to 600s"),
            ("memcached://a?timeout=601s", "timeout=601s: 1ms to 600s"),
            ("memcached://a?timeout=18446744073709551615s", "1ms to 600s"),
            ("memcached://a?timeout=5", "500ms"),
            ("memcached://a?timeout=5h", "500ms"),
            ("memcached://a?pool=0", "1 to 1000"),
            ("memcached://a?pool=1001", "pool=1001: 1 to 1000"),
            ("memcached://a?pool=18446744073709551616", "1 to 1000"),
            ("memcached://a?protocol=binary", "auto, plain or meta"),
            ("memcached://a?ttl=5", OPTIONS),
            ("memcached://a?prefix=a b", "prefix"),
            ("memcached://a?prefix=a\r\nflush_all", "prefix"),
            ("memcached://a?prefix=\u{e9}", "prefix"),
            (&format!("memcached://a?prefix={}", "p".repeat(MAX_PREFIX + 1)), "prefix"),
        ] {
            let error = MemcachedConfig::from_url(url).expect_err(url);
            assert_eq!(error.kind(), ErrorKind::Invalid, "{url}");
            assert!(error.to_string().contains(named), "{url}: {error}");
            assert!(!error.to_string().contains("secret"), "{error}");
        }
        assert!(
            MemcachedConfig::from_url(&format!("memcached://a?prefix={}", "p".repeat(MAX_PREFIX))).is_ok()
        );
    }
}
