//! The two ways in which advisory locks are usually used wrongly, made here by changing the SQL, and
//! convicted: the next holder does not find what the last one wrote.

use crate::support::*;
use session_conformance::servers::postgres::PostgresServer;
use session_core::{Loaded, LockingStore as _, Replaced};
use session_postgres::{PostgresConfig, PostgresStore};

/// A role under which names of PostgreSQL's own functions can mean others, and the schema of its sessions.
async fn wrong(server: &PostgresServer, role: &str) -> (PostgresConfig, String) {
    server.query(&format!("CREATE ROLE {role} SUPERUSER LOGIN")).await.unwrap();
    let schema = schema();
    let url = server.url().replace("postgres@", &format!("{role}@"));
    (PostgresConfig::from_url(&url).unwrap().schema(&schema), schema)
}

/// Whether the next holder, who waits for the lock while it is held, finds what its last holder wrote; twice,
/// so that he finds it also while the commit takes its time.
async fn hands_over(server: &PostgresServer, config: PostgresConfig, schema: &str) -> bool {
    let first = PostgresStore::connect(config.clone()).await.unwrap();
    let second = PostgresStore::connect(config).await.unwrap();
    let slow = format!(
        "CREATE FUNCTION {schema}.slow() RETURNS trigger LANGUAGE plpgsql AS \
         $f$ BEGIN PERFORM pg_sleep(0.3); RETURN NULL; END $f$; \
         CREATE CONSTRAINT TRIGGER slow AFTER UPDATE ON {schema}.session_records DEFERRABLE INITIALLY DEFERRED \
         FOR EACH ROW EXECUTE FUNCTION {schema}.slow()"
    );
    let mut fresh = true;
    for prepare in ["SELECT 1", &slow] {
        server.query(prepare).await.unwrap();
        let (key, version) = created(&first, "one").await;
        let (grant, _) = locked(&first, &key).await;
        let waiting = tokio::spawn({
            let second = second.clone();
            async move { second.acquire_and_load(&key, token(), LEASE, LEASE).await.unwrap() }
        });
        let waits = "SELECT count(*) > 0 FROM pg_stat_activity WHERE wait_event = 'advisory'";
        eventually("it waits", async || server.query(waits).await.unwrap() == "t").await;
        let replaced = first.replace_and_release(&grant, version, &put("two")).await.unwrap();
        let Replaced::Done(version) = replaced else { panic!("{replaced:?}") };
        let Loaded::Granted(_, stored) = waiting.await.unwrap() else { panic!("it is freed") };
        fresh &= stored.version == version;
    }
    fresh
}

#[tokio::test(flavor = "multi_thread")]
async fn this_store_hands_over_what_was_written() {
    let Some(server) = started(PostgresServer::start().await) else { return };
    let (config, schema) = wrong(&server, "right").await;
    assert!(hands_over(&server, config, &schema).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn lock_and_read_in_one_statement_reads_what_was() {
    let Some(server) = started(PostgresServer::start().await) else { return };
    let (config, schema) = wrong(&server, "stale").await;
    drop(PostgresStore::connect(config.clone()).await.unwrap());
    let wait = format!("{schema}.session_wait");
    alter(&server, &wait, "PERFORM pg_advisory_lock(a_lock);", "").await;
    let source = format!("FROM \"{schema}\".session_records s");
    let with_lock = format!("FROM (SELECT pg_advisory_lock(a_lock)) l, \"{schema}\".session_records s");
    alter(&server, &wait, &source, &with_lock).await;
    assert!(!hands_over(&server, config, &schema).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn unlocking_in_the_writing_statement_lets_the_next_one_read_too_early() {
    let Some(server) = started(PostgresServer::start().await) else { return };
    let (config, schema) = wrong(&server, "hasty").await;
    // What keeps the lock until the commit does nothing.
    let nothing = "CREATE SCHEMA hasty; CREATE FUNCTION hasty.pg_advisory_xact_lock_shared(bigint) RETURNS void \
        LANGUAGE plpgsql AS $f$ BEGIN END $f$; ALTER ROLE hasty SET search_path = hasty, pg_catalog, public";
    server.query(nothing).await.unwrap();
    assert!(!hands_over(&server, config, &schema).await);
}
