//! Locks: many of them, of many processes, colliding, waited for, and given up at every moment.

use crate::support::*;
use session_core::{
    Acquired, Deleted, ErrorKind, Grant, Loaded, LockingStore as _, Put, Released, Replaced,
    SessionLock as _, SessionStore as _, StorageKey, Version,
};
use session_postgres::{LockMode, PostgresConfig, PostgresStore};
use std::time::{Duration, Instant};

/// Two stores on one schema: as good as two processes, for they share no connection and no memory.
async fn two(url: &str, mode: LockMode, waiters: usize) -> (PostgresStore, PostgresStore) {
    let config = PostgresConfig::from_url(url).unwrap().schema(schema()).lock_mode(mode);
    let config = config.waiter_connections(waiters);
    (PostgresStore::connect(config.clone()).await.unwrap(), PostgresStore::connect(config).await.unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_locks_on_a_pool_of_ten() {
    let Some(server) = shared().await else { return };
    for mode in [LockMode::Advisory, LockMode::Lease] {
        let name = format!("thousand_{mode:?}");
        let config = PostgresConfig::from_url(&named(&server, &name)).unwrap();
        let config = config.schema(schema()).lock_mode(mode).pool_size(10).max_locks(1000);
        let store = PostgresStore::connect(config).await.unwrap();
        let tasks: Vec<_> = (0..1000)
            .map(|_| {
                let store = store.clone();
                tokio::spawn(async move {
                    let (key, version) = created(&store, "one").await;
                    let (grant, stored) = locked(&store, &key).await;
                    assert_eq!(stored.version, version);
                    (grant, version)
                })
            })
            .collect();
        let mut held = Vec::new();
        for task in tasks {
            held.push(task.await.unwrap());
        }
        // All at once, on no more connections than were allowed; and there is room for reading beside them.
        let connections = format!("SELECT count(*) FROM pg_stat_activity WHERE application_name = '{name}'");
        let connections: usize = server.query(&connections).await.unwrap().parse().unwrap();
        assert!(connections <= 10 + 4 + 2, "{connections}");
        if mode == LockMode::Advisory {
            assert_eq!(advisory_locks(&server, &name).await, (1000, 0));
        }
        assert_eq!(data(&store, held[0].0.key()).await.as_deref(), Some("one"));
        // One more is refused, by a limit with a name.
        let error = store.acquire(&key(), token(), LEASE, NO_WAIT).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TooLarge, "{error}");
        for (grant, version) in held {
            let replaced = store.replace_and_release(&grant, version, &put("two")).await.unwrap();
            assert!(matches!(replaced, Replaced::Done(_)), "{replaced:?}");
        }
        assert_eq!(advisory_locks(&server, &name).await, (0, 0));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn colliding_keys_exclude_each_other_and_do_not_deadlock() {
    let Some(server) = shared().await else { return };
    // Two sessions whose hashes begin alike have one advisory lock between them.
    let like = |last: u8| {
        let mut bytes = *key().as_bytes();
        bytes[..8].fill(7);
        bytes[31] = last;
        StorageKey::from_bytes(bytes)
    };
    let (first, second) = two(&server.url(), LockMode::Advisory, 2).await;
    let (a, b) = (like(1), like(2));
    for key in [&a, &b] {
        assert!(matches!(first.insert(key, &put("x")).await.unwrap(), session_core::Inserted::Created(_)));
    }
    for (one, other) in [(&first, &first), (&first, &second)] {
        let (grant, _) = locked(one, &a).await;
        assert!(matches!(other.acquire(&b, token(), LEASE, NO_WAIT).await.unwrap(), Acquired::Held(_)));
        assert_eq!(one.release(&grant).await.unwrap(), Released::Freed);
        let (grant, _) = locked(other, &b).await;
        assert_eq!(other.release(&grant).await.unwrap(), Released::Freed);
    }
    // Each wants both, in opposite orders: somebody is told so within the time it would wait, and nobody
    // hangs.
    let wait = Duration::from_millis(200);
    let both = async |store: &PostgresStore, x: &StorageKey, y: &StorageKey| {
        let Loaded::Granted(one, _) = store.acquire_and_load(x, token(), LEASE, LEASE).await.unwrap() else {
            panic!("it is freed")
        };
        let other = store.acquire_and_load(y, token(), LEASE, wait).await.unwrap();
        assert!(matches!(other, Loaded::Held(_)), "the lock of {x} is the lock of {y}");
        assert_eq!(store.release(&one).await.unwrap(), Released::Freed);
    };
    let started = Instant::now();
    tokio::join!(both(&first, &a, &b), both(&second, &b, &a), both(&first, &b, &a));
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn who_waits_is_woken() {
    let Some(server) = shared().await else { return };
    for (mode, waiters) in [(LockMode::Advisory, 2), (LockMode::Advisory, 0), (LockMode::Lease, 0)] {
        let (first, second) = two(&server.url(), mode, waiters).await;
        for other in [&first, &second] {
            let (key, version) = created(&first, "one").await;
            let (grant, _) = locked(&first, &key).await;
            let waiting = tokio::spawn({
                let other = other.clone();
                async move {
                    let loaded = other.acquire_and_load(&key, token(), LEASE, LEASE).await.unwrap();
                    (loaded, Instant::now())
                }
            });
            tokio::time::sleep(Duration::from_millis(50)).await;
            assert!(!waiting.is_finished());
            let Replaced::Done(second) =
                first.replace_and_release(&grant, version, &put("two")).await.unwrap()
            else {
                panic!("held")
            };
            let freed = Instant::now();
            let (Loaded::Granted(grant, stored), woken) = waiting.await.unwrap() else { panic!("freed") };
            assert_eq!(stored.version, second, "what the last holder wrote");
            let late = woken.saturating_duration_since(freed);
            assert!(late < Duration::from_millis(500), "{mode:?}, {waiters}: {late:?}");
            assert_eq!(other.release(&grant).await.unwrap(), Released::Freed);
        }
        // Patience has an end, and a destroyed session is not waited for.
        let (key, _) = created(&first, "one").await;
        let (grant, _) = locked(&first, &key).await;
        for store in [&first, &second] {
            let (started, wait) = (Instant::now(), Duration::from_millis(100));
            let loaded = store.acquire_and_load(&key, token(), LEASE, wait).await.unwrap();
            assert!(matches!(loaded, Loaded::Held(_)), "{loaded:?}");
            assert!(started.elapsed() >= wait && started.elapsed() < wait * 10, "{:?}", started.elapsed());
        }
        assert!(matches!(first.delete_and_release(&grant).await.unwrap(), Deleted::Removed(_)));
        assert!(matches!(
            second.acquire_and_load(&key, token(), LEASE, LEASE).await.unwrap(),
            Loaded::Missing
        ));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn cancelled_at_every_await_an_acquire_leaves_nothing() {
    let Some(server) = shared().await else { return };
    for mode in [LockMode::Advisory, LockMode::Lease] {
        let name = format!("cancelled_{mode:?}");
        let (first, second) = two(&named(&server, &name), mode, 2).await;
        let (key, _) = created(&first, "one").await;
        let mut cut = 0;
        for round in 0..300 {
            // Free or held by the other, with and without a load, dropped after 0 to 4 polls.
            let held = if round % 2 == 0 { Some(locked(&second, &key).await.0) } else { None };
            let (mine, wait) = (token(), Duration::from_millis(20));
            let asked = polled(round / 4 % 5, async {
                if round % 4 < 2 {
                    matches!(first.acquire(&key, mine, LEASE, wait).await.unwrap(), Acquired::Granted(_))
                } else {
                    matches!(
                        first.acquire_and_load(&key, mine, LEASE, wait).await.unwrap(),
                        Loaded::Granted(..)
                    )
                }
            })
            .await;
            match asked {
                Some(granted) => {
                    assert_eq!(granted, held.is_none());
                    let freed = first.release(&Grant::new(key, mine)).await.unwrap();
                    assert_eq!(freed == Released::Freed, granted);
                }
                None => cut += 1,
            }
            if let Some(grant) = held {
                assert_eq!(second.release(&grant).await.unwrap(), Released::Freed);
            }
            // Nobody was told to release anything, and the lock is free long before the lease is over.
            let soon = Duration::from_secs(2);
            let free = second.acquire_and_load(&key, token(), LEASE, soon).await.unwrap();
            let Loaded::Granted(grant, _) = free else { panic!("round {round}: {free:?}") };
            assert_eq!(second.release(&grant).await.unwrap(), Released::Freed);
        }
        assert!(cut > 100, "{cut} of 300 were cancelled");
        eventually("no lock is left", async || advisory_locks(&server, &name).await == (0, 0)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_wait_ends_on_the_server() {
    let Some(server) = shared().await else { return };
    let (first, second) = two(&named(&server, "waiting"), LockMode::Advisory, 2).await;
    let (key, _) = created(&first, "one").await;
    let (grant, _) = locked(&first, &key).await;
    for _ in 0..5 {
        let waiting = tokio::spawn({
            let second = second.clone();
            async move { second.acquire(&key, token(), LEASE, Duration::from_secs(60)).await }
        });
        eventually("it waits", async || advisory_locks(&server, "waiting").await == (1, 1)).await;
        waiting.abort();
        eventually("it does not wait", async || advisory_locks(&server, "waiting").await == (1, 0)).await;
    }
    assert_eq!(first.release(&grant).await.unwrap(), Released::Freed);
    assert_eq!(advisory_locks(&server, "waiting").await, (0, 0));
    // And the connection that waited can wait again.
    let (grant, _) = locked(&first, &key).await;
    let waiting = tokio::spawn(async move { second.acquire(&key, token(), LEASE, LEASE).await });
    eventually("it waits", async || advisory_locks(&server, "waiting").await == (1, 1)).await;
    assert_eq!(first.release(&grant).await.unwrap(), Released::Freed);
    assert!(matches!(waiting.await.unwrap().unwrap(), Acquired::Granted(_)));
}

#[tokio::test(flavor = "multi_thread")]
async fn writes_without_a_lock_do_not_keep_it_from_anyone() {
    let Some(server) = shared().await else { return };
    let (first, second) = two(&server.url(), LockMode::Advisory, 2).await;
    let (key, mut version) = created(&first, "one").await;
    let done = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let stop = std::sync::Arc::clone(&done);
    let writer = tokio::spawn(async move {
        let (mut written, mut refused) = (0, 0);
        while !stop.load(std::sync::atomic::Ordering::Relaxed) {
            match first.replace(&key, version, &put("writer")).await.unwrap() {
                Replaced::Done(next) => {
                    version = next;
                    written += 1;
                }
                Replaced::NotHolder(_) => refused += 1,
                Replaced::Conflict(fresh) => version = fresh.version,
                Replaced::Missing => panic!("it lives"),
            }
        }
        (written, refused)
    });
    for _ in 0..200 {
        // Without patience: nobody holds it, and so it is granted; and once it is, no write comes in between.
        let (grant, stored) = locked(&second, &key).await;
        let replaced = second.replace_and_release(&grant, stored.version, &put("holder")).await.unwrap();
        assert!(matches!(replaced, Replaced::Done(_)), "{replaced:?}");
        tokio::time::sleep(Duration::from_millis(1)).await; // the writer's turn
    }
    done.store(true, std::sync::atomic::Ordering::Relaxed);
    let (written, _) = writer.await.unwrap();
    assert!(written > 0);
}

/// The server gives the lock to a statement, and the statement then fails: the lock is the connection's all
/// the same.
#[tokio::test(flavor = "multi_thread")]
async fn a_lock_that_came_before_the_error_is_given_back() {
    let Some(server) = shared().await else { return };
    let schema = schema();
    let url = format!("{}&schema={schema}", named(&server, "failing"));
    let store = PostgresStore::connect(PostgresConfig::from_url(&url).unwrap()).await.unwrap();
    let (key, _) = created(&store, "one").await;
    alter(&server, &format!("{schema}.session_take"), "outcome := 0;", "outcome := 1 / 0;").await;
    for _ in 0..3 {
        let error = store.acquire(&key, token(), LEASE, NO_WAIT).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Backend, "{error:?}");
        assert_eq!(advisory_locks(&server, "failing").await, (0, 0));
    }
    alter(&server, &format!("{schema}.session_take"), "outcome := 1 / 0;", "outcome := 0;").await;
    let (grant, _) = locked(&store, &key).await;
    assert_eq!(store.release(&grant).await.unwrap(), Released::Freed);
}

/// A wait that is cancelled when the server has just given it the lock.
#[tokio::test(flavor = "multi_thread")]
async fn a_lock_that_came_before_the_cancellation_is_given_back() {
    let Some(server) = shared().await else { return };
    let schema = schema();
    let config = PostgresConfig::from_url(&named(&server, "late")).unwrap().schema(&schema);
    let first = PostgresStore::connect(config.clone()).await.unwrap();
    let second = PostgresStore::connect(config).await.unwrap();
    let (key, _) = created(&first, "one").await;
    let slow = "outcome := 0; PERFORM pg_sleep(60);";
    alter(&server, &format!("{schema}.session_wait"), "outcome := 0;", slow).await;
    let (grant, _) = locked(&first, &key).await;
    let waiting = tokio::spawn(async move { second.acquire(&key, token(), LEASE, LEASE).await });
    eventually("it waits", async || advisory_locks(&server, "late").await == (1, 1)).await;
    assert_eq!(first.release(&grant).await.unwrap(), Released::Freed);
    eventually("it has it", async || advisory_locks(&server, "late").await == (1, 0)).await;
    waiting.abort();
    eventually("it has given it back", async || advisory_locks(&server, "late").await == (0, 0)).await;
    let (grant, _) = locked(&first, &key).await;
    assert_eq!(first.release(&grant).await.unwrap(), Released::Freed);
}

/// In lease mode waiters ask again and again; still nobody is passed over.
#[tokio::test(flavor = "multi_thread")]
async fn a_lease_goes_to_who_has_waited_longest() {
    let Some(server) = shared().await else { return };
    let schema = schema();
    let config = PostgresConfig::from_url(&server.url()).unwrap().schema(&schema).lock_mode(LockMode::Lease);
    let first = PostgresStore::connect(config.clone()).await.unwrap();
    let second = PostgresStore::connect(config).await.unwrap();
    let (key, _) = created(&first, "one").await;
    let (grant, _) = locked(&first, &key).await;
    let waiting = tokio::spawn({
        let second = second.clone();
        async move { second.acquire(&key, token(), LEASE, LEASE).await.unwrap() }
    });
    let word = format!("SELECT count(*) FROM {schema}.session_records WHERE next_until_us > 0");
    eventually("it has left word", async || server.query(&word).await.unwrap() == "1").await;
    // Free or held by the one who waited, it is nobody else's.
    assert_eq!(first.release(&grant).await.unwrap(), Released::Freed);
    for _ in 0..10 {
        let early = first.acquire(&key, token(), LEASE, NO_WAIT).await.unwrap();
        assert!(matches!(early, Acquired::Held(_)), "{early:?}");
    }
    let Acquired::Granted(grant) = waiting.await.unwrap() else { panic!("it is freed") };
    assert_eq!(second.release(&grant).await.unwrap(), Released::Freed);
    // A waiter that is gone does not keep it from others for long.
    let (grant, _) = locked(&first, &key).await;
    let waiting = tokio::spawn({
        let second = second.clone();
        async move { second.acquire(&key, token(), LEASE, LEASE).await }
    });
    eventually("it has left word", async || server.query(&word).await.unwrap() == "1").await;
    waiting.abort();
    assert_eq!(first.release(&grant).await.unwrap(), Released::Freed);
    let free = first.acquire(&key, token(), LEASE, Duration::from_secs(1)).await.unwrap();
    assert!(matches!(free, Acquired::Granted(_)), "{free:?}");
}

/// A holder whose release fails, or that leaves without one, takes no room from others for longer than its
/// lease.
#[tokio::test]
async fn locks_that_are_not_released_are_not_counted_for_ever() {
    let Some(server) = shared().await else { return };
    let schema = schema();
    let config = PostgresConfig::from_url(&server.url()).unwrap().schema(&schema).lock_mode(LockMode::Lease);
    let store = PostgresStore::connect(config.max_locks(1)).await.unwrap();
    let (key, _) = created(&store, "one").await;

    // The release fails: the lock stays in its row, and is nobody's here.
    let (grant, _) = locked(&store, &key).await;
    let release = format!("ALTER FUNCTION {schema}.session_release");
    server.query(&format!("{release} RENAME TO away")).await.unwrap();
    assert_eq!(store.release(&grant).await.unwrap_err().kind(), ErrorKind::Invalid);
    server.query(&format!("ALTER FUNCTION {schema}.away RENAME TO session_release")).await.unwrap();
    let (other, _) = created(&store, "two").await;
    let (room, _) = locked(&store, &other).await;
    assert_eq!(store.release(&room).await.unwrap(), Released::Freed);
    assert!(matches!(store.acquire(&key, token(), LEASE, NO_WAIT).await.unwrap(), Acquired::Held(_)));
    assert_eq!(store.release(&grant).await.unwrap(), Released::Freed);

    // The session is destroyed under its holder, who asks again.
    let (grant, _) = locked(&store, &key).await;
    assert!(matches!(store.delete(&key).await.unwrap(), Deleted::Removed(_)));
    let again = store.acquire_and_load(&key, *grant.token(), LEASE, NO_WAIT).await.unwrap();
    assert!(matches!(again, Loaded::Missing), "{again:?}");
    let (room, _) = locked(&store, &other).await;
    assert_eq!(store.release(&room).await.unwrap(), Released::Freed);

    // Nothing is released at all.
    let lease = Duration::from_millis(60);
    let left = store.acquire(&other, token(), lease, NO_WAIT).await.unwrap();
    assert!(matches!(left, Acquired::Granted(_)), "{left:?}");
    let error = store.acquire(&key, token(), lease, NO_WAIT).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TooLarge, "{error}");
    tokio::time::sleep(lease).await; // which the server's clock ends, and nothing else can
    let free = store.acquire(&key, token(), LEASE, NO_WAIT).await.unwrap();
    assert!(matches!(free, Acquired::Granted(_)), "{free:?}");
}

/// Commits that wait for their connection are one statement, but never one that is too long for the server.
#[tokio::test]
async fn commits_of_long_records_are_not_sent_all_at_once() {
    let Some(server) = shared().await else { return };
    let schema = schema();
    let config = PostgresConfig::from_url(&server.url()).unwrap().schema(&schema).lock_connections(1);
    let config = config.max_value(256 << 20).timeout(Duration::from_secs(60));
    let store = PostgresStore::connect(config).await.unwrap();
    let log = format!(
        "CREATE TABLE {schema}.log (id bigint); CREATE FUNCTION {schema}.log() RETURNS trigger LANGUAGE plpgsql AS \
         $f$ BEGIN INSERT INTO {schema}.log VALUES (txid_current()); RETURN NULL; END $f$; \
         CREATE TRIGGER log AFTER UPDATE OR DELETE ON {schema}.session_records \
         FOR EACH ROW EXECUTE FUNCTION {schema}.log()"
    );
    server.query(&log).await.unwrap();
    let together = async || {
        let most = format!(
            "WITH gone AS (DELETE FROM {schema}.log RETURNING id), batches AS (SELECT count(*) AS n FROM gone GROUP BY id) \
             SELECT string_agg(n::text, ' ' ORDER BY n) FROM batches"
        );
        server.query(&most).await.unwrap()
    };
    let three = async || {
        let mut held = Vec::new();
        for _ in 0..3 {
            let (key, version) = created(&store, "short").await;
            held.push((locked(&store, &key).await.0, version));
        }
        <[_; 3]>::try_from(held).unwrap()
    };
    // On one thread, all three have asked before the connection's task sees the first of them.
    for (megabytes, batches) in [(1, "3"), (33, "1 2")] {
        let [a, b, c] = three().await;
        let long = Put::new(vec![7; megabytes << 20].into(), TTL);
        let write = async |(grant, version): &(Grant, Version)| {
            let written = store.replace_and_release(grant, *version, &long).await.unwrap();
            assert!(matches!(written, Replaced::Done(_)), "{written:?}");
        };
        tokio::join!(write(&a), write(&b), write(&c));
        assert_eq!(together().await, batches, "{megabytes} MiB each");
    }
    // What is deleted comes back, and may be as long as any record.
    let [a, b, c] = three().await;
    let delete = async |(grant, _): &(Grant, Version)| {
        let deleted = store.delete_and_release(grant).await.unwrap();
        assert!(matches!(deleted, Deleted::Removed(_)), "{deleted:?}");
    };
    tokio::join!(delete(&a), delete(&b), delete(&c));
    assert_eq!(together().await, "1 1 1");
}
