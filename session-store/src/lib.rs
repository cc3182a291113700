//! Session storage that never loses an update: one dependency, one feature per backend.
//!
//! ```
//! use session_store::{Key, Sessions};
//!
//! const CART: Key<Vec<String>> = Key::new("cart");
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> session_store::Result<()> {
//! let sessions = Sessions::builder(session_store::connect("memory:").await?).build()?;
//! let session = sessions.create();
//! session.update(CART, |cart| cart.push("book".into()))?;
//! session.commit().await?;
//! let id = session.id().expect("it was stored");
//! sessions.update(&id, |session| session.update(CART, |cart| cart.push("pen".into()))).await?;
//! assert_eq!(sessions.read(&id).await?.expect("it lives").get(CART)?.unwrap().len(), 2);
//! # Ok(()) }
//! ```
//!
//! In a web application a layer opens and commits, and handlers only use their session: that is [`http`],
//! with the feature `axum` (or `http` on any other tower service).
//!
//! # Backends
//!
//! | feature | URL | what it keeps |
//! |---|---|---|
//! | always there | `memory:` | gone with the process |
//! | `file` | `file:///var/lib/app/sessions` | survives the process; a loss of power by setting |
//! | `redis` | `redis://[[user]:password@]host[:6379][/database]` | by the server's settings |
//! | `redis-sentinel` | `redis+sentinel://host[:26379],host…/name[/database]` | a failover forgets what was not replicated |
//! | `redis-cluster` | `redis+cluster://host[:6379],host…` | the same |
//! | `postgres` | `postgres://[user[:password]@]host[:5432]/database` | by the server's settings |
//! | `memcached` | `memcached://host[:11211],host…` | gone with the server, and under memory pressure |
//!
//! With the feature `tls` also `rediss://…`, `rediss+sentinel://…`, `rediss+cluster://…`, and PostgreSQL's
//! `sslmode`.
//!
//! Options are parameters of the URL, `?name=value&…`. An unknown one is an error that names the known ones,
//! and durations have their unit:
//!
//! | URL | options |
//! |---|---|
//! | `memory:` | none |
//! | `file:` | `durability` (`none`, `file`, `file-and-directory`), `max_value` (bytes), `busy_timeout` (`5s`) |
//! | `redis:` and its kin | `prefix` (`session:`), `lock` (`queue`, `spin`), `connect_timeout`, `response_timeout` (`2s`), `poll` (`400ms`), `claim` (`1s`), `sentinel_username`, `sentinel_password`, `ca`, `cert`, `key` (PEM files) |
//! | `postgres:` | `schema` (`public`), `prefix` (`session_`), `pool` (10), `lock` (`advisory`, `lease`), `lock_connections` (4), `waiter_connections` (2), `max_locks` (2000), `unlogged`, `migrate` (`true`), `statements` (`detect`, `prepared`, `simple`), `max_value` (bytes), `timeout`, `connect_timeout` (`5s`), and PostgreSQL's own, such as `sslmode` |
//! | `memcached:` | `prefix` (`session:`), `protocol` (`auto`, `plain`, `meta`), `timeout` (`2s`), `pool` (16), `max_value` (bytes) |
//!
//! The same as structs, with all that is to be said about each: `file::FileConfig`, `redis::RedisConfig`,
//! `postgres::PostgresConfig`, `memcached::MemcachedConfig`. A store made from one, or one of your own, goes
//! in without [`connect`]: [`Sessions::builder`] takes any [`LockingStore`].
//!
//! How sessions themselves behave (idle timeout, lease, waits, sizes, codec) is the same on every backend and
//! set by the [builder](SessionsBuilder).

use std::sync::Arc;

pub use session_core::*;

#[cfg(feature = "file")]
pub use session_file as file;
#[cfg(feature = "memcached")]
pub use session_memcached as memcached;
#[cfg(feature = "postgres")]
pub use session_postgres as postgres;
#[cfg(feature = "redis")]
pub use session_redis as redis;
#[cfg(feature = "http")]
pub use session_tower as http;

/// A store behind one type.
pub type Store = Arc<dyn LockingStore>;

/// What a URL begins with, the features that this takes, and whether they are on.
const BACKENDS: &[(&str, &str, bool)] = &[
    ("memory", "", true),
    ("file", "file", cfg!(feature = "file")),
    ("redis", "redis", cfg!(feature = "redis")),
    ("rediss", "redis,tls", cfg!(all(feature = "redis", feature = "tls"))),
    ("redis+sentinel", "redis-sentinel", cfg!(feature = "redis-sentinel")),
    ("rediss+sentinel", "redis-sentinel,tls", cfg!(all(feature = "redis-sentinel", feature = "tls"))),
    ("redis+cluster", "redis-cluster", cfg!(feature = "redis-cluster")),
    ("rediss+cluster", "redis-cluster,tls", cfg!(all(feature = "redis-cluster", feature = "tls"))),
    ("postgres", "postgres", cfg!(feature = "postgres")),
    ("postgresql", "postgres", cfg!(feature = "postgres")),
    ("memcached", "memcached", cfg!(feature = "memcached")),
];

/// Connects to the store that a URL names.
///
/// # Errors
/// [`ErrorKind::Unsupported`] for a backend that is not compiled in, naming the features;
/// [`ErrorKind::Invalid`] for an unknown scheme or option, naming the known ones; what the backend says when
/// it cannot be reached. A password is never part of it.
pub async fn connect(url: &str) -> Result<Store> {
    let scheme = url.split_once(':').map_or("", |(scheme, _)| scheme);
    if !BACKENDS.iter().any(|(known, _, there)| *known == scheme && *there) {
        return Err(unusable(scheme));
    }
    match scheme {
        "memory" => memory(url),
        #[cfg(feature = "file")]
        "file" => Ok(Arc::new(file::FileStore::open(file::FileConfig::from_url(url)?)?)),
        #[cfg(feature = "redis")]
        _ if redis::config::is_ours(scheme) => Ok(Arc::new(redis::RedisStore::connect_url(url).await?)),
        #[cfg(feature = "postgres")]
        "postgres" | "postgresql" => {
            let config = postgres::PostgresConfig::from_url(url)?;
            Ok(Arc::new(postgres::PostgresStore::connect(config).await?))
        }
        #[cfg(feature = "memcached")]
        "memcached" => {
            let config = memcached::MemcachedConfig::from_url(url)?;
            Ok(Arc::new(memcached::MemcachedStore::connect(&config).await?))
        }
        _ => Err(unusable(scheme)),
    }
}

fn memory(url: &str) -> Result<Store> {
    match url {
        "memory:" | "memory://" => Ok(Arc::new(MemoryStore::default())),
        _ => Err(Error::new(ErrorKind::Invalid, "connect").with_context("`memory:` takes no options")),
    }
}

fn unusable(scheme: &str) -> Error {
    if let Some((_, features, _)) = BACKENDS.iter().find(|(known, ..)| *known == scheme) {
        return Error::new(ErrorKind::Unsupported, "connect").with_context(format!(
            "`{scheme}:` is not compiled in; it takes: cargo add session-store --features {features}"
        ));
    }
    let known = BACKENDS.iter().map(|(known, ..)| format!("`{known}:`")).collect::<Vec<_>>().join(", ");
    // What is before the colon is not repeated: it may be no scheme, but a password.
    Error::new(ErrorKind::Invalid, "connect").with_context(format!("a URL begins with one of {known}"))
}
