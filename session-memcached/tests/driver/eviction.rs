//! Memory pressure: locks and records vanish, and no update is lost for it.

use crate::{common::*, with_server};
use session_conformance::servers::memcached::MemcachedServer;
use session_core::{
    Grant, Inserted, Loaded, LockingStore as _, Released, Renewed, Replaced, SessionLock as _,
    SessionStore as _, StorageKey,
};
use session_memcached::MemcachedStore;
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    task::JoinSet,
};

/// A server with little memory.
const SMALL: &[&str] = &["-m", "8"];
/// Records are of another size than locks: memcached evicts by size, and the test chooses what goes.
const RECORD: usize = 4000;

fn record(text: &str) -> Vec<u8> {
    let mut data = text.as_bytes().to_vec();
    data.resize(RECORD, b' ');
    data
}

/// Fills the server with items of the size of a lock until `lock` is gone.
async fn evict(server: &MemcachedServer, lock: &str) {
    let mut stream = TcpStream::connect(server.direct_address()).await.unwrap();
    for round in 0..200 {
        let mut request = Vec::new();
        for number in 0..2000 {
            let name = format!("filler-{round:0>30}-{number:0>50}");
            request
                .extend_from_slice(format!("set {name} 0 0 29 noreply\r\n{}\r\n", "f".repeat(29)).as_bytes());
        }
        request.extend_from_slice(b"mn\r\n");
        stream.write_all(&request).await.unwrap();
        let mut reply = [0; 4];
        stream.read_exact(&mut reply).await.unwrap();
        assert_eq!(&reply, b"MN\r\n");
        if server.command(&format!("mg {lock} u")).await.unwrap().starts_with("EN") {
            return;
        }
    }
    panic!("the lock is still there");
}

async fn locked_session(store: &MemcachedStore) -> (StorageKey, Grant, session_core::Stored) {
    let key = new_key();
    assert!(matches!(store.insert(&key, &put(record("0"))).await.unwrap(), Inserted::Created(_)));
    let (grant, stored) = lock(store, &key).await;
    (key, grant, stored)
}

