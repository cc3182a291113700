//! What the store promises, step by step, on a real server; the suite does the rest.

use crate::common::*;
use session_conformance::servers::ServerControl as _;
use session_core::{
    Acquired, Deleted, Durability, Effect, ErrorKind, Grant, Inserted, Loaded, LockingStore as _,
    PrincipalKey, Put, Released, Renewed, Replaced, SessionIndex as _, SessionLock as _, SessionStore as _,
    Touched,
};
use session_redis::RedisStore;
use std::time::Duration;

#[tokio::test]
async fn a_record_lives_and_ends() {
    let Some(server) = server(&[]).await else { return };
    let store = store(&server).await;
    let key = key();
    assert!(store.load(&key).await.unwrap().is_none());
    let first = insert(&store, &key, "one").await;
    assert!(matches!(store.insert(&key, &put("two")).await.unwrap(), Inserted::Exists));
    let stored = store.load(&key).await.unwrap().unwrap();
    assert_eq!((&stored.data[..], stored.version, stored.principal), (&b"one"[..], first, None));
    assert!(stored.ttl <= TTL && stored.ttl > TTL - Duration::from_secs(5));
    let Replaced::Done(second) = store.replace(&key, first, &put("two")).await.unwrap() else {
        panic!("not replaced")
    };
    let Replaced::Conflict(fresh) = store.replace(&key, first, &put("three")).await.unwrap() else {
        panic!("not refused")
    };
    assert_eq!((&fresh.data[..], fresh.version), (&b"two"[..], second));
    assert_eq!(store.touch(&key, first, TTL).await.unwrap(), Touched::Conflict);
    assert_eq!(store.touch(&key, second, TTL * 2).await.unwrap(), Touched::Extended);
    assert!(store.load(&key).await.unwrap().unwrap().ttl > TTL);
    let Deleted::Removed(last) = store.delete(&key).await.unwrap() else { panic!("not removed") };
    assert_eq!((&last.data[..], last.version), (&b"two"[..], second));
    assert!(matches!(store.delete(&key).await.unwrap(), Deleted::Missing));
    assert!(matches!(store.replace(&key, second, &put("x")).await.unwrap(), Replaced::Missing));
    assert_eq!(store.touch(&key, second, TTL).await.unwrap(), Touched::Missing);
    assert!(all_keys(&server).await.is_empty());
}

#[tokio::test]
async fn expiry_is_the_servers() {
    let Some(server) = server(&[]).await else { return };
    let store = store(&server).await;
    let key = key();
    let put = Put::new("x".into(), Duration::from_millis(50));
    let Inserted::Created(version) = store.insert(&key, &put).await.unwrap() else { panic!("it exists") };
    until(async || store.load(&key).await.unwrap().is_none()).await;
    assert!(matches!(store.replace(&key, version, &put).await.unwrap(), Replaced::Missing));
    assert_eq!(store.touch(&key, version, TTL).await.unwrap(), Touched::Missing);
    for days in [31, 400] {
        let ttl = Duration::from_secs(days * 86_400);
        let key = crate::common::key();
        assert!(matches!(
            store.insert(&key, &Put::new("x".into(), ttl)).await.unwrap(),
            Inserted::Created(_)
        ));
        let left = server.command(["PTTL", &name(&key, "")]).await.unwrap().number().unwrap();
        assert!((ttl.as_millis() as i64 - left) < 5000);
    }
    // No time is too long or too short to be stored.
    for ttl in [Duration::MAX, Duration::ZERO] {
        let put = Put::new("x".into(), ttl);
        assert!(matches!(store.insert(&crate::common::key(), &put).await.unwrap(), Inserted::Created(_)));
    }
}

