//! What can be set, as a URL or by methods; each with its default, its unit and its limit.

use session_core::{Error, ErrorKind, Random, Result, SystemRandom};
use sqlx::{
    ConnectOptions as _,
    postgres::{PgConnectOptions, PgSslMode},
};
use std::{fmt, ops::RangeInclusive, str::FromStr, sync::Arc, time::Duration};
use url::Url;

/// How sessions are locked. All processes on one schema use the same mode: it is recorded there, and one that
/// differs is refused.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LockMode {
    /// Advisory locks, held on a few connections of their own ([`PostgresConfig::lock_connections`]). The
    /// default: fastest, freed at once when a process dies, waiters are woken. Needs direct connections: it
    /// does not start behind a pooler.
    #[default]
    Advisory,
    /// Token and deadline in the row. Works behind a pooler in transaction mode; waiters of other processes
    /// poll.
    Lease,
}

impl LockMode {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Advisory => "advisory",
            Self::Lease => "lease",
        }
    }
}

/// How statements are sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Statements {
    /// Prepared, unless the first connection shows that a pooler stands between (its startup options do not
    /// arrive).
    #[default]
    Detect,
    /// Prepared once per connection: fastest. A pooler must keep them apart (PgBouncer 1.21 with
    /// `max_prepared_statements`).
    Prepared,
    /// As text, one message each: works behind every pooler.
    Simple,
}

/// Where the server is, and how it is used.
///
/// As a URL: `postgres://user:password@host:port/database?name=value&…`. Beside the options of PostgreSQL's
/// own URLs (`host`, `port`, `dbname`, `user`, `password`, `application_name`, `sslmode`, `sslrootcert`,
/// `sslcert`, `sslkey`) these are known, and any other is an error:
///
/// | option | default | limits | method |
/// |---|---|---|---|
/// | `schema` | `public` | 1 to 63 of `a-z0-9_` | [`schema`](Self::schema) |
/// | `prefix` | `session_` | 0 to 40 of `a-z0-9_` | [`table_prefix`](Self::table_prefix) |
/// | `pool` | 10 | 1 to 1000 connections | [`pool_size`](Self::pool_size) |
/// | `lock` | `advisory` | `advisory`, `lease` | [`lock_mode`](Self::lock_mode) |
/// | `lock_connections` | 4 | 1 to 64 | [`lock_connections`](Self::lock_connections) |
/// | `waiter_connections` | 2 | 0 to 64 | [`waiter_connections`](Self::waiter_connections) |
/// | `max_locks` | 2000 | 1 to 100000 locks | [`max_locks`](Self::max_locks) |
/// | `unlogged` | `false` | `true`, `false` | [`unlogged`](Self::unlogged) |
/// | `migrate` | `true` | `true`, `false` | [`migrate`](Self::migrate) |
/// | `statements` | `detect` | `detect`, `prepared`, `simple` | [`statements`](Self::statements) |
/// | `max_value` | 1048576 | 1 to 268435456 bytes | [`max_value`](Self::max_value) |
/// | `timeout` | `5s` | `1ms` to `600s` | [`timeout`](Self::timeout) |
/// | `connect_timeout` | `5s` | `1ms` to `600s` | [`connect_timeout`](Self::connect_timeout) |
#[derive(Clone)]
pub struct PostgresConfig {
    pub(crate) server: PgConnectOptions,
    pub(crate) schema: String,
    pub(crate) prefix: String,
    pub(crate) pool_size: usize,
    pub(crate) lock_mode: LockMode,
    pub(crate) lock_connections: usize,
    pub(crate) waiter_connections: usize,
    pub(crate) max_locks: usize,
    pub(crate) unlogged: bool,
    pub(crate) migrate: bool,
    pub(crate) statements: Statements,
    pub(crate) max_value: usize,
    pub(crate) timeout: Duration,
    pub(crate) connect_timeout: Duration,
    pub(crate) random: Arc<dyn Random>,
}

/// The options of PostgreSQL's own URLs.
const SERVER_OPTIONS: [&str; 12] = [
    "host",
    "hostaddr",
    "port",
    "dbname",
    "user",
    "password",
    "application_name",
    "sslmode",
    "sslrootcert",
    "sslcert",
    "sslkey",
    "options",
];

