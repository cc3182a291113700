//! Each outcome of each method, in both protocols, from the store that wrote and from another one.

use crate::{common::*, with_server};
use session_core::{
    Deleted, Durability, Effect, ErrorKind, Inserted, Replaced, SessionStore as _, Touched, Version,
};
use session_memcached::MemcachedStore;

#[tokio::test]
async fn records_are_inserted_once_replaced_by_version_and_deleted() {
    let server = with_server!();
    for protocol in BOTH {
        let (one, other) = (store(&server, protocol).await, store(&server, protocol).await);
        let key = new_key();
        assert_eq!(one.load(&key).await.unwrap(), None);

        let first = insert(&one, &key, "one").await;
        assert!(matches!(other.insert(&key, &put("two")).await.unwrap(), Inserted::Exists));
        for store in [&one, &other] {
            let stored = load(store, &key).await;
            assert_eq!((stored.version, stored.data.as_ref()), (first, &b"one"[..]));
            assert!(stored.ttl <= TTL + RESOLUTION && stored.ttl + 2 * RESOLUTION >= TTL, "{stored:?}");
        }

        // By the one that never loaded this version, by the one that did, and one after the other without a
        // load.
        let second = replace(&one, &key, first, "two").await;
        let third = replace(&one, &key, second, "three").await;
        let fourth = replace(&other, &key, third, "four").await;
        assert_eq!(load(&one, &key).await.version, fourth);
        for stale in [first, second, third, Version::from_u64(1), Version::from_bytes([0xff; 16])] {
            for store in [&one, &other] {
                let Replaced::Conflict(fresh) = store.replace(&key, stale, &put("no")).await.unwrap() else {
                    panic!("{stale:?} is stale")
                };
                assert_eq!((fresh.version, fresh.data.as_ref()), (fourth, &b"four"[..]));
            }
        }

        let Deleted::Removed(removed) = other.delete(&key).await.unwrap() else { panic!("it is there") };
        assert_eq!((removed.version, removed.data.as_ref()), (fourth, &b"four"[..]));
        for store in [&one, &other] {
            assert!(matches!(store.delete(&key).await.unwrap(), Deleted::Missing));
            assert!(matches!(store.replace(&key, fourth, &put("no")).await.unwrap(), Replaced::Missing));
            assert_eq!(store.touch(&key, fourth, TTL).await.unwrap(), Touched::Missing);
            assert_eq!(store.load(&key).await.unwrap(), None);
        }

        // Not revived by the old version, when the key is used again against all rules.
        let again = insert(&one, &key, "again").await;
        assert!(matches!(one.replace(&key, fourth, &put("no")).await.unwrap(), Replaced::Conflict(_)));
        assert!(matches!(other.replace(&key, first, &put("no")).await.unwrap(), Replaced::Conflict(_)));
        assert_eq!(load(&other, &key).await.version, again);
    }
}

#[tokio::test]
async fn a_touch_names_a_version_and_keeps_it() {
    let server = with_server!();
    for protocol in BOTH {
        let (one, other) = (store(&server, protocol).await, store(&server, protocol).await);
        let key = new_key();
        let long = TTL * 10;
        let first = insert(&one, &key, "data").await;
        let before = load(&other, &key).await; // whoever loaded it before the touch can still replace it

        for store in [&other, &one, &one] {
            assert_eq!(store.touch(&key, first, long).await.unwrap(), Touched::Extended);
            let touched = load(store, &key).await;
            assert_eq!((touched.version, &touched.data), (first, &before.data));
            assert!(touched.ttl > 2 * TTL && touched.ttl <= long + RESOLUTION, "{touched:?}");
        }
        assert_eq!(one.touch(&key, first, TTL).await.unwrap(), Touched::Extended);
        assert!(load(&one, &key).await.ttl <= TTL + RESOLUTION, "shorter, too");

        let second = replace(&other, &key, before.version, "tombstone").await;
        for store in [&one, &other] {
            assert_eq!(store.touch(&key, first, long).await.unwrap(), Touched::Conflict);
        }
        let after = load(&one, &key).await;
        assert_eq!(after.version, second);
        assert!(after.ttl <= TTL + RESOLUTION, "never prolonged by who took it for another");
    }
}

#[tokio::test]
async fn both_protocols_read_each_other() {
    let server = with_server!();
    let (meta, plain) = (store(&server, BOTH[0]).await, store(&server, BOTH[1]).await);
    let key = new_key();
    let mut version = insert(&meta, &key, "0").await;
    for (writer, data) in
        [(&plain, "1"), (&meta, "2"), (&plain, "3"), (&plain, "4"), (&meta, "5"), (&meta, "6")]
    {
        for toucher in [&meta, &plain] {
            assert_eq!(toucher.touch(&key, version, TTL * 2).await.unwrap(), Touched::Extended);
        }
        version = replace(writer, &key, version, data).await;
        for reader in [&meta, &plain] {
            let stored = load(reader, &key).await;
            assert_eq!((stored.version, stored.data.as_ref()), (version, data.as_bytes()));
        }
        let (grant, _) = lock(writer, &key).await;
        for asker in [&meta, &plain] {
            assert_held(asker, &key).await;
        }
        release(if data == "3" { &meta } else { &plain }, &grant).await;
    }
}

#[tokio::test]
async fn a_damaged_or_foreign_value_is_an_error_and_stays() {
    let server = with_server!();
    for protocol in BOTH {
        let store: MemcachedStore = store(&server, protocol).await;
        let key = new_key();
        let name = data_key(&key);
        for foreign in ["", "x", "somebody else's value of some length, longer than any header is"] {
            let command = format!("set {name} 0 60 {}\r\n{foreign}", foreign.len());
            assert_eq!(server.command(&command).await.unwrap(), "STORED");
            let version = Version::from_u64(1);
            let errors = [
                store.load(&key).await.map(drop).unwrap_err(),
                store.replace(&key, version, &put("no")).await.map(drop).unwrap_err(),
                store.touch(&key, version, TTL).await.map(drop).unwrap_err(),
                store.delete(&key).await.map(drop).unwrap_err(),
                locked(&store, &key).await.map(drop).unwrap_err(),
            ];
            for error in errors {
                assert_eq!((error.kind(), error.effect()), (ErrorKind::Damaged, Effect::None), "{error}");
            }
            assert!(matches!(store.insert(&key, &put("no")).await.unwrap(), Inserted::Exists));
            let found = server.command(&format!("get {name}")).await.unwrap();
            assert_eq!(
                found,
                format!("VALUE {name} 0 {}\n{foreign}\nEND", foreign.len()),
                "it was left as it is"
            );
            let lock = server.command(&format!("get {}", lock_key(&key))).await.unwrap();
            assert_eq!(lock, "END", "and no lock was left behind");
        }
    }
}

#[tokio::test]
async fn capabilities_say_what_memcached_is() {
    let server = with_server!();
    let store = store(&server, BOTH[0]).await;
    let capabilities = store.capabilities();
    assert_eq!(capabilities.durability, Durability::Volatile);
    assert!(capabilities.may_evict && !capabilities.fencing);
    assert_eq!(capabilities.ttl_resolution, RESOLUTION);
    assert!(store.index().is_none() && store.sweeper().is_none());
}
