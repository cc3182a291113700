//! The lock: tokens, leases, and what is done together with it.

use crate::{common::*, with_server};
use session_conformance::servers::memcached::MemcachedServer;
use session_core::{
    Acquired, Deleted, Grant, Loaded, LockingStore as _, Released, Renewed, Replaced, SessionLock as _,
    SessionStore as _, StorageKey, Version,
};
use std::{
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep, timeout},
};

const WAITERS: usize = 80;

#[tokio::test]
async fn a_lock_is_held_by_its_token_alone() {
    let server = with_server!();
    for protocol in BOTH {
        let (one, other) = (store(&server, protocol).await, store(&server, protocol).await);
        let (key, token) = (new_key(), new_token());
        let Acquired::Granted(grant) = one.acquire(&key, token, LEASE, Duration::ZERO).await.unwrap() else {
            panic!("it is free")
        };
        for store in [&one, &other] {
            assert_held(store, &key).await;
            // Asked again with the same token it is one request, wherever it comes from.
            let again = store.acquire(&key, token, LEASE, Duration::ZERO).await.unwrap();
            assert!(matches!(again, Acquired::Granted(_)));
            assert_eq!(store.renew(&grant, LEASE).await.unwrap(), Renewed::Extended);
        }
        let stranger = Grant::new(key, new_token());
        for store in [&one, &other] {
            assert_eq!(store.release(&stranger).await.unwrap(), Released::Lost);
            assert_eq!(store.renew(&stranger, LEASE * 100).await.unwrap(), Renewed::Lost);
            assert_held(store, &key).await;
        }
        release(&other, &grant).await;
        for store in [&one, &other] {
            assert_eq!(store.release(&grant).await.unwrap(), Released::Lost);
            assert_eq!(store.renew(&grant, LEASE).await.unwrap(), Renewed::Lost);
        }
    }
}

#[tokio::test]
async fn a_renewed_lease_is_as_long_as_asked() {
    let server = with_server!();
    for protocol in BOTH {
        let store = store(&server, protocol).await;
        let (key, token) = (new_key(), new_token());
        let Acquired::Granted(grant) = store.acquire(&key, token, LEASE, Duration::ZERO).await.unwrap()
        else {
            panic!("it is free")
        };
        let left = async || {
            let Acquired::Held(held) = store.acquire(&key, new_token(), LEASE, Duration::ZERO).await.unwrap()
            else {
                panic!("it is held")
            };
            held.retry_after.unwrap()
        };
        assert!(left().await <= LEASE + RESOLUTION);
        assert_eq!(store.renew(&grant, LEASE * 3).await.unwrap(), Renewed::Extended);
        let longer = left().await;
        assert!(longer > LEASE * 2 && longer <= LEASE * 3 + RESOLUTION, "{longer:?}");
    }
}

#[tokio::test]
async fn a_lease_ends_by_itself_and_its_holder_frees_nobody_elses() {
    let server = with_server!();
    let mut waits = tokio::task::JoinSet::new();
    for protocol in BOTH {
        let store = store(&server, protocol).await;
        waits.spawn(async move {
            let (key, lease) = (new_key(), Duration::from_secs(1));
            let Acquired::Granted(old) =
                store.acquire(&key, new_token(), lease, Duration::ZERO).await.unwrap()
            else {
                panic!("it is free")
            };
            let start = Instant::now();
            let Acquired::Granted(new) = store.acquire(&key, new_token(), LEASE, LEASE).await.unwrap() else {
                panic!("it ends")
            };
            let took = start.elapsed();
            assert!(took >= lease && took < lease + Duration::from_millis(2100), "{took:?}");
            assert_eq!(store.release(&old).await.unwrap(), Released::Lost);
            assert_eq!(store.renew(&old, LEASE).await.unwrap(), Renewed::Lost);
            assert_held(&store, &key).await;
            release(&store, &new).await;
        });
    }
    while let Some(done) = waits.join_next().await {
        done.unwrap();
    }
}

