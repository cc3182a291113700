//! Each verb, each outcome, and which outcome counts when several are true.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that fails panics")]

mod support;

use session_core::{
    Acquired, Deleted, Durability, ErrorKind, Grant, Inserted, Loaded, LockingStore as _, PrincipalKey, Put,
    Released, Renewed, Replaced, SessionIndex as _, SessionLock as _, SessionStore as _, SessionSweeper as _,
    Sessions, Touched, Version,
};
use session_file::{FileConfig, FileDurability, FileStore};
use std::{os::unix::fs::PermissionsExt as _, time::Duration};
use support::*;

#[tokio::test]
async fn what_is_put_is_loaded() {
    let fixture = Fixture::new();
    let (store, key) = (fixture.open(), key());
    assert!(store.load(&key).await.unwrap().is_none());
    for data in [
        vec![],
        vec![0; 1],
        (0..=255).collect(),
        vec![7; 64 << 10],
        vec![9; (64 << 10) + 1],
        vec![1; 3 << 20],
    ] {
        let user = PrincipalKey::of("ann");
        let key = support::key();
        let version = insert(&store, &key, &put(data.clone()).principal(Some(user))).await;
        let stored = store.load(&key).await.unwrap().unwrap();
        assert_eq!((stored.version, stored.ttl, stored.principal), (version, MINUTE, Some(user)));
        assert_eq!(stored.data, data);
        // Another store in another process would see the same.
        assert_eq!(fixture.open().load(&key).await.unwrap().unwrap(), stored);
    }
}

#[tokio::test]
async fn insert_never_replaces_a_live_record() {
    let fixture = Fixture::new();
    let (store, key) = (fixture.open(), key());
    let first = insert(&store, &key, &put("one")).await;
    assert!(matches!(store.insert(&key, &put("two")).await.unwrap(), Inserted::Exists));
    assert_eq!(store.load(&key).await.unwrap().unwrap().data, "one");
    fixture.clock.advance(MINUTE);
    let second = insert(&store, &key, &put("three")).await;
    assert_ne!(first, second, "a version is never used twice");
}

#[tokio::test]
async fn replace_names_the_version_it_replaces() {
    let fixture = Fixture::new();
    let (store, key) = (fixture.open(), key());
    let nobody = Version::from_u64(1);
    assert!(matches!(store.replace(&key, nobody, &put("x")).await.unwrap(), Replaced::Missing));
    let first = insert(&store, &key, &put("one")).await;
    let second = replace(&store, &key, first, &put("two")).await;
    let Replaced::Conflict(fresh) = store.replace(&key, first, &put("three")).await.unwrap() else {
        panic!("stale")
    };
    assert_eq!((fresh.version, &fresh.data[..], fresh.ttl), (second, &b"two"[..], MINUTE));
    assert_eq!(store.load(&key).await.unwrap().unwrap(), fresh);
}

#[tokio::test]
async fn what_has_expired_is_gone_for_every_verb() {
    let fixture = Fixture::new();
    let (store, key) = (fixture.open(), key());
    let version = insert(&store, &key, &put("x")).await;
    fixture.clock.advance(MINUTE - Duration::from_nanos(1));
    assert_eq!(store.load(&key).await.unwrap().unwrap().ttl, Duration::from_nanos(1));
    fixture.clock.advance(Duration::from_nanos(1));
    assert!(store.load(&key).await.unwrap().is_none());
    assert!(matches!(store.replace(&key, version, &put("y")).await.unwrap(), Replaced::Missing));
    assert_eq!(store.touch(&key, version, MINUTE).await.unwrap(), Touched::Missing);
    assert!(matches!(store.acquire_and_load(&key, token(), MINUTE, NO_WAIT).await.unwrap(), Loaded::Missing));
    assert!(matches!(store.delete(&key).await.unwrap(), Deleted::Missing));
    assert_eq!(fixture.session_files(), NONE, "deleting it removed it, and nobody left a lock");
}

