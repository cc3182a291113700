//! A primary that dies, one that only hangs, and one that becomes a replica: clients find the next by
//! themselves.

use crate::common::*;
use session_conformance::servers::{ServerControl as _, redis::RedisSentinels};
use session_core::{
    Durability, Effect, ErrorKind, Inserted, Replaced, SessionStore as _, StorageKey, Version,
};
use session_redis::RedisStore;
use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

/// One session's counter, written again and again until told to stop: what was acknowledged, and what is in
/// doubt.
struct Load {
    acknowledged: Arc<Mutex<HashMap<StorageKey, (u64, Instant)>>>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl Load {
    fn start(store: &RedisStore, sessions: usize) -> Self {
        let acknowledged: Arc<Mutex<HashMap<_, _>>> = Arc::default();
        let one = |_| tokio::spawn(write(store.clone(), Arc::clone(&acknowledged)));
        Self { tasks: (0..sessions).map(one).collect(), acknowledged }
    }

    fn last(&self) -> HashMap<StorageKey, (u64, Instant)> {
        self.acknowledged.lock().unwrap().clone()
    }

    /// Until each session was written after this moment.
    async fn until_written_after(&self, moment: Instant) {
        until(async || self.last().values().all(|(_, at)| *at > moment)).await;
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.tasks.iter().for_each(|task| task.abort());
    }
}

async fn write(store: RedisStore, acknowledged: Arc<Mutex<HashMap<StorageKey, (u64, Instant)>>>) {
    let key = key();
    let record = |n: u64| session_core::Put::new(n.to_be_bytes().to_vec().into(), TTL);
    let (mut count, mut version) = (0, Version::from_u64(0));
    loop {
        // What the store holds counts: a failover may have taken some of it away, and that is not hidden
        // below.
        let result = match store.replace(&key, version, &record(count + 1)).await {
            Ok(Replaced::Done(new)) => {
                (count, version) = (count + 1, new);
                Some(count)
            }
            Ok(Replaced::Conflict(stored)) => {
                count = u64::from_be_bytes(stored.data[..].try_into().unwrap());
                version = stored.version;
                None
            }
            Ok(Replaced::Missing) => match store.insert(&key, &record(0)).await {
                Ok(Inserted::Created(new)) => {
                    (count, version) = (0, new);
                    Some(0)
                }
                Ok(Inserted::Exists) | Err(_) => None,
            },
            Ok(other) => panic!("{other:?}"),
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
                tokio::time::sleep(Duration::from_millis(10)).await;
                None
            }
        };
        if let Some(count) = result {
            acknowledged.lock().unwrap().insert(key, (count, Instant::now()));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_write_again_after_the_primary_was_killed() {
    let Some(sentinels) = installed(RedisSentinels::start().await) else { return };
    let store = RedisStore::connect_url(&sentinels.url()).await.unwrap();
    assert_eq!(store.capabilities().durability, Durability::Volatile);
    let load = Load::start(&store, 16);
    until(async || load.last().len() == 16).await;
    let primary = sentinels.primary().await.unwrap();
    let from = primary.address();
    let acknowledged = load.last();
    primary.kill();
    let killed = Instant::now();
    sentinels.until_failed_over(from).await.unwrap();
    let found = Instant::now();
    load.until_written_after(found).await;
    let again = Instant::now() - killed;
    // The sessions as the new primary took them over, against what was acknowledged before the old one died.
    let mut lost = 0;
    for (key, (count, _)) in &acknowledged {
        let kept = store.load(key).await.unwrap();
        let kept = kept.map_or(0, |stored| u64::from_be_bytes(stored.data[..].try_into().unwrap()));
        lost += count.saturating_sub(kept);
    }
    println!(
        "failover: sentinels agreed after {:?}, every session was written again after {again:?}; \
         at least {lost} acknowledged writes were lost",
        found - killed
    );
    assert!(again < Duration::from_secs(5), "{again:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_leave_a_primary_that_only_hangs() {
    let Some(sentinels) = installed(RedisSentinels::start().await) else { return };
    let store = RedisStore::connect_url(&sentinels.url()).await.unwrap();
    let load = Load::start(&store, 4);
    until(async || load.last().len() == 4).await;
    let primary = sentinels.primary().await.unwrap();
    primary.pause().await.unwrap(); // its connections stay open and nothing is refused
    let paused = Instant::now();
    sentinels.until_failed_over(primary.address()).await.unwrap();
    let found = Instant::now();
    load.until_written_after(found).await;
    let again = Instant::now() - paused;
    println!("a hanging primary: written again after {again:?}");
    assert!(again < Duration::from_secs(5), "{again:?}");
    // Back as a replica, or for a moment still in the belief to be the primary, it must not win clients back.
    primary.resume().await.unwrap();
    let resumed = Instant::now();
    load.until_written_after(resumed + Duration::from_millis(500)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_rights_that_the_documentation_lists_are_enough() {
    let Some(sentinels) = installed(RedisSentinels::start().await) else { return };
    for server in sentinels.servers() {
        add_user(server).await;
    }
    let url = sentinels.url().replacen("://", "://app:pa%3Ass@", 1);
    let store = RedisStore::connect_url(&format!("{url}?prefix=shop:")).await.unwrap();
    insert(&store, &key(), "one").await;
}

/// Demoted by hand, with its connections kept: it answers, and refuses every write.
#[tokio::test(flavor = "multi_thread")]
async fn clients_leave_a_primary_that_became_a_replica() {
    let Some(sentinels) = installed(RedisSentinels::start().await) else { return };
    let store = RedisStore::connect_url(&sentinels.url()).await.unwrap();
    let key = key();
    let version = insert(&store, &key, "one").await;
    let primary = sentinels.primary().await.unwrap();
    let other = sentinels.servers().iter().find(|server| server.address() != primary.address()).unwrap();
    until(async || other.command(["EXISTS", &name(&key, "")]).await.unwrap().number() == Some(1)).await;
    let port = other.address().port().to_string();
    primary.command(["REPLICAOF", "127.0.0.1", &port]).await.unwrap();
    for _ in 0..3 {
        let error = store.replace(&key, version, &put("two")).await.unwrap_err();
        assert_eq!((error.kind(), error.effect()), (ErrorKind::Unavailable, Effect::None), "{error:?}");
    }
    // The sentinels still name it. The client asks again, each time, until there is a primary.
    primary.command(["REPLICAOF", "NO", "ONE"]).await.unwrap();
    let Replaced::Done(_) = store.replace(&key, version, &put("two")).await.unwrap() else {
        panic!("not replaced")
    };
}
