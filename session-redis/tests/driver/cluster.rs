//! A cluster: every session in one slot, every slot where it is, also while one is on its way.

use crate::common::*;
use session_conformance::{
    Instance, Strategy, Suite,
    servers::{ServerControl as _, redis::RedisCluster},
};
use session_core::{
    Deleted, Effect, ErrorKind, Inserted, Loaded, LockingStore as _, PrincipalKey, Replaced,
    SessionIndex as _, SessionStore as _, Touched,
};
use session_redis::{OrphanSearch, RedisStore};
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

#[tokio::test(flavor = "multi_thread")]
async fn sessions_are_spread_and_whole() {
    let Some(cluster) = installed(RedisCluster::start().await) else { return };
    let store = RedisStore::connect_url(&cluster.url()).await.unwrap();
    let alice = PrincipalKey::of("alice");
    let mut keys = Vec::new();
    for _ in 0..60 {
        let key = key();
        let with_user = put("one").principal(Some(alice));
        let Inserted::Created(version) = store.insert(&key, &with_user).await.unwrap() else {
            panic!("it exists")
        };
        assert_eq!(store.touch(&key, version, TTL * 2).await.unwrap(), Touched::Extended);
        let (grant, stored) = granted(&store, &key, Duration::ZERO).await;
        assert_eq!(stored.principal, Some(alice));
        let Loaded::Held(_) = store.acquire_and_load(&key, token(), LEASE, Duration::ZERO).await.unwrap()
        else {
            panic!("it is mine")
        };
        let replaced = store.replace_and_release(&grant, stored.version, &with_user).await.unwrap();
        assert!(matches!(replaced, Replaced::Done(_)));
        keys.push(key);
    }
    for node in cluster.nodes() {
        assert!(node.command(["DBSIZE"]).await.unwrap().number().unwrap() > 5, "a node without sessions");
    }
    let mut listed = store.keys_of(&alice, None, 100).await.unwrap().keys;
    listed.sort();
    keys.sort();
    assert_eq!(listed, keys);
    let report = store.orphans(OrphanSearch::default()).await.unwrap();
    assert_eq!((report.scanned, report.found.len()), (61, 0));
    for key in &keys {
        assert!(matches!(store.delete(key).await.unwrap(), Deleted::Removed(_)));
    }
    assert!(store.keys_of(&alice, None, 100).await.unwrap().keys.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_lock_is_handed_over_between_stores_on_any_node() {
    let Some(cluster) = installed(RedisCluster::start().await) else { return };
    let stores = [
        RedisStore::connect_url(&cluster.url()).await.unwrap(),
        RedisStore::connect_url(&cluster.url()).await.unwrap(),
    ];
    for round in 0..10 {
        let key = key();
        insert(&stores[0], &key, "one").await;
        let (grant, stored) = granted(&stores[0], &key, Duration::ZERO).await;
        let waiting = stores[1].clone();
        let waiter = tokio::spawn(async move { granted(&waiting, &key, LONG).await });
        let (owner, _) = cluster.owner_of(&name(&key, "")).await.unwrap();
        until_queued(&cluster.nodes()[owner], &key, 1).await;
        let replaced = stores[0].replace_and_release(&grant, stored.version, &put("two")).await.unwrap();
        assert!(matches!(replaced, Replaced::Done(_)));
        assert_eq!(waiter.await.unwrap().1.data, "two", "round {round}");
    }
}

/// Increments under the lock and without it, while the slot of the session goes from node to node.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_while_a_slot_moves() {
    let Some(cluster) = installed(RedisCluster::start().await) else { return };
    let store = RedisStore::connect_url(&cluster.url()).await.unwrap();
    let key = key();
    insert(&store, &key, "").await;
    let over = Arc::new(AtomicBool::new(false));
    let tasks: Vec<_> =
        (0..4).map(|n| tokio::spawn(count(store.clone(), key, n % 2 == 0, Arc::clone(&over)))).collect();
    let (mut from, slot) = cluster.owner_of(&name(&key, "")).await.unwrap();
    for _ in 0..12 {
        let to = (from + 1) % 3;
        cluster.begin_move(slot, from, to).await.unwrap();
        tokio::time::sleep(Duration::from_millis(40)).await; // requests meet the slot while it is on neither side alone
        while cluster.move_keys(slot, from, to, 100).await.unwrap() > 0 {}
        tokio::time::sleep(Duration::from_millis(20)).await;
        cluster.end_move(slot, to).await.unwrap();
        from = to;
        tokio::time::sleep(Duration::from_millis(40)).await;
    }
    over.store(true, Relaxed);
    let (mut acknowledged, mut unknown) = (0, 0);
    for task in tasks {
        let (done, doubtful) = task.await.unwrap();
        acknowledged += done;
        unknown += doubtful;
    }
    let found = store.load(&key).await.unwrap().unwrap().data.len();
    println!("a moving slot: {acknowledged} acknowledged, {unknown} unknown, {found} found");
    assert!(acknowledged > 100, "too little happened: {acknowledged}");
    assert!((acknowledged..=acknowledged + unknown).contains(&found));
}

/// Appends a byte each time; how many were acknowledged, and how many are in doubt.
async fn count(
    store: RedisStore,
    key: session_core::StorageKey,
    locked: bool,
    over: Arc<AtomicBool>,
) -> (usize, usize) {
    let (mut acknowledged, mut unknown) = (0, 0);
    while !over.load(Relaxed) {
        let longer = |data: &[u8]| session_core::Put::new([data, b"x"].concat().into(), TTL);
        let result = if locked {
            match store.acquire_and_load(&key, token(), LEASE, LONG).await {
                Ok(Loaded::Granted(grant, stored)) => {
                    store.replace_and_release(&grant, stored.version, &longer(&stored.data)).await
                }
                Ok(other) => panic!("{other:?}"),
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
                    continue;
                }
            }
        } else {
            match store.load(&key).await {
                Ok(stored) => {
                    let stored = stored.expect("the session is there, wherever its slot is");
                    store.replace(&key, stored.version, &longer(&stored.data)).await
                }
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
                    continue;
                }
            }
        };
        match result {
            Ok(Replaced::Done(_)) => acknowledged += 1,
            Ok(Replaced::Conflict(_) | Replaced::NotHolder(_)) => tokio::task::yield_now().await,
            Ok(Replaced::Missing) => panic!("the session vanished"),
            Err(error) if error.effect() == Effect::Unknown => unknown += 1,
            Err(_) => {}
        }
    }
    (acknowledged, unknown)
}

