//! What `connect` gives for a URL, and what it says to those that it cannot use. `scripts/features` runs this
//! with no feature, too.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test says what it expected")]

use session_store::{ErrorKind, Key, Sessions, connect};

const COUNT: Key<u32> = Key::new("count");

/// Every backend, the features that it takes, a URL that reaches nobody, and one of the options that it has.
const BACKENDS: [(&str, &str, bool, &str, &str); 9] = [
    ("file", "file", cfg!(feature = "file"), "file:///nowhere/sessions", "durability"),
    ("redis", "redis", cfg!(feature = "redis"), "redis://127.0.0.1:1", "prefix"),
    ("rediss", "redis,tls", cfg!(all(feature = "redis", feature = "tls")), "rediss://127.0.0.1:1", "ca"),
    (
        "redis+sentinel",
        "redis-sentinel",
        cfg!(feature = "redis-sentinel"),
        "redis+sentinel://127.0.0.1:1/main",
        "sentinel_password",
    ),
    (
        "redis+cluster",
        "redis-cluster",
        cfg!(feature = "redis-cluster"),
        "redis+cluster://127.0.0.1:1",
        "prefix",
    ),
    (
        "rediss+cluster",
        "redis-cluster,tls",
        cfg!(all(feature = "redis-cluster", feature = "tls")),
        "rediss+cluster://127.0.0.1:1",
        "cert",
    ),
    (
        "postgres",
        "postgres",
        cfg!(feature = "postgres"),
        "postgres://me@127.0.0.1:1/shop",
        "lock_connections",
    ),
    (
        "postgresql",
        "postgres",
        cfg!(feature = "postgres"),
        "postgresql://me@127.0.0.1:1/shop",
        "lock_connections",
    ),
    ("memcached", "memcached", cfg!(feature = "memcached"), "memcached://127.0.0.1:1", "protocol"),
];

async fn refused(url: &str) -> (ErrorKind, String) {
    let error = connect(url).await.expect_err(url);
    (error.kind(), error.to_string())
}

#[tokio::test]
async fn memory_takes_no_options() {
    assert!(connect("memory:").await.is_ok());
    assert!(connect("memory://").await.is_ok());
    assert_eq!(refused("memory:?size=1").await.0, ErrorKind::Invalid);
}

#[tokio::test]
async fn an_unknown_scheme_names_the_known_ones() {
    for url in ["", "sessions", "ftp://host", "://", "FILE:///tmp/sessions", "secret:x@host"] {
        let (kind, text) = refused(url).await;
        assert_eq!(kind, ErrorKind::Invalid);
        for (scheme, ..) in BACKENDS {
            assert!(text.contains(&format!("`{scheme}:`")), "{text}");
        }
        assert!(!text.contains("secret"), "{text}");
    }
}

#[tokio::test]
async fn what_is_not_compiled_in_names_its_features() {
    for (scheme, features, there, url, _) in BACKENDS {
        if there {
            continue;
        }
        let (kind, text) = refused(url).await;
        assert_eq!(kind, ErrorKind::Unsupported, "{text}");
        let (what, how) = (format!("`{scheme}:`"), format!("cargo add session-store --features {features}"));
        assert!(text.contains(&what) && text.contains(&how), "{text}");
    }
}

#[tokio::test]
async fn an_unknown_option_names_the_known_ones() {
    for (_, _, there, url, known) in BACKENDS {
        if !there {
            continue;
        }
        let (kind, text) = refused(&format!("{url}?colour=red")).await;
        assert_eq!(kind, ErrorKind::Invalid, "{text}");
        assert!(text.contains("colour") && text.contains(known), "{text}");
    }
}

#[tokio::test]
async fn a_server_that_is_not_there_is_unavailable_and_no_password_is_told() {
    for (scheme, _, there, url, _) in BACKENDS {
        if !there || scheme == "file" {
            continue;
        }
        let url = match scheme {
            "memcached" => url.to_owned(), // it has no passwords
            _ => url.replace("me@", "").replace("127.0.0.1", "me:hunter2@127.0.0.1"),
        };
        let error = connect(&url).await.expect_err(&url);
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
        assert!(!format!("{error} {error:?}").contains("hunter2"), "{error:?}");
    }
}

