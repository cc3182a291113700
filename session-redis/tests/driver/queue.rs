//! The queue for the lock, with each of its faults forced: nothing here waits for luck.
//!
//! A store "that never polls" has a poll of 30 seconds: what it learns in time, it was told.

use crate::common::*;
use session_conformance::servers::redis::{Connection, RedisServer};
use session_core::{
    Acquired, Deleted, Grant, Loaded, LockingStore as _, Released, Replaced, SessionLock as _,
    SessionStore as _, StorageKey, Token,
};
use session_redis::{LockKind, RedisConfig, RedisStore};
use std::time::{Duration, Instant};
use tokio::task::JoinHandle;

/// What a waiter may need on top of what is promised, on a loaded machine.
const SLACK: Duration = Duration::from_millis(400);

fn quick(server: &RedisServer) -> RedisConfig {
    let mut config = config(server);
    (config.poll, config.claim) = (Duration::from_millis(200), Duration::from_millis(400));
    config
}

/// Waits on a task of its own, until it holds the lock.
fn waiter(store: &RedisStore, key: StorageKey) -> JoinHandle<(Grant, Instant)> {
    let store = store.clone();
    tokio::spawn(async move { (granted(&store, &key, LONG).await.0, Instant::now()) })
}

#[tokio::test]
async fn a_message_hands_it_over() {
    let Some(server) = server(&[]).await else { return };
    let (holder, other) = (store_that_never_polls(&server).await, store_that_never_polls(&server).await);
    let key = key();
    insert(&holder, &key, "one").await;
    let (grant, stored) = granted(&holder, &key, Duration::ZERO).await;
    let waiting = {
        let other = other.clone();
        tokio::spawn(async move { granted(&other, &key, LONG).await })
    };
    until_queued(&server, &key, 1).await;
    let replaced = holder.replace_and_release(&grant, stored.version, &put("two")).await.unwrap();
    assert!(matches!(replaced, Replaced::Done(_)));
    let (grant, stored) = waiting.await.unwrap();
    assert_eq!(stored.data, "two");
    assert_eq!(other.release(&grant).await.unwrap(), Released::Freed);
    assert_eq!(all_keys(&server).await, [name(&key, "")]);
}

#[tokio::test]
async fn a_hundred_waiters_are_served_in_order() {
    let Some(server) = server(&[]).await else { return };
    let store = store_that_never_polls(&server).await;
    let key = key();
    insert(&store, &key, "one").await;
    let (grant, _) = granted(&store, &key, Duration::ZERO).await;
    let (send, mut receive) = tokio::sync::mpsc::unbounded_channel();
    for n in 0..100 {
        let (waiting, send) = (store.clone(), send.clone());
        tokio::spawn(async move {
            let (grant, _) = granted(&waiting, &key, LONG).await;
            send.send(n).unwrap();
            assert_eq!(waiting.release(&grant).await.unwrap(), Released::Freed);
        });
        until_queued(&server, &key, n + 1).await;
    }
    assert_eq!(store.release(&grant).await.unwrap(), Released::Freed);
    for n in 0..100 {
        assert_eq!(receive.recv().await, Some(n));
    }
}

#[tokio::test]
async fn a_waiter_that_died_is_passed_over() {
    let Some(server) = server(&[]).await else { return };
    let config = quick(&server);
    let store = RedisStore::connect(&config).await.unwrap();
    for (alive, promised) in [
        // Not heard of for long enough: not even tried.
        (Duration::ZERO, Duration::ZERO),
        // Died a moment ago: the lock goes to it first, and passes on when nobody claims it.
        (LONG, config.claim + config.poll),
    ] {
        let key = key();
        insert(&store, &key, "one").await;
        let (grant, _) = granted(&store, &key, Duration::ZERO).await;
        strange_ticket(&server, &key, alive).await;
        let waiting = waiter(&store, key);
        until_queued(&server, &key, 2).await;
        let freed = Instant::now();
        assert_eq!(store.release(&grant).await.unwrap(), Released::Freed);
        let (_, at) = waiting.await.unwrap();
        assert!(at - freed < promised + SLACK, "{:?} of {promised:?}", at - freed);
    }
}

#[tokio::test]
async fn a_waiter_that_gave_up_leaves_no_place_behind() {
    let Some(server) = server(&[]).await else { return };
    let store = store_that_never_polls(&server).await;
    let key = key();
    insert(&store, &key, "one").await;
    let (grant, _) = granted(&store, &key, Duration::ZERO).await;
    // Its future is dropped.
    let dropped = waiter(&store, key);
    until_queued(&server, &key, 1).await;
    dropped.abort();
    until_queued(&server, &key, 0).await;
    // Its time is over.
    let wait = Duration::from_millis(50);
    let Loaded::Held(held) = store.acquire_and_load(&key, token(), LEASE, wait).await.unwrap() else {
        panic!("it is mine")
    };
    assert!(held.retry_after.is_some());
    assert_eq!(queue_length(&server, &key).await, 0);
    // It was handed the lock at the very moment when it left: the lock goes on.
    let leaving = waiter(&store, key);
    until_queued(&server, &key, 1).await;
    let next = waiter(&store, key);
    until_queued(&server, &key, 2).await;
    leaving.abort();
    assert_eq!(store.release(&grant).await.unwrap(), Released::Freed);
    next.await.unwrap();
}

