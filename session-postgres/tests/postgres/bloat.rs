//! What many touches do to the table, as the statistics of a server of its own say: who waits in another test
//! keeps old rows alive.

use crate::support::*;
use session_conformance::servers::postgres::PostgresServer;
use session_core::{Inserted, Put, SessionStore as _, Touched};
use session_postgres::{LockMode, PostgresConfig, PostgresStore};
use std::{fmt::Write as _, time::Duration};

/// Touches of 2,000 sessions, in turn, as many as `SESSION_TOUCHES` says. Measured: 1.4 times the size after
/// 8,000, 1.7 after 250,000, 2.2 after a million within a minute, before any vacuum came.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn touches_do_not_bloat_the_table() {
    let Some(server) = started(PostgresServer::start().await) else { return };
    let touches: usize = std::env::var("SESSION_TOUCHES").ok().map_or(8_000, |count| count.parse().unwrap());
    let schema = schema();
    let config =
        PostgresConfig::from_url(&server.url()).unwrap().schema(&schema).lock_mode(LockMode::Advisory);
    let store = PostgresStore::connect(config).await.unwrap();
    const SESSIONS: usize = 2000;
    let data = "x".repeat(700);
    let mut sessions = Vec::new();
    for _ in 0..SESSIONS {
        let key = key();
        let put = Put::new(data.clone().into(), TTL * 60);
        let Inserted::Created(version) = store.insert(&key, &put).await.unwrap() else { panic!() };
        sessions.push((key, version));
    }
    let size = async || -> u64 {
        let sql = format!("SELECT pg_total_relation_size('{schema}.session_records')");
        server.query(&sql).await.unwrap().parse().unwrap()
    };
    let before = size().await;
    let tasks: Vec<_> = (0..4)
        .map(|task| {
            let (store, sessions) = (store.clone(), sessions.clone());
            tokio::spawn(async move {
                for round in 0..touches / 4 {
                    let (key, version) = &sessions[(round * 4 + task) % SESSIONS];
                    let ttl = TTL * 60 + Duration::from_millis(round as u64);
                    assert_eq!(store.touch(key, *version, ttl).await.unwrap(), Touched::Extended);
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    // The statistics of a connection reach the views with a delay.
    let (mut updates, mut hot) = (0_u64, 0_u64);
    eventually("the statistics arrive", async || {
        let sql = format!(
            "SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_user_tables WHERE schemaname = '{schema}' \
             AND relname = 'session_records'"
        );
        let answer = server.query(&sql).await.unwrap();
        let (all, in_page) = answer.split_once('|').unwrap();
        (updates, hot) = (all.parse().unwrap(), in_page.parse().unwrap());
        updates >= touches as u64
    })
    .await;
    let after = size().await;
    let mut report = String::new();
    writeln!(
        report,
        "{updates} updates of {SESSIONS} sessions, {:.1} % HOT",
        100.0 * hot as f64 / updates as f64
    )
    .unwrap();
    writeln!(report, "table and indexes: {} KiB before, {} KiB after", before / 1024, after / 1024).unwrap();
    eprint!("{report}");
    assert!(hot * 100 >= updates * 85, "{report}");
    assert!(after <= before * if touches > 250_000 { 3 } else { 2 }, "{report}");
}
