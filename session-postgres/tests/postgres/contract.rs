//! Every outcome of every verb, in every way to lock and to send.

use crate::support::*;
use session_core::{
    Acquired, Deleted, Durability, Effect, ErrorKind, Grant, Inserted, Loaded, LockingStore as _,
    PrincipalKey, Put, Released, Renewed, Replaced, SessionIndex as _, SessionLock as _, SessionStore as _,
    SessionSweeper as _, Touched, Version,
};
use session_postgres::{PostgresConfig, PostgresStore};
use std::time::Duration;

const SHORT: Duration = Duration::from_millis(60);

async fn in_every_way(test: impl AsyncFn(PostgresStore)) {
    let Some(server) = shared().await else { return };
    for (mode, statements) in WAYS {
        eprintln!("{mode:?}, {statements:?}");
        test(PostgresStore::connect(config(&server, mode).statements(statements)).await.unwrap()).await;
    }
}

#[tokio::test]
async fn a_record_lives_from_insert_to_delete() {
    in_every_way(async |store| {
        let principal = Some(PrincipalKey::of("user"));
        let (key, bytes) = (key(), (0..=255).collect::<Vec<u8>>());
        assert_eq!(store.load(&key).await.unwrap(), None);
        assert!(matches!(store.delete(&key).await.unwrap(), Deleted::Missing));
        let put = Put::new(bytes.clone().into(), TTL).principal(principal);
        let Inserted::Created(version) = store.insert(&key, &put).await.unwrap() else { panic!() };
        assert!(matches!(store.insert(&key, &put).await.unwrap(), Inserted::Exists));
        let stored = store.load(&key).await.unwrap().unwrap();
        assert_eq!(
            (stored.version, stored.data.as_ref(), stored.principal),
            (version, bytes.as_slice(), principal)
        );
        assert!(stored.ttl <= TTL && stored.ttl > TTL - Duration::from_secs(5), "{:?}", stored.ttl);
        let Deleted::Removed(removed) = store.delete(&key).await.unwrap() else { panic!() };
        assert_eq!((removed.version, removed.data), (version, stored.data));
        assert_eq!(store.load(&key).await.unwrap(), None);
    })
    .await;
}

#[tokio::test]
async fn a_write_names_the_version_that_it_replaces() {
    in_every_way(async |store| {
        let (key, first) = created(&store, "one").await;
        let Replaced::Done(second) = store.replace(&key, first, &put("two")).await.unwrap() else { panic!() };
        let Replaced::Conflict(fresh) = store.replace(&key, first, &put("three")).await.unwrap() else {
            panic!()
        };
        assert_eq!((fresh.version, fresh.data.as_ref()), (second, b"two".as_slice()));
        assert_eq!(store.touch(&key, first, TTL).await.unwrap(), Touched::Conflict);
        assert_eq!(store.touch(&key, second, TTL * 2).await.unwrap(), Touched::Extended);
        let stored = store.load(&key).await.unwrap().unwrap();
        assert_eq!((stored.version, stored.data.as_ref()), (second, b"two".as_slice()));
        assert!(stored.ttl > TTL);
        assert!(matches!(store.delete(&key).await.unwrap(), Deleted::Removed(_)));
        assert!(matches!(store.replace(&key, second, &put("four")).await.unwrap(), Replaced::Missing));
        assert_eq!(store.touch(&key, second, TTL).await.unwrap(), Touched::Missing);
        assert_eq!(store.load(&key).await.unwrap(), None);
    })
    .await;
}

#[tokio::test]
async fn what_has_expired_does_not_exist() {
    in_every_way(async |store| {
        let key = key();
        let short = Put::new("short".into(), SHORT).principal(Some(PrincipalKey::of("user")));
        let Inserted::Created(version) = store.insert(&key, &short).await.unwrap() else { panic!() };
        let (grant, stored) = locked(&store, &key).await;
        assert!(stored.ttl <= SHORT);
        tokio::time::sleep(SHORT).await;
        assert_eq!(store.load(&key).await.unwrap(), None);
        assert_eq!(store.touch(&key, version, TTL).await.unwrap(), Touched::Missing);
        assert!(matches!(store.replace(&key, version, &put("x")).await.unwrap(), Replaced::Missing));
        assert!(matches!(store.delete(&key).await.unwrap(), Deleted::Missing));
        assert!(store.keys_of(&PrincipalKey::of("user"), None, 9).await.unwrap().keys.is_empty());
        // Missing comes before everything else, and frees the lock.
        assert!(matches!(
            store.replace_and_release(&grant, version, &put("x")).await.unwrap(),
            Replaced::Missing
        ));
        assert_eq!(store.release(&grant).await.unwrap(), Released::Lost);
        let asked = store.acquire_and_load(&key, token(), LEASE, NO_WAIT).await.unwrap();
        assert!(matches!(asked, Loaded::Missing));
        // The place is free for a new one.
        assert!(matches!(store.insert(&key, &put("new")).await.unwrap(), Inserted::Created(_)));
    })
    .await;
}