#[tokio::test]
async fn lock_and_record_in_one_step() {
    let Some(server) = server(&[]).await else { return };
    let store = store(&server).await;
    let key = key();
    let Loaded::Missing = store.acquire_and_load(&key, token(), LEASE, Duration::ZERO).await.unwrap() else {
        panic!("there is none")
    };
    assert!(all_keys(&server).await.is_empty(), "an id that nobody issued made a key");
    let version = insert(&store, &key, "one").await;
    let (grant, stored) = granted(&store, &key, Duration::ZERO).await;
    assert_eq!((&stored.data[..], stored.version), (&b"one"[..], version));
    let Loaded::Held(held) = store.acquire_and_load(&key, token(), LEASE, Duration::ZERO).await.unwrap()
    else {
        panic!("it is mine")
    };
    assert!(held.retry_after.unwrap() <= LEASE);
    // Idempotent by token, with a new lease.
    let again = store.acquire_and_load(&key, *grant.token(), LEASE * 3, Duration::ZERO).await.unwrap();
    assert!(matches!(again, Loaded::Granted(..)));
    let left = server.command(["PTTL", &name(&key, ":lock")]).await.unwrap().number().unwrap();
    assert!(left > LEASE.as_millis() as i64 * 2);
    // Fenced: nobody writes beside the holder, and the reply says how long to wait.
    let Replaced::NotHolder(held) = store.replace(&key, version, &put("beside")).await.unwrap() else {
        panic!("not fenced")
    };
    assert!(held.retry_after.is_some());
    // A conflict keeps the lock, a success releases it.
    let Replaced::Conflict(_) =
        store.replace_and_release(&grant, session_core::Version::from_u64(1), &put("x")).await.unwrap()
    else {
        panic!("not refused")
    };
    assert_eq!(store.renew(&grant, LEASE).await.unwrap(), Renewed::Extended);
    let Replaced::Done(_) = store.replace_and_release(&grant, version, &put("two")).await.unwrap() else {
        panic!("not replaced")
    };
    assert_eq!(store.renew(&grant, LEASE).await.unwrap(), Renewed::Lost);
    assert_eq!(store.release(&grant).await.unwrap(), Released::Lost);
    assert_eq!(all_keys(&server).await, [name(&key, "")]);
}

#[tokio::test]
async fn a_lease_that_ran_out_is_refused_even_when_nobody_took_it() {
    let Some(server) = server(&[]).await else { return };
    let store = store(&server).await;
    let key = key();
    let version = insert(&store, &key, "one").await;
    let short = Duration::from_millis(20);
    let Loaded::Granted(grant, _) =
        store.acquire_and_load(&key, token(), short, Duration::ZERO).await.unwrap()
    else {
        panic!("it is free")
    };
    until(async || store.renew(&Grant::new(key, token()), LEASE).await.unwrap() == Renewed::Lost).await;
    until(async || !all_keys(&server).await.contains(&name(&key, ":lock"))).await;
    let refused = store.replace_and_release(&grant, version, &put("late")).await.unwrap();
    assert!(matches!(refused, Replaced::NotHolder(_)), "{refused:?}");
    // Missing comes first.
    assert!(matches!(store.delete(&key).await.unwrap(), Deleted::Removed(_)));
    assert!(matches!(
        store.replace_and_release(&grant, version, &put("x")).await.unwrap(),
        Replaced::Missing
    ));
}

#[tokio::test]
async fn the_lock_alone_needs_no_record() {
    let Some(server) = server(&[]).await else { return };
    let store = store(&server).await;
    let key = key();
    let Acquired::Granted(grant) = store.acquire(&key, token(), LEASE, Duration::ZERO).await.unwrap() else {
        panic!("it is free")
    };
    let Acquired::Held(_) = store.acquire(&key, token(), LEASE, Duration::from_millis(30)).await.unwrap()
    else {
        panic!("it is mine")
    };
    assert_eq!(store.release(&grant).await.unwrap(), Released::Freed);
    assert_eq!(store.release(&grant).await.unwrap(), Released::Lost);
    assert!(all_keys(&server).await.is_empty());
}

#[tokio::test]
async fn destroy_wins_over_the_holder() {
    let Some(server) = server(&[]).await else { return };
    let store = store(&server).await;
    let key = key();
    let version = insert(&store, &key, "one").await;
    let (grant, _) = granted(&store, &key, Duration::ZERO).await;
    assert!(matches!(store.delete(&key).await.unwrap(), Deleted::Removed(_)));
    assert!(matches!(
        store.replace_and_release(&grant, version, &put("x")).await.unwrap(),
        Replaced::Missing
    ));
    assert!(all_keys(&server).await.is_empty(), "the holder of nothing kept its lock");
    insert(&store, &key, "two").await;
    let (grant, _) = granted(&store, &key, Duration::ZERO).await;
    assert!(matches!(store.delete_and_release(&grant).await.unwrap(), Deleted::Removed(_)));
    assert!(matches!(store.delete_and_release(&grant).await.unwrap(), Deleted::Missing));
    assert!(all_keys(&server).await.is_empty());
}

