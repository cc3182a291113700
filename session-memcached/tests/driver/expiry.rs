//! Times to live: never early, by the server's clock, also beyond the 30 days where memcached changes its
//! mind.

use crate::{common::*, with_server};
use session_conformance::servers::memcached::MemcachedServer;
use session_core::{
    Acquired, Inserted, Put, Replaced, SessionLock as _, SessionStore as _, StorageKey, Touched,
};
use session_memcached::MemcachedStore;
use std::time::Duration;
use tokio::time::{Instant, sleep_until};

const DAY: Duration = Duration::from_secs(24 * 3600);

/// What the server says is left; -1: for ever.
async fn left(server: &MemcachedServer, key: &StorageKey) -> i64 {
    let reply = server.command(&format!("mg {} t", data_key(key))).await.unwrap();
    let left = reply.strip_prefix("HD t").and_then(|rest| rest.split(' ').next()?.parse().ok());
    left.unwrap_or_else(|| panic!("{reply}"))
}

fn assert_about(left: i64, ttl: Duration) {
    let ttl = i64::try_from(ttl.as_secs()).unwrap();
    assert!((ttl..=ttl + 3).contains(&left), "{left} of {ttl}");
}

#[tokio::test]
async fn long_ttls_mean_what_they_say() {
    let server = with_server!();
    for protocol in BOTH {
        let store = store(&server, protocol).await;
        for ttl in [DAY, DAY * 30 - Duration::from_secs(2), DAY * 30, DAY * 31, DAY * 400] {
            let key = new_key();
            let put = Put::new("data".into(), ttl);
            let Inserted::Created(version) = store.insert(&key, &put).await.unwrap() else {
                panic!("a new key")
            };
            assert_about(left(&server, &key).await, ttl);
            let stored = load(&store, &key).await;
            assert!(stored.ttl <= ttl + RESOLUTION && stored.ttl + 2 * RESOLUTION >= ttl, "{stored:?}");

            let Replaced::Done(version) = store.replace(&key, version, &put).await.unwrap() else {
                panic!("mine")
            };
            assert_about(left(&server, &key).await, ttl);
            assert_eq!(store.touch(&key, version, TTL).await.unwrap(), Touched::Extended);
            assert_about(left(&server, &key).await, TTL);
            assert_eq!(store.touch(&key, version, ttl).await.unwrap(), Touched::Extended);
            assert_about(left(&server, &key).await, ttl);
        }
        // Beyond what the protocol has a date for: for ever is not early.
        let key = new_key();
        assert!(store.insert(&key, &Put::new("data".into(), Duration::MAX)).await.is_ok());
        assert_eq!(left(&server, &key).await, -1);
        assert!(load(&store, &key).await.ttl > DAY * 36_500);
    }
}

/// Who joins or leaves the queue writes the lock again, with what is left of its lease.
#[tokio::test]
async fn a_lease_of_more_than_thirty_days_outlives_its_waiters() {
    let server = with_server!();
    for protocol in BOTH {
        let (store, key) = (store(&server, protocol).await, new_key());
        let lease = DAY * 31;
        let granted = store.acquire(&key, new_token(), lease, Duration::ZERO).await.unwrap();
        let Acquired::Granted(grant) = granted else { panic!("{granted:?}") };
        for _ in 0..3 {
            let asked = store.acquire(&key, new_token(), lease, Duration::from_millis(30)).await.unwrap();
            let Acquired::Held(held) = asked else { panic!("two holders: {asked:?}") };
            let left = held.retry_after.unwrap();
            assert!(left <= lease + 3 * RESOLUTION && left + 3 * RESOLUTION >= lease, "{left:?}");
        }
        release(&store, &grant).await;
    }
}

#[tokio::test]
async fn a_record_expires_neither_early_nor_much_later() {
    let server = with_server!();
    let mut running = tokio::task::JoinSet::new();
    for protocol in BOTH {
        let store = store(&server, protocol).await;
        for millis in [700, 1000, 1300, 2000] {
            let store: MemcachedStore = store.clone();
            running.spawn(async move {
                let (key, ttl) = (new_key(), Duration::from_millis(millis));
                let sent = Instant::now();
                let Inserted::Created(version) =
                    store.insert(&key, &Put::new("x".into(), ttl)).await.unwrap()
                else {
                    panic!("a new key")
                };
                let done = Instant::now();
                sleep_until(sent + ttl - Duration::from_millis(100)).await;
                assert!(
                    store.load(&key).await.unwrap().is_some() || Instant::now() >= sent + ttl,
                    "early: {ttl:?}"
                );
                sleep_until(done + ttl + 3 * RESOLUTION + Duration::from_millis(50)).await;
                assert_eq!(store.load(&key).await.unwrap(), None, "late: {ttl:?}");
                assert!(matches!(store.replace(&key, version, &put("no")).await.unwrap(), Replaced::Missing));
                assert_eq!(store.touch(&key, version, TTL).await.unwrap(), Touched::Missing);
                assert!(matches!(store.insert(&key, &put("new")).await.unwrap(), Inserted::Created(_)));
            });
        }
    }
    while let Some(done) = running.join_next().await {
        done.unwrap();
    }
}

#[tokio::test]
async fn a_touch_does_not_send_the_record_again() {
    let server = with_server!().behind_proxy(Duration::ZERO).await.unwrap();
    let store = store(&server, BOTH[0]).await;
    let key = new_key();
    let Inserted::Created(version) = store.insert(&key, &put(vec![7; 100_000])).await.unwrap() else {
        panic!("a new key")
    };
    load(&store, &key).await;
    let before = server.traffic();
    assert_eq!(store.touch(&key, version, TTL).await.unwrap(), Touched::Extended);
    let after = server.traffic();
    assert!(after.bytes - before.bytes < 400, "{before:?} {after:?}");
    assert_eq!(after.trips - before.trips, 1);
}