#[tokio::test]
async fn a_lock_excludes_and_fences() {
    in_every_way(async |store| {
        let (key, version) = created(&store, "one").await;
        let (grant, stored) = locked(&store, &key).await;
        assert_eq!(stored.version, version);
        // Another neither gets the lock nor writes.
        let Loaded::Held(held) = store.acquire_and_load(&key, token(), LEASE, NO_WAIT).await.unwrap() else {
            panic!()
        };
        assert!(held.retry_after.unwrap() <= LEASE);
        let Replaced::NotHolder(_) = store.replace(&key, version, &put("two")).await.unwrap() else {
            panic!()
        };
        let Replaced::NotHolder(_) = store.replace(&key, Version::from_u64(1), &put("two")).await.unwrap()
        else {
            panic!()
        };
        let foreign = Grant::new(key, token());
        let Replaced::NotHolder(_) = store.replace_and_release(&foreign, version, &put("x")).await.unwrap()
        else {
            panic!()
        };
        assert_eq!(store.release(&foreign).await.unwrap(), Released::Lost);
        assert_eq!(store.renew(&foreign, LEASE).await.unwrap(), Renewed::Lost);
        // A touch is no write.
        assert_eq!(store.touch(&key, version, TTL).await.unwrap(), Touched::Extended);
        // The holder: asks again, renews, is refused once, keeps the lock, writes, and has it no more.
        let Loaded::Granted(again, _) =
            store.acquire_and_load(&key, *grant.token(), LEASE, NO_WAIT).await.unwrap()
        else {
            panic!()
        };
        assert_eq!(again, grant);
        assert_eq!(store.renew(&grant, LEASE).await.unwrap(), Renewed::Extended);
        let wrong = Version::from_u64(1);
        let Replaced::Conflict(fresh) = store.replace_and_release(&grant, wrong, &put("x")).await.unwrap()
        else {
            panic!()
        };
        assert_eq!((fresh.version, fresh.data.as_ref()), (version, b"one".as_slice()));
        let Loaded::Held(_) = store.acquire_and_load(&key, token(), LEASE, NO_WAIT).await.unwrap() else {
            panic!()
        };
        let Replaced::Done(second) = store.replace_and_release(&grant, version, &put("two")).await.unwrap()
        else {
            panic!()
        };
        assert_eq!(store.release(&grant).await.unwrap(), Released::Lost);
        let Replaced::NotHolder(_) = store.replace_and_release(&grant, second, &put("x")).await.unwrap()
        else {
            panic!()
        };
        let (grant, stored) = locked(&store, &key).await;
        assert_eq!((stored.version, stored.data.as_ref()), (second, b"two".as_slice()));
        assert_eq!(store.release(&grant).await.unwrap(), Released::Freed);
        assert_eq!(store.release(&grant).await.unwrap(), Released::Lost);
        assert!(matches!(store.replace(&key, second, &put("three")).await.unwrap(), Replaced::Done(_)));
    })
    .await;
}

#[tokio::test]
async fn a_lease_that_ran_out_is_worth_nothing() {
    in_every_way(async |store| {
        let (key, version) = created(&store, "one").await;
        let Acquired::Granted(grant) = store.acquire(&key, token(), SHORT, NO_WAIT).await.unwrap() else {
            panic!()
        };
        tokio::time::sleep(SHORT + Duration::from_millis(1)).await;
        // Although nobody took it since.
        let refused = store.replace_and_release(&grant, version, &put("late")).await.unwrap();
        assert!(matches!(refused, Replaced::NotHolder(_)), "{refused:?}");
        assert_eq!(store.renew(&grant, LEASE).await.unwrap(), Renewed::Lost);
        let (other, _) = locked(&store, &key).await;
        assert_eq!(store.release(&grant).await.unwrap(), Released::Lost);
        assert_eq!(store.renew(&other, LEASE).await.unwrap(), Renewed::Extended);
        assert_eq!(store.release(&other).await.unwrap(), Released::Freed);
        // Renewed in time it goes on.
        let Acquired::Granted(grant) = store.acquire(&key, token(), SHORT, NO_WAIT).await.unwrap() else {
            panic!()
        };
        assert_eq!(store.renew(&grant, LEASE).await.unwrap(), Renewed::Extended);
        tokio::time::sleep(SHORT * 2).await;
        assert!(matches!(
            store.replace_and_release(&grant, version, &put("x")).await.unwrap(),
            Replaced::Done(_)
        ));
    })
    .await;
}

