//! Futures dropped at every await, servers that restart, hang and cut, and everything at once.

use crate::common::*;
use session_conformance::servers::ServerControl as _;
use session_core::{
    Effect, ErrorKind, Grant, Loaded, LockingStore as _, Released, Replaced, SessionLock as _,
    SessionStore as _,
};
use session_redis::RedisStore;
use std::{
    future::{Future, poll_fn},
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    task::Poll,
    time::{Duration, Instant},
};

/// Runs a future until it was polled so often, then drops it. `None`: dropped.
async fn polled<T>(future: impl Future<Output = T>, times: usize) -> Option<T> {
    let mut future = pin!(future);
    let mut left = times;
    poll_fn(|context| {
        if left == 0 {
            return Poll::Ready(None);
        }
        left -= 1;
        match future.as_mut().poll(context) {
            Poll::Ready(value) => Poll::Ready(Some(value)),
            // The drop comes when it would have gone on.
            Poll::Pending => Poll::Pending,
        }
    })
    .await
}

/// How often a call is polled at most: each await in it was a place to be dropped at.
const POLLS: usize = 12;

#[tokio::test]
async fn an_acquire_dropped_at_any_await_leaves_nothing() {
    let Some(server) = server(&[]).await else { return };
    let store = store_that_never_polls(&server).await;
    let (mut dropped, mut ended) = (0, 0);
    for times in 0..POLLS {
        // Of a free lock.
        let key = key();
        insert(&store, &key, "one").await;
        match polled(store.acquire_and_load(&key, token(), LEASE, LONG), times).await {
            None => dropped += 1,
            Some(granted) => {
                ended += 1;
                let Loaded::Granted(grant, _) = granted.unwrap() else { panic!("it is free") };
                assert_eq!(store.release(&grant).await.unwrap(), Released::Freed);
            }
        }
        until(async || all_keys(&server).await == [name(&key, "")]).await;
        // Of a lock that is held, and given free while we are being dropped.
        let (grant, _) = granted(&store, &key, Duration::ZERO).await;
        let release = async {
            tokio::task::yield_now().await;
            store.release(&grant).await
        };
        let (waited, released) =
            tokio::join!(polled(store.acquire_and_load(&key, token(), LEASE, LONG), times), release);
        assert_eq!(released.unwrap(), Released::Freed);
        if let Some(granted) = waited {
            let Loaded::Granted(grant, _) = granted.unwrap() else { panic!("it was freed") };
            assert_eq!(store.release(&grant).await.unwrap(), Released::Freed);
        }
        until(async || all_keys(&server).await == [name(&key, "")]).await;
        drop(store.delete(&key).await.unwrap());
    }
    assert!(dropped >= 2 && ended >= 2, "{dropped} dropped, {ended} ended");
}

#[tokio::test]
async fn a_write_dropped_at_any_await_is_done_or_not() {
    let Some(server) = server(&[]).await else { return };
    let store = store(&server).await;
    let (mut done, mut not) = (0, 0);
    for times in 0..POLLS {
        let key = key();
        let version = insert(&store, &key, "one").await;
        let (grant, _) = granted(&store, &key, Duration::ZERO).await;
        drop(polled(store.replace_and_release(&grant, version, &put("two")), times).await);
        // The same connection carries commands in order: what was sent has run by now.
        let stored = store.load(&key).await.unwrap().unwrap();
        let held = all_keys(&server).await.contains(&name(&key, ":lock"));
        match &stored.data[..] {
            b"two" => {
                done += 1;
                assert!(!held && stored.version != version);
            }
            b"one" => {
                not += 1;
                assert!(held && stored.version == version);
                assert_eq!(store.release(&grant).await.unwrap(), Released::Freed);
            }
            other => panic!("{other:?}"),
        }
        drop(polled(store.delete(&key), times).await);
        drop(store.delete(&key).await.unwrap());
        assert!(all_keys(&server).await.is_empty());
    }
    assert!(done >= 2 && not >= 1, "{done} done, {not} not");
}

#[tokio::test]
async fn a_restart_that_keeps_nothing_is_no_lasting_error() {
    let Some(server) = server(&[]).await else { return };
    let store = store(&server).await;
    let key = key();
    let version = insert(&store, &key, "one").await;
    let (grant, _) = granted(&store, &key, Duration::ZERO).await;
    let waiting = {
        let store = store.clone();
        tokio::spawn(async move { store.acquire_and_load(&key, token(), LEASE, LONG).await })
    };
    until_queued(&server, &key, 1).await;
    server.restart().await.unwrap();
    // Who waited is told that there is nothing to wait for; nobody sees an error that lasts.
    assert!(matches!(waiting.await.unwrap().unwrap(), Loaded::Missing));
    assert!(store.load(&key).await.unwrap().is_none());
    assert!(matches!(store.replace(&key, version, &put("x")).await.unwrap(), Replaced::Missing));
    assert!(matches!(
        store.replace_and_release(&grant, version, &put("x")).await.unwrap(),
        Replaced::Missing
    ));
    assert_eq!(store.release(&grant).await.unwrap(), Released::Lost);
    // The scripts, which the new server does not know, are sent again.
    insert(&store, &key, "two").await;
    let (grant, _) = granted(&store, &key, Duration::ZERO).await;
    let next = {
        let store = store.clone();
        tokio::spawn(async move { granted(&store, &key, LONG).await })
    };
    until_queued(&server, &key, 1).await;
    assert_eq!(store.release(&grant).await.unwrap(), Released::Freed);
    drop(next.await.unwrap());
}

