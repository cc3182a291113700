//! Several servers, and the end of one.

use crate::common::*;
use session_conformance::servers::{ServerControl as _, memcached::MemcachedServer};
use session_core::{Effect, ErrorKind, LockingStore as _, Replaced, SessionLock as _, SessionStore as _};
use session_memcached::{MemcachedConfig, MemcachedStore, Node};

const SESSIONS: usize = 120;

async fn three() -> Option<[MemcachedServer; 3]> {
    Some([server(&[]).await?, server(&[]).await?, server(&[]).await?])
}

fn nodes(servers: &[MemcachedServer]) -> Vec<Node> {
    servers.iter().map(|server| Node::new("127.0.0.1", server.address().port())).collect()
}

#[tokio::test]
async fn a_server_that_dies_takes_its_own_sessions_and_no_others() {
    let Some(servers) = three().await else { return };
    let names = nodes(&servers);
    let store = MemcachedStore::connect(&MemcachedConfig::servers(names.clone())).await.unwrap();
    // Another process, which was given the names in another order.
    let reversed = MemcachedConfig::servers(names.iter().rev().cloned());
    let other = MemcachedStore::connect(&reversed).await.unwrap();

    let mut sessions = Vec::new();
    for _ in 0..SESSIONS {
        let key = new_key();
        let version = insert(&store, &key, "data").await;
        assert_eq!(load(&other, &key).await.version, version);
        let (grant, stored) = lock(&other, &key).await;
        let mut home = Vec::new();
        for server in &servers {
            let found = server.command(&format!("get {} {}", data_key(&key), lock_key(&key))).await.unwrap();
            home.push(found.matches("VALUE").count());
        }
        assert_eq!(
            (home.iter().sum::<usize>(), home.iter().max()),
            (2, Some(&2)),
            "both on one server: {home:?}"
        );
        let done = other.replace_and_release(&grant, stored.version, &put("data")).await.unwrap();
        let Replaced::Done(version) = done else { panic!("{done:?}") };
        sessions.push((key, version, home.iter().position(|items| *items == 2).unwrap()));
    }
    let lost = sessions.iter().filter(|(_, _, home)| *home == 1).count();
    assert!(lost > SESSIONS / 10 && lost < SESSIONS / 2, "{lost} of {SESSIONS} on the one in the middle");

    servers[1].kill();
    for (key, version, home) in &mut sessions {
        if *home == 1 {
            for error in [
                store.load(key).await.map(drop).unwrap_err(),
                store.acquire(key, new_token(), LEASE, LEASE).await.map(drop).unwrap_err(),
                store.delete(key).await.map(drop).unwrap_err(),
            ] {
                // Down is not gone: nobody may take it for an expired session, or put it elsewhere.
                assert_eq!((error.kind(), error.effect()), (ErrorKind::Unavailable, Effect::None), "{error}");
                assert!(error.to_string().contains(&names[1].to_string()), "{error}");
            }
            // Known to be closed by now, so nothing was sent.
            let error = store.replace(key, *version, &put("no")).await.unwrap_err();
            assert_eq!((error.kind(), error.effect()), (ErrorKind::Unavailable, Effect::None), "{error}");
        } else {
            assert_eq!(load(&store, key).await.version, *version);
            *version = replace(&store, key, *version, "on").await;
        }
    }

    // Who starts now serves what can be served.
    let late = MemcachedStore::connect(&MemcachedConfig::servers(names.clone())).await.unwrap();
    servers[1].restart().await.unwrap();
    for store in [&store, &late] {
        for (key, version, home) in &sessions {
            if *home == 1 {
                assert_eq!(store.load(key).await.unwrap(), None);
                assert!(matches!(store.replace(key, *version, &put("no")).await.unwrap(), Replaced::Missing));
            } else {
                assert_eq!(load(store, key).await.version, *version);
            }
        }
    }
}

#[tokio::test]
async fn no_server_at_all_is_an_error_that_names_one() {
    let Some(servers) = three().await else { return };
    let names = nodes(&servers);
    servers.iter().for_each(MemcachedServer::kill);
    let error = MemcachedStore::connect(&MemcachedConfig::servers(names.clone())).await.unwrap_err();
    assert_eq!((error.kind(), error.effect()), (ErrorKind::Unavailable, Effect::None));
    assert!(names.iter().any(|name| error.to_string().contains(&name.to_string())), "{error}");
}
