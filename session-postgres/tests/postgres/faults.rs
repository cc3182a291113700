//! Connections that die, servers that are killed or hang, and processes that are killed or stopped.

use crate::support::*;
use session_conformance::servers::{Process, ServerControl as _, postgres::PostgresServer};
use session_core::{
    Acquired, Capabilities, Durability, Effect, ErrorKind, Grant, Loaded, LockingStore as _, Released,
    Renewed, Replaced, SessionLock as _, SessionStore as _, StorageKey, Token,
};
use session_postgres::{LockMode, PostgresConfig, PostgresStore};
use std::{
    process::{Command, Stdio},
    sync::Arc,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    time::{Duration, Instant},
};

fn configured(url: &str, mode: LockMode) -> PostgresConfig {
    PostgresConfig::from_url(url).unwrap().schema(schema()).lock_mode(mode)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_lock_connection_poisons_its_grants() {
    let Some(server) = shared().await else { return };
    let config = configured(&named(&server, "poison"), LockMode::Advisory);
    let first = PostgresStore::connect(config.clone()).await.unwrap();
    let second = PostgresStore::connect(config).await.unwrap();
    let (key, version) = created(&first, "one").await;
    let (grant, _) = locked(&first, &key).await;
    kill_lock_connections(&server, "poison").await;
    // It is noticed without a command: another in this process gets in, and what the former holder asks for
    // is refused.
    let noticed = eventually("it is noticed", async || {
        matches!(first.acquire(&key, token(), LEASE, NO_WAIT).await, Ok(Acquired::Granted(_)))
    })
    .await;
    assert!(noticed < Duration::from_secs(2), "{noticed:?}");
    assert_eq!(first.renew(&grant, LEASE).await.unwrap(), Renewed::Lost);
    let refused = first.replace_and_release(&grant, version, &put("late")).await.unwrap();
    assert!(matches!(refused, Replaced::NotHolder(_)), "{refused:?}");
    assert_eq!(first.release(&grant).await.unwrap(), Released::Lost);
    // Killed while nobody looks, the first command finds out.
    kill_lock_connections(&server, "poison").await;
    let free = second.acquire(&key, token(), LEASE, LEASE).await;
    let Ok(Acquired::Granted(grant)) = free else { panic!("{free:?}") };
    assert_eq!(second.release(&grant).await.unwrap(), Released::Freed);
    assert_eq!(data(&first, &key).await.as_deref(), Some("one"));
}

/// Holders in two stores, whose lock connections are killed again and again: each reads, adds one and writes
/// under the lock. If there were ever two, one of them would find that its version is gone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn there_are_never_two_holders() {
    let Some(server) = shared().await else { return };
    let config = configured(&named(&server, "killed"), LockMode::Advisory).timeout(Duration::from_secs(2));
    let stores = [
        PostgresStore::connect(config.clone()).await.unwrap(),
        PostgresStore::connect(config).await.unwrap(),
    ];
    let (key, _) = created(&stores[0], "0").await;
    let (done, progress) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let tasks: Vec<_> = (0..8)
        .map(|task| {
            let (store, done, progress) =
                (stores[task % 2].clone(), Arc::clone(&done), Arc::clone(&progress));
            tokio::spawn(async move { add_under_lock(&store, &key, &done, &progress).await })
        })
        .collect();
    for _ in 0..20 {
        // Not before somebody has got something done since the last time.
        let before = progress.load(Relaxed);
        eventually("it goes on", async || progress.load(Relaxed) > before + 3).await;
        kill_lock_connections(&server, "killed").await;
    }
    done.store(true, Relaxed);
    let (mut acknowledged, mut unknown) = (0, 0);
    for task in tasks {
        let (a, u) = task.await.unwrap();
        acknowledged += a;
        unknown += u;
    }
    let found: u64 = data(&stores[0], &key).await.unwrap().parse().unwrap();
    assert!(
        (acknowledged..=acknowledged + unknown).contains(&found),
        "{acknowledged} + {unknown}? but {found}"
    );
}

