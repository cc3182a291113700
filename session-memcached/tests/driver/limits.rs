//! Sizes and names: what is refused is refused before anything is sent.

use crate::{common::*, with_server};
use session_core::{
    Acquired, Effect, ErrorKind, Inserted, LockingStore as _, Put, Replaced, SessionLock as _,
    SessionStore as _,
};
use session_memcached::{MAX_PREFIX, MemcachedConfig, MemcachedStore};
use std::time::Duration;

#[tokio::test]
async fn the_largest_record_is_kept_and_a_longer_one_never_leaves() {
    for limit in [&["-I", "512k"][..], &[], &["-I", "2m"]] {
        let server = with_server!(limit).behind_proxy(Duration::ZERO).await.unwrap();
        for (protocol, prefix) in BOTH.into_iter().zip([String::new(), "p".repeat(MAX_PREFIX)]) {
            let mut config = config(&server, protocol);
            config.prefix = prefix;
            let store = MemcachedStore::connect(&config).await.unwrap();
            let most = store.capabilities().max_value;
            let asked = server.command("stats settings").await.unwrap();
            let asked = asked.lines().find_map(|line| line.strip_prefix("STAT item_size_max ")?.parse().ok());
            assert!(most < asked.unwrap() && most + 320 > asked.unwrap(), "{most} of {asked:?}");

            let (key, small) = (new_key(), new_key());
            let largest: Vec<u8> = (0..most).map(|n| (n * 31 % 251) as u8).collect();
            let Inserted::Created(version) = store.insert(&key, &put(largest.clone())).await.unwrap() else {
                panic!("a new key")
            };
            assert_eq!(load(&store, &key).await.data, largest);
            let Replaced::Done(version) = store.replace(&key, version, &put(vec![0; most])).await.unwrap()
            else {
                panic!("nobody else")
            };
            insert(&store, &small, "small").await;
            let (grant, stored) = lock(&store, &small).await;

            let before = server.traffic().bytes;
            let long = put(vec![0; most + 1]);
            let errors = [
                store.insert(&new_key(), &long).await.map(drop).unwrap_err(),
                store.replace(&key, version, &long).await.map(drop).unwrap_err(),
                store.replace_and_release(&grant, stored.version, &long).await.map(drop).unwrap_err(),
            ];
            for error in errors {
                assert_eq!((error.kind(), error.effect()), (ErrorKind::TooLarge, Effect::None), "{error}");
            }
            assert_eq!(server.traffic().bytes, before, "nothing was sent");
            assert_eq!(load(&store, &key).await.version, version, "the old record stays");
            assert_eq!(load(&store, &small).await.data, "small");
            assert_held(&store, &small).await;
        }
    }
}

#[tokio::test]
async fn a_smaller_limit_can_be_set_and_a_larger_one_is_refused() {
    let server = with_server!();
    let mut config = config(&server, BOTH[0]);
    config.max_value = Some(100);
    let store = MemcachedStore::connect(&config).await.unwrap();
    assert_eq!(store.capabilities().max_value, 100);
    assert!(store.insert(&new_key(), &put(vec![0; 100])).await.is_ok());
    assert_eq!(store.insert(&new_key(), &put(vec![0; 101])).await.unwrap_err().kind(), ErrorKind::TooLarge);

    config.max_value = Some(2 << 20);
    let error = MemcachedStore::connect(&config).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
    assert!(error.to_string().contains("-I"), "{error}");
}

#[tokio::test]
async fn a_refused_write_is_an_error_and_leaves_the_record() {
    // A server that came back with a smaller limit than at connect.
    let server = with_server!();
    for protocol in BOTH {
        let store = store(&server, protocol).await;
        // Not a size that this store would send: the plain `cas` of this driver is shown to leave what was
        // there, and the meta `ms`, which it does not use, to drop it.
        let (mine, its) = (format!("cas-{protocol:?}"), format!("ms-{protocol:?}"));
        let long = "x".repeat(2 << 20);
        for name in [&mine, &its] {
            assert_eq!(server.command(&format!("set {name} 0 0 3\r\nold")).await.unwrap(), "STORED");
        }
        let refused = "SERVER_ERROR object too large for cache";
        let cas = server.command(&format!("cas {mine} 0 0 {} 1\r\n{long}", long.len())).await.unwrap();
        let ms = server.command(&format!("ms {its} {} C1\r\n{long}", long.len())).await.unwrap();
        assert_eq!((cas.as_str(), ms.as_str()), (refused, refused));
        assert_eq!(
            server.command(&format!("get {mine}")).await.unwrap(),
            format!("VALUE {mine} 0 3\nold\nEND")
        );
        assert_eq!(server.command(&format!("get {its}")).await.unwrap(), "END", "why `ms` is not used");
        drop(store);
    }
}

