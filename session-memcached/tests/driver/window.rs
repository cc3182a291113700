//! A write and its release are one request, whose parts do not depend on each other: what others can do when
//! the write is refused.
//!
//! The holder is far away, everybody else is beside the server: there is all the time in the world between
//! its request and its next.

use crate::{common::*, with_server};
use session_conformance::servers::memcached::MemcachedServer;
use session_core::{
    Grant, Loaded, LockingStore as _, Released, Renewed, Replaced, SessionLock as _, SessionStore as _,
    StorageKey, Stored, Touched,
};
use session_memcached::{MemcachedConfig, MemcachedStore, Protocol};
use std::time::Duration;
use tokio::task::JoinHandle;

const ROUND_TRIP: Duration = Duration::from_millis(300);

async fn near(server: &MemcachedServer, protocol: Protocol) -> MemcachedStore {
    let mut config = MemcachedConfig::server("127.0.0.1", server.direct_address().port());
    config.protocol = protocol;
    MemcachedStore::connect(&config).await.unwrap()
}

/// Asks without a pause until it has the lock.
fn eager(store: MemcachedStore, key: StorageKey) -> JoinHandle<(Grant, Stored)> {
    tokio::spawn(async move {
        loop {
            match locked(&store, &key).await.unwrap() {
                Loaded::Granted(grant, stored) => return (grant, stored),
                Loaded::Held(_) => tokio::task::yield_now().await,
                Loaded::Missing => panic!("nobody deletes it"),
            }
        }
    })
}

#[tokio::test]
async fn who_takes_a_lock_that_a_refused_write_had_freed_is_its_only_holder() {
    let server = with_server!().behind_proxy(ROUND_TRIP).await.unwrap();
    let (far, near) = (store(&server, Protocol::Meta).await, near(&server, Protocol::Meta).await);
    let key = new_key();
    insert(&near, &key, "one").await;
    let (grant, stored) = lock(&far, &key).await;
    replace(&near, &key, stored.version, "two").await; // without the lock: nothing stops it here
    let third = eager(near.clone(), key);

    let refused = far.replace_and_release(&grant, stored.version, &put("no")).await.unwrap();
    let (theirs, found) = third.await.unwrap();
    assert_eq!(found.data, "two");
    // It must not be told that it keeps the lock, and it can do nothing to it.
    let Replaced::NotHolder(held) = refused else { panic!("{refused:?}, and another holds the lock") };
    assert!(held.retry_after.is_some_and(|left| left <= LEASE + RESOLUTION), "{held:?}");
    assert_eq!(far.renew(&grant, LEASE).await.unwrap(), Renewed::Lost);
    assert_eq!(far.release(&grant).await.unwrap(), Released::Lost);
    assert_held(&near, &key).await;
    let done = near.replace_and_release(&theirs, found.version, &put("three")).await.unwrap();
    assert!(matches!(done, Replaced::Done(_)), "{done:?}");
    assert_eq!(load(&far, &key).await.data, "three");
}

#[tokio::test]
async fn a_refused_write_keeps_the_lock_when_nobody_came_in_between() {
    let server = with_server!().behind_proxy(Duration::ZERO).await.unwrap();
    for protocol in BOTH {
        let (holder, other) = (store(&server, protocol).await, near(&server, protocol).await);
        let key = new_key();
        insert(&other, &key, "one").await;
        let (grant, stored) = lock(&holder, &key).await;
        let second = replace(&other, &key, stored.version, "two").await;
        let before = server.traffic();
        let refused = holder.replace_and_release(&grant, stored.version, &put("no")).await.unwrap();
        let trips = server.traffic().trips - before.trips;
        let Replaced::Conflict(fresh) = refused else { panic!("{refused:?}") };
        assert_eq!((fresh.version, fresh.data.as_ref()), (second, &b"two"[..]));
        if protocol == Protocol::Meta {
            assert_eq!(trips, 2, "refused; then read, and the lock taken back");
        }
        assert_held(&other, &key).await;
        assert_eq!(holder.renew(&grant, LEASE).await.unwrap(), Renewed::Extended);
        let done = holder.replace_and_release(&grant, second, &put("three")).await.unwrap();
        assert!(matches!(done, Replaced::Done(_)), "{done:?}");
        release(&other, &lock(&other, &key).await.0).await; // free
    }
}

/// A touch is no reason why an exclusive request should lose its lock before its write is there: the next one
/// would find the record as it was before, and do again what was done.
#[tokio::test]
async fn a_touch_under_a_holder_lets_nobody_in() {
    let server = with_server!().behind_proxy(ROUND_TRIP).await.unwrap();
    for toucher in BOTH {
        let (far, near) = (store(&server, Protocol::Meta).await, near(&server, toucher).await);
        let key = new_key();
        insert(&near, &key, "one").await;
        let (grant, stored) = lock(&far, &key).await;
        assert_eq!(near.touch(&key, stored.version, TTL * 2).await.unwrap(), Touched::Extended);
        let third = eager(near.clone(), key);

        let done = far.replace_and_release(&grant, stored.version, &put("paid")).await.unwrap();
        assert!(matches!(done, Replaced::Done(_)), "{done:?}");
        let (theirs, found) = third.await.unwrap();
        assert_eq!(found.data, "paid", "it was let in before the write");
        release(&near, &theirs).await;
    }
}

/// Nor does one that comes between a holder's taking the lock and its look at the record, or while it writes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn exclusive_updates_lose_nothing_to_touches_at_any_moment() {
    let server = with_server!();
    for protocol in BOTH {
        let (store, key) = (store(&server, protocol).await, new_key());
        insert(&store, &key, "0").await;
        let touch = {
            let (store, near) = (store.clone(), near(&server, protocol).await);
            tokio::spawn(async move {
                loop {
                    for toucher in [&near, &store] {
                        let seen = load(toucher, &key).await.version;
                        let _touched_or_not = toucher.touch(&key, seen, TTL).await.unwrap();
                    }
                }
            })
        };
        let mut holders = tokio::task::JoinSet::new();
        for _ in 0..4 {
            let store = store.clone();
            holders.spawn(async move {
                for _ in 0..100 {
                    // None waits in the queue: that alone would keep a holder from freeing it together with
                    // its write.
                    let (grant, stored) = eager(store.clone(), key).await.unwrap();
                    let next = std::str::from_utf8(&stored.data).unwrap().parse::<u64>().unwrap() + 1;
                    let done =
                        store.replace_and_release(&grant, stored.version, &put(next.to_string())).await;
                    // Nobody writes without the lock, so whoever holds it is never refused.
                    assert!(matches!(done, Ok(Replaced::Done(_))), "{done:?}");
                }
            });
        }
        while let Some(joined) = holders.join_next().await {
            joined.unwrap();
        }
        touch.abort();
        assert_eq!(load(&store, &key).await.data, "400");
    }
}