#[tokio::test]
async fn touch_moves_the_expiry_alone() {
    let fixture = Fixture::new();
    let (store, key) = (fixture.open(), key());
    let user = PrincipalKey::of("ann");
    let version = insert(&store, &key, &put("x").principal(Some(user))).await;
    let before = store.load(&key).await.unwrap().unwrap();
    fixture.clock.advance(MINUTE / 2);
    assert_eq!(store.touch(&key, Version::from_u64(1), MINUTE).await.unwrap(), Touched::Conflict);
    assert_eq!(store.load(&key).await.unwrap().unwrap().ttl, MINUTE / 2);
    // A lock does not stop it.
    let _grant = acquire(&store, &key, MINUTE).await;
    assert_eq!(store.touch(&key, version, MINUTE).await.unwrap(), Touched::Extended);
    assert_eq!(store.load(&key).await.unwrap().unwrap(), before);
}

#[tokio::test]
async fn long_lives_mean_what_they_say() {
    let fixture = Fixture::new();
    let store = fixture.open();
    for ttl in [Duration::from_hours(24 * 31), Duration::from_hours(24 * 400), Duration::from_nanos(1)] {
        let key = key();
        insert(&store, &key, &Put::new("x".into(), ttl)).await;
        assert_eq!(store.load(&key).await.unwrap().unwrap().ttl, ttl);
    }
    let key = key();
    insert(&store, &key, &Put::new("x".into(), Duration::MAX)).await;
    assert!(store.load(&key).await.unwrap().unwrap().ttl > Duration::from_hours(24 * 365 * 500));
}

#[tokio::test]
async fn destroyed_is_not_revived() {
    let fixture = Fixture::new();
    let (store, key) = (fixture.open(), key());
    let version = insert(&store, &key, &put("x")).await;
    let grant = acquire(&store, &key, MINUTE).await;
    // Whoever holds the lock: destroy wins, and returns what was there.
    let Deleted::Removed(removed) = store.delete(&key).await.unwrap() else { panic!("it was there") };
    assert_eq!((removed.version, &removed.data[..]), (version, &b"x"[..]));
    assert!(matches!(store.delete(&key).await.unwrap(), Deleted::Missing));
    assert!(matches!(store.replace(&key, version, &put("y")).await.unwrap(), Replaced::Missing));
    assert_eq!(store.touch(&key, version, MINUTE).await.unwrap(), Touched::Missing);
    assert!(matches!(
        store.replace_and_release(&grant, version, &put("y")).await.unwrap(),
        Replaced::Missing
    ));
    assert!(store.load(&key).await.unwrap().is_none());
    assert_eq!(store.release(&grant).await.unwrap(), Released::Lost, "Missing has released it");
    assert_eq!(fixture.session_files(), NONE);
}

#[tokio::test]
async fn of_several_true_answers_the_first_counts() {
    let fixture = Fixture::new();
    let (store, key) = (fixture.open(), key());
    let stale = Version::from_u64(1);
    // Missing before NotHolder.
    let theirs = acquire(&store, &key, MINUTE).await;
    assert!(matches!(store.replace(&key, stale, &put("x")).await.unwrap(), Replaced::Missing));
    let nobodys = Grant::new(key, token());
    assert!(matches!(
        store.replace_and_release(&nobodys, stale, &put("x")).await.unwrap(),
        Replaced::Missing
    ));
    // NotHolder before Conflict.
    let version = insert(&store, &key, &put("one")).await;
    for expected in [stale, version] {
        let Replaced::NotHolder(held) = store.replace(&key, expected, &put("x")).await.unwrap() else {
            panic!("the lock is another's")
        };
        assert_eq!(held.retry_after, Some(MINUTE));
        let refused = store.replace_and_release(&nobodys, expected, &put("x")).await.unwrap();
        assert!(matches!(refused, Replaced::NotHolder(held) if held.retry_after == Some(MINUTE)));
    }
    // Conflict before Done, and it keeps the lock.
    assert!(matches!(
        store.replace_and_release(&theirs, stale, &put("x")).await.unwrap(),
        Replaced::Conflict(_)
    ));
    assert!(matches!(
        store.replace_and_release(&theirs, version, &put("two")).await.unwrap(),
        Replaced::Done(_)
    ));
    assert_eq!(store.release(&theirs).await.unwrap(), Released::Lost, "Done has released it");
}

