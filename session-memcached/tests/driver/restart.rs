//! A server that was restarted counts its cas numbers from the beginning: another record can have the same
//! one.
//!
//! What closes the hole: a number is used only on a connection that was open before the number was asked for,
//! and such a connection ends with the process that gave the number. On any other the record is read and its
//! version compared, which is random and stored with it.

use crate::{common::*, with_server};
use session_conformance::servers::{ServerControl as _, memcached::MemcachedServer};
use session_core::{
    Deleted, Grant, LockingStore as _, Released, Renewed, Replaced, SessionLock as _, SessionStore as _,
    StorageKey, Touched,
};

async fn cas_of(server: &MemcachedServer, name: &str) -> u64 {
    let reply = server.command(&format!("mg {name} c")).await.unwrap();
    reply.strip_prefix("HD c").and_then(|cas| cas.parse().ok()).unwrap_or_else(|| panic!("{reply}"))
}

async fn numbers(server: &MemcachedServer, key: &StorageKey) -> (u64, u64) {
    (cas_of(server, &data_key(key)).await, cas_of(server, &lock_key(key)).await)
}

#[tokio::test]
async fn a_writer_from_before_a_restart_overwrites_nothing_made_after_it() {
    for protocol in BOTH {
        let server = with_server!();
        let (old, key) = (store(&server, protocol).await, new_key());
        let before = insert(&old, &key, "before").await;
        let (grant, stored) = lock(&old, &key).await;
        let was = numbers(&server, &key).await;

        server.restart().await.unwrap();
        let new = store(&server, protocol).await;
        let after = insert(&new, &key, "after").await;
        let (theirs, _) = lock(&new, &key).await;
        assert_eq!(
            numbers(&server, &key).await,
            was,
            "the very same numbers: comparing them would prove nothing"
        );

        // All that the one from before can do with what it remembers.
        let refused = old.replace_and_release(&grant, stored.version, &put("no")).await.unwrap();
        assert!(matches!(&refused, Replaced::NotHolder(_)), "another holds the lock now: {refused:?}");
        let refused = old.replace(&key, before, &put("no")).await.unwrap();
        assert!(matches!(&refused, Replaced::Conflict(fresh) if fresh.version == after), "{refused:?}");
        assert_eq!(old.touch(&key, before, TTL * 100).await.unwrap(), Touched::Conflict);
        assert_eq!(old.renew(&grant, LEASE * 100).await.unwrap(), Renewed::Lost);
        assert_eq!(old.release(&grant).await.unwrap(), Released::Lost);
        assert_held(&old, &key).await;
        assert_eq!(numbers(&server, &key).await, was, "nothing was written");

        // And it goes on with what is there now.
        let fresh = load(&old, &key).await;
        replace(&old, &key, fresh.version, "both").await;
        release(&new, &theirs).await;
        assert!(matches!(new.delete_and_release(&theirs).await.unwrap(), Deleted::Removed(_)));
    }
}

#[tokio::test]
async fn what_was_lost_in_a_restart_is_missing() {
    for protocol in BOTH {
        let server = with_server!();
        let (store, key) = (store(&server, protocol).await, new_key());
        let version = insert(&store, &key, "before").await;
        let (grant, _) = lock(&store, &key).await;
        server.restart().await.unwrap();
        let missing = store.replace_and_release(&grant, version, &put("no")).await.unwrap();
        assert!(matches!(missing, Replaced::Missing), "{missing:?}");
        assert!(matches!(store.replace(&key, version, &put("no")).await.unwrap(), Replaced::Missing));
        assert_eq!(store.touch(&key, version, TTL).await.unwrap(), Touched::Missing);
        assert!(matches!(store.delete(&key).await.unwrap(), Deleted::Missing));
        assert_eq!(store.load(&key).await.unwrap(), None);
        let nobody = Grant::new(key, new_token());
        assert_eq!(store.release(&nobody).await.unwrap(), Released::Lost);
    }
}
