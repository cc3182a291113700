//! Sessions by user, and what is left after a sweep.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that fails panics")]

mod support;

use bytes::Bytes;
use session_core::{
    Deleted, ErrorKind, PrincipalKey, SessionIndex as _, SessionLock as _, SessionStore as _,
    SessionSweeper as _, StorageKey,
};
use session_file::FileStore;
use std::{collections::BTreeSet, fs, io, path::PathBuf, time::Duration};
use support::{hooked::Hooked, *};

async fn all_keys(store: &FileStore, user: &PrincipalKey, limit: usize) -> BTreeSet<StorageKey> {
    let mut keys = BTreeSet::new();
    let mut after = None;
    loop {
        let page = store.keys_of(user, after, limit).await.unwrap();
        assert!(page.keys.len() <= limit);
        for key in page.keys {
            assert!(keys.insert(key), "twice");
        }
        match page.next {
            Some(next) => after = Some(next),
            None => return keys,
        }
    }
}

fn entry(fixture: &Fixture, user: &PrincipalKey, key: &StorageKey) -> PathBuf {
    let (user, key) = (user.to_string(), key.to_string());
    fixture.root().join("users").join(&user[..2]).join(&key[63..]).join(format!("{user}.{key}"))
}

#[tokio::test]
async fn the_index_follows_the_records() {
    let fixture = Fixture::new();
    let store = fixture.open();
    let (ann, bob) = (PrincipalKey::of("ann"), PrincipalKey::of("bob"));
    let mut anns = BTreeSet::new();
    for _ in 0..50 {
        let key = key();
        insert(&store, &key, &put("x").principal(Some(ann))).await;
        anns.insert(key);
        insert(&store, &support::key(), &put("x")).await;
        insert(&store, &support::key(), &put("x").principal(Some(bob))).await;
    }
    for limit in [1, 7, 49, 50, 51, 1000] {
        assert_eq!(all_keys(&store, &ann, limit).await, anns, "pages of {limit}");
    }
    assert_eq!(all_keys(&store, &PrincipalKey::of("carl"), 10).await, BTreeSet::new());

    let [one, two, three] = *anns.iter().take(3).collect::<Vec<_>>() else { panic!("50 keys") };
    let (one, two, three) = (*one, *two, *three);
    let version = store.load(&one).await.unwrap().unwrap().version;
    let version = replace(&store, &one, version, &put("y").principal(Some(ann))).await;
    assert!(all_keys(&store, &ann, 7).await.contains(&one));
    replace(&store, &one, version, &put("y").principal(Some(bob))).await;
    let version = store.load(&two).await.unwrap().unwrap().version;
    replace(&store, &two, version, &put("y")).await;
    assert!(matches!(store.delete(&three).await.unwrap(), Deleted::Removed(_)));
    let left: BTreeSet<_> = anns.iter().filter(|key| ![one, two, three].contains(key)).copied().collect();
    assert_eq!(all_keys(&store, &ann, 10).await, left);
    assert!(all_keys(&store, &bob, 10).await.contains(&one));
}

#[tokio::test]
async fn pages_are_stable_while_sessions_come_and_go() {
    let fixture = Fixture::new();
    let store = fixture.open();
    let ann = PrincipalKey::of("ann");
    let mut stay = BTreeSet::new();
    for _ in 0..40 {
        let key = key();
        insert(&store, &key, &put("x").principal(Some(ann))).await;
        stay.insert(key);
    }
    let mut seen = Vec::new();
    let mut after: Option<Bytes> = None;
    loop {
        let (come, go) = (key(), key());
        insert(&store, &come, &put("x").principal(Some(ann))).await;
        insert(&store, &go, &put("x").principal(Some(ann))).await;
        let page = store.keys_of(&ann, after, 3).await.unwrap();
        seen.extend(page.keys.iter().filter(|key| stay.contains(key)).copied());
        assert!(matches!(store.delete(&go).await.unwrap(), Deleted::Removed(_)));
        // The page's own end may be deleted before the next page is asked for.
        match page.next {
            Some(next) => after = Some(next),
            None => break,
        }
    }
    assert_eq!(seen.len(), stay.len(), "each once");
    assert_eq!(seen.into_iter().collect::<BTreeSet<_>>(), stay);
}