fn invalid(context: impl Into<String>) -> Error {
    Error::new(ErrorKind::Invalid, "config").with_context(context.into())
}

impl PostgresConfig {
    /// Defaults for this server.
    #[must_use]
    pub fn new(server: PgConnectOptions) -> Self {
        Self {
            // Statements are not logged: as text they contain what is in sessions. `extra_float_digits` is a
            // startup parameter that poolers refuse, and there are no floats here.
            server: server.disable_statement_logging().extra_float_digits(None),
            schema: "public".into(),
            prefix: "session_".into(),
            pool_size: 10,
            lock_mode: LockMode::default(),
            lock_connections: 4,
            waiter_connections: 2,
            max_locks: 2000,
            unlogged: false,
            migrate: true,
            statements: Statements::default(),
            max_value: 1 << 20,
            timeout: Duration::from_secs(5),
            connect_timeout: Duration::from_secs(5),
            random: Arc::new(SystemRandom),
        }
    }

    /// Reads a URL.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`], saying which part: not a PostgreSQL URL, an unknown option, or a value that
    /// cannot be used.
    pub fn from_url(url: &str) -> Result<Self> {
        // The URL itself is not repeated in an error: it may hold a password.
        let mut url = Url::parse(url).map_err(|error| invalid("not a URL").with_source(error))?;
        if !matches!(url.scheme(), "postgres" | "postgresql") {
            return Err(invalid(format!("`{}:` is not `postgres:`", url.scheme())));
        }
        let options: Vec<(String, String)> = url.query_pairs().into_owned().collect();
        let (server, ours): (Vec<_>, Vec<_>) =
            options.into_iter().partition(|(name, _)| SERVER_OPTIONS.contains(&name.as_str()));
        url.query_pairs_mut().clear().extend_pairs(server);
        let server = PgConnectOptions::from_url(&url)
            .map_err(|error| invalid("not a PostgreSQL URL").with_source(error))?;
        let config =
            ours.iter().try_fold(Self::new(server), |config, (name, value)| config.option(name, value))?;
        config.check()?;
        Ok(config)
    }

    fn option(self, name: &str, value: &str) -> Result<Self> {
        Ok(match name {
            "schema" => self.schema(value),
            "prefix" => self.table_prefix(value),
            "pool" => self.pool_size(parse(name, value)?),
            "lock" => self.lock_mode(match value {
                "advisory" => LockMode::Advisory,
                "lease" => LockMode::Lease,
                _ => return Err(invalid(format!("lock={value}: advisory or lease"))),
            }),
            "lock_connections" => self.lock_connections(parse(name, value)?),
            "waiter_connections" => self.waiter_connections(parse(name, value)?),
            "max_locks" => self.max_locks(parse(name, value)?),
            "unlogged" => self.unlogged(parse(name, value)?),
            "migrate" => self.migrate(parse(name, value)?),
            "statements" => self.statements(match value {
                "detect" => Statements::Detect,
                "prepared" => Statements::Prepared,
                "simple" => Statements::Simple,
                _ => return Err(invalid(format!("statements={value}: detect, prepared or simple"))),
            }),
            "max_value" => self.max_value(parse(name, value)?),
            "timeout" => self.timeout(duration(name, value)?),
            "connect_timeout" => self.connect_timeout(duration(name, value)?),
            _ => {
                return Err(invalid(format!(
                    "unknown option `{name}`; known: schema, prefix, pool, lock, lock_connections, waiter_connections, \
                     max_locks, unlogged, migrate, statements, max_value, timeout, connect_timeout; and the server's: {}",
                    SERVER_OPTIONS.join(", ")
                )));
            }
        })
    }

    /// The schema that the tables and functions are in; it is created when it is not there. Lowercase
    /// letters, digits and `_`, at most 63.
    #[must_use]
    pub fn schema(mut self, schema: impl Into<String>) -> Self {
        self.schema = schema.into();
        self
    }

    /// What the names of the tables and functions begin with. Lowercase letters, digits and `_`, at most 40.
    #[must_use]
    pub fn table_prefix(mut self, prefix: impl Into<String>) -> Self {
        self.prefix = prefix.into();
        self
    }