/// By a user who may not publish.
#[tokio::test]
async fn a_message_that_is_lost_costs_one_poll() {
    let Some(server) = server(&[]).await else { return };
    let rules = "on nopass ~* resetchannels +@all";
    let mut acl = vec!["ACL", "SETUSER", "mute"];
    acl.extend(rules.split(' '));
    server.command(acl).await.unwrap();
    let config = quick(&server);
    let mute = RedisStore::connect_url(&server.url().replace("redis://", "redis://mute:x@")).await.unwrap();
    let store = RedisStore::connect(&config).await.unwrap();
    let key = key();
    insert(&store, &key, "one").await;
    let (grant, stored) = granted(&mute, &key, Duration::ZERO).await;
    let waiting = waiter(&store, key);
    until_queued(&server, &key, 1).await;
    let freed = Instant::now();
    // What it writes is written all the same.
    let replaced = mute.replace_and_release(&grant, stored.version, &put("two")).await.unwrap();
    assert!(matches!(replaced, Replaced::Done(_)));
    let (_, at) = waiting.await.unwrap();
    assert!(at - freed < config.poll + SLACK, "{:?}", at - freed);
}

/// The subscription is cut and the lock handed over in one step, so that the message is heard by nobody.
#[tokio::test]
async fn after_a_reconnect_everyone_looks_at_once() {
    let Some(server) = server(&[]).await else { return };
    let store = store_that_never_polls(&server).await;
    let key = key();
    insert(&store, &key, "one").await;
    let (grant, _) = granted(&store, &key, Duration::ZERO).await;
    let waiting = waiter(&store, key);
    until_queued(&server, &key, 1).await;
    let mut raw = Connection::open(server.address()).await.unwrap();
    let ticket = raw.command(["LINDEX", &name(&key, ":q1"), "0"]).await.unwrap();
    let ticket = ticket.text().unwrap().to_owned();
    raw.command(["MULTI"]).await.unwrap();
    raw.command(["CLIENT", "KILL", "TYPE", "pubsub"]).await.unwrap();
    raw.command(["DEL", &name(&key, ":q1"), &name(&key, ":t1")]).await.unwrap();
    raw.command(["SET", &name(&key, ":lock"), &ticket, "PX", "59000"]).await.unwrap();
    raw.command(["EXEC"]).await.unwrap();
    let cut = Instant::now();
    let (_, at) = waiting.await.unwrap();
    assert!(at - cut < Duration::from_secs(2), "{:?}", at - cut);
    assert_eq!(store.release(&grant).await.unwrap(), Released::Lost);
}

/// A process that stands still longer than the claim lasts.
#[tokio::test(flavor = "multi_thread")]
async fn who_wakes_late_finds_the_lock_gone_and_queues_again() {
    let Some(server) = server(&[]).await else { return };
    let config = quick(&server);
    let store = RedisStore::connect(&config).await.unwrap();
    let key = key();
    insert(&store, &key, "one").await;
    let (grant, _) = granted(&store, &key, Duration::ZERO).await;
    let (stop, stopped) = std::sync::mpsc::channel::<()>();
    let (resume, resumed) = std::sync::mpsc::channel::<()>();
    let late_config = config.clone();
    let late = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let store = RedisStore::connect(&late_config).await.unwrap();
            let waiting = waiter(&store, key);
            loop {
                tokio::time::sleep(Duration::from_millis(1)).await;
                if stopped.try_recv().is_ok() {
                    resumed.recv().unwrap(); // the whole process stands still
                }
                if waiting.is_finished() {
                    return waiting.await.unwrap();
                }
            }
        })
    });
    until_queued(&server, &key, 1).await;
    let next = waiter(&store, key);
    until_queued(&server, &key, 2).await;
    stop.send(()).unwrap();
    tokio::time::sleep(Duration::from_millis(20)).await;
    let freed = Instant::now();
    assert_eq!(store.release(&grant).await.unwrap(), Released::Freed);
    let (grant, at) = next.await.unwrap();
    assert!(at - freed >= config.claim - Duration::from_millis(5), "it went past the first in the queue");
    assert!(at - freed < config.claim + config.poll + SLACK);
    resume.send(()).unwrap();
    until_queued(&server, &key, 1).await;
    assert!(!late.is_finished(), "two holders");
    assert_eq!(store.release(&grant).await.unwrap(), Released::Freed);
    tokio::task::spawn_blocking(move || late.join().unwrap()).await.unwrap();
}