/// A script that takes the last element out of a key has to do without that key, on either side.
#[tokio::test(flavor = "multi_thread")]
async fn a_script_that_empties_a_key_comes_to_its_end_while_the_slot_moves() {
    let Some(cluster) = installed(RedisCluster::start().await) else { return };
    let store = RedisStore::connect_url(&cluster.url()).await.unwrap();
    for keys_moved_first in [false, true] {
        let key = key();
        insert(&store, &key, "one").await;
        let (grant, stored) = granted(&store, &key, Duration::ZERO).await;
        let (from, slot) = cluster.owner_of(&name(&key, "")).await.unwrap();
        let to = (from + 1) % 3;
        // One who waited, and died.
        strange_ticket(&cluster.nodes()[from], &key, Duration::ZERO).await;
        cluster.begin_move(slot, from, to).await.unwrap();
        if keys_moved_first {
            while cluster.move_keys(slot, from, to, 100).await.unwrap() > 0 {}
        }
        let replaced = store.replace_and_release(&grant, stored.version, &put("two")).await;
        assert!(matches!(replaced, Ok(Replaced::Done(_))), "{keys_moved_first}: {replaced:?}");
        while cluster.move_keys(slot, from, to, 100).await.unwrap() > 0 {}
        cluster.end_move(slot, to).await.unwrap();
        assert_eq!(granted(&store, &key, Duration::ZERO).await.1.data, "two");
    }
    // An index whose sessions have all ended.
    let alice = PrincipalKey::of("alice");
    let index = format!("session:user:{alice}");
    let (from, slot) = cluster.owner_of(&index).await.unwrap();
    cluster.nodes()[from].command(["ZADD", &index, "1000", &"ab".repeat(32)]).await.unwrap();
    cluster.begin_move(slot, from, (from + 1) % 3).await.unwrap();
    assert!(store.keys_of(&alice, None, 10).await.unwrap().keys.is_empty());
}

