//! Servers, stores and keys for the tests.

use bytes::Bytes;
use session_conformance::servers::memcached::{MemcachedServer, program};
use session_core::{
    Acquired, Grant, Inserted, Loaded, LockingStore as _, Put, Released, Replaced, SessionId,
    SessionLock as _, SessionStore as _, StorageKey, Stored, SystemRandom, Token, Version,
};
use session_memcached::{MemcachedConfig, MemcachedStore, Protocol};
use std::time::Duration;

pub(crate) const TTL: Duration = Duration::from_secs(60);
pub(crate) const LEASE: Duration = Duration::from_secs(10);
/// What a time may be off: the server counts seconds.
pub(crate) const RESOLUTION: Duration = Duration::from_secs(1);
pub(crate) const BOTH: [Protocol; 2] = [Protocol::Meta, Protocol::Plain];

/// Runs the test's body with a server, or says loudly why not.
#[macro_export]
macro_rules! with_server {
    ($arguments:expr) => {
        match $crate::common::server($arguments).await {
            Some(server) => server,
            None => return,
        }
    };
    () => {
        with_server!(&[])
    };
}

pub(crate) async fn server(arguments: &[&str]) -> Option<MemcachedServer> {
    if program().is_none() {
        let required = std::env::var("SESSION_REQUIRE").unwrap_or_default();
        assert!(!required.contains("memcached"), "memcached is required and not installed");
        eprintln!("ABSENT: memcached is not installed (apt-get install memcached); this test shows nothing");
        return None;
    }
    Some(MemcachedServer::with(arguments).await.expect("memcached starts"))
}

pub(crate) fn config(server: &MemcachedServer, protocol: Protocol) -> MemcachedConfig {
    let mut config = MemcachedConfig::from_url(&server.url()).expect("its own URL");
    config.protocol = protocol;
    config
}

pub(crate) async fn store(server: &MemcachedServer, protocol: Protocol) -> MemcachedStore {
    MemcachedStore::connect(&config(server, protocol)).await.expect("it answers")
}

pub(crate) fn new_key() -> StorageKey {
    SessionId::random(&SystemRandom).expect("randomness").storage_key()
}

pub(crate) fn new_token() -> Token {
    Token::random(&SystemRandom).expect("randomness")
}

pub(crate) fn put(data: impl Into<Bytes>) -> Put {
    Put::new(data.into(), TTL)
}

pub(crate) fn data_key(key: &StorageKey) -> String {
    format!("session:{key}")
}

pub(crate) fn lock_key(key: &StorageKey) -> String {
    format!("session:{key}:lock")
}

pub(crate) async fn insert(store: &MemcachedStore, key: &StorageKey, data: &'static str) -> Version {
    match store.insert(key, &put(data)).await.expect("insert") {
        Inserted::Created(version) => version,
        Inserted::Exists => panic!("a new key exists"),
    }
}

pub(crate) async fn load(store: &MemcachedStore, key: &StorageKey) -> Stored {
    store.load(key).await.expect("load").expect("it is there")
}

pub(crate) async fn replace(
    store: &MemcachedStore,
    key: &StorageKey,
    version: Version,
    data: &'static str,
) -> Version {
    match store.replace(key, version, &put(data)).await.expect("replace") {
        Replaced::Done(version) => version,
        other => panic!("replace: {other:?}"),
    }
}

pub(crate) async fn lock(store: &MemcachedStore, key: &StorageKey) -> (Grant, Stored) {
    match store.acquire_and_load(key, new_token(), LEASE, Duration::ZERO).await.expect("acquire_and_load") {
        Loaded::Granted(grant, stored) => (grant, stored),
        other => panic!("acquire_and_load: {other:?}"),
    }
}

pub(crate) async fn locked(store: &MemcachedStore, key: &StorageKey) -> session_core::Result<Loaded> {
    store.acquire_and_load(key, new_token(), LEASE, Duration::ZERO).await
}

/// Asked by another one, it is held, for no longer than its lease.
pub(crate) async fn assert_held(store: &MemcachedStore, key: &StorageKey) {
    let Acquired::Held(held) = store.acquire(key, new_token(), LEASE, Duration::ZERO).await.expect("acquire")
    else {
        panic!("it is held by another")
    };
    assert!(held.retry_after.is_some_and(|left| left <= LEASE + RESOLUTION), "{held:?}");
}

pub(crate) async fn release(store: &MemcachedStore, grant: &Grant) {
    assert_eq!(store.release(grant).await.expect("release"), Released::Freed);
}