#[tokio::test]
async fn a_lease_that_runs_out_goes_to_the_first_in_the_queue() {
    let Some(server) = server(&[]).await else { return };
    let store = store_that_never_polls(&server).await;
    let key = key();
    insert(&store, &key, "one").await;
    let lease = Duration::from_millis(300);
    let Loaded::Granted(dead, stored) =
        store.acquire_and_load(&key, token(), lease, Duration::ZERO).await.unwrap()
    else {
        panic!("it is free")
    };
    let start = Instant::now();
    let first = waiter(&store, key);
    until_queued(&server, &key, 1).await;
    let second = waiter(&store, key);
    until_queued(&server, &key, 2).await;
    let (grant, at) = first.await.unwrap();
    assert!(at - start < lease + SLACK, "{:?}", at - start);
    assert!(!second.is_finished());
    // The one whose lease ran out is told, and harms nobody.
    assert_eq!(store.release(&dead).await.unwrap(), Released::Lost);
    let refused = store.replace_and_release(&dead, stored.version, &put("late")).await.unwrap();
    assert!(matches!(refused, Replaced::NotHolder(_)));
    assert_eq!(store.release(&grant).await.unwrap(), Released::Freed);
    second.await.unwrap();
}

#[tokio::test]
async fn destroy_ends_all_waiting() {
    let Some(server) = server(&[]).await else { return };
    let store = store_that_never_polls(&server).await;
    for release in [false, true] {
        let key = key();
        insert(&store, &key, "one").await;
        let (grant, _) = granted(&store, &key, Duration::ZERO).await;
        let waiting: Vec<_> = (0..5)
            .map(|_| {
                let store = store.clone();
                tokio::spawn(async move { store.acquire_and_load(&key, token(), LEASE, LONG).await })
            })
            .collect();
        until_queued(&server, &key, 5).await;
        let deleted = if release { store.delete_and_release(&grant).await } else { store.delete(&key).await };
        assert!(matches!(deleted.unwrap(), Deleted::Removed(_)));
        for waiter in waiting {
            let ended = tokio::time::timeout(Duration::from_secs(5), waiter).await.expect("it was not told");
            assert!(matches!(ended.unwrap().unwrap(), Loaded::Missing));
        }
        // Without the release, the lock is the holder's until it notices.
        let left = if release { vec![] } else { vec![name(&key, ":lock")] };
        until(async || all_keys(&server).await == left).await;
        assert_eq!(store.release(&grant).await.unwrap() == Released::Freed, !release);
    }
}

#[tokio::test]
async fn a_write_without_the_lock_meets_a_live_lease() {
    let Some(server) = server(&[]).await else { return };
    let store = store_that_never_polls(&server).await;
    let key = key();
    let version = insert(&store, &key, "one").await;
    let (grant, _) = granted(&store, &key, Duration::ZERO).await;
    let Replaced::NotHolder(held) = store.replace(&key, version, &put("beside")).await.unwrap() else {
        panic!("not fenced")
    };
    assert!(held.retry_after.unwrap() <= LEASE);
    // It queues (as core does): its turn comes with the release, and what it then writes is on top.
    let waiting = waiter(&store, key);
    until_queued(&server, &key, 1).await;
    let replaced = store.replace_and_release(&grant, version, &put("two")).await.unwrap();
    let Replaced::Done(version) = replaced else { panic!("not replaced") };
    // Handed over is held: between the two nobody slips in.
    let refused = store.replace(&key, version, &put("between")).await.unwrap();
    let (grant, _) = waiting.await.unwrap();
    assert!(matches!(refused, Replaced::NotHolder(_)));
    let replaced = store.replace_and_release(&grant, version, &put("three")).await.unwrap();
    assert!(matches!(replaced, Replaced::Done(_)));
}