#[tokio::test]
async fn destroy_wins_and_leaves_the_lock_of_others_alone() {
    in_every_way(async |store| {
        let (key, version) = created(&store, "one").await;
        let (grant, _) = locked(&store, &key).await;
        let Deleted::Removed(removed) = store.delete(&key).await.unwrap() else { panic!() };
        assert_eq!((removed.version, removed.data.as_ref()), (version, b"one".as_slice()));
        assert_eq!(store.load(&key).await.unwrap(), None);
        assert_eq!(store.renew(&grant, LEASE).await.unwrap(), Renewed::Extended);
        assert!(matches!(store.acquire(&key, token(), LEASE, NO_WAIT).await.unwrap(), Acquired::Held(_)));
        assert!(matches!(
            store.replace_and_release(&grant, version, &put("x")).await.unwrap(),
            Replaced::Missing
        ));
        assert_eq!(store.release(&grant).await.unwrap(), Released::Lost);

        let (key, _) = created(&store, "two").await;
        let (grant, _) = locked(&store, &key).await;
        assert!(matches!(store.delete_and_release(&grant).await.unwrap(), Deleted::Removed(_)));
        assert_eq!(store.release(&grant).await.unwrap(), Released::Lost);
        assert!(matches!(store.delete_and_release(&grant).await.unwrap(), Deleted::Missing));
        // Without the lock, too; whose it is stays so.
        let (key, _) = created(&store, "three").await;
        let (grant, _) = locked(&store, &key).await;
        let foreign = Grant::new(key, token());
        assert!(matches!(store.delete_and_release(&foreign).await.unwrap(), Deleted::Removed(_)));
        assert_eq!(store.release(&grant).await.unwrap(), Released::Freed);
    })
    .await;
}

#[tokio::test]
async fn a_lock_needs_no_record_but_loading_does() {
    in_every_way(async |store| {
        let key = key();
        assert!(matches!(
            store.acquire_and_load(&key, token(), LEASE, NO_WAIT).await.unwrap(),
            Loaded::Missing
        ));
        let Acquired::Granted(grant) = store.acquire(&key, token(), LEASE, NO_WAIT).await.unwrap() else {
            panic!()
        };
        assert!(matches!(store.acquire(&key, token(), LEASE, NO_WAIT).await.unwrap(), Acquired::Held(_)));
        assert!(matches!(
            store.acquire_and_load(&key, token(), LEASE, NO_WAIT).await.unwrap(),
            Loaded::Missing
        ));
        assert_eq!(store.load(&key).await.unwrap(), None);
        let Inserted::Created(version) = store.insert(&key, &put("one")).await.unwrap() else { panic!() };
        let refused = store.replace(&key, version, &put("x")).await.unwrap();
        assert!(matches!(refused, Replaced::NotHolder(_)), "{refused:?}");
        assert!(matches!(
            store.replace_and_release(&grant, version, &put("two")).await.unwrap(),
            Replaced::Done(_)
        ));
        assert!(store.sweep(9).await.unwrap().removed <= 1);
        assert_eq!(data(&store, &key).await.as_deref(), Some("two"));
    })
    .await;
}

#[tokio::test]
async fn the_index_has_every_session_of_a_user() {
    in_every_way(async |store| {
        let (user, other) = (PrincipalKey::of("user"), PrincipalKey::of("other"));
        let mut keys = Vec::new();
        for _ in 0..7 {
            let key = key();
            let put = put("x").principal(Some(user));
            assert!(matches!(store.insert(&key, &put).await.unwrap(), Inserted::Created(_)));
            keys.push(key);
        }
        let (mut found, mut after) = (Vec::new(), None);
        loop {
            let page = store.keys_of(&user, after, 3).await.unwrap();
            assert!(page.keys.len() <= 3);
            found.extend(page.keys);
            after = page.next;
            if after.is_none() {
                break;
            }
        }
        keys.sort();
        assert_eq!(found, keys);
        let moved = keys[0];
        let version = store.load(&moved).await.unwrap().unwrap().version;
        let replaced = store.replace(&moved, version, &put("x").principal(Some(other))).await.unwrap();
        assert!(matches!(replaced, Replaced::Done(_)));
        assert_eq!(store.keys_of(&user, None, 99).await.unwrap().keys, keys[1..]);
        assert_eq!(store.keys_of(&other, None, 99).await.unwrap().keys, [moved]);
        let error = store.keys_of(&user, Some("no page".into()), 3).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid);
    })
    .await;
}

