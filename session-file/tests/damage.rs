//! What is not a record of ours, whole, is an error of its own kind, stays where it is, and is never
//! overwritten.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that fails panics")]

#[path = "support/inputs.rs"]
mod inputs;
mod support;

use session_core::{
    ErrorKind, LockingStore as _, PrincipalKey, SessionLock as _, SessionStore as _, SessionSweeper as _,
    StorageKey, Version,
};
use session_file::FileStore;
use std::fs;
use support::*;

/// Every verb says so, and the file is as it was.
async fn assert_damaged(store: &FileStore, fixture: &Fixture, key: &StorageKey, what: &str) {
    let path = fixture.record_path(key);
    let before = fs::read(&path).ok();
    let version = Version::from_u64(1);
    let mut errors = vec![
        store.load(key).await.unwrap_err(),
        store.insert(key, &put("new")).await.unwrap_err(),
        store.replace(key, version, &put("new")).await.unwrap_err(),
        store.touch(key, version, MINUTE).await.unwrap_err(),
        store.delete(key).await.unwrap_err(),
        store.acquire_and_load(key, token(), MINUTE, NO_WAIT).await.unwrap_err(),
    ];
    let grant = acquire(store, key, MINUTE).await;
    errors.push(store.replace_and_release(&grant, version, &put("new")).await.unwrap_err());
    errors.push(store.delete_and_release(&grant).await.unwrap_err());
    assert_eq!(
        store.release(&grant).await.unwrap(),
        session_core::Released::Freed,
        "an error keeps the lock"
    );
    for error in errors {
        assert_eq!(error.kind(), ErrorKind::Damaged, "{what}: {error}");
        assert_eq!(error.effect(), session_core::Effect::None, "{what}: {error}");
        assert!(error.context().unwrap().contains(&key.to_string()), "it says where: {error}");
    }
    assert_eq!(fs::read(&path).ok(), before, "{what}");
    assert!(path.symlink_metadata().is_ok(), "{what}");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_damaged_byte_is_an_error() {
    let fixture = Fixture::new();
    let (store, key) = (fixture.open(), key());
    insert(&store, &key, &put("some data").principal(Some(PrincipalKey::of("ann")))).await;
    let path = fixture.record_path(&key);
    let good = fs::read(&path).unwrap();
    for at in 0..good.len() {
        let mut bad = good.clone();
        bad[at] ^= 1 << (at % 8);
        fs::write(&path, &bad).unwrap();
        assert_damaged(&store, &fixture, &key, &format!("byte {at}")).await;
        fs::write(&path, &good[..at]).unwrap();
        assert_damaged(&store, &fixture, &key, &format!("cut at {at}")).await;
    }
    for extra in [&b"\0"[..], b"more", &good] {
        fs::write(&path, [&good, extra].concat()).unwrap();
        assert_damaged(&store, &fixture, &key, "appended").await;
    }
    fs::write(&path, &good).unwrap();
    assert_eq!(store.load(&key).await.unwrap().unwrap().data, "some data", "and whole again");
}

/// Inputs of every length, by xorshift: the same ones each time. The fuzzer has others.
#[test]
fn any_bytes_are_a_record_or_an_error() {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut byte = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[3]
    };
    for number in 0..600 {
        let input: Vec<u8> = (0..number / 3).map(|_| byte()).collect();
        inputs::record_file(&input);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn large_records_are_judged_before_they_are_read() {
    let fixture = Fixture::new();
    let (store, key) = (fixture.open(), key());
    insert(&store, &key, &put(vec![5; 200_000])).await;
    let path = fixture.record_path(&key);
    let good = fs::read(&path).unwrap();
    for at in [0, 4, 5, 20, 30, 64, 67, 70, 72, 65_535, 65_536, good.len() - 1] {
        let mut bad = good.clone();
        bad[at] ^= 0x40;
        fs::write(&path, &bad).unwrap();
        assert_damaged(&store, &fixture, &key, &format!("byte {at}")).await;
    }
    // A terabyte of nothing: no memory is asked for.
    fs::File::create(&path).unwrap().set_len(1 << 40).unwrap();
    let error = store.load(&key).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Damaged);
}

#[tokio::test(flavor = "multi_thread")]
async fn another_sessions_record_is_damaged_here() {
    let fixture = Fixture::new();
    let (store, one, two) = (fixture.open(), key(), key());
    insert(&store, &one, &put("one's")).await;
    fs::copy(fixture.record_path(&one), fixture.new_record_path(&two)).unwrap();
    assert_damaged(&store, &fixture, &two, "copied").await;
    assert_eq!(store.load(&one).await.unwrap().unwrap().data, "one's");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_file_is_damaged() {
    let fixture = Fixture::new();
    let store = fixture.open();
    let (directory, link, pipe) = (key(), key(), key());
    fs::create_dir(fixture.new_record_path(&directory)).unwrap();
    assert_damaged(&store, &fixture, &directory, "a directory").await;
    let elsewhere = fixture.directory.path().join("elsewhere");
    fs::write(&elsewhere, "x").unwrap();
    std::os::unix::fs::symlink(&elsewhere, fixture.new_record_path(&link)).unwrap();
    assert_damaged(&store, &fixture, &link, "a link").await;
    let made = std::process::Command::new("mkfifo").arg(fixture.new_record_path(&pipe)).status().unwrap();
    assert!(made.success());
    // Not read: that would wait for a writer, in this test too.
    assert_eq!(store.load(&pipe).await.unwrap_err().kind(), ErrorKind::Damaged);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sweep_leaves_what_is_damaged_or_foreign() {
    let fixture = Fixture::new();
    let store = fixture.open();
    let mut damaged = Vec::new();
    for at in [0, 5, 30, 40, 68, 75] {
        let key = key();
        insert(&store, &key, &put("some data").principal(Some(PrincipalKey::of("ann")))).await;
        let path = fixture.record_path(&key);
        let mut bytes = fs::read(&path).unwrap();
        bytes[at] ^= 1;
        fs::write(&path, bytes).unwrap();
        damaged.push(path);
    }
    let root = fixture.root();
    let foreign = ["README", "records/notes", "records/3f/backup.tar", "users/b2/7/x", "owners/someone"];
    for path in foreign.map(|path| root.join(path)) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "not ours").unwrap();
    }
    fixture.clock.advance(MINUTE * 2);
    let swept = store.sweep(1).await.unwrap();
    assert_eq!((swept.removed, swept.more), (0, false), "they do not count against the limit either");
    assert!(damaged.iter().all(|path| path.exists()));
    for path in foreign.map(|path| root.join(path)) {
        assert_eq!(fs::read(path).unwrap(), b"not ours");
    }
}