#[tokio::test]
async fn a_dead_holders_lease_ends_also_while_waiters_come_and_go() {
    const PATIENCE: Duration = Duration::from_millis(200);
    let server = with_server!();
    let mut waits = JoinSet::new();
    for protocol in BOTH {
        let store = Arc::new(store(&server, protocol).await);
        waits.spawn(async move {
            let (key, lease) = (new_key(), Duration::from_secs(1));
            let dead = store.acquire(&key, new_token(), lease, Duration::ZERO).await.unwrap();
            assert!(matches!(dead, Acquired::Granted(_)));
            let mut waiters = JoinSet::new();
            for waiter in 0..4 {
                let store = Arc::clone(&store);
                waiters.spawn(async move {
                    sleep(PATIENCE / 4 * waiter).await; // so that one of them is there at any time
                    loop {
                        let asked = store.acquire(&key, new_token(), LEASE, PATIENCE).await.unwrap();
                        if let Acquired::Granted(grant) = asked {
                            return grant;
                        }
                    }
                });
            }
            let served = timeout(lease + 4 * RESOLUTION, waiters.join_next()).await;
            let grant = served.expect("the lease of the dead is over").unwrap().unwrap();
            release(&store, &grant).await;
        });
    }
    while let Some(done) = waits.join_next().await {
        done.unwrap();
    }
}

#[tokio::test]
async fn write_and_unlock_answers_like_replace_and_frees_when_it_is_over() {
    let server = with_server!();
    for protocol in BOTH {
        let (one, other) = (store(&server, protocol).await, store(&server, protocol).await);
        // Also by a store that knows no number of it: what came of a lost reply, or of another process's
        // hand-over.
        for writer in [&one, &other] {
            let key = new_key();
            insert(&one, &key, "one").await;
            let (grant, stored) = lock(&one, &key).await;
            assert_eq!(stored.data, "one");
            assert_held(&other, &key).await;

            // Without fencing a writer without the lock gets through; the version decides.
            let second = replace(&other, &key, stored.version, "two").await;
            let refused = writer.replace_and_release(&grant, stored.version, &put("no")).await.unwrap();
            let Replaced::Conflict(fresh) = refused else { panic!("{refused:?}") };
            assert_eq!((fresh.version, fresh.data.as_ref()), (second, &b"two"[..]));
            assert_held(&other, &key).await; // kept, for the replay

            let done = writer.replace_and_release(&grant, fresh.version, &put("three")).await.unwrap();
            assert!(matches!(done, Replaced::Done(_)), "{done:?}");
            assert_eq!(load(&other, &key).await.data, "three");
            let (grant, stored) = lock(&other, &key).await; // free

            // A touch in between is no conflict.
            let touched = one.touch(&key, stored.version, TTL * 2).await.unwrap();
            assert_eq!(touched, session_core::Touched::Extended);
            let done = other.replace_and_release(&grant, stored.version, &put("four")).await.unwrap();
            assert!(matches!(done, Replaced::Done(_)), "{done:?}");
            assert_eq!(load(&one, &key).await.data, "four");

            let (grant, stored) = lock(&one, &key).await;
            assert!(matches!(other.delete(&key).await.unwrap(), Deleted::Removed(_)));
            let missing = writer.replace_and_release(&grant, stored.version, &put("no")).await.unwrap();
            assert!(matches!(missing, Replaced::Missing), "{missing:?}");
            assert_eq!(one.release(&grant).await.unwrap(), Released::Lost, "Missing has freed it");
        }
    }
}

#[tokio::test]
async fn a_lock_that_was_renewed_or_lost_is_treated_as_what_it_is() {
    let server = with_server!();
    for protocol in BOTH {
        let (one, other) = (store(&server, protocol).await, store(&server, protocol).await);
        let key = new_key();
        insert(&one, &key, "one").await;

        // Renewed elsewhere since it was taken: the number is another one, the token is not.
        let (grant, stored) = lock(&one, &key).await;
        assert_eq!(other.renew(&grant, LEASE).await.unwrap(), Renewed::Extended);
        let done = one.replace_and_release(&grant, stored.version, &put("two")).await.unwrap();
        assert!(matches!(done, Replaced::Done(_)));
        assert_eq!(one.release(&grant).await.unwrap(), Released::Lost, "it was freed");

        // Evicted and taken by another: theirs is left alone, and without fencing the version alone decides.
        let (grant, stored) = lock(&one, &key).await;
        assert_eq!(server.command(&format!("delete {}", lock_key(&key))).await.unwrap(), "DELETED");
        let (theirs, same) = lock(&other, &key).await;
        assert_eq!(same.version, stored.version);
        let done = one.replace_and_release(&grant, stored.version, &put("three")).await.unwrap();
        assert!(matches!(done, Replaced::Done(_)));
        let late = other.replace_and_release(&theirs, same.version, &put("no")).await.unwrap();
        assert!(matches!(late, Replaced::Conflict(_)), "no lost update: {late:?}");
        release(&other, &theirs).await;
        assert_eq!(load(&other, &key).await.data, "three");
    }
}