#[tokio::test]
async fn too_large_is_refused_before_anything_happens() {
    let fixture = Fixture::new();
    let store = FileStore::open(fixture.config().max_value(10)).unwrap();
    assert_eq!(store.capabilities().max_value, 10);
    let key = key();
    let version = insert(&store, &key, &put(vec![1; 10])).await;
    let grant = acquire(&store, &key, MINUTE).await;
    let large = put(vec![1; 11]);
    for error in [
        store.insert(&support::key(), &large).await.unwrap_err(),
        store.replace(&key, version, &large).await.unwrap_err(),
        store.replace_and_release(&grant, version, &large).await.unwrap_err(),
    ] {
        assert_eq!(error.kind(), ErrorKind::TooLarge);
        assert_eq!(error.effect(), session_core::Effect::None);
    }
    assert_eq!(store.load(&key).await.unwrap().unwrap().version, version);
    // Another process may allow more; what it wrote is read.
    let generous = fixture.open();
    assert_eq!(store.release(&grant).await.unwrap(), Released::Freed);
    replace(&generous, &key, version, &large).await;
    assert_eq!(store.load(&key).await.unwrap().unwrap().data, large.data);
}

#[tokio::test]
async fn what_is_promised_follows_the_setting() {
    for (setting, promise) in [
        (FileDurability::None, Durability::Restart),
        (FileDurability::File, Durability::Restart),
        (FileDurability::FileAndDirectory, Durability::PowerLoss),
    ] {
        let fixture = Fixture::new();
        let store = FileStore::open(fixture.config().durability(setting)).unwrap();
        let capabilities = store.capabilities();
        assert_eq!(capabilities.durability, promise);
        assert!(capabilities.fencing && !capabilities.may_evict);
        // And every verb works with it.
        let (key, user) = (key(), PrincipalKey::of("ann"));
        let version = insert(&store, &key, &put("one").principal(Some(user))).await;
        let version = replace(&store, &key, version, &put("two")).await;
        assert_eq!(store.touch(&key, version, MINUTE).await.unwrap(), Touched::Extended);
        assert!(matches!(store.delete(&key).await.unwrap(), Deleted::Removed(_)));
        assert_eq!(fixture.session_files(), NONE);
    }
}

#[tokio::test]
async fn everything_is_for_its_owner_alone() {
    let fixture = Fixture::new();
    let (store, key) = (fixture.open(), key());
    insert(&store, &key, &put("x").principal(Some(PrincipalKey::of("ann")))).await;
    let _grant = acquire(&store, &key, MINUTE).await;
    let mut seen = 0;
    let mut directories = vec![fixture.root()];
    while let Some(directory) = directories.pop() {
        assert_eq!(directory.metadata().unwrap().permissions().mode() & 0o777, 0o700, "{directory:?}");
        for entry in directory.read_dir().unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                directories.push(path);
            } else {
                let mode = path.metadata().unwrap().permissions().mode() & 0o777;
                assert_eq!(mode, 0o600, "{path:?}");
                seen += 1;
            }
        }
    }
    assert_eq!(seen, 5, "format, owner, record, lock, index");
}

#[tokio::test]
async fn a_directory_of_another_layout_is_refused() {
    let fixture = Fixture::new();
    drop(fixture.open());
    for content in ["session-file 2\n", "", "session-file 1", "something else altogether"] {
        std::fs::write(fixture.root().join("format"), content).unwrap();
        let error = FileStore::open(fixture.config()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid, "{content:?}");
        assert_eq!(
            std::fs::read(fixture.root().join("format")).unwrap(),
            content.as_bytes(),
            "left as it is"
        );
    }
    let error = FileStore::open(FileConfig::new("/proc/no/such/place")).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::Backend), "{error}");
}

