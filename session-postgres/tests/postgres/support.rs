//! One cluster for all tests of this binary, one schema for each.

use session_conformance::servers::postgres::PostgresServer;
use session_core::{
    Grant, Inserted, Loaded, LockingStore as _, Put, SessionId, SessionStore as _, StorageKey, Stored,
    SystemRandom, Token, Version,
};
use session_postgres::{LockMode, PostgresConfig, PostgresStore, Statements};
use std::{
    future::Future,
    io,
    sync::atomic::{AtomicU32, Ordering::Relaxed},
    task::Poll,
    time::{Duration, Instant},
};

pub(crate) const TTL: Duration = Duration::from_secs(60);
pub(crate) const LEASE: Duration = Duration::from_secs(10);
pub(crate) const NO_WAIT: Duration = Duration::ZERO;

/// Every way to lock, and every way to send.
pub(crate) const WAYS: [(LockMode, Statements); 3] = [
    (LockMode::Advisory, Statements::Detect),
    (LockMode::Lease, Statements::Detect),
    (LockMode::Lease, Statements::Simple),
];

/// `None`, and said aloud, where PostgreSQL is not installed; a failure where it is required.
pub(crate) fn started<T>(server: io::Result<T>) -> Option<T> {
    match server {
        Ok(server) => Some(server),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let required = std::env::var("SESSION_REQUIRE").unwrap_or_default();
            assert!(!required.split(',').any(|name| name == "postgres"), "{error}");
            eprintln!("ABSENT, nothing was tested: {error}");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

pub(crate) async fn shared() -> Option<PostgresServer> {
    started(PostgresServer::shared().await)
}

/// A schema that nobody else has.
pub(crate) fn schema() -> String {
    static SCHEMAS: AtomicU32 = AtomicU32::new(0);
    format!("test_{}", SCHEMAS.fetch_add(1, Relaxed))
}

pub(crate) fn config(server: &PostgresServer, mode: LockMode) -> PostgresConfig {
    PostgresConfig::from_url(&server.url()).unwrap().schema(schema()).lock_mode(mode)
}

pub(crate) fn key() -> StorageKey {
    SessionId::random(&SystemRandom).unwrap().storage_key()
}

pub(crate) fn token() -> Token {
    Token::random(&SystemRandom).unwrap()
}

pub(crate) fn put(data: &'static str) -> Put {
    Put::new(data.into(), TTL)
}

/// A new session.
pub(crate) async fn created(store: &PostgresStore, data: &'static str) -> (StorageKey, Version) {
    let key = key();
    let Inserted::Created(version) = store.insert(&key, &put(data)).await.unwrap() else {
        panic!("a new key")
    };
    (key, version)
}

/// Locks what must be free.
pub(crate) async fn locked(store: &PostgresStore, key: &StorageKey) -> (Grant, Stored) {
    match store.acquire_and_load(key, token(), LEASE, NO_WAIT).await.unwrap() {
        Loaded::Granted(grant, stored) => (grant, stored),
        other => panic!("{other:?}"),
    }
}

pub(crate) async fn data(store: &PostgresStore, key: &StorageKey) -> Option<String> {
    let stored = store.load(key).await.unwrap()?;
    Some(String::from_utf8(stored.data.to_vec()).unwrap())
}

/// Waits for what happens soon and by itself; fails when it does not.
pub(crate) async fn eventually(what: &str, mut check: impl AsyncFnMut() -> bool) -> Duration {
    let started = Instant::now();
    while !check().await {
        assert!(started.elapsed() < Duration::from_secs(10), "never: {what}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    started.elapsed()
}

/// The same server under a name that its connections are found by.
pub(crate) fn named(server: &PostgresServer, name: &str) -> String {
    format!("{}?application_name={name}", server.url())
}

/// The advisory locks of the connections with this name: those that are held, and those that are waited for.
pub(crate) async fn advisory_locks(server: &PostgresServer, name: &str) -> (usize, usize) {
    let answer = server
        .query(&format!(
            "SELECT count(*) FILTER (WHERE granted), count(*) FILTER (WHERE NOT granted) FROM pg_locks \
             JOIN pg_stat_activity USING (pid) WHERE locktype = 'advisory' AND application_name = '{name}'"
        ))
        .await
        .unwrap();
    let (held, waited) = answer.split_once('|').unwrap();
    (held.parse().unwrap(), waited.parse().unwrap())
}

/// Ends every connection of this name that holds or has held locks.
pub(crate) async fn kill_lock_connections(server: &PostgresServer, name: &str) {
    let sql = format!(
        "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name = '{name}' \
         AND query ~ 'session_(step|commit|wait)'"
    );
    server.query(&sql).await.unwrap();
}

/// Polls a future at most so often, and drops it then: cancelled at each of its awaits in turn.
pub(crate) async fn polled<F: Future>(times: usize, future: F) -> Option<F::Output> {
    let mut future = std::pin::pin!(future);
    let mut left = times;
    std::future::poll_fn(|context| {
        if left == 0 {
            return Poll::Ready(None);
        }
        left -= 1;
        future.as_mut().poll(context).map(Some)
    })
    .await
}

/// Changes the text of one of the functions of a schema: the way to a wrong store, and to a moment that is
/// over too soon otherwise.
pub(crate) async fn alter(server: &PostgresServer, function: &str, from: &str, to: &str) {
    let of = format!("pg_get_functiondef('{function}'::regproc)");
    let found = server.query(&format!("SELECT position($q${from}$q$ IN {of}) > 0")).await.unwrap();
    assert_eq!(found, "t", "{function} has no {from:?}");
    let sql = format!("DO $do$ BEGIN EXECUTE replace({of}, $q${from}$q$, $q${to}$q$); END $do$");
    server.query(&sql).await.unwrap();
}