#[tokio::test]
async fn no_lease_and_no_wait_is_too_long() {
    let server = with_server!();
    for protocol in BOTH {
        let (store, key) = (store(&server, protocol).await, new_key());
        let granted = store.acquire(&key, new_token(), Duration::MAX, Duration::MAX).await.unwrap();
        let Acquired::Granted(grant) = granted else { panic!("{granted:?}") };
        let waiting = {
            let store = store.clone();
            tokio::spawn(async move { store.acquire(&key, new_token(), LEASE, Duration::MAX).await.unwrap() })
        };
        // It has asked by then; whoever asks later finds the lock free, which shows the same.
        tokio::time::sleep(Duration::from_millis(20)).await;
        release(&store, &grant).await;
        let granted = waiting.await.unwrap();
        assert!(matches!(granted, Acquired::Granted(_)), "{granted:?}");
    }
}

#[tokio::test]
async fn a_setting_that_cannot_be_used_is_refused_also_in_the_struct() {
    let mut slow = MemcachedConfig::server("localhost", 11211);
    let mut many = slow.clone();
    slow.timeout = Duration::MAX;
    many.pool = std::num::NonZeroUsize::MAX;
    for (config, range) in [(slow, "1ms to 600s"), (many, "1 to 1000")] {
        let error = MemcachedStore::connect(&config).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid);
        assert!(error.to_string().contains(range), "{error}");
    }
}

#[tokio::test]
async fn no_data_is_taken_for_a_command() {
    let server = with_server!();
    for protocol in BOTH {
        let store = store(&server, protocol).await;
        let all: Vec<u8> = (0..=255).cycle().take(70_000).collect();
        let bad: [&[u8]; 6] =
            [b"", b"\r\n", b"\r\nflush_all\r\n", b"x\r\nEND\r\n", b"VALUE a 0 1\r\n\r\nEND\r\n", &all];
        for data in bad {
            let key = new_key();
            let data = bytes::Bytes::copy_from_slice(data);
            let Inserted::Created(first) = store.insert(&key, &put(data.clone())).await.unwrap() else {
                panic!("a new key")
            };
            assert_eq!(load(&store, &key).await.data, data);
            assert!(matches!(
                store.replace(&key, first, &put(data.clone())).await.unwrap(),
                Replaced::Done(_)
            ));
            let (grant, stored) = lock(&store, &key).await;
            assert_eq!(stored.data, data);
            let done = store.replace_and_release(&grant, stored.version, &put(data.clone())).await.unwrap();
            assert!(matches!(done, Replaced::Done(_)));
            assert_eq!(load(&store, &key).await.data, data);
        }
    }
    assert_eq!(server.stat("cmd_flush").await.unwrap(), 0);
}

#[tokio::test]
async fn no_prefix_is_taken_for_a_command() {
    for prefix in ["a b", "a\r\nflush_all\r\n", "a\0", "\u{e4}", &"p".repeat(MAX_PREFIX + 1)] {
        let mut config = MemcachedConfig::server("localhost", 11211);
        config.prefix = prefix.to_owned();
        let error = MemcachedStore::connect(&config).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid, "{prefix:?}");
    }
}

#[tokio::test]
async fn two_prefixes_are_two_worlds() {
    let server = with_server!();
    let (one, mut config) = (store(&server, BOTH[0]).await, config(&server, BOTH[0]));
    config.prefix = "other:".to_owned();
    let other = MemcachedStore::connect(&config).await.unwrap();
    let key = new_key();
    insert(&one, &key, "one").await;
    assert_eq!(other.load(&key).await.unwrap(), None);
    assert!(matches!(
        other.insert(&key, &Put::new("other".into(), TTL)).await.unwrap(),
        Inserted::Created(_)
    ));
    assert_eq!(load(&one, &key).await.data, "one");
}