/// Moved away, or mounted over: that is no answer to the question what is in it.
#[tokio::test]
async fn a_store_that_is_out_of_reach_is_not_empty() {
    let fixture = Fixture::new();
    let store = fixture.open();
    let sessions = Sessions::builder(store.clone()).build().unwrap();
    let session = sessions.create();
    session.set_principal("ann").unwrap();
    session.commit().await.unwrap();
    let (id, root) = (session.id().unwrap(), fixture.root());
    // The kernel remembers what it did not find.
    assert!(store.load(&key()).await.unwrap().is_none());
    std::fs::rename(&root, root.with_extension("moved")).unwrap();
    for over in [false, true] {
        if over {
            std::fs::create_dir(&root).unwrap();
        }
        for _ in 0..2 {
            let errors = [
                store.load(&id.storage_key()).await.unwrap_err(),
                store.keys_of(&PrincipalKey::of("ann"), None, 10).await.unwrap_err(),
                store.sweep(10).await.unwrap_err(),
                sessions.read(&id).await.unwrap_err(),
                sessions.destroy(&id).await.unwrap_err(),
                sessions.revoke_all("ann").await.unwrap_err(),
            ];
            for error in errors {
                assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
            }
        }
    }
    std::fs::remove_dir(&root).unwrap();
    std::fs::rename(root.with_extension("moved"), &root).unwrap();
    assert_eq!(sessions.revoke_all("ann").await.unwrap(), 1);
}

/// A link to the directory, and one above it: followed once, so that nobody moves an open store.
#[tokio::test]
async fn links_on_the_way_are_followed_when_the_store_is_opened() {
    for durability in [FileDurability::None, FileDurability::FileAndDirectory] {
        let fixture = Fixture::new();
        let (real, link) = (fixture.directory.path().join("real"), fixture.directory.path().join("link"));
        std::fs::create_dir(&real).unwrap();
        std::os::unix::fs::symlink(&real, &link).unwrap();
        for (root, place) in [(link.join("new"), real.join("new")), (link.clone(), real)] {
            let store = FileStore::open(FileConfig::new(root).durability(durability)).unwrap();
            assert_eq!(std::fs::read(place.join("format")).unwrap(), b"session-file 1\n");
            std::fs::rename(&link, link.with_extension("moved")).unwrap();
            let key = key();
            insert(&store, &key, &put("x")).await;
            assert_eq!(store.load(&key).await.unwrap().unwrap().data, "x");
            std::fs::rename(link.with_extension("moved"), &link).unwrap();
        }
    }
}

#[tokio::test]
async fn a_lease_is_renewed_by_its_holder_alone() {
    let fixture = Fixture::new();
    let (store, key) = (fixture.open(), key());
    let grant = acquire(&store, &key, MINUTE).await;
    fixture.lease_clock.advance(MINUTE / 2);
    let stranger = Grant::new(key, token());
    assert_eq!(store.renew(&stranger, MINUTE * 9).await.unwrap(), Renewed::Lost);
    assert_eq!(store.release(&stranger).await.unwrap(), Released::Lost);
    let Acquired::Held(held) = store.acquire(&key, token(), MINUTE, NO_WAIT).await.unwrap() else {
        panic!("it is held")
    };
    assert_eq!(held.retry_after, Some(MINUTE / 2));
    assert_eq!(store.renew(&grant, MINUTE).await.unwrap(), Renewed::Extended);
    fixture.lease_clock.advance(MINUTE - Duration::from_nanos(1));
    assert!(matches!(store.acquire(&key, token(), MINUTE, NO_WAIT).await.unwrap(), Acquired::Held(_)));
    fixture.lease_clock.advance(Duration::from_nanos(1));
    assert_eq!(store.renew(&grant, MINUTE).await.unwrap(), Renewed::Lost, "too late, though nobody took it");
    assert_eq!(store.release(&grant).await.unwrap(), Released::Lost);
    let next = acquire(&store, &key, MINUTE).await;
    assert_eq!(store.release(&next).await.unwrap(), Released::Freed);
    assert_eq!(fixture.session_files(), NONE);
}