    /// How many connections run statements, at most; they are opened when they are needed. 1 to 1,000.
    #[must_use]
    pub const fn pool_size(mut self, connections: usize) -> Self {
        self.pool_size = connections;
        self
    }

    /// How sessions are locked.
    #[must_use]
    pub const fn lock_mode(mut self, mode: LockMode) -> Self {
        self.lock_mode = mode;
        self
    }

    /// Advisory mode: how many connections hold locks, each any number of them. 1 to 64.
    #[must_use]
    pub const fn lock_connections(mut self, connections: usize) -> Self {
        self.lock_connections = connections;
        self
    }

    /// Advisory mode: how many connections can wait for locks that other processes hold, one each; when all
    /// do, others poll. 0 to 64.
    #[must_use]
    pub const fn waiter_connections(mut self, connections: usize) -> Self {
        self.waiter_connections = connections;
        self
    }

    /// How many locks this process holds at once, at most; one more is [`ErrorKind::TooLarge`]. The server's
    /// lock table is shared by all its databases, and nobody can connect any more when it is full. 1 to
    /// 100,000.
    #[must_use]
    pub const fn max_locks(mut self, locks: usize) -> Self {
        self.max_locks = locks;
        self
    }

    /// Whether the table is created without a write-ahead log: faster, and *empty after a crash of the
    /// server*. Declared as [`Durability::Volatile`](session_core::Durability::Volatile). A table that is
    /// already there must agree.
    #[must_use]
    pub const fn unlogged(mut self, unlogged: bool) -> Self {
        self.unlogged = unlogged;
        self
    }

    /// Whether [`connect`](crate::PostgresStore::connect) creates or updates the tables. If not, run
    /// [`schema_sql`](Self::schema_sql) by hand or [`PostgresStore::migrate`](crate::PostgresStore::migrate)
    /// as another user.
    #[must_use]
    pub const fn migrate(mut self, migrate: bool) -> Self {
        self.migrate = migrate;
        self
    }

    /// How statements are sent.
    #[must_use]
    pub const fn statements(mut self, statements: Statements) -> Self {
        self.statements = statements;
        self
    }

    /// The longest record, in bytes; a longer one is [`ErrorKind::TooLarge`]. 1 to 256 MiB.
    #[must_use]
    pub const fn max_value(mut self, bytes: usize) -> Self {
        self.max_value = bytes;
        self
    }

    /// How long a statement may take, waiting for a connection included. 1 ms to 10 minutes.
    #[must_use]
    pub const fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// How long it may take to open a connection. 1 ms to 10 minutes.
    #[must_use]
    pub const fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout;
        self
    }

    /// Where versions come from.
    #[must_use]
    pub fn random(mut self, random: Arc<dyn Random>) -> Self {
        self.random = random;
        self
    }

    /// Whether every setting can be used.
    pub(crate) fn check(&self) -> Result<()> {
        identifier("schema", &self.schema, 1..=63)?;
        identifier("prefix", &self.prefix, 0..=40)?;
        let limits = [
            ("pool", self.pool_size, 1..=1_000),
            ("lock_connections", self.lock_connections, 1..=64),
            ("waiter_connections", self.waiter_connections, 0..=64),
            ("max_locks", self.max_locks, 1..=100_000),
            ("max_value", self.max_value, 1..=256 << 20),
        ];
        for (name, value, limits) in limits {
            if !limits.contains(&value) {
                return Err(invalid(format!("{name}={value}: {} to {}", limits.start(), limits.end())));
            }
        }
        let limits = Duration::from_millis(1)..=Duration::from_secs(600);
        for (name, value) in [("timeout", self.timeout), ("connect_timeout", self.connect_timeout)] {
            if !limits.contains(&value) {
                return Err(invalid(format!("{name}={value:?}: {:?} to {:?}", limits.start(), limits.end())));
            }
        }
        let mode = self.server.get_ssl_mode();
        let encrypts = matches!(mode, PgSslMode::Require | PgSslMode::VerifyCa | PgSslMode::VerifyFull);
        if encrypts && !cfg!(feature = "tls") {
            return Err(Error::new(ErrorKind::Unsupported, "config").with_context(format!(
                "sslmode={mode:?}: encryption is not compiled in; enable the feature `tls`"
            )));
        }
        Ok(())
    }
}