#[tokio::test]
async fn a_sweep_removes_what_has_expired_and_nothing_else() {
    in_every_way(async |store| {
        let (living, _) = created(&store, "living").await;
        let (held, _) = created(&store, "held").await;
        let (grant, _) = locked(&store, &held).await;
        for _ in 0..5 {
            let short = Put::new("short".into(), SHORT);
            assert!(matches!(store.insert(&key(), &short).await.unwrap(), Inserted::Created(_)));
        }
        assert_eq!(store.sweep(9).await.unwrap().removed, 0);
        tokio::time::sleep(SHORT).await;
        let swept = store.sweep(3).await.unwrap();
        assert_eq!((swept.removed, swept.more), (3, true));
        let swept = store.sweep(2).await.unwrap();
        assert_eq!((swept.removed, swept.more), (2, false));
        assert_eq!(store.sweep(9).await.unwrap().removed, 0);
        assert_eq!(data(&store, &living).await.as_deref(), Some("living"));
        assert_eq!(store.renew(&grant, LEASE).await.unwrap(), Renewed::Extended);
    })
    .await;
}

#[tokio::test]
async fn what_is_too_long_is_not_sent() {
    in_every_way(async |store| {
        let max = store.capabilities().max_value;
        assert!(store.capabilities().fencing);
        assert_eq!(store.capabilities().durability, Durability::Restart); // this cluster does not wait for the disk
        let (key, version) = created(&store, "old").await;
        let (largest, longer) = (Put::new(vec![7; max].into(), TTL), Put::new(vec![7; max + 1].into(), TTL));
        let kind = store.replace(&key, version, &longer).await.unwrap_err().kind();
        assert_eq!(kind, ErrorKind::TooLarge);
        assert_eq!(store.insert(&key, &longer).await.unwrap_err().kind(), ErrorKind::TooLarge);
        assert_eq!(data(&store, &key).await.as_deref(), Some("old"));
        assert!(matches!(store.replace(&key, version, &largest).await.unwrap(), Replaced::Done(_)));
        assert_eq!(store.load(&key).await.unwrap().unwrap().data.len(), max);
        let forever = Put::new("x".into(), Duration::MAX);
        let key = crate::support::key();
        assert!(matches!(store.insert(&key, &forever).await.unwrap(), Inserted::Created(_)));
        let stored = store.load(&key).await.unwrap().unwrap();
        assert!(stored.ttl > Duration::from_secs(400 * 24 * 3600));
        let granted = store.acquire(&key, token(), Duration::MAX, Duration::MAX).await.unwrap();
        assert!(matches!(granted, Acquired::Granted(_)));
    })
    .await;
}

#[tokio::test]
async fn a_damaged_record_is_an_error_and_stays() {
    let Some(server) = shared().await else { return };
    for (mode, statements) in WAYS {
        let schema = schema();
        let config = PostgresConfig::from_url(&server.url()).unwrap().schema(&schema);
        let store = PostgresStore::connect(config.lock_mode(mode).statements(statements)).await.unwrap();
        for damage in ["version = substr(version, 2)", "principal = '\\x07'"] {
            let (key, _) = created(&store, "one").await;
            let (grant, _) = locked(&store, &key).await;
            let row = format!("{schema}.session_records WHERE key = '\\x{key}'");
            let update = row.replace(" WHERE", &format!(" SET {damage} WHERE"));
            server.query(&format!("UPDATE {update}")).await.unwrap();
            let image = format!("SELECT (version, data, expires_us, principal) FROM {row}");
            let before = server.query(&image).await.unwrap();
            // Whoever deletes it, and whoever holds the lock; who holds it keeps it.
            for _ in 0..2 {
                let errors = [
                    store.load(&key).await.map(drop).unwrap_err(),
                    store.delete(&key).await.map(drop).unwrap_err(),
                    store.delete_and_release(&Grant::new(key, token())).await.map(drop).unwrap_err(),
                    store.delete_and_release(&grant).await.map(drop).unwrap_err(),
                ];
                for error in errors {
                    assert_eq!((error.kind(), error.effect()), (ErrorKind::Damaged, Effect::None), "{error}");
                }
                assert_eq!(server.query(&image).await.unwrap(), before, "{mode:?}: it was left as it is");
            }
            assert_eq!(store.renew(&grant, LEASE).await.unwrap(), Renewed::Extended);
            assert_eq!(store.release(&grant).await.unwrap(), Released::Freed);
            let error = store.delete(&key).await.map(drop).unwrap_err();
            assert_eq!((error.kind(), error.effect()), (ErrorKind::Damaged, Effect::None), "{error}");
            assert_eq!(server.query(&image).await.unwrap(), before, "{mode:?}: it was left as it is");
        }
    }
}
