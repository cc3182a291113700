//! Many sessions: how they are spread, and what they cost. `cargo test -p session-file --release --test scale
//! -- --ignored --nocapture` measures 100,000.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that fails panics")]

mod support;

use session_core::{
    Loaded, LockingStore as _, PrincipalKey, Put, Replaced, SessionIndex as _, SessionStore as _,
    SessionSweeper as _, StorageKey,
};
use session_file::{FileConfig, FileDurability, FileStore};
use std::{future::Future, path::Path, time::Duration};
use support::*;
use tempfile::TempDir;
use tokio::time::Instant;

/// The largest number of names in one directory.
fn fullest(directory: &Path) -> usize {
    let entries: Vec<_> = directory.read_dir().unwrap().map(|entry| entry.unwrap()).collect();
    let below = entries.iter().filter(|entry| entry.file_type().unwrap().is_dir());
    below.map(|entry| fullest(&entry.path())).max().unwrap_or(0).max(entries.len())
}

#[tokio::test(flavor = "multi_thread")]
async fn no_directory_has_all_sessions() {
    let fixture = Fixture::new();
    let store = fixture.open();
    let user = PrincipalKey::of("everybody");
    for _ in 0..4_000 {
        // The worst case for the index: one account has them all.
        insert(&store, &key(), &put("x").principal(Some(user))).await;
    }
    assert!(fullest(&fixture.root().join("records")) <= 256);
    assert!(fullest(&fixture.root().join("users")) < 4_000 / 16 * 2);
}

async fn fill(store: &FileStore, sessions: usize, ttl: Duration) -> Vec<StorageKey> {
    let tasks: Vec<_> = (0..8)
        .map(|task| {
            let store = store.clone();
            tokio::spawn(async move {
                let mut keys = Vec::new();
                for number in 0..sessions / 8 {
                    let key = key();
                    let user = PrincipalKey::of(&format!("{task} {}", number / 2));
                    insert(&store, &key, &Put::new(vec![7; 1024].into(), ttl).principal(Some(user))).await;
                    keys.push(key);
                }
                keys
            })
        })
        .collect();
    let mut keys = Vec::new();
    for task in tasks {
        keys.extend(task.await.unwrap());
    }
    keys
}

async fn measure<F: Future<Output = ()>>(what: &str, keys: &[StorageKey], run: impl Fn(StorageKey) -> F) {
    let mut times = Vec::new();
    for key in keys {
        let begun = Instant::now();
        run(*key).await;
        times.push(begun.elapsed());
    }
    times.sort_unstable();
    println!("{what:32} p50 {:>8.1?}  p99 {:>8.1?}", times[times.len() / 2], times[times.len() * 99 / 100]);
}

async fn measure_all(store: &FileStore, keys: &[StorageKey]) {
    let large = Duration::from_secs(3600);
    measure("load", keys, async |key| drop(store.load(&key).await.unwrap().unwrap())).await;
    measure("load of what is not there", keys, async |_| {
        assert!(store.load(&key()).await.unwrap().is_none())
    })
    .await;
    measure("load, replace", keys, async |key| {
        let stored = store.load(&key).await.unwrap().unwrap();
        let put = Put::new(stored.data, large).principal(stored.principal);
        assert!(matches!(store.replace(&key, stored.version, &put).await.unwrap(), Replaced::Done(_)));
    })
    .await;
    measure("acquire and load, replace", keys, async |key| {
        let loaded = store.acquire_and_load(&key, token(), large, NO_WAIT).await.unwrap();
        let Loaded::Granted(grant, stored) = loaded else { panic!("{loaded:?}") };
        let put = Put::new(stored.data, large).principal(stored.principal);
        let done = store.replace_and_release(&grant, stored.version, &put).await.unwrap();
        assert!(matches!(done, Replaced::Done(_)));
    })
    .await;
    measure("touch", keys, async |key| {
        let version = store.load(&key).await.unwrap().unwrap().version;
        assert_eq!(store.touch(&key, version, large).await.unwrap(), session_core::Touched::Extended);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement, of minutes"]
async fn hundred_thousand_sessions_stay_fast() {
    let directory = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let hour = Duration::from_secs(3600);
    for (name, durability) in
        [("file", FileDurability::File), ("file and directory", FileDurability::FileAndDirectory)]
    {
        let config = FileConfig::new(directory.path().join(name)).durability(durability);
        let store = FileStore::open(config).unwrap();
        let keys = fill(&store, 400, hour).await;
        println!("-- 400 sessions, durability: {name}");
        measure_all(&store, &keys).await;
    }
    let config = FileConfig::new(directory.path().join("none"));
    let store = FileStore::open(config).unwrap();
    for sessions in [1_000, 99_000] {
        let begun = Instant::now();
        let keys = fill(&store, sessions, hour).await;
        println!("-- {sessions} more sessions in {:.1?}, durability: none", begun.elapsed());
        let sample: Vec<_> = keys.iter().step_by(keys.len() / 1_000).copied().collect();
        measure_all(&store, &sample).await;
        let user = PrincipalKey::of("3 14");
        let begun = Instant::now();
        let found = store.keys_of(&user, None, 100).await.unwrap().keys.len();
        println!("{:32} {:.1?} for {found}", "sessions of a user", begun.elapsed());
        let begun = Instant::now();
        assert_eq!(store.sweep(1_000).await.unwrap().removed, 0);
        println!("{:32} {:.1?}", "a sweep that finds nothing", begun.elapsed());
    }
    println!("fullest directory: {}", fullest(&directory.path().join("none")));
    let begun = Instant::now();
    fill(&store, 10_000, Duration::from_nanos(1)).await;
    println!("-- 10,000 that expire at once in {:.1?}", begun.elapsed());
    let (begun, mut batches, mut longest) = (Instant::now(), 0, Duration::ZERO);
    loop {
        let one = Instant::now();
        let swept = store.sweep(1_000).await.unwrap();
        (batches, longest) = (batches + 1, longest.max(one.elapsed()));
        if !swept.more {
            break;
        }
    }
    println!("{:32} {:.1?} in {batches} batches, the longest {longest:.1?}", "swept", begun.elapsed());
}