#[tokio::test]
async fn what_is_no_page_is_refused() {
    let store = Fixture::new().open();
    let error = store.keys_of(&PrincipalKey::of("ann"), Some("nonsense".into()), 10).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
}

#[tokio::test]
async fn a_sweep_leaves_nothing_of_what_has_expired() {
    let fixture = Fixture::new();
    let store = fixture.open();
    for number in 0..100 {
        let key = key();
        let user = (number % 2 == 0).then(|| PrincipalKey::of(&number.to_string()));
        insert(&store, &key, &put("x").principal(user)).await;
        if number % 3 == 0 {
            let _left_behind = acquire(&store, &key, MINUTE / 2).await;
        }
    }
    // Locks of sessions that never were, or are no more.
    let gone = key();
    insert(&store, &gone, &put("x")).await;
    let _locks = (acquire(&store, &key(), MINUTE / 2).await, acquire(&store, &gone, MINUTE / 2).await);
    assert!(matches!(store.delete(&gone).await.unwrap(), Deleted::Removed(_)));
    fixture.clock.advance(MINUTE);
    fixture.lease_clock.advance(MINUTE);
    let mut removed = 0;
    let mut batches = 0;
    loop {
        let swept = store.sweep(7).await.unwrap();
        assert!(swept.removed <= 7);
        (removed, batches) = (removed + swept.removed, batches + 1);
        if !swept.more {
            break;
        }
        assert_eq!(swept.removed, 7);
    }
    assert_eq!((removed, batches), (100, 15));
    assert_eq!(fixture.session_files(), NONE);
}

#[tokio::test]
async fn more_says_whether_there_is_more() {
    let fixture = Fixture::new();
    let store = fixture.open();
    for _ in 0..10 {
        insert(&store, &key(), &put("x")).await;
    }
    assert_eq!(store.sweep(10).await.unwrap(), session_core::Swept::default(), "all are alive");
    fixture.clock.advance(MINUTE);
    let none = store.sweep(0).await.unwrap();
    assert_eq!((none.removed, none.more), (0, true));
    let all = store.sweep(10).await.unwrap();
    assert_eq!((all.removed, all.more), (10, false), "exactly the limit is not more");
    assert_eq!(store.sweep(10).await.unwrap(), session_core::Swept::default());
}

#[tokio::test]
async fn a_sweep_spares_the_living() {
    let fixture = Fixture::new();
    let store = fixture.open();
    let (old, touched, young, user) = (key(), key(), key(), PrincipalKey::of("ann"));
    insert(&store, &old, &put("old").principal(Some(user))).await;
    let version = insert(&store, &touched, &put("touched").principal(Some(user))).await;
    fixture.clock.advance(MINUTE / 2);
    assert_eq!(store.touch(&touched, version, MINUTE).await.unwrap(), session_core::Touched::Extended);
    insert(&store, &young, &put("young").principal(Some(user))).await;
    let grant = acquire(&store, &young, MINUTE).await;
    fixture.clock.advance(MINUTE / 2);
    assert_eq!(store.sweep(10).await.unwrap().removed, 1);
    assert_eq!(store.load(&touched).await.unwrap().unwrap().data, "touched");
    assert_eq!(store.load(&young).await.unwrap().unwrap().data, "young");
    assert_eq!(all_keys(&store, &user, 10).await, BTreeSet::from([touched, young]));
    assert_eq!(store.renew(&grant, MINUTE).await.unwrap(), session_core::Renewed::Extended);
}