/// Names go into SQL text: nothing but what needs no quoting is let through.
fn identifier(name: &str, value: &str, length: RangeInclusive<usize>) -> Result<()> {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
    let begins_well = !value.as_bytes().first().is_some_and(u8::is_ascii_digit);
    if length.contains(&value.len()) && begins_well && value.bytes().all(plain) {
        return Ok(());
    }
    Err(invalid(format!(
        "{name}: lowercase letters, digits and `_`, not a digit first, at most {}",
        length.end()
    )))
}

fn parse<T: FromStr>(name: &str, value: &str) -> Result<T> {
    value.parse().map_err(|_| invalid(format!("{name}={value}")))
}

fn duration(name: &str, value: &str) -> Result<Duration> {
    let (number, unit): (&str, fn(u64) -> Duration) = match value.strip_suffix("ms") {
        Some(number) => (number, Duration::from_millis),
        None => (value.strip_suffix('s').unwrap_or(""), Duration::from_secs),
    };
    number.parse().map(unit).map_err(|_| invalid(format!("{name}={value}: a number with `ms` or `s`")))
}

impl fmt::Debug for PostgresConfig {
    /// Without user and password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresConfig")
            .field("host", &self.server.get_host())
            .field("port", &self.server.get_port())
            .field("database", &self.server.get_database())
            .field("schema", &self.schema)
            .field("prefix", &self.prefix)
            .field("pool_size", &self.pool_size)
            .field("lock_mode", &self.lock_mode)
            .field("lock_connections", &self.lock_connections)
            .field("waiter_connections", &self.waiter_connections)
            .field("max_locks", &self.max_locks)
            .field("unlogged", &self.unlogged)
            .field("timeout", &self.timeout)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_option_of_the_url_is_read() {
        let config = PostgresConfig::from_url(
            "postgres://me:hidden@example.org:5433/shop?schema=web&prefix=s_&pool=3&lock=lease&lock_connections=2\
             &waiter_connections=1&max_locks=7&unlogged=true&migrate=false&statements=simple&max_value=99&timeout=250ms\
             &connect_timeout=2s&sslmode=disable",
        )
        .unwrap();
        assert_eq!((config.schema.as_str(), config.prefix.as_str()), ("web", "s_"));
        assert_eq!((config.pool_size, config.lock_connections, config.waiter_connections), (3, 2, 1));
        assert_eq!((config.max_locks, config.max_value), (7, 99));
        assert_eq!((config.lock_mode, config.statements), (LockMode::Lease, Statements::Simple));
        assert!(config.unlogged && !config.migrate);
        assert_eq!(config.timeout, Duration::from_millis(250));
        assert_eq!(config.connect_timeout, Duration::from_secs(2));
        assert_eq!(config.server.get_host(), "example.org");
        assert!(!format!("{config:?}").contains("hidden"));
    }

    #[test]
    fn what_cannot_be_used_is_named() {
        let cases = [
            ("redis://localhost", "`redis:` is not `postgres:`"),
            ("postgres://localhost/?pools=3", "unknown option `pools`"),
            ("postgres://localhost/?pool=0", "pool=0: 1 to 1000"),
            ("postgres://localhost/?pool=x", "pool=x"),
            ("postgres://localhost/?lock=none", "advisory or lease"),
            ("postgres://localhost/?schema=a\"; DROP TABLE x", "schema: lowercase"),
            ("postgres://localhost/?schema=", "schema: lowercase"),
            ("postgres://localhost/?prefix=1a", "prefix: lowercase"),
            ("postgres://localhost/?timeout=5", "timeout=5: a number with `ms` or `s`"),
            ("postgres://localhost/?timeout=0ms", "timeout=0ns"),
        ];
        for (url, expected) in cases {
            let error = PostgresConfig::from_url(url).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Invalid, "{url}");
            assert!(error.to_string().contains(expected), "{url}: {error}");
        }
    }
}
