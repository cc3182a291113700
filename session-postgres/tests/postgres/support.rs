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
pub(crate) fn config(server: &PostgresServer, mode: LockMode) -> PostgresConfig {
    static SCHEMAS: AtomicU32 = AtomicU32::new(0);
    let number = SCHEMAS.fetch_add(1, Relaxed);
    PostgresConfig::from_url(&server.url()).unwrap().schema(format!("test_{number}")).lock_mode(mode)
}

pub(crate) async fn store(server: &PostgresServer, mode: LockMode) -> PostgresStore {
    PostgresStore::connect(config(server, mode)).await.unwrap()
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
pub(crate) async fn eventually<F: Future<Output = bool>>(
    what: &str,
    mut check: impl FnMut() -> F,
) -> Duration {
    let started = Instant::now();
    while !check().await {
        assert!(started.elapsed() < Duration::from_secs(10), "never: {what}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    started.elapsed()
}

/// The advisory locks of the whole server: those that are held, and those that are waited for.
pub(crate) async fn advisory_locks(server: &PostgresServer) -> (usize, usize) {
    let sql = "SELECT count(*) FILTER (WHERE granted), count(*) FILTER (WHERE NOT granted) FROM pg_locks \
               WHERE locktype = 'advisory'";
    let answer = server.query(sql).await.unwrap();
    let (held, waited) = answer.split_once('|').unwrap();
    (held.parse().unwrap(), waited.parse().unwrap())
}
