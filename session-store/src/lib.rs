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
//! | feature | URL | durability |
//! |---|---|---|
//! | always there | `memory:` | none: gone with the process |
//! | `file` | `file:///var/lib/app/sessions` | by setting |
//! | `redis` | `redis://host:6379/0` | by the server's settings |
//! | `redis-sentinel`, `redis-cluster` | `redis+sentinel://host,host/name`, `redis+cluster://host,host` | none: a failover forgets |
//! | `postgres` | `postgres://user@host/database` | by the server's settings |
//! | `memcached` | `memcached://host:11211,host:11211` | none: gone with the server, and under memory pressure |
//! | `tls` | `rediss://…`, and PostgreSQL's `sslmode` | |
//!
//! The backends' own options are parameters of the URL; each backend's crate documents them, and an unknown one is an error.
//! A backend of your own goes in without this function: [`Sessions::builder`] takes any [`LockingStore`].

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

/// A store behind one type.
pub type Store = Arc<dyn LockingStore>;

/// What there is: scheme, feature, and whether it was compiled in.
const BACKENDS: &[(&str, &str, bool)] = &[
    ("memory", "", true),
    ("file", "file", cfg!(feature = "file")),
    ("redis", "redis", cfg!(feature = "redis")),
    ("rediss", "redis` and `tls", cfg!(all(feature = "redis", feature = "tls"))),
    ("redis+sentinel", "redis-sentinel", cfg!(feature = "redis-sentinel")),
    ("redis+cluster", "redis-cluster", cfg!(feature = "redis-cluster")),
    ("postgres", "postgres", cfg!(feature = "postgres")),
    ("postgresql", "postgres", cfg!(feature = "postgres")),
    ("memcached", "memcached", cfg!(feature = "memcached")),
];

/// Connects to the store that a URL names.
///
/// # Errors
/// [`ErrorKind::Unsupported`] for a backend that is not compiled in, naming the feature; [`ErrorKind::Invalid`] for an unknown scheme
/// or option, naming the known ones; what the backend says when it cannot be reached.
pub async fn connect(url: &str) -> Result<Store> {
    let scheme = url.split_once(':').map_or("", |(scheme, _)| scheme);
    match scheme {
        "memory" => memory(url),
        #[cfg(feature = "file")]
        "file" => Ok(Arc::new(session_file::FileStore::open(session_file::FileConfig::from_url(url)?)?)),
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
        _ => Err(unknown(scheme)),
    }
}

fn memory(url: &str) -> Result<Store> {
    match url {
        "memory:" | "memory://" => Ok(Arc::new(MemoryStore::default())),
        _ => Err(Error::new(ErrorKind::Invalid, "connect").with_context("`memory:` takes no options")),
    }
}

fn unknown(scheme: &str) -> Error {
    if let Some((_, feature, _)) = BACKENDS.iter().find(|(known, _, there)| *known == scheme && !there) {
        return Error::new(ErrorKind::Unsupported, "connect").with_context(format!(
            "`{scheme}:` is not compiled in: enable the feature `{feature}` of session-store"
        ));
    }
    let known: Vec<_> =
        BACKENDS.iter().filter(|(_, _, there)| *there).map(|(known, ..)| format!("`{known}:`")).collect();
    Error::new(ErrorKind::Invalid, "connect")
        .with_context(format!("a URL begins with one of {}, not with `{scheme}:`", known.join(", ")))
}
