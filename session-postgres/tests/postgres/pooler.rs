//! Behind PgBouncer in transaction mode: leases work, and advisory locks do not start.

use crate::support::*;
use session_conformance::servers::postgres::PgBouncer;
use session_core::{ErrorKind, Loaded, LockingStore as _, Replaced, SessionLock as _};
use session_postgres::{LockMode, PostgresConfig, PostgresStore};
use std::{sync::Arc, time::Duration};

#[tokio::test(flavor = "multi_thread")]
async fn advisory_locks_do_not_start() {
    let Some(server) = shared().await else { return };
    // One pooler refuses the startup option, the other one swallows it.
    for ignored in [&[][..], &["options"]] {
        let Some(bouncer) = started(PgBouncer::start(&server, ignored).await) else { return };
        let url = server.url_at(bouncer.address());
        let config = PostgresConfig::from_url(&url).unwrap().schema(schema());
        let error = PostgresStore::connect(config).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{error:?}");
        assert!(error.to_string().contains("use lock=lease"), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leases_lose_nothing() {
    let Some(server) = shared().await else { return };
    for ignored in [&[][..], &["options"]] {
        let Some(bouncer) = started(PgBouncer::start(&server, ignored).await) else { return };
        let url = server.url_at(bouncer.address());
        let config = PostgresConfig::from_url(&url).unwrap().schema(schema()).lock_mode(LockMode::Lease);
        let stores = [
            PostgresStore::connect(config.clone()).await.unwrap(),
            PostgresStore::connect(config).await.unwrap(),
        ];
        let (key, _) = created(&stores[0], "0").await;
        let inside = Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let tasks: Vec<_> = (0..8)
            .map(|task| {
                let (store, inside) = (stores[task % 2].clone(), Arc::clone(&inside));
                tokio::spawn(async move {
                    for _ in 0..25 {
                        let patience = Duration::from_secs(30);
                        let loaded = store.acquire_and_load(&key, token(), LEASE, patience).await.unwrap();
                        let Loaded::Granted(grant, stored) = loaded else { panic!("{loaded:?}") };
                        assert_eq!(inside.fetch_add(1, std::sync::atomic::Ordering::SeqCst), 0);
                        let count: u64 = std::str::from_utf8(&stored.data).unwrap().parse().unwrap();
                        let next = session_core::Put::new((count + 1).to_string().into(), TTL);
                        tokio::task::yield_now().await;
                        inside.fetch_sub(1, std::sync::atomic::Ordering::SeqCst);
                        let replaced =
                            store.replace_and_release(&grant, stored.version, &next).await.unwrap();
                        assert!(matches!(replaced, Replaced::Done(_)), "{replaced:?}");
                    }
                })
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
        assert_eq!(data(&stores[0], &key).await.as_deref(), Some("200"));
        let free = stores[1].acquire(&key, token(), LEASE, NO_WAIT).await.unwrap();
        assert!(matches!(free, session_core::Acquired::Granted(_)));
    }
}