/// Since the last time: the connections that all nodes accepted from others than this test, and how often
/// they were asked for the map.
async fn dialled_and_asked(cluster: &RedisCluster) -> (u64, u64) {
    let (mut dialled, mut asked) = (0, 0);
    for node in cluster.nodes() {
        let info = node.command(["INFO", "stats"]).await.unwrap();
        let mut lines = info.text().unwrap().lines();
        let count = lines.find_map(|line| line.strip_prefix("total_connections_received:")).unwrap();
        dialled += count.parse::<u64>().unwrap() - 1; // that of INFO
        asked += calls(node, "cluster|slots").await;
        node.command(["CONFIG", "RESETSTAT"]).await.unwrap();
    }
    (dialled, asked)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_on_its_way_costs_no_connections() {
    let Some(cluster) = installed(RedisCluster::start().await) else { return };
    // By a name that the nodes do not use. It waits only shortly for a slot that is on its way; and it is
    // connected to all nodes, which it asked what they promise.
    let port = cluster.nodes()[0].address().port();
    let url = format!("redis+cluster://localhost:{port}?connect_timeout=500ms");
    let store = RedisStore::connect_url(&url).await.unwrap();
    let (key, other) = (crate::common::key(), crate::common::key());
    let version = insert(&store, &key, "one").await;
    insert(&store, &other, "one").await;
    let (from, slot) = cluster.owner_of(&name(&key, "")).await.unwrap();
    let to = (from + 1) % 3;
    cluster.begin_move(slot, from, to).await.unwrap();
    dialled_and_asked(&cluster).await;
    // Tried for as long as the store is patient: record and lock are not on one side.
    let error = store.replace(&key, version, &put("two")).await.unwrap_err();
    assert_eq!((error.kind(), error.effect()), (ErrorKind::Unavailable, Effect::None), "{error:?}");
    store.load(&other).await.unwrap().unwrap();
    assert_eq!(dialled_and_asked(&cluster).await, (0, 0));
    while cluster.move_keys(slot, from, to, 100).await.unwrap() > 0 {}
    cluster.end_move(slot, to).await.unwrap();
    dialled_and_asked(&cluster).await;
    // The first is redirected, the second needs a new map.
    for _ in 0..2 {
        assert_eq!(store.load(&key).await.unwrap().unwrap().data, "one");
    }
    let (dialled, asked) = dialled_and_asked(&cluster).await;
    assert!(dialled == 0 && asked > 0, "{dialled} connections, asked {asked} times");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_restarts_is_found_again() {
    let Some(cluster) = installed(RedisCluster::start().await) else { return };
    let store = RedisStore::connect_url(&cluster.url()).await.unwrap();
    let key = key();
    insert(&store, &key, "one").await;
    let (owner, _) = cluster.owner_of(&name(&key, "")).await.unwrap();
    cluster.nodes()[owner].restart().await.unwrap();
    until(async || match store.load(&key).await {
        Ok(found) => found.is_none(), // it keeps nothing
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
            false
        }
    })
    .await;
    until(async || matches!(store.insert(&key, &put("two")).await, Ok(Inserted::Created(_)))).await;
}

/// The suite, on a cluster whose slots go from node to node all the time.
#[tokio::test(flavor = "multi_thread")]
async fn the_suite_passes_while_slots_move() {
    let Some(cluster) = installed(RedisCluster::start().await) else { return };
    let (cluster, moved) = (Arc::new(cluster), Arc::new(AtomicU64::new(0)));
    let moving = tokio::spawn(keep_moving(Arc::clone(&cluster), Arc::clone(&moved)));
    let url = cluster.url();
    let cells = Arc::new(AtomicU64::new(0));
    let fresh = move || {
        let url = format!("{url}?prefix=cell{}:", cells.fetch_add(1, Relaxed));
        async move { Ok(Instance::new(Arc::new(RedisStore::connect_url(&url).await?))) }
    };
    let product = [Strategy::Write, Strategy::Exclusive, Strategy::Driver];
    let report = Suite::new(fresh).backend("redis-cluster").private().strategies(product).run().await;
    moving.abort();
    println!("{} slots moved meanwhile", moved.load(Relaxed));
    report.assert_passed();
    assert!(moved.load(Relaxed) > 20, "too few slots moved to mean anything");
}

/// Moves the slot of some key, again and again. A key that vanishes meanwhile is none to move.
async fn keep_moving(cluster: Arc<RedisCluster>, moved: Arc<AtomicU64>) {
    for turn in 0.. {
        tokio::time::sleep(Duration::from_millis(20)).await;
        let from = turn % 3;
        let some = cluster.nodes()[from].command(["RANDOMKEY"]).await.unwrap();
        let Some(key) = some.text() else { continue };
        let (from, slot) = cluster.owner_of(key).await.unwrap();
        let to = (from + 1) % 3;
        cluster.begin_move(slot, from, to).await.unwrap();
        tokio::time::sleep(Duration::from_millis(5)).await;
        while cluster.move_keys(slot, from, to, 100).await.unwrap() > 0 {}
        cluster.end_move(slot, to).await.unwrap();
        moved.fetch_add(1, Relaxed);
    }
}