#[tokio::test]
async fn a_sweep_cleans_up_after_crashes() {
    let fixture = Fixture::new();
    let store = fixture.open();
    let (live, ann, bob) = (key(), PrincipalKey::of("ann"), PrincipalKey::of("bob"));
    insert(&store, &live, &put("x").principal(Some(ann))).await;
    let entry = |user: &PrincipalKey, key: &StorageKey| entry(&fixture, user, key);
    assert!(entry(&ann, &live).exists());
    // An index written before a record that never came, and one that was to be removed after.
    for path in [entry(&bob, &live), entry(&bob, &key()), entry(&ann, &key())] {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "").unwrap();
    }
    // A record that was never renamed into place, a lock that was never finished, and the files of the dead.
    fs::write(fixture.new_record_path(&key()).with_extension("tmp"), "half").unwrap();
    fs::write(fixture.record_path(&live).with_extension("tmp"), "half").unwrap();
    fs::write(fixture.lock_path(&live), "").unwrap();
    fs::write(fixture.root().join("owners/00000000000000000000000000000000"), "").unwrap();
    let other = fixture.open();
    assert_eq!(store.sweep(10).await.unwrap(), session_core::Swept::default());
    assert_eq!(
        fixture.session_files().into_iter().collect::<BTreeSet<_>>(),
        BTreeSet::from([fixture.record_path(&live), entry(&ann, &live)])
    );
    assert_eq!(files_in(&fixture.root().join("owners")).len(), 2, "the two that are open");
    drop(other);
    assert_eq!(files_in(&fixture.root().join("owners")).len(), 1, "closing is tidy");
    assert_eq!(store.load(&live).await.unwrap().unwrap().ttl, Duration::from_secs(60));
}

/// Of each kind something that cannot be read or removed, where a sweep comes first; what is behind it goes,
/// and does so within the limit.
#[tokio::test]
async fn what_cannot_be_removed_is_passed() {
    const NO_ACCESS: i32 = 13;
    let fixture = Fixture::new();
    let sound = fixture.open();
    let in_first = |last: u8| {
        let mut key = [0; 32];
        key[31] = last;
        StorageKey::from_bytes(key)
    };
    let (first, last) = (PrincipalKey::from_bytes([0; 32]), PrincipalKey::from_bytes([0xff; 32]));
    for number in 0..20 {
        insert(&sound, &in_first(number), &put("x").principal(Some(first))).await;
        insert(&sound, &key(), &put("x").principal(Some(last))).await;
        fs::write(fixture.lock_path(&in_first(100 + number)), "").unwrap();
        fs::write(fixture.root().join(format!("owners/{number:032x}")), "").unwrap();
    }
    for (user, number) in (240..=255).flat_map(|number| [(first, number), (last, number)]) {
        let entry = entry(&fixture, &user, &in_first(number));
        fs::create_dir_all(entry.parent().unwrap()).unwrap();
        fs::write(entry, "").unwrap();
    }
    fs::create_dir(fixture.lock_path(&in_first(201))).unwrap();
    fs::create_dir(fixture.record_path(&in_first(202)).with_extension("tmp")).unwrap();
    fixture.clock.advance(MINUTE);

    let (record, lock) = (fixture.record_path(&in_first(7)), fixture.lock_path(&in_first(107)));
    let (of_record, user) = (entry(&fixture, &first, &in_first(7)), entry(&fixture, &first, &in_first(248)));
    let owner = fixture.root().join(format!("owners/{:032x}", 7));
    let left = BTreeSet::from([record.clone(), of_record, lock.clone(), user.clone()]);
    let (directory, dead) = (user.parent().unwrap().to_owned(), owner.clone());
    let fs = Hooked::new(move |call| {
        let stuck = call.is("remove_file", &record)
            || call.is("open", &lock)
            || call.is("list", &directory)
            || call.is("open", &dead);
        if stuck { Err(io::Error::from_raw_os_error(NO_ACCESS)) } else { Ok(()) }
    });
    let store = FileStore::open(fixture.config().fs(fs)).unwrap();
    let mut records = 40;
    while records > 1 {
        let before = records;
        let swept = store.sweep(1).await;
        records = fixture.session_files().iter().filter(|path| path.extension().is_none()).count();
        assert_eq!(before - records, 1, "{swept:?}");
    }
    let error = store.sweep(1).await.unwrap_err();
    assert_eq!((error.kind(), error.effect()), (ErrorKind::Backend, session_core::Effect::None));
    assert_eq!(fixture.session_files().into_iter().collect::<BTreeSet<_>>(), left);
    let owners = files_in(&fixture.root().join("owners"));
    assert!(owners.len() == 3 && owners.contains(&owner), "the two that are open, and it: {owners:?}");
}
