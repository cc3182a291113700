//! What the tests share: a server, or a loud word that there is none; tokens, keys, records.

use session_conformance::servers::redis::{RedisServer, Reply};
use session_core::{
    Grant, Inserted, Loaded, LockingStore as _, Put, SessionStore as _, StorageKey, Stored, SystemRandom,
    Token, Version,
};
use session_redis::{RedisConfig, RedisStore};
use std::{io, time::Duration};

pub(crate) const LEASE: Duration = Duration::from_secs(10);
pub(crate) const LONG: Duration = Duration::from_secs(20);
pub(crate) const TTL: Duration = Duration::from_secs(600);

/// What was started, or `None` where Redis is not installed and not required.
pub(crate) fn installed<S>(started: io::Result<S>) -> Option<S> {
    match started {
        Ok(started) => Some(started),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let required = std::env::var("SESSION_REQUIRE").unwrap_or_default();
            assert!(!required.split(',').any(|name| name == "redis"), "required, but {error}");
            eprintln!("NOT TESTED: {error} (apt-get install redis-server)");
            None
        }
        Err(error) => panic!("redis-server does not start: {error}"),
    }
}

pub(crate) async fn server(arguments: &[&str]) -> Option<RedisServer> {
    installed(RedisServer::with(arguments).await)
}

pub(crate) fn config(server: &RedisServer) -> RedisConfig {
    RedisConfig::from_url(&server.url()).unwrap()
}

pub(crate) async fn store(server: &RedisServer) -> RedisStore {
    RedisStore::connect(&config(server)).await.unwrap()
}

/// Polls so seldom that only messages can be in time.
pub(crate) async fn store_that_never_polls(server: &RedisServer) -> RedisStore {
    let mut config = config(server);
    config.poll = Duration::from_secs(30);
    config.claim = Duration::from_secs(60);
    RedisStore::connect(&config).await.unwrap()
}

pub(crate) fn token() -> Token {
    Token::random(&SystemRandom).unwrap()
}

pub(crate) fn key() -> StorageKey {
    session_core::SessionId::random(&SystemRandom).unwrap().storage_key()
}

pub(crate) fn put(data: &'static str) -> Put {
    Put::new(data.into(), TTL)
}

pub(crate) async fn insert(store: &RedisStore, key: &StorageKey, data: &'static str) -> Version {
    match store.insert(key, &put(data)).await.unwrap() {
        Inserted::Created(version) => version,
        Inserted::Exists => panic!("it exists"),
    }
}

pub(crate) async fn granted(store: &RedisStore, key: &StorageKey, wait: Duration) -> (Grant, Stored) {
    match store.acquire_and_load(key, token(), LEASE, wait).await.unwrap() {
        Loaded::Granted(grant, stored) => (grant, stored),
        other => panic!("not granted: {other:?}"),
    }
}

/// The names under which a session is stored.
pub(crate) fn name(key: &StorageKey, suffix: &str) -> String {
    format!("session:{{{key}}}{suffix}")
}

/// How many tickets wait.
pub(crate) async fn queue_length(server: &RedisServer, key: &StorageKey) -> i64 {
    server.command(["LLEN", &name(key, ":q1")]).await.unwrap().number().unwrap()
}

/// Returns when so many tickets wait.
pub(crate) async fn until_queued(server: &RedisServer, key: &StorageKey, count: i64) {
    until(async || queue_length(server, key).await == count).await;
}

/// Asks until it is so; fails after ten seconds.
pub(crate) async fn until(mut so: impl AsyncFnMut() -> bool) {
    let asking = async {
        while !so().await {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), asking).await.expect("it never came to that");
}

/// A user `app` with the password `pa:ss` and no more than the rights that the documentation lists, for the
/// prefix `shop:`.
pub(crate) async fn add_user(server: &RedisServer) {
    let rules = "on >pa:ss ~shop:* &shop:* +@read +@write +@scripting +@pubsub +@connection +info +time";
    let command = ["ACL", "SETUSER", "app"].into_iter().chain(rules.split(' '));
    server.command(command).await.unwrap();
}

/// A ticket of somebody who is not there (any more), whose heartbeat ends when it is said.
pub(crate) async fn strange_ticket(server: &RedisServer, key: &StorageKey, alive: Duration) -> String {
    let ticket = "ee".repeat(16);
    let time = server.command(["TIME"]).await.unwrap();
    let part = |n: usize| time.list()[n].text().unwrap().parse::<u128>().unwrap();
    let deadline = part(0) * 1000 + part(1) / 1000 + alive.as_millis();
    server.command(["RPUSH", &name(key, ":q1"), &ticket]).await.unwrap();
    server.command(["HSET", &name(key, ":t1"), &ticket, &format!("{deadline} nowhere")]).await.unwrap();
    ticket
}

/// Every key of the server.
pub(crate) async fn all_keys(server: &RedisServer) -> Vec<String> {
    let reply = server.command(["KEYS", "*"]).await.unwrap();
    reply.list().iter().filter_map(Reply::text).map(str::to_owned).collect()
}

/// How often the server ran each command, as it says itself.
pub(crate) async fn calls(server: &RedisServer, command: &str) -> u64 {
    let info = server.command(["INFO", "commandstats"]).await.unwrap();
    let start = format!("cmdstat_{command}:calls=");
    let line = info.text().unwrap().lines().find_map(|line| line.strip_prefix(&start));
    line.and_then(|line| line.split(',').next()?.parse().ok()).unwrap_or(0)
}