#[tokio::test]
async fn a_server_that_is_gone_is_a_typed_error_without_effect() {
    let Some(server) = server(&[]).await else { return };
    let mut config = config(&server);
    config.connect_timeout = Duration::from_millis(300);
    let store = RedisStore::connect(&config).await.unwrap();
    server.kill();
    let key = key();
    until(async || {
        // The first may have been on its way; from then on it is known that nothing was sent.
        let error = store.insert(&key, &put("x")).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        error.effect() == Effect::None
    })
    .await;
    let start = Instant::now();
    let tries = (0..50).map(|_| async { store.insert(&key, &put("x")).await.unwrap_err().kind() });
    let kinds = futures_util::future::join_all(tries).await;
    assert!(kinds.iter().all(|kind| *kind == ErrorKind::Unavailable));
    // They wait for the same attempt, not one after the other.
    assert!(start.elapsed() < config.connect_timeout * 4, "{:?}", start.elapsed());
    server.restart().await.unwrap();
    insert(&store, &key, "one").await;
    let error = RedisStore::connect_url("redis://127.0.0.1:1?connect_timeout=50ms").await.unwrap_err();
    assert_eq!((error.kind(), error.effect()), (ErrorKind::Unavailable, Effect::None));
}

#[tokio::test]
async fn a_server_that_hangs_is_an_error_in_time_and_found_again() {
    let Some(server) = server(&[]).await else { return };
    let mut config = config(&server);
    (config.connect_timeout, config.response_timeout) =
        (Duration::from_millis(300), Duration::from_millis(200));
    let store = RedisStore::connect(&config).await.unwrap();
    let key = key();
    let version = insert(&store, &key, "zero").await;
    // The server knows the script then: otherwise it would ask for it, late, and nobody would be there to
    // send it.
    let Replaced::Done(version) = store.replace(&key, version, &put("one")).await.unwrap() else {
        panic!("not replaced")
    };
    server.pause().await.unwrap();
    let start = Instant::now();
    let error = store.replace(&key, version, &put("two")).await.unwrap_err();
    assert_eq!((error.kind(), error.effect()), (ErrorKind::Unavailable, Effect::Unknown), "{error:?}");
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
    // What was not sent has no effect: there is no connection to send it on.
    let error = store.replace(&key, version, &put("three")).await.unwrap_err();
    assert_eq!((error.kind(), error.effect()), (ErrorKind::Unavailable, Effect::None), "{error:?}");
    let start = Instant::now();
    let wait = Duration::from_millis(500);
    let error = store.acquire_and_load(&key, token(), LEASE, wait).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(start.elapsed() < wait + Duration::from_secs(1), "{:?}", start.elapsed());
    server.resume().await.unwrap();
    until(async || store.load(&key).await.is_ok()).await;
    // The first landed, late, as its effect said that it may; the second did not.
    until(async || store.load(&key).await.unwrap().unwrap().data == "two").await;
}

#[tokio::test]
async fn an_idle_connection_that_is_cut_costs_no_error() {
    let Some(server) = server(&[]).await else { return };
    let store = store(&server).await;
    let key = key();
    let mut version = insert(&store, &key, "one").await;
    for _ in 0..20 {
        server.cut().await.unwrap();
        // The reply of CLIENT KILL may come before the end of our connection: the test waits for it, not for
        // an error.
        tokio::time::sleep(Duration::from_millis(20)).await;
        match store.replace(&key, version, &put("two")).await.unwrap() {
            Replaced::Done(new) => version = new,
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_outlives_the_runtime_that_connected_it() {
    let Some(server) = server(&[]).await else { return };
    let (config, key) = (config(&server), key());
    let store = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let store = RedisStore::connect(&config).await.unwrap();
            insert(&store, &key, "one").await;
            let (_grant, _) = granted(&store, &key, Duration::ZERO).await;
            // Starts the subscription, on this runtime.
            let wait = Duration::from_millis(30);
            let Loaded::Held(_) = store.acquire_and_load(&key, token(), LEASE, wait).await.unwrap() else {
                panic!("it is mine")
            };
            store
        })
    });
    let store = tokio::task::spawn_blocking(move || store.join().unwrap()).await.unwrap();
    assert!(store.load(&key).await.unwrap().is_some());
    assert!(matches!(store.delete(&key).await.unwrap(), session_core::Deleted::Removed(_)));
}