#[tokio::test]
async fn a_foreign_or_damaged_record_is_left_where_it_is() {
    let Some(server) = server(&[]).await else { return };
    let store = store(&server).await;
    for (how, what) in [("SET", "foreign"), ("SET", "\u{1}"), ("LPUSH", "element")] {
        let key = key();
        server.command([how, &name(&key, ""), what]).await.unwrap();
        let version = session_core::Version::from_u64(1);
        let errors = [
            store.load(&key).await.err(),
            store.replace(&key, version, &put("x")).await.err(),
            store.delete(&key).await.err(),
            store.acquire_and_load(&key, token(), LEASE, Duration::ZERO).await.err(),
        ];
        for error in errors {
            let error = error.unwrap_or_else(|| panic!("no error for {how} {what:?}"));
            assert_eq!(
                (error.kind(), error.effect()),
                (ErrorKind::Damaged, Effect::None),
                "{how}: {error:?}"
            );
        }
        assert!(matches!(store.insert(&key, &put("x")).await.unwrap(), Inserted::Exists));
        // The lock that was taken with it is given back.
        until(async || all_keys(&server).await == [name(&key, "")]).await;
        server.command(["DEL", &name(&key, "")]).await.unwrap();
    }
}

/// What is told after the record was removed must not hide that it was.
#[tokio::test]
async fn a_delete_is_one_whatever_stands_beside_the_record() {
    let Some(server) = server(&[]).await else { return };
    let store = store(&server).await;
    for (how, suffix) in [("SET", ":t1"), ("LPUSH", ":lock")] {
        for release in [false, true] {
            let key = key();
            insert(&store, &key, "one").await;
            server.command([how, &name(&key, suffix), "foreign"]).await.unwrap();
            let deleted = if release {
                store.delete_and_release(&Grant::new(key, token())).await
            } else {
                store.delete(&key).await
            };
            assert!(matches!(deleted, Ok(Deleted::Removed(_))), "{suffix}: {deleted:?}");
            assert_eq!(all_keys(&server).await, [name(&key, suffix)]);
            server.command(["DEL", &name(&key, suffix)]).await.unwrap();
        }
    }
}

#[tokio::test]
async fn too_large_is_refused_before_it_is_sent() {
    let Some(server) = server(&[]).await else { return };
    let mut config = config(&server);
    config.response_timeout = Duration::from_secs(20); // the largest takes its time on a busy machine
    let store = RedisStore::connect(&config).await.unwrap();
    let key = key();
    let max = store.capabilities().max_value;
    let largest = Put::new(vec![7; max].into(), TTL);
    let Inserted::Created(version) = store.insert(&key, &largest).await.unwrap() else { panic!("it exists") };
    let error = store.replace(&key, version, &Put::new(vec![7; max + 1].into(), TTL)).await.unwrap_err();
    assert_eq!((error.kind(), error.effect()), (ErrorKind::TooLarge, Effect::None));
    assert_eq!(store.load(&key).await.unwrap().unwrap().data.len(), max);
}

#[tokio::test]
async fn the_index_names_every_living_session() {
    let Some(server) = server(&[]).await else { return };
    let store = store(&server).await;
    let alice = PrincipalKey::of("alice");
    let mut keys = Vec::new();
    for _ in 0..10 {
        let key = key();
        let put = put("x").principal(Some(alice));
        assert!(matches!(store.insert(&key, &put).await.unwrap(), Inserted::Created(_)));
        keys.push(key);
    }
    let (mut listed, mut after) = (Vec::new(), None);
    loop {
        let page = store.keys_of(&alice, after, 3).await.unwrap();
        assert!(page.keys.len() <= 3);
        listed.extend(page.keys);
        let Some(next) = page.next else { break };
        after = Some(next);
    }
    listed.sort();
    keys.sort();
    assert_eq!(listed, keys);
    // What is deleted is no longer named; who was logged in later is.
    for key in &keys {
        drop(store.delete(key).await.unwrap());
    }
    let late = key();
    let version = insert(&store, &late, "x").await;
    let with_user = put("y").principal(Some(alice));
    assert!(matches!(store.replace(&late, version, &with_user).await.unwrap(), Replaced::Done(_)));
    let stored = store.load(&late).await.unwrap().unwrap();
    assert_eq!(stored.principal, Some(alice));
    let page = store.keys_of(&alice, None, 100).await.unwrap();
    assert_eq!(page.keys, [late]);
    assert!(store.keys_of(&PrincipalKey::of("bob"), None, 100).await.unwrap().keys.is_empty());
    assert_eq!(store.keys_of(&alice, Some("x".into()), 1).await.unwrap_err().kind(), ErrorKind::Invalid);
    // A touch moves the entry along, and the index lives as long as what it names.
    let ttl = TTL * 100;
    assert_eq!(store.touch(&late, stored.version, ttl).await.unwrap(), Touched::Extended);
    let index = format!("session:user:{alice}");
    let left = server.command(["PTTL", &index]).await.unwrap().number().unwrap();
    assert!(left > ttl.as_millis() as i64);
    let score = server.command(["ZSCORE", &index, &late.to_string()]).await.unwrap();
    let now = server.command(["TIME"]).await.unwrap().list()[0].text().unwrap().parse::<f64>().unwrap();
    assert!(score.text().unwrap().parse::<f64>().unwrap() / 1000.0 > now + ttl.as_secs_f64() - 5.0);
}

