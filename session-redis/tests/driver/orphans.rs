//! Keys that lost their expiry are found, and removed when asked to; nothing else is.

use crate::common::*;
use session_core::{PrincipalKey, SessionStore as _};
use session_redis::{Orphan, OrphanKind, OrphanSearch};
use std::time::Duration;

#[tokio::test]
async fn they_are_found_reported_and_removed() {
    let Some(server) = server(&[]).await else { return };
    let store = store(&server).await;
    let healthy = key();
    insert(&store, &healthy, "one").await;
    let (_grant, _) = granted(&store, &healthy, Duration::ZERO).await;
    let (record, lock) = (key(), key());
    let user = put("x").principal(Some(PrincipalKey::of("alice")));
    drop(store.insert(&record, &user).await.unwrap());
    let index = format!("session:user:{}", PrincipalKey::of("alice"));
    for command in [
        vec!["PERSIST", &name(&record, "")],
        vec!["PERSIST", &index],
        vec!["SET", &name(&lock, ":lock"), "left behind"],
        vec!["RPUSH", &name(&lock, ":q1"), "ticket"],
        vec!["SET", "session:{not-ours}", "x"],
        vec!["SET", "session:settings", "x"],
        vec!["SET", "other", "x"],
    ] {
        server.command(command).await.unwrap();
    }
    let found = |removed| {
        let of = |session, kind, removed| Orphan::new(session, kind, removed);
        let mut all = vec![
            of(Some(record), OrphanKind::Record, removed),
            of(Some(lock), OrphanKind::Lock, removed),
            of(Some(lock), OrphanKind::Queue, removed),
            of(None, OrphanKind::Index, false),
        ];
        all.sort_by_key(|orphan| format!("{orphan:?}"));
        all
    };
    let mut search = OrphanSearch::default();
    for (remove, expected) in [(false, found(false)), (true, found(true))] {
        search.remove = remove;
        let mut report = store.orphans(search).await.unwrap();
        report.found.sort_by_key(|orphan| format!("{orphan:?}"));
        assert_eq!((report.found, report.more), (expected, false));
        assert_eq!(report.scanned, 8, "not those of others");
    }
    assert!(store.load(&healthy).await.unwrap().is_some());
    assert!(store.load(&record).await.unwrap().is_none());
    assert_eq!(all_keys(&server).await.len(), 6);
    // All of ours, and nothing of others.
    assert_eq!(store.purge().await.unwrap(), 3);
    let mut left = all_keys(&server).await;
    left.sort();
    assert_eq!(left, ["other", "session:settings", "session:{not-ours}"]);
    server.command(["SET", &name(&lock, ":lock"), "left behind"]).await.unwrap();
    search.limit = 0;
    assert!(store.orphans(search).await.unwrap().more);
}

#[tokio::test]
async fn the_rate_is_bounded() {
    let Some(server) = server(&[]).await else { return };
    let store = store(&server).await;
    for _ in 0..100 {
        insert(&store, &key(), "x").await;
    }
    let mut search = OrphanSearch::default();
    (search.batch, search.pause) = (10, Duration::from_millis(20));
    server.command(["CONFIG", "RESETSTAT"]).await.unwrap();
    let start = std::time::Instant::now();
    let report = store.orphans(search).await.unwrap();
    assert!(report.scanned >= 100 && report.found.is_empty());
    let steps = calls(&server, "scan").await;
    assert!(steps >= 5, "{steps} steps");
    assert!(start.elapsed() >= search.pause * (steps as u32 - 1));
}