#[tokio::test]
async fn nobody_s_id_makes_no_lock_and_destroy_wins() {
    let server = with_server!();
    for protocol in BOTH {
        let (one, other) = (store(&server, protocol).await, store(&server, protocol).await);
        let key = new_key();
        assert!(matches!(locked(&one, &key).await.unwrap(), Loaded::Missing));
        let items = server.command(&format!("get {} {}", data_key(&key), lock_key(&key))).await.unwrap();
        assert_eq!(items, "END");

        insert(&one, &key, "data").await;
        let (grant, _) = lock(&one, &key).await;
        assert!(matches!(other.delete(&key).await.unwrap(), Deleted::Removed(_)), "whoever holds the lock");
        assert!(matches!(locked(&other, &key).await.unwrap(), Loaded::Missing), "Missing before Held");
        assert!(matches!(one.delete_and_release(&grant).await.unwrap(), Deleted::Missing));
        assert_eq!(one.release(&grant).await.unwrap(), Released::Lost, "it was freed");

        let version = insert(&one, &key, "data").await;
        let (grant, _) = lock(&one, &key).await;
        let Deleted::Removed(removed) = one.delete_and_release(&grant).await.unwrap() else {
            panic!("it is there")
        };
        assert_eq!(removed.version, version);
        assert_eq!(one.release(&grant).await.unwrap(), Released::Lost, "it was freed");

        // Only its holder's lock is freed with it.
        insert(&one, &key, "data").await;
        let (grant, _) = lock(&one, &key).await;
        let stranger = Grant::new(key, new_token());
        assert!(matches!(other.delete_and_release(&stranger).await.unwrap(), Deleted::Removed(_)));
        release(&one, &grant).await;
    }
}

#[tokio::test]
async fn waiting_ends_with_the_lock_with_the_record_or_with_patience() {
    let server = with_server!();
    for protocol in BOTH {
        let (one, other) = (store(&server, protocol).await, store(&server, protocol).await);
        let key = new_key();
        insert(&one, &key, "one").await;
        let (grant, stored) = lock(&one, &key).await;

        let start = Instant::now();
        let patience = Duration::from_millis(60);
        let held = other.acquire_and_load(&key, new_token(), LEASE, patience).await.unwrap();
        assert!(matches!(held, Loaded::Held(_)), "{held:?}");
        assert!(start.elapsed() >= patience && start.elapsed() < patience * 10, "{:?}", start.elapsed());

        let wait = {
            let other = other.clone();
            tokio::spawn(async move { other.acquire_and_load(&key, new_token(), LEASE, LEASE).await })
        };
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert!(!wait.is_finished());
        let done = one.replace_and_release(&grant, stored.version, &put("two")).await.unwrap();
        assert!(matches!(done, Replaced::Done(_)));
        let Loaded::Granted(grant, stored) = wait.await.unwrap().unwrap() else { panic!("it was freed") };
        assert_eq!(stored.data, "two", "what the holder before left");

        let wait = {
            let one = one.clone();
            tokio::spawn(async move { one.acquire_and_load(&key, new_token(), LEASE, LEASE).await })
        };
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert!(matches!(other.delete_and_release(&grant).await.unwrap(), Deleted::Removed(_)));
        assert!(matches!(wait.await.unwrap().unwrap(), Loaded::Missing), "there is nothing left to wait for");
    }
}

#[tokio::test]
async fn many_waiters_need_few_connections() {
    let server = with_server!();
    for protocol in BOTH {
        let mut config = config(&server, protocol);
        config.pool = std::num::NonZeroUsize::new(2).unwrap();
        let store = session_memcached::MemcachedStore::connect(&config).await.unwrap();
        let key = new_key();
        insert(&store, &key, "data").await;
        let (grant, _) = lock(&store, &key).await;
        let mut waiters = tokio::task::JoinSet::new();
        // More than wait in turn: the others only try.
        for _ in 0..WAITERS {
            let store = store.clone();
            waiters.spawn(async move { store.acquire_and_load(&key, new_token(), LEASE, LEASE).await });
        }
        for _ in 0..50 {
            assert_eq!(load(&store, &key).await.data, "data");
        }
        release(&store, &grant).await;
        let mut granted = 0;
        while let Some(waited) = waiters.join_next().await {
            let Loaded::Granted(grant, stored) = waited.unwrap().unwrap() else {
                panic!("ten seconds are enough")
            };
            granted += 1;
            let written = store.replace_and_release(&grant, stored.version, &put("data")).await.unwrap();
            assert!(matches!(written, Replaced::Done(_)));
        }
        assert_eq!(granted, WAITERS);
        assert_ne!(load(&store, &key).await.version, Version::from_u64(0));
    }
}