#[tokio::test]
async fn a_client_that_only_knows_set_nx() {
    let Some(server) = server(&[]).await else { return };
    let config = quick(&server);
    let store = RedisStore::connect(&config).await.unwrap();
    let key = key();
    let version = insert(&store, &key, "one").await;
    let lock = name(&key, ":lock");
    let set =
        async || server.command(["SET", &lock, "old", "NX", "PX", "5000"]).await.unwrap().text().is_some();
    // It is excluded by us ...
    let (grant, _) = granted(&store, &key, Duration::ZERO).await;
    assert!(!set().await);
    assert_eq!(store.release(&grant).await.unwrap(), Released::Freed);
    // ... and excludes us, and whoever writes without a lock; its DEL tells nobody, and is noticed by the
    // next poll.
    assert!(set().await);
    assert!(matches!(store.replace(&key, version, &put("x")).await.unwrap(), Replaced::NotHolder(_)));
    let first = waiter(&store, key);
    until_queued(&server, &key, 1).await;
    let second = waiter(&store, key);
    until_queued(&server, &key, 2).await;
    let freed = Instant::now();
    server.command(["DEL", &lock]).await.unwrap();
    let (grant, at) = first.await.unwrap();
    assert!(at - freed < config.claim + config.poll + SLACK, "{:?}", at - freed);
    assert!(!second.is_finished() && !set().await);
    assert_eq!(store.release(&grant).await.unwrap(), Released::Freed);
    let (grant, _) = second.await.unwrap();
    // A lock without an end: we wait, and say that we do not know for how long.
    assert_eq!(store.release(&grant).await.unwrap(), Released::Freed);
    server.command(["SET", &lock, "old"]).await.unwrap();
    let wait = Duration::from_millis(50);
    let Loaded::Held(held) = store.acquire_and_load(&key, token(), LEASE, wait).await.unwrap() else {
        panic!("it is mine")
    };
    assert_eq!(held.retry_after, None);
}

#[tokio::test]
async fn who_spins_lets_the_queue_go_first() {
    let Some(server) = server(&[]).await else { return };
    let queueing = store_that_never_polls(&server).await;
    let mut config = config(&server);
    config.lock = LockKind::Spin;
    let spinning = RedisStore::connect(&config).await.unwrap();
    let key = key();
    insert(&queueing, &key, "one").await;
    let (grant, _) = granted(&spinning, &key, Duration::ZERO).await;
    let spinner = waiter(&spinning, key);
    let waiting = waiter(&queueing, key);
    until_queued(&server, &key, 1).await;
    assert_eq!(spinning.release(&grant).await.unwrap(), Released::Freed);
    let (grant, _) = waiting.await.unwrap();
    assert!(!spinner.is_finished());
    assert_eq!(queueing.release(&grant).await.unwrap(), Released::Freed);
    let (grant, _) = spinner.await.unwrap();
    assert_eq!(spinning.release(&grant).await.unwrap(), Released::Freed);
    // It makes no queue, and no subscription of its own.
    let (grant, _) = granted(&spinning, &key, Duration::ZERO).await;
    let Loaded::Held(_) =
        spinning.acquire_and_load(&key, token(), LEASE, Duration::from_millis(100)).await.unwrap()
    else {
        panic!("it is mine")
    };
    assert_eq!(queue_length(&server, &key).await, 0);
    assert_eq!(spinning.release(&grant).await.unwrap(), Released::Freed);
}

#[tokio::test]
async fn the_queue_has_an_end() {
    let Some(server) = server(&[]).await else { return };
    let store = store_that_never_polls(&server).await;
    let key = key();
    insert(&store, &key, "one").await;
    let (_grant, _) = granted(&store, &key, Duration::ZERO).await;
    let mut push = vec!["RPUSH".to_owned(), name(&key, ":q1")];
    push.extend((0..1024).map(|n| n.to_string()));
    server.command(push).await.unwrap();
    let wait = Duration::from_millis(50);
    let Loaded::Held(_) = store.acquire_and_load(&key, token(), LEASE, wait).await.unwrap() else {
        panic!("it is mine")
    };
    assert_eq!(queue_length(&server, &key).await, 1024);
}

#[tokio::test]
async fn asking_again_keeps_the_place() {
    let Some(server) = server(&[]).await else { return };
    let store = store_that_never_polls(&server).await;
    let key = key();
    insert(&store, &key, "one").await;
    let (grant, _) = granted(&store, &key, Duration::ZERO).await;
    let mine = Token::from_bytes([1; 16]);
    let ask = || {
        let store = store.clone();
        tokio::spawn(async move { store.acquire(&key, mine, LEASE, LONG).await })
    };
    // Twice at the same time: one ticket, and both are granted the one lock.
    let (first, second) = (ask(), ask());
    until_queued(&server, &key, 1).await;
    let other = waiter(&store, key);
    until_queued(&server, &key, 2).await;
    let again = store.acquire(&key, mine, LEASE, Duration::ZERO).await.unwrap();
    assert!(matches!(again, Acquired::Held(_)));
    let line = server.command(["LRANGE", &name(&key, ":q1"), "0", "-1"]).await.unwrap();
    assert_eq!(line.list()[0].text(), Some(&*mine.to_string()));
    assert_eq!(store.release(&grant).await.unwrap(), Released::Freed);
    let granted = tokio::select! { granted = first => granted, granted = second => granted };
    assert!(matches!(granted.unwrap().unwrap(), Acquired::Granted(_)));
    assert!(!other.is_finished());
    assert_eq!(store.release(&Grant::new(key, mine)).await.unwrap(), Released::Freed);
    other.await.unwrap();
}
