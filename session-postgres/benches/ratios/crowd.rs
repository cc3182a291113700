//! Many locks, many waiters, and who reads beside them.

use crate::ways::{Classical, LEASE, exclusive, median, micros, new_session, sessions, verdict};
use session_conformance::servers::postgres::PostgresServer;
use session_core::{
    Acquired, Grant, SessionId, SessionLock as _, SessionStore as _, Sessions, StorageKey, SystemRandom,
    Token,
};
use session_postgres::{LockMode, PostgresStore};
use sqlx::{PgPool, postgres::PgPoolOptions};
use std::{
    sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    time::{Duration, Instant},
};
use tokio::time::sleep;

async fn read_times(store: &PostgresStore, key: &StorageKey, reads: usize) -> Vec<Duration> {
    let mut times = Vec::with_capacity(reads);
    for _ in 0..reads {
        let started = Instant::now();
        store.load(key).await.unwrap().expect("it lives");
        times.push(started.elapsed());
    }
    times
}

/// A thousand sessions locked, and five hundred waiters on one of them.
pub(crate) async fn crowd(server: &PostgresServer) {
    let (store, sessions) = sessions(&server.url(), "crowd", LockMode::Advisory).await;
    let free = new_session(&sessions).await.storage_key();
    let mut ids = Vec::new();
    for _ in 0..1000 {
        ids.push(new_session(&sessions).await.storage_key());
    }
    let token = || Token::random(&SystemRandom).unwrap();
    let (mut idle, mut busy) = (Vec::new(), Vec::new());
    read_times(&store, &free, 500).await;
    for _ in 0..5 {
        idle.extend(read_times(&store, &free, 500).await);
        let mut grants = Vec::new();
        for key in &ids {
            match store.acquire(key, token(), LEASE, Duration::ZERO).await.unwrap() {
                Acquired::Granted(grant) => grants.push(grant),
                Acquired::Held(_) => unreachable!("it is free"),
            }
        }
        let waiters: Vec<_> = (0..500)
            .map(|_| {
                let (store, key, token) = (store.clone(), ids[0], token());
                tokio::spawn(async move { store.acquire(&key, token, LEASE, LEASE).await })
            })
            .collect();
        sleep(Duration::from_millis(300)).await;
        busy.extend(read_times(&store, &free, 500).await);
        for waiter in waiters {
            waiter.abort();
        }
        for grant in grants {
            assert!(store.release(&Grant::new(*grant.key(), *grant.token())).await.is_ok());
        }
        sleep(Duration::from_millis(100)).await;
    }
    let (idle, busy) = (micros(median(&mut idle)), micros(median(&mut busy)));
    println!(
        "\n1,000 sessions locked on a pool of ten, 500 waiters on one of them: an unrelated read, p50, us"
    );
    println!("    idle {idle:.0}   then {busy:.0}");
    verdict("then / idle", busy / idle, 1.5);
}

/// Sixteen tasks on one session, each holding it for 5 ms; and somebody who reads another one.
pub(crate) async fn contended(server: &PostgresServer) {
    const HELD: Duration = Duration::from_millis(5);
    const SPAN: Duration = Duration::from_secs(2);
    let (store, sessions) = sessions(&server.url(), "contended", LockMode::Advisory).await;
    let (id, free) = (new_session(&sessions).await, new_session(&sessions).await.storage_key());
    let options = PgPoolOptions::new().max_connections(10).test_before_acquire(false);
    let pool = options.connect(&server.url()).await.unwrap();
    Classical::update(&mut pool.acquire().await.unwrap(), 4, Duration::ZERO).await;
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    let (mut our_reads, mut their_reads, mut idle) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..3 {
        let (_, mut reads) =
            load(SPAN / 2, 0, |_| std::future::ready(()), || read_times(&store, &free, 1)).await;
        idle.append(&mut reads);
        let (rate, mut reads) =
            load(SPAN, 16, |_| sixteen_ours(&sessions, &id), || read_times(&store, &free, 1)).await;
        ours.push(rate);
        our_reads.append(&mut reads);
        let (rate, mut reads) = load(SPAN, 16, |_| sixteen_theirs(&pool), || classical_read(&pool)).await;
        theirs.push(rate);
        their_reads.append(&mut reads);
    }
    ours.sort_by(f64::total_cmp);
    theirs.sort_by(f64::total_cmp);
    println!(
        "\n16 tasks on one session, 5 ms held: updates a second, and an unrelated read beside them, p50, us"
    );
    println!(
        "    exclusive {:.0}/s, reads {:.0}   classical {:.0}/s, reads {:.0}   idle reads {:.0}",
        ours[1],
        micros(median(&mut our_reads)),
        theirs[1],
        micros(median(&mut their_reads)),
        micros(median(&mut idle)),
    );
    verdict("classical / exclusive, updates a second", theirs[1] / ours[1], 1.0);

    async fn sixteen_ours(sessions: &Sessions, id: &SessionId) {
        exclusive(sessions, id, HELD).await;
    }
    async fn sixteen_theirs(pool: &PgPool) {
        Classical::update(&mut pool.acquire().await.unwrap(), 4, HELD).await;
    }
    async fn classical_read(pool: &PgPool) -> Vec<Duration> {
        let started = Instant::now();
        sqlx::query(Classical::READ).bind(1_i64).fetch_optional(pool).await.unwrap();
        vec![started.elapsed()]
    }
}

/// Runs so many of `work` over and over, and `read` beside them every 5 ms.
async fn load<W, R>(
    span: Duration,
    tasks: usize,
    work: impl Fn(usize) -> W,
    read: impl Fn() -> R,
) -> (f64, Vec<Duration>)
where
    W: Future<Output = ()>,
    R: Future<Output = Vec<Duration>>,
{
    let (done, count) = (AtomicBool::new(false), AtomicU64::new(0));
    let started = Instant::now();
    let tasks = (0..tasks).map(|task| {
        let (work, done, count) = (&work, &done, &count);
        async move {
            while !done.load(Relaxed) {
                work(task).await;
                count.fetch_add(1, Relaxed);
            }
        }
    });
    let reading = async {
        let mut times = Vec::new();
        while started.elapsed() < span {
            times.append(&mut read().await);
            sleep(Duration::from_millis(5)).await;
        }
        done.store(true, Relaxed);
        times
    };
    let (times, _) = tokio::join!(reading, futures_util::future::join_all(tasks));
    (count.load(Relaxed) as f64 / started.elapsed().as_secs_f64(), times)
}