/// How many wait, as the lock says.
async fn waiting(server: &MemcachedServer, key: &StorageKey) -> usize {
    let reply = server.command(&format!("get {}", lock_key(key))).await.unwrap();
    let length: usize = reply.split([' ', '\n']).nth(3).and_then(|length| length.parse().ok()).unwrap_or(29);
    (length - 29) / 16
}

async fn until_waiting(server: &MemcachedServer, key: &StorageKey, number: usize) {
    let start = Instant::now();
    while waiting(server, key).await != number {
        assert!(start.elapsed() < LEASE, "there are not {number} in the queue");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test]
async fn waiters_are_served_in_turn() {
    let server = with_server!();
    for protocol in BOTH {
        let (holder, key) = (store(&server, protocol).await, new_key());
        insert(&holder, &key, "data").await;
        let (grant, _) = lock(&holder, &key).await;
        let order = Arc::new(Mutex::new(Vec::new()));
        let mut waiters = JoinSet::new();
        for number in 0..10 {
            // Each as if in a process of its own.
            let (store, order) = (store(&server, protocol).await, Arc::clone(&order));
            waiters.spawn(async move {
                let Loaded::Granted(grant, stored) =
                    store.acquire_and_load(&key, new_token(), LEASE, LEASE).await.unwrap()
                else {
                    panic!("ten seconds are enough")
                };
                order.lock().unwrap().push(number);
                let done = store.replace_and_release(&grant, stored.version, &put("data")).await.unwrap();
                assert!(matches!(done, Replaced::Done(_)), "{done:?}");
            });
            until_waiting(&server, &key, number + 1).await;
        }
        // Neither a renewal nor a writer without the lock disturbs them.
        assert_eq!(holder.renew(&grant, LEASE).await.unwrap(), Renewed::Extended);
        let version = load(&holder, &key).await.version;
        replace(&holder, &key, version, "data").await;
        assert_eq!(waiting(&server, &key).await, 10);

        release(&holder, &grant).await;
        while let Some(waiter) = waiters.join_next().await {
            waiter.unwrap();
        }
        assert_eq!(*order.lock().unwrap(), (0..10).collect::<Vec<_>>());
        assert_eq!(server.command(&format!("get {}", lock_key(&key))).await.unwrap(), "END", "nobody waits");
    }
}

#[tokio::test]
async fn who_no_longer_waits_is_not_waited_for() {
    let server = with_server!();
    for protocol in BOTH {
        let (one, other) = (store(&server, protocol).await, store(&server, protocol).await);
        let key = new_key();
        insert(&one, &key, "data").await;
        let (grant, _) = lock(&one, &key).await;

        // Out of patience: out of the queue.
        let held = other.acquire(&key, new_token(), LEASE, Duration::from_millis(30)).await.unwrap();
        assert!(matches!(held, Acquired::Held(_)));
        assert_eq!(waiting(&server, &key).await, 0);
        // Given up and released, as the contract asks: out of the queue.
        let token = new_token();
        let wait = other.acquire(&key, token, LEASE, LEASE);
        tokio::select! {
            granted = wait => panic!("{granted:?}"),
            () = until_waiting(&server, &key, 1) => {}
        }
        assert_eq!(other.release(&Grant::new(key, token)).await.unwrap(), Released::Lost);
        assert_eq!(waiting(&server, &key).await, 0);
        assert_held(&other, &key).await;
        release(&one, &grant).await;
        let (grant, _) = lock(&other, &key).await;

        // Killed: the lock is handed over to nobody, and free again after the time to claim it.
        let wait = one.acquire(&key, new_token(), LEASE, LEASE);
        tokio::select! {
            granted = wait => panic!("{granted:?}"),
            () = until_waiting(&server, &key, 1) => {}
        }
        release(&other, &grant).await;
        let start = Instant::now();
        let granted = one.acquire(&key, new_token(), LEASE, LEASE).await.unwrap();
        assert!(matches!(granted, Acquired::Granted(_)), "{granted:?}");
        assert!(start.elapsed() < 4 * RESOLUTION, "{:?}", start.elapsed());
    }
}