/// Holders that die, give up and come back late; connections cut; messages dropped; writers without the lock
/// beside them.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn under_all_faults_at_once_nothing_is_lost_and_nothing_left() {
    let Some(server) = server(&[]).await else { return };
    let mut config = config(&server);
    (config.poll, config.claim) = (Duration::from_millis(30), Duration::from_millis(60));
    let key = key();
    let first = RedisStore::connect(&config).await.unwrap();
    insert(&first, &key, "").await;
    let over = Arc::new(AtomicBool::new(false));
    let inside = Arc::new(AtomicU64::new(0));
    let overlaps = Arc::new(AtomicU64::new(0));
    let mut tasks = Vec::new();
    for n in 0..8_u64 {
        let store = RedisStore::connect(&config).await.unwrap();
        let worker = Worker {
            store,
            key,
            over: Arc::clone(&over),
            inside: Arc::clone(&inside),
            overlaps: Arc::clone(&overlaps),
            random: n.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1,
        };
        tasks.push(tokio::spawn(worker.run()));
    }
    let until = Instant::now() + Duration::from_secs(4);
    while Instant::now() < until {
        tokio::time::sleep(Duration::from_millis(150)).await;
        server.command(["CLIENT", "KILL", "TYPE", "pubsub"]).await.unwrap();
        tokio::time::sleep(Duration::from_millis(150)).await;
        server.cut().await.unwrap();
    }
    over.store(true, Relaxed);
    let (mut acknowledged, mut unknown) = (0, 0);
    for task in tasks {
        let (done, doubtful) = task.await.unwrap();
        acknowledged += done;
        unknown += doubtful;
    }
    let found = first.load(&key).await.unwrap().unwrap().data.len() as u64;
    println!("all faults: {acknowledged} acknowledged, {unknown} unknown, {found} found");
    assert!(acknowledged > 100, "too little happened: {acknowledged}");
    assert!((acknowledged..=acknowledged + unknown).contains(&found));
    assert_eq!(overlaps.load(Relaxed), 0, "two holders at a time");
    // Locks of the dead end with their leases, tickets with their heartbeats.
    crate::common::until(async || all_keys(&server).await == [name(&key, "")]).await;
}

struct Worker {
    store: RedisStore,
    key: session_core::StorageKey,
    over: Arc<AtomicBool>,
    inside: Arc<AtomicU64>,
    overlaps: Arc<AtomicU64>,
    random: u64,
}

impl Worker {
    fn draw(&mut self, below: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random % below
    }

    async fn run(mut self) -> (u64, u64) {
        let (mut acknowledged, mut unknown) = (0, 0);
        while !self.over.load(Relaxed) {
            let result = match self.draw(10) {
                0 => self.write_without_lock().await,
                1 => {
                    self.give_up().await;
                    continue;
                }
                _ => self.write_with_lock().await,
            };
            match result {
                Some(Ok(Replaced::Done(_))) => acknowledged += 1,
                Some(Ok(Replaced::Missing)) => panic!("the session vanished"),
                Some(Err(error)) if error.effect() == Effect::Unknown => unknown += 1,
                _ => {}
            }
        }
        (acknowledged, unknown)
    }

    async fn write_without_lock(&self) -> Option<session_core::Result<Replaced>> {
        let stored = self.store.load(&self.key).await.ok()??;
        Some(self.store.replace(&self.key, stored.version, &longer(&stored.data)).await)
    }

    async fn give_up(&mut self) {
        let times = self.draw(6) as usize;
        let asking = self.store.acquire_and_load(&self.key, token(), LEASE, LONG);
        if let Some(Ok(Loaded::Granted(grant, _))) = polled(asking, times).await {
            drop(self.store.release(&grant).await);
        }
    }

    async fn write_with_lock(&mut self) -> Option<session_core::Result<Replaced>> {
        let lease = Duration::from_millis(200);
        let token = token();
        let Ok(Loaded::Granted(grant, stored)) =
            self.store.acquire_and_load(&self.key, token, lease, LONG).await
        else {
            // What an error may have left is released, as the contract asks.
            drop(self.store.release(&Grant::new(self.key, token)).await);
            return None;
        };
        if self.inside.fetch_add(1, Relaxed) != 0 {
            self.overlaps.fetch_add(1, Relaxed);
        }
        tokio::time::sleep(Duration::from_millis(self.draw(3))).await;
        self.inside.fetch_sub(1, Relaxed);
        if self.draw(20) == 0 {
            return None; // it dies here: its lease runs out
        }
        Some(self.store.replace_and_release(&grant, stored.version, &longer(&stored.data)).await)
    }
}

fn longer(data: &[u8]) -> session_core::Put {
    session_core::Put::new([data, b"x"].concat().into(), TTL)
}