async fn add_under_lock(
    store: &PostgresStore,
    key: &StorageKey,
    done: &AtomicBool,
    progress: &AtomicUsize,
) -> (u64, u64) {
    let (mut acknowledged, mut unknown) = (0, 0);
    while !done.load(Relaxed) {
        let (grant, stored) = match store.acquire_and_load(key, token(), LEASE, LEASE).await {
            Ok(Loaded::Granted(grant, stored)) => (grant, stored),
            Ok(Loaded::Held(_)) => continue,
            Ok(Loaded::Missing) => panic!("it lives"),
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
                continue;
            }
        };
        let count: u64 = std::str::from_utf8(&stored.data).unwrap().parse().unwrap();
        let next = session_core::Put::new((count + 1).to_string().into(), TTL);
        match store.replace_and_release(&grant, stored.version, &next).await {
            Ok(Replaced::Done(_)) => {
                acknowledged += 1;
                progress.fetch_add(1, Relaxed);
            }
            Ok(Replaced::NotHolder(_)) => {} // its connection was killed in between
            Ok(other) => panic!("two holders: {other:?}"),
            Err(error) => {
                assert_eq!(
                    (error.kind(), error.effect()),
                    (ErrorKind::Unavailable, Effect::Unknown),
                    "{error:?}"
                );
                unknown += 1;
            }
        }
    }
    (acknowledged, unknown)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_acknowledged_survives_the_death_of_the_server() {
    let Some(server) = started(PostgresServer::durable().await) else { return };
    for mode in [LockMode::Advisory, LockMode::Lease] {
        let store = PostgresStore::connect(configured(&server.url(), mode)).await.unwrap();
        assert_eq!(store.capabilities().durability, Durability::PowerLoss);
        assert_eq!(lost_in_a_crash(&server, &store).await, 0, "{mode:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn unlogged_tables_and_lazy_commits_lose_and_say_so() {
    let Some(server) = started(PostgresServer::start().await) else { return };
    let config = configured(&server.url(), LockMode::Advisory);
    let store = PostgresStore::connect(config.clone().unlogged(true)).await.unwrap();
    assert_eq!(store.capabilities().durability, Durability::Volatile);
    assert!(lost_in_a_crash(&server, &store).await > 0);
    // The two settings must agree, whichever is which.
    let error = PostgresStore::connect(config.clone()).await.unwrap_err();
    assert!(error.kind() == ErrorKind::Invalid && error.to_string().contains("unlogged=true"), "{error}");

    server.query("ALTER ROLE postgres SET synchronous_commit = off").await.unwrap();
    let store = PostgresStore::connect(config.schema(schema())).await.unwrap();
    let Capabilities { durability, .. } = store.capabilities();
    assert_eq!(durability, Durability::Volatile);
}

/// Writes from several tasks, kills the server in the middle, and counts acknowledged sessions that are not
/// there afterwards. The client goes on by itself.
async fn lost_in_a_crash(server: &PostgresServer, store: &PostgresStore) -> usize {
    let (done, count) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let tasks: Vec<_> = (0..8)
        .map(|_| {
            let (store, done, count) = (store.clone(), Arc::clone(&done), Arc::clone(&count));
            tokio::spawn(async move {
                let mut acknowledged = Vec::new();
                while !done.load(Relaxed) {
                    let key = key();
                    match store.insert(&key, &put("one")).await {
                        Ok(_) => {}
                        Err(error) => {
                            assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
                            tokio::time::sleep(Duration::from_millis(5)).await;
                            continue;
                        }
                    }
                    // Under the lock, too: that is another path.
                    if let Ok(Loaded::Granted(grant, stored)) =
                        store.acquire_and_load(&key, token(), LEASE, NO_WAIT).await
                        && let Ok(Replaced::Done(version)) =
                            store.replace_and_release(&grant, stored.version, &put("two")).await
                    {
                        acknowledged.push((key, version));
                        count.fetch_add(1, Relaxed);
                    }
                }
                acknowledged
            })
        })
        .collect();
    eventually("enough was written", async || count.load(Relaxed) >= 100).await;
    server.restart().await.unwrap();
    let before = count.load(Relaxed);
    eventually("it goes on", async || count.load(Relaxed) >= before + 20).await;
    done.store(true, Relaxed);
    let (mut total, mut lost) = (0, 0);
    for task in tasks {
        for (key, version) in task.await.unwrap() {
            total += 1;
            let found = store.load(&key).await.unwrap();
            lost += usize::from(found.is_none_or(|stored| stored.version != version));
        }
    }
    eprintln!("{lost} of {total} acknowledged writes were lost");
    lost
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_hangs_is_an_error_in_time() {
    let Some(server) = started(PostgresServer::start().await) else { return };
    let limit = Duration::from_millis(300);
    for mode in [LockMode::Advisory, LockMode::Lease] {
        let config = configured(&server.url(), mode).timeout(limit).connect_timeout(limit);
        let store = PostgresStore::connect(config).await.unwrap();
        let (key, version) = created(&store, "one").await;
        let (other, _) = created(&store, "one").await;
        let (grant, stored) = locked(&store, &other).await;
        server.pause().await.unwrap();
        let (started, two) = (Instant::now(), put("two"));
        let (loaded, replaced, acquired, committed) = tokio::join!(
            store.load(&key),
            store.replace(&key, version, &two),
            store.acquire(&key, token(), LEASE, NO_WAIT),
            store.replace_and_release(&grant, stored.version, &two),
        );
        let took = started.elapsed();
        for error in
            [loaded.unwrap_err(), replaced.unwrap_err(), acquired.unwrap_err(), committed.unwrap_err()]
        {
            assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
        }
        assert!(took < limit * 4, "{mode:?}: {took:?}");
        server.resume().await.unwrap();
        // The same client goes on; what was sent is there, or not, but nothing is torn, and nothing is locked
        // for ever.
        eventually("it recovers", async || store.load(&key).await.is_ok()).await;
        for key in [&key, &other] {
            eventually("it can be locked", async || match store.acquire(key, token(), LEASE, limit).await {
                Ok(Acquired::Granted(grant)) => store.release(&grant).await.is_ok(),
                Ok(Acquired::Held(_)) => false,
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
                    false
                }
            })
            .await;
            let data = data(&store, key).await.unwrap();
            assert!(["one", "two"].contains(&data.as_str()), "{data}");
        }
    }
}

/// What another process does, when this test is told to be one.
#[tokio::test]
async fn another_process() {
    let Ok(url) = std::env::var("HOLDER_URL") else { return };
    let key: Vec<u8> =
        std::env::var("HOLDER_KEY").unwrap().split(',').map(|byte| byte.parse().unwrap()).collect();
    let key = StorageKey::from_bytes(key.try_into().unwrap());
    let lease = Duration::from_millis(std::env::var("HOLDER_LEASE_MS").unwrap().parse().unwrap());
    let store = PostgresStore::connect(PostgresConfig::from_url(&url).unwrap()).await.unwrap();
    // Who waits for it to be held holds it for a moment himself, again and again.
    let (grant, stored) = loop {
        match store.acquire_and_load(&key, Token::from_bytes([9; 16]), lease, NO_WAIT).await.unwrap() {
            Loaded::Granted(grant, stored) => break (grant, stored),
            Loaded::Held(_) => tokio::time::sleep(Duration::from_millis(3)).await,
            Loaded::Missing => panic!("it is there"),
        }
    };
    // It is stopped or killed somewhere in here; when it goes on after its lease, it tries to write.
    let started = Instant::now();
    while started.elapsed() < lease {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let written = store.replace_and_release(&grant, stored.version, &put("stale")).await;
    let refused = !matches!(written, Ok(Replaced::Done(_)));
    std::fs::write(std::env::var("HOLDER_REPORT").unwrap(), if refused { "refused" } else { "written" })
        .unwrap();
}

struct Holder {
    process: Process,
    report: tempfile::NamedTempFile,
}

impl Holder {
    /// A process that holds the lock.
    async fn start(url: &str, key: &StorageKey, lease: Duration, store: &PostgresStore) -> Self {
        let report = tempfile::NamedTempFile::new().unwrap();
        let bytes: Vec<_> = key.as_bytes().iter().map(u8::to_string).collect();
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "faults::another_process"]).stdout(Stdio::null()).env("HOLDER_URL", url);
        command.env("HOLDER_KEY", bytes.join(",")).env("HOLDER_LEASE_MS", lease.as_millis().to_string());
        command.env("HOLDER_REPORT", report.path());
        let process = Process::spawn(&mut command).unwrap();
        eventually("it holds", async || match store.acquire(key, token(), LEASE, NO_WAIT).await.unwrap() {
            Acquired::Held(_) => true,
            Acquired::Granted(grant) => {
                assert_eq!(store.release(&grant).await.unwrap(), Released::Freed);
                tokio::time::sleep(Duration::from_millis(20)).await;
                false
            }
        })
        .await;
        Self { process, report }
    }
}

async fn beside_a_process(mode: LockMode) -> Option<(PostgresServer, PostgresStore, String, StorageKey)> {
    let server = shared().await?;
    let (schema, lock) = (schema(), if mode == LockMode::Lease { "lease" } else { "advisory" });
    let url = format!("{}?schema={schema}&lock={lock}", server.url());
    let store = PostgresStore::connect(PostgresConfig::from_url(&url).unwrap()).await.unwrap();
    let (key, _) = created(&store, "one").await;
    Some((server, store, url, key))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_holder_frees_its_lock_at_once() {
    let Some((_server, store, url, key)) = beside_a_process(LockMode::Advisory).await else { return };
    let lease = Duration::from_secs(60);
    let mut holder = Holder::start(&url, &key, lease, &store).await;
    let waiting = tokio::spawn({
        let store = store.clone();
        async move { store.acquire(&key, token(), LEASE, lease).await.unwrap() }
    });
    tokio::time::sleep(Duration::from_millis(50)).await;
    let killed = Instant::now();
    holder.process.kill();
    let Acquired::Granted(grant) = waiting.await.unwrap() else { panic!("it is dead") };
    let freed = killed.elapsed();
    eprintln!("freed {freed:?} after the kill");
    assert!(freed < Duration::from_secs(2), "{freed:?}");
    assert_eq!(store.release(&grant).await.unwrap(), Released::Freed);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_holder_loses_its_lock_with_its_lease_and_writes_no_more() {
    for mode in [LockMode::Advisory, LockMode::Lease] {
        let Some((_server, store, url, key)) = beside_a_process(mode).await else { return };
        let lease = Duration::from_millis(1500);
        let mut holder = Holder::start(&url, &key, lease, &store).await;
        let stopped = Instant::now();
        holder.process.pause().unwrap();
        let acquired = store.acquire(&key, token(), LEASE, LEASE).await.unwrap();
        let Acquired::Granted(grant) = acquired else {
            panic!("{mode:?}: still held after {:?}", stopped.elapsed())
        };
        let freed = stopped.elapsed();
        eprintln!("{mode:?}: freed {freed:?} after the stop, with a lease of {lease:?}");
        assert!(freed < lease + Duration::from_secs(1), "{freed:?}");
        assert_eq!(store.release(&grant).await.unwrap(), Released::Freed);
        holder.process.resume().unwrap();
        eventually("it ends", async || holder.process.has_ended()).await;
        assert_eq!(std::fs::read_to_string(holder.report.path()).unwrap(), "refused");
        assert_eq!(data(&store, &key).await.as_deref(), Some("one"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn all_connections_cut_again_and_again() {
    let Some(server) = started(PostgresServer::start().await) else { return };
    for mode in [LockMode::Advisory, LockMode::Lease] {
        let store = PostgresStore::connect(configured(&server.url(), mode)).await.unwrap();
        let (key, mut version) = created(&store, "one").await;
        for _ in 0..10 {
            server.cut().await.unwrap();
            // The next read works at once; a write may be lost with its connection, and says so.
            version = match store.load(&key).await {
                Ok(stored) => stored.unwrap().version,
                Err(error) => panic!("{error:?}"),
            };
            match store.replace(&key, version, &put("two")).await {
                Ok(Replaced::Done(next)) => version = next,
                Ok(other) => panic!("{other:?}"),
                Err(error) => assert_eq!(error.effect(), Effect::Unknown, "{error:?}"),
            }
            let mine = token();
            let granted = eventually("it can be locked", async || {
                matches!(store.acquire(&key, mine, LEASE, LEASE).await, Ok(Acquired::Granted(_)))
            })
            .await;
            assert!(granted < Duration::from_secs(3), "{granted:?}");
            assert_eq!(store.release(&Grant::new(key, mine)).await.unwrap(), Released::Freed);
        }
        assert!(
            store.load(&key).await.unwrap().is_some_and(|stored| stored.version == version)
                || mode == LockMode::Lease
        );
    }
}