#[tokio::test]
async fn asking_again_with_the_same_token_is_one_request() {
    let fixture = Fixture::new();
    let (store, key, mine) = (fixture.open(), key(), token());
    insert(&store, &key, &put("x")).await;
    for _ in 0..2 {
        assert!(matches!(store.acquire(&key, mine, MINUTE, NO_WAIT).await.unwrap(), Acquired::Granted(_)));
        let loaded = store.acquire_and_load(&key, mine, MINUTE, NO_WAIT).await.unwrap();
        assert!(matches!(loaded, Loaded::Granted(_, stored) if stored.data == "x"));
    }
    let grant = Grant::new(key, mine);
    assert_eq!(store.release(&grant).await.unwrap(), Released::Freed);
    assert_eq!(store.release(&grant).await.unwrap(), Released::Lost);
}

#[tokio::test]
async fn a_lease_that_ran_out_is_refused_though_nobody_took_it() {
    let fixture = Fixture::new();
    let (store, key) = (fixture.open(), key());
    let version = insert(&store, &key, &put("one")).await;
    let late = acquire(&store, &key, MINUTE / 2).await;
    fixture.lease_clock.advance(MINUTE / 2);
    let refused = store.replace_and_release(&late, version, &put("late")).await.unwrap();
    assert!(matches!(refused, Replaced::NotHolder(held) if held.retry_after.is_none()), "{refused:?}");
    // A plain write is free again, and a delete by the late one still wins.
    replace(&store, &key, version, &put("two")).await;
    assert!(matches!(store.delete_and_release(&late).await.unwrap(), Deleted::Removed(_)));
    assert_eq!(fixture.session_files(), NONE);
}

#[tokio::test]
async fn a_stale_holder_touches_nobody_elses_lock() {
    let fixture = Fixture::new();
    let (store, key) = (fixture.open(), key());
    insert(&store, &key, &put("one")).await;
    let late = acquire(&store, &key, MINUTE / 2).await;
    fixture.lease_clock.advance(MINUTE / 2);
    let next = acquire(&store, &key, MINUTE).await;
    assert_eq!(store.release(&late).await.unwrap(), Released::Lost);
    assert_eq!(store.renew(&late, Duration::from_millis(1)).await.unwrap(), Renewed::Lost);
    assert!(matches!(store.delete_and_release(&late).await.unwrap(), Deleted::Removed(_)));
    assert_eq!(store.renew(&next, MINUTE).await.unwrap(), Renewed::Extended);
}

#[tokio::test]
async fn what_nobody_issued_leaves_no_lock() {
    let fixture = Fixture::new();
    let (store, key, mine) = (fixture.open(), key(), token());
    assert!(matches!(store.acquire_and_load(&key, mine, MINUTE, MINUTE).await.unwrap(), Loaded::Missing));
    // Not even one that was there: its token gives it back.
    assert!(matches!(store.acquire(&key, mine, MINUTE, NO_WAIT).await.unwrap(), Acquired::Granted(_)));
    assert!(matches!(store.acquire_and_load(&key, mine, MINUTE, MINUTE).await.unwrap(), Loaded::Missing));
    assert_eq!(fixture.session_files(), NONE);
}

#[tokio::test]
async fn delete_and_release_lets_the_next_one_in_to_find_nothing() {
    let fixture = Fixture::new();
    let (store, key) = (fixture.open(), key());
    insert(&store, &key, &put("one")).await;
    let grant = acquire(&store, &key, MINUTE).await;
    assert!(matches!(store.delete_and_release(&grant).await.unwrap(), Deleted::Removed(_)));
    assert!(matches!(store.acquire_and_load(&key, token(), MINUTE, NO_WAIT).await.unwrap(), Loaded::Missing));
    assert!(matches!(store.delete_and_release(&grant).await.unwrap(), Deleted::Missing));
    assert_eq!(fixture.session_files(), NONE);
}