#[tokio::test]
async fn a_lock_evicted_under_its_holder_costs_no_update() {
    for protocol in BOTH {
        let server = with_server!(SMALL);
        let (one, other) = (store(&server, protocol).await, store(&server, protocol).await);

        // The next holder writes first.
        let (key, grant, stored) = locked_session(&one).await;
        evict(&server, &lock_key(&key)).await;
        let (theirs, same) = lock(&other, &key).await;
        assert_eq!(same.version, stored.version, "two holders of one lock, one record");
        let done = other.replace_and_release(&theirs, same.version, &put(record("theirs"))).await.unwrap();
        assert!(matches!(done, Replaced::Done(_)), "{done:?}");
        let late = one.replace_and_release(&grant, stored.version, &put(record("mine"))).await.unwrap();
        assert!(matches!(&late, Replaced::Conflict(fresh) if fresh.data == record("theirs")), "{late:?}");
        assert_eq!(one.renew(&grant, LEASE).await.unwrap(), Renewed::Lost);
        assert_eq!(load(&one, &key).await.data, record("theirs"));

        // While they hold it it is theirs.
        let (key, grant, stored) = locked_session(&one).await;
        evict(&server, &lock_key(&key)).await;
        let (theirs, same) = lock(&other, &key).await;
        let done = other.replace(&key, same.version, &put(record("theirs"))).await.unwrap();
        assert!(matches!(done, Replaced::Done(_)), "{done:?}");
        let late = one.replace_and_release(&grant, stored.version, &put(record("mine"))).await.unwrap();
        assert!(matches!(&late, Replaced::NotHolder(_)), "{late:?}");
        assert_eq!(one.renew(&grant, LEASE).await.unwrap(), Renewed::Lost);
        release(&other, &theirs).await;

        // The one before writes first.
        let (key, grant, stored) = locked_session(&one).await;
        evict(&server, &lock_key(&key)).await;
        let (theirs, same) = lock(&other, &key).await;
        let done = one.replace_and_release(&grant, stored.version, &put(record("mine"))).await.unwrap();
        assert!(matches!(done, Replaced::Done(_)), "{done:?}");
        let late = other.replace_and_release(&theirs, same.version, &put(record("theirs"))).await.unwrap();
        assert!(matches!(&late, Replaced::Conflict(fresh) if fresh.data == record("mine")), "{late:?}");
        assert_eq!(load(&other, &key).await.data, record("mine"));
        assert_eq!(other.release(&theirs).await.unwrap(), Released::Freed, "theirs was never touched");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn locked_increments_are_all_kept_while_locks_are_evicted() {
    let server = Arc::new(with_server!(SMALL));
    let store = store(&server, BOTH[0]).await;
    let key = new_key();
    assert!(matches!(store.insert(&key, &put(record("0"))).await.unwrap(), Inserted::Created(_)));
    let (stop, acknowledged, refused) =
        (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let mut workers = JoinSet::new();
    for _ in 0..8 {
        let (store, stop) = (store.clone(), Arc::clone(&stop));
        let (acknowledged, refused) = (Arc::clone(&acknowledged), Arc::clone(&refused));
        workers.spawn(async move {
            while !stop.load(Relaxed) {
                let asked =
                    store.acquire_and_load(&key, new_token(), LEASE, Duration::from_millis(100)).await;
                let Loaded::Granted(grant, stored) = asked.unwrap() else { continue };
                tokio::time::sleep(Duration::from_millis(3)).await;
                let next = number(&stored.data) + 1;
                let new = put(record(&next.to_string()));
                match store.replace_and_release(&grant, stored.version, &new).await.unwrap() {
                    Replaced::Done(_) => acknowledged.fetch_add(1, Relaxed),
                    Replaced::Conflict(_) => {
                        assert!(store.release(&grant).await.is_ok());
                        refused.fetch_add(1, Relaxed)
                    }
                    Replaced::NotHolder(_) => refused.fetch_add(1, Relaxed),
                    other => panic!("{other:?}"),
                };
            }
        });
    }
    // Each round takes away whichever lock is held then, and all others with it.
    for _ in 0..10 {
        let bait = new_key();
        let (grant, _) = {
            insert(&store, &bait, "bait").await;
            lock(&store, &bait).await
        };
        evict(&server, &lock_key(&bait)).await;
        assert_eq!(store.release(&grant).await.unwrap(), Released::Lost);
    }
    // And some that only the lock of this very session: more than ever happens by pressure alone.
    for _ in 0..30 {
        server.command(&format!("delete {}", lock_key(&key))).await.unwrap();
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    stop.store(true, Relaxed);
    while let Some(joined) = workers.join_next().await {
        joined.unwrap();
    }
    let (acknowledged, refused) = (acknowledged.load(Relaxed), refused.load(Relaxed));
    assert_eq!(number(&load(&store, &key).await.data), acknowledged);
    assert!(server.stat("evictions").await.unwrap() > 0);
    assert!(acknowledged > 20 && refused > 0, "{acknowledged} kept, {refused} refused: no two holders met");
}

fn number(data: &[u8]) -> u64 {
    std::str::from_utf8(data).unwrap().trim_end().parse().unwrap()
}

#[tokio::test]
async fn an_evicted_session_is_missing_and_never_wrong() {
    let server = with_server!(SMALL);
    for protocol in BOTH {
        let store = store(&server, protocol).await;
        let mut sessions = Vec::new();
        for number in 0..5000 {
            let key = new_key();
            let data = record(&number.to_string());
            match store.insert(&key, &put(data.clone())).await.unwrap() {
                Inserted::Created(version) => sessions.push((key, version, data)),
                Inserted::Exists => panic!("a new key"),
            }
        }
        let (mut there, mut gone) = (0, 0);
        for (key, version, data) in &sessions {
            match store.load(key).await.unwrap() {
                Some(stored) => {
                    assert_eq!((&stored.version, stored.data.as_ref()), (version, &data[..]));
                    there += 1;
                }
                None => {
                    let late = store.replace(key, *version, &put(record("late"))).await.unwrap();
                    assert!(matches!(late, Replaced::Missing), "{late:?}");
                    gone += 1;
                }
            }
        }
        assert!(there > 0 && gone > 0, "{there} there, {gone} gone");
    }
}