#[cfg(all(feature = "postgres", not(feature = "tls")))]
#[tokio::test]
async fn encryption_that_is_not_compiled_in_is_refused_and_not_left_out() {
    for mode in ["require", "verify-ca", "verify-full"] {
        let (kind, text) = refused(&format!("postgres://me@127.0.0.1:1/shop?sslmode={mode}")).await;
        assert_eq!(kind, ErrorKind::Unsupported, "{text}");
        assert!(text.contains("feature `tls`"), "{text}");
    }
}

/// The same application on each: what one connection stores, another one finds, unless the store is the
/// process's own.
#[allow(dead_code, reason = "for the backends that are compiled in")]
async fn keeps(url: &str) {
    let sessions = async || Sessions::builder(connect(url).await.expect(url)).build().unwrap();
    let (here, there) = (sessions().await, sessions().await);
    let new = here.create();
    new.insert(COUNT, &1).unwrap();
    new.commit().await.unwrap();
    let id = new.id().unwrap();
    there.update(&id, |session| session.update(COUNT, |count| *count += 1)).await.unwrap();
    here.exclusive(&id, async |session| session.update(COUNT, |count| *count += 1)).await.unwrap();
    assert_eq!(there.read(&id).await.unwrap().unwrap().get(COUNT).unwrap(), Some(3), "{url}");
    assert!(here.destroy(&id).await.unwrap());
    assert!(there.read(&id).await.unwrap().is_none());
}

/// A server, or `None` where none is installed and none is required.
#[allow(dead_code, reason = "for the backends that are compiled in")]
fn started<S>(name: &str, server: std::io::Result<S>) -> Option<S> {
    match server {
        Ok(server) => Some(server),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let required = std::env::var("SESSION_REQUIRE").unwrap_or_default();
            assert!(!required.split(',').any(|required| required == name), "required, but {error}");
            eprintln!("NOT TESTED: {error}");
            None
        }
        Err(error) => panic!("{name} does not start: {error}"),
    }
}

#[cfg(feature = "file")]
#[tokio::test]
async fn files() {
    let directory = tempfile::tempdir().unwrap();
    keeps(&format!("file://{}/sessions?durability=file&busy_timeout=10s", directory.path().display())).await;
}

#[cfg(feature = "redis")]
#[tokio::test]
async fn redis() {
    use session_conformance::servers::redis::RedisServer;
    let Some(server) = started("redis", RedisServer::start().await) else { return };
    keeps(&server.url()).await;
    keeps(&format!("{}/1?prefix=shop:&lock=spin&response_timeout=10s", server.url())).await;
}

#[cfg(feature = "redis-sentinel")]
#[tokio::test]
async fn redis_with_sentinels() {
    use session_conformance::servers::redis::RedisSentinels;
    let Some(servers) = started("redis", RedisSentinels::start().await) else { return };
    keeps(&servers.url()).await;
}

#[cfg(feature = "redis-cluster")]
#[tokio::test]
async fn redis_cluster() {
    use session_conformance::servers::redis::RedisCluster;
    let Some(servers) = started("redis", RedisCluster::start().await) else { return };
    keeps(&servers.url()).await;
}

#[cfg(feature = "postgres")]
#[tokio::test]
async fn postgres() {
    use session_conformance::servers::postgres::PostgresServer;
    let Some(server) = started("postgres", PostgresServer::start().await) else { return };
    keeps(&server.url()).await;
    keeps(&format!("{}?schema=shop&lock=lease&timeout=10s&application_name=shop", server.url())).await;
}

#[cfg(feature = "memcached")]
#[tokio::test]
async fn memcached() {
    use session_conformance::servers::memcached::MemcachedServer;
    let Some(server) = started("memcached", MemcachedServer::start().await) else { return };
    keeps(&server.url()).await;
    keeps(&format!("{}?prefix=shop:&protocol=plain&timeout=10s", server.url())).await;
}
