//! The tables: made once by whoever comes first, by hand if wanted, and refused when they are not what a
//! process expects.

use crate::support::*;
use session_core::{ErrorKind, SessionStore as _};
use session_postgres::{LockMode, PostgresConfig, PostgresStore};

#[tokio::test(flavor = "multi_thread")]
async fn many_start_at_once() {
    let Some(server) = shared().await else { return };
    let config = config(&server, LockMode::Advisory).lock_connections(1);
    let tasks: Vec<_> = (0..16).map(|_| tokio::spawn(PostgresStore::connect(config.clone()))).collect();
    let mut stores = Vec::new();
    for task in tasks {
        stores.push(task.await.unwrap().unwrap());
    }
    let (key, _) = created(&stores[0], "one").await;
    for store in &stores {
        assert_eq!(data(store, &key).await.as_deref(), Some("one"));
    }
    // Again, on purpose: nothing happens.
    PostgresStore::migrate(&config).await.unwrap();
    assert_eq!(data(&stores[1], &key).await.as_deref(), Some("one"));
}

#[tokio::test]
async fn by_hand() {
    let Some(server) = shared().await else { return };
    for mode in [LockMode::Advisory, LockMode::Lease] {
        let config = config(&server, mode).table_prefix("").migrate(false);
        let error = PostgresStore::connect(config.clone()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid);
        assert!(error.to_string().contains("run PostgresStore::migrate"), "{error}");
        server.query(&config.schema_sql()).await.unwrap();
        let store = PostgresStore::connect(config.clone()).await.unwrap();
        let (key, _) = created(&store, "one").await;
        assert!(store.load(&key).await.unwrap().is_some());
        assert!(config.migrations().iter().map(|step| step.version).eq(1..=4));
    }
}

#[tokio::test]
async fn an_older_schema_is_updated_or_refused() {
    let Some(server) = shared().await else { return };
    let config = config(&server, LockMode::Advisory);
    drop(PostgresStore::connect(config.clone()).await.unwrap());
    // As if the last step had not been there yet.
    let name = config.migrations().pop().unwrap().version;
    let schema = config.schema_sql();
    let schema = schema.split('"').nth(1).unwrap();
    let undo = format!(
        "DELETE FROM {schema}.session_migrations WHERE version = {name}; DROP FUNCTION {schema}.session_take; \
         DROP FUNCTION {schema}.session_step; \
         DROP FUNCTION {schema}.session_wait; DROP FUNCTION {schema}.session_commit"
    );
    server.query(&undo).await.unwrap();
    let error = PostgresStore::connect(config.clone().migrate(false)).await.unwrap_err();
    assert!(error.kind() == ErrorKind::Invalid && error.to_string().contains("is at step 3 of 4"), "{error}");
    let store = PostgresStore::connect(config).await.unwrap();
    let (key, _) = created(&store, "one").await;
    let _held = locked(&store, &key).await;
}

#[tokio::test]
async fn processes_that_would_not_exclude_each_other_are_refused() {
    let Some(server) = shared().await else { return };
    for (mode, other) in [(LockMode::Advisory, LockMode::Lease), (LockMode::Lease, LockMode::Advisory)] {
        let config = config(&server, mode);
        let _store = PostgresStore::connect(config.clone()).await.unwrap();
        let error = PostgresStore::connect(config.lock_mode(other)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid);
        let cure =
            if mode == LockMode::Advisory { "connect with lock=advisory" } else { "connect with lock=lease" };
        assert!(error.to_string().contains(cure), "{error}");
    }
}

#[tokio::test]
async fn a_wrong_user_or_database_is_not_called_unavailable() {
    let Some(server) = shared().await else { return };
    for (url, kind) in [
        (server.url().replace("postgres@", "nobody@"), ErrorKind::Invalid),
        (format!("{}x", server.url()), ErrorKind::Invalid),
        ("postgres://postgres@127.0.0.1:1/postgres?connect_timeout=500ms".to_owned(), ErrorKind::Unavailable),
    ] {
        let error = PostgresStore::connect(PostgresConfig::from_url(&url).unwrap()).await.unwrap_err();
        assert_eq!(error.kind(), kind, "{url}: {error:?}");
    }
}