#[tokio::test]
async fn expired_names_are_taken_out_when_the_index_is_read() {
    let Some(server) = server(&[]).await else { return };
    let store = store(&server).await;
    let alice = PrincipalKey::of("alice");
    let key = key();
    assert!(matches!(
        store.insert(&key, &put("x").principal(Some(alice))).await.unwrap(),
        Inserted::Created(_)
    ));
    let index = format!("session:user:{alice}");
    server.command(["ZADD", &index, "1000", &"ab".repeat(32)]).await.unwrap();
    assert_eq!(store.keys_of(&alice, None, 10).await.unwrap().keys, [key]);
    assert_eq!(server.command(["ZCARD", &index]).await.unwrap().number(), Some(1));
}

#[tokio::test]
async fn what_the_server_promises_is_what_is_declared() {
    for (arguments, durability, may_evict) in [
        (&[][..], Durability::Volatile, false),
        (&["--appendonly", "yes"][..], Durability::Restart, false),
        (&["--appendonly", "yes", "--appendfsync", "always"][..], Durability::PowerLoss, false),
        (&["--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru"][..], Durability::Volatile, true),
    ] {
        let Some(server) = server(arguments).await else { return };
        let store = store(&server).await;
        let found = store.capabilities();
        assert_eq!((found.durability, found.may_evict), (durability, may_evict), "{arguments:?}");
        assert!(found.fencing && store.sweeper().is_none());
        // What evicts may evict an index, too, and keep what it names.
        assert_eq!(store.index().is_some(), !may_evict);
        let key = key();
        insert(&store, &key, "kept?").await;
        server.restart().await.unwrap();
        let kept = store.load(&key).await.unwrap().is_some();
        assert_eq!(kept, durability >= Durability::Restart);
    }
}

#[tokio::test]
async fn a_server_without_memory_refuses_without_effect() {
    let Some(server) = server(&[]).await else { return };
    let store = store(&server).await;
    let key = key();
    let version = insert(&store, &key, "one").await;
    server.command(["CONFIG", "SET", "maxmemory", "1"]).await.unwrap();
    for error in [
        store.replace(&key, version, &put("two")).await.err(),
        store.insert(&crate::common::key(), &put("x").principal(Some(PrincipalKey::of("alice")))).await.err(),
    ] {
        let error = error.unwrap();
        assert_eq!((error.kind(), error.effect()), (ErrorKind::Unavailable, Effect::None), "{error:?}");
    }
    server.command(["CONFIG", "SET", "maxmemory", "0"]).await.unwrap();
    assert_eq!(store.load(&key).await.unwrap().unwrap().version, version);
    until(async || all_keys(&server).await == [name(&key, "")]).await;
}

#[tokio::test]
async fn acl_user_database_and_prefix() {
    let Some(server) = server(&[]).await else { return };
    add_user(&server).await;
    let url = |options: &str| format!("redis://app:pa%3Ass@{}/5?{options}", server.address());
    let store = RedisStore::connect_url(&url("prefix=shop:")).await.unwrap();
    let key = key();
    insert(&store, &key, "one").await;
    let (grant, stored) = granted(&store, &key, Duration::ZERO).await;
    let user = put("two").principal(Some(PrincipalKey::of("alice")));
    let (waiting, waited) = (store.clone(), key);
    let waiter = tokio::spawn(async move { granted(&waiting, &waited, LONG).await });
    until(async || all_keys(&server).await.is_empty() /* database 0 */ && !waiter.is_finished()).await;
    assert!(matches!(
        store.replace_and_release(&grant, stored.version, &user).await.unwrap(),
        Replaced::Done(_)
    ));
    assert_eq!(waiter.await.unwrap().1.data, "two");
    // Of another prefix this user may touch nothing: a typed error, and nothing happened.
    let other = RedisStore::connect_url(&url("prefix=other:")).await.unwrap();
    assert_eq!(other.insert(&key, &put("x")).await.unwrap_err().kind(), ErrorKind::Backend);
    let wrong = format!("redis://app:wrong@{}", server.address());
    let error = RedisStore::connect_url(&wrong).await.unwrap_err();
    assert!(!format!("{error:?}").contains("wrong@"), "{error:?}");
}
