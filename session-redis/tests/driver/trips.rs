//! Round trips, counted by a proxy, and commands, counted by the server itself.

use crate::common::*;
use session_conformance::servers::{Proxy, redis::RedisServer};
use session_core::{LockingStore as _, PrincipalKey, Replaced, SessionStore as _, Touched};
use session_redis::RedisStore;
use std::{collections::BTreeMap, time::Duration};

/// What no script runs: who counts these counts what clients sent.
const OF_CLIENTS: [&str; 6] = ["evalsha", "eval", "multi", "exec", "subscribe", "ping"];

/// How often the server ran these since the last reset, for clients and in scripts.
async fn sent(server: &RedisServer, commands: &[&'static str]) -> BTreeMap<&'static str, u64> {
    let mut counts = BTreeMap::new();
    for &command in commands {
        let count = calls(server, command).await;
        if count > 0 {
            counts.insert(command, count);
        }
    }
    server.command(["CONFIG", "RESETSTAT"]).await.unwrap();
    counts
}

#[tokio::test]
async fn a_read_is_one_trip_a_write_two_an_exclusive_request_two() {
    let Some(server) = server(&[]).await else { return };
    let proxy = Proxy::start(server.address(), Duration::ZERO).await.unwrap();
    let store = RedisStore::connect_url(&format!("redis://{}", proxy.address())).await.unwrap();
    let key = key();
    // Once through everything, so that the server knows the scripts.
    insert(&store, &key, "one").await;
    let (grant, stored) = granted(&store, &key, Duration::from_secs(1)).await;
    drop(store.replace_and_release(&grant, stored.version, &put("two")).await.unwrap());
    let version = store.load(&key).await.unwrap().unwrap().version;
    let Replaced::Done(version) = store.replace(&key, version, &put("two")).await.unwrap() else {
        panic!("not replaced")
    };
    assert_eq!(store.touch(&key, version, TTL).await.unwrap(), Touched::Extended);
    sent(&server, &OF_CLIENTS).await;

    let trips = async |before: u64| (proxy.traffic().trips - before, sent(&server, &OF_CLIENTS).await);
    let before = proxy.traffic().trips;
    store.load(&key).await.unwrap().unwrap();
    let loaded = sent(&server, &["get", "pttl", "multi", "evalsha"]).await;
    assert_eq!((proxy.traffic().trips - before, loaded), (1, BTreeMap::from([("get", 1), ("pttl", 1)])));

    let before = proxy.traffic().trips;
    let stored = store.load(&key).await.unwrap().unwrap();
    let replaced = store.replace(&key, stored.version, &put("three")).await.unwrap();
    assert!(matches!(replaced, Replaced::Done(_)));
    assert_eq!(trips(before).await, (2, BTreeMap::from([("evalsha", 1)])));

    let before = proxy.traffic().trips;
    let (grant, stored) = granted(&store, &key, Duration::from_secs(1)).await;
    let user = put("four").principal(Some(PrincipalKey::of("alice")));
    let replaced = store.replace_and_release(&grant, stored.version, &user).await.unwrap();
    let Replaced::Done(version) = replaced else { panic!("not replaced") };
    assert_eq!(trips(before).await, (2, BTreeMap::from([("evalsha", 2)])));

    // A touch is one; of a user's session two: the index has to know first.
    let before = proxy.traffic().trips;
    assert_eq!(store.touch(&key, version, TTL).await.unwrap(), Touched::Extended);
    assert_eq!(trips(before).await, (2, BTreeMap::from([("evalsha", 2)])));
}

#[tokio::test]
async fn a_contended_update_is_three_commands() {
    const UPDATES: u64 = 200;
    let Some(server) = server(&[]).await else { return };
    let stores = [store_that_never_polls(&server).await, store_that_never_polls(&server).await];
    let key = key();
    insert(&stores[0], &key, "one").await;
    // Subscribed and known, both.
    let (grant, _) = granted(&stores[0], &key, Duration::ZERO).await;
    for store in &stores {
        let wait = Duration::from_millis(20);
        drop(store.acquire_and_load(&key, token(), LEASE, wait).await.unwrap());
    }
    let version = stores[0].load(&key).await.unwrap().unwrap().version;
    drop(stores[0].replace_and_release(&grant, version, &put("one")).await.unwrap());
    sent(&server, &OF_CLIENTS).await;
    let update = async |store: &RedisStore| {
        for _ in 0..UPDATES / 2 {
            let (grant, stored) = granted(store, &key, LONG).await;
            tokio::time::sleep(Duration::from_millis(1)).await;
            let replaced = store.replace_and_release(&grant, stored.version, &put("two")).await.unwrap();
            assert!(matches!(replaced, Replaced::Done(_)));
        }
    };
    tokio::join!(update(&stores[0]), update(&stores[1]));
    let sent = sent(&server, &OF_CLIENTS).await;
    // Ticket, claim, commit. The first of all and the last of each need no ticket.
    assert_eq!(sent.keys().collect::<Vec<_>>(), [&"evalsha"], "{sent:?}");
    assert!(sent["evalsha"] <= 3 * UPDATES, "{sent:?}");
}

/// As an application sees it: the portable part adds no trip of its own.
#[tokio::test]
async fn a_request_costs_no_more_trips_than_its_driver() {
    use session_core::{Key, Sessions};
    const COUNT: Key<u64> = Key::new("count");
    let Some(server) = server(&[]).await else { return };
    let proxy = Proxy::start(server.address(), Duration::ZERO).await.unwrap();
    let store = RedisStore::connect_url(&format!("redis://{}", proxy.address())).await.unwrap();
    let sessions = Sessions::builder(store).build().unwrap();
    let session = sessions.create();
    session.insert(COUNT, &0).unwrap();
    session.commit().await.unwrap();
    let id = session.id().unwrap();
    let count = |session: &session_core::Session| session.update(COUNT, |count| *count += 1);
    for warm in [true, false] {
        let before = proxy.traffic().trips;
        sessions.update(&id, count).await.unwrap();
        let write = proxy.traffic().trips - before;
        sessions.exclusive(&id, async |session| count(session)).await.unwrap();
        let exclusive = proxy.traffic().trips - before - write;
        assert_eq!(
            sessions.read(&id).await.unwrap().unwrap().get(COUNT).unwrap(),
            Some(if warm { 2 } else { 4 })
        );
        let read = proxy.traffic().trips - before - write - exclusive;
        if !warm {
            assert_eq!((write, exclusive, read), (2, 2, 1));
        }
    }
}
