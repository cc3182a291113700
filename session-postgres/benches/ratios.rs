//! What locking and versions cost beside the classical way, in one run, interleaved: `cargo bench -p session-postgres`.
//!
//! The classical way is five statements: BEGIN; pg_advisory_xact_lock; SELECT; UPSERT; COMMIT. Every figure is a median, and what
//! counts is the ratio of two figures of one table. Bounds are printed beside them; a machine that does other things as well can miss them.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a bench ends where it fails")]

use session_conformance::servers::{Proxy, postgres::PostgresServer};
use session_core::{
    Acquired, Grant, Key, SessionId, SessionLock as _, SessionStore as _, Sessions, SystemRandom, Token,
};
use session_postgres::{LockMode, PostgresConfig, PostgresStore};
use sqlx::{Connection as _, Executor as _, PgConnection, PgPool, Row as _, postgres::PgPoolOptions};
use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};
use tokio::time::sleep;

const COUNT: Key<u64> = Key::new("count");
const FILLER: Key<String> = Key::new("filler");
/// Just below the size from which records are compressed: that is not what is measured here.
const SIZE: usize = 900;
const LEASE: Duration = Duration::from_secs(60);

fn quantile(times: &mut [Duration], percent: usize) -> Duration {
    times.sort();
    times.get(times.len() * percent / 100).copied().unwrap_or_default()
}

fn median(times: &mut [Duration]) -> Duration {
    quantile(times, 50)
}

fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

fn verdict(name: &str, ratio: f64, bound: f64) {
    let word = if ratio <= bound { "within" } else { "ABOVE" };
    println!("    {name}: {ratio:.2}, {word} {bound:.2}");
}

/// The classical way, on a table of its own.
struct Classical;

const CLASSICAL_LOCK: &str = "SELECT pg_advisory_xact_lock($1)";
const CLASSICAL_READ: &str = "SELECT data FROM classical WHERE key = $1";
const CLASSICAL_WRITE: &str = "INSERT INTO classical (key, data, expires) VALUES ($1, $2, now() + interval '1 hour') \
    ON CONFLICT (key) DO UPDATE SET data = excluded.data, expires = excluded.expires";

impl Classical {
    async fn prepare(server: &PostgresServer) {
        let sql = "CREATE TABLE classical (key bigint PRIMARY KEY, data bytea NOT NULL, expires timestamptz NOT NULL)";
        server.query(sql).await.unwrap();
    }

    /// One locked update that keeps the lock for so long.
    async fn update(connection: &mut PgConnection, key: i64, held: Duration) {
        let mut transaction = connection.begin().await.unwrap();
        transaction.execute(sqlx::query(CLASSICAL_LOCK).bind(key)).await.unwrap();
        let row = sqlx::query(CLASSICAL_READ).bind(key).fetch_optional(&mut *transaction).await.unwrap();
        let mut data: Vec<u8> = row.map_or_else(|| vec![b'x'; SIZE], |row| row.get("data"));
        data[0] = data[0].wrapping_add(1);
        if !held.is_zero() {
            sleep(held).await;
        }
        transaction.execute(sqlx::query(CLASSICAL_WRITE).bind(key).bind(data)).await.unwrap();
        transaction.commit().await.unwrap();
    }
}

async fn sessions(url: &str, schema: &str, mode: LockMode) -> (PostgresStore, Sessions) {
    let config = PostgresConfig::from_url(url).unwrap().schema(schema).lock_mode(mode).pool_size(10);
    let store = PostgresStore::connect(config).await.unwrap();
    let sessions = Sessions::builder(store.clone()).max_waiters(1000).lock_wait(LEASE).build().unwrap();
    (store, sessions)
}

async fn new_session(sessions: &Sessions) -> SessionId {
    let session = sessions.create();
    session.insert(COUNT, &0).unwrap();
    session.insert(FILLER, &"x".repeat(SIZE)).unwrap();
    session.commit().await.unwrap();
    session.id().unwrap()
}

async fn write(sessions: &Sessions, id: &SessionId) {
    sessions.update(id, |session| session.update(COUNT, |count| *count += 1)).await.unwrap();
}

async fn exclusive(sessions: &Sessions, id: &SessionId, held: Duration) {
    let run = async |session: &session_core::Session| {
        if !held.is_zero() {
            sleep(held).await;
        }
        session.update(COUNT, |count| *count += 1)
    };
    sessions.exclusive(id, run).await.unwrap();
}

/// One task, one session, nobody else: what a locked update costs.
async fn latency(
    server: &PostgresServer,
    address: SocketAddr,
    name: &str,
    rounds: usize,
    bounds: (f64, f64),
) {
    let url = server.url_at(address);
    let (_, advisory) = sessions(&url, "latency", LockMode::Advisory).await;
    let (_, lease) = sessions(&url, "latency_lease", LockMode::Lease).await;
    let (id, lease_id) = (new_session(&advisory).await, new_session(&lease).await);
    let mut connection = PgConnection::connect(&url).await.unwrap();
    let mut times: [Vec<Duration>; 4] = Default::default();
    for _ in 0..rounds {
        for (way, times) in times.iter_mut().enumerate() {
            for _ in 0..20 {
                let started = Instant::now();
                match way {
                    0 => Classical::update(&mut connection, 1, Duration::ZERO).await,
                    1 => exclusive(&advisory, &id, Duration::ZERO).await,
                    2 => exclusive(&lease, &lease_id, Duration::ZERO).await,
                    _ => write(&advisory, &id).await,
                }
                times.push(started.elapsed());
            }
        }
    }
    // The fastest tenth beside the median: what a machine that does other things as well does not disturb.
    let fast = times.clone().map(|mut times| micros(quantile(&mut times, 10)));
    let [classical, exclusive, leased, written] = times.map(|mut times| micros(median(&mut times)));
    println!("\n{name}: one locked update, median of {} each, us", rounds * 20);
    println!(
        "    classical {classical:.0}   exclusive {exclusive:.0}   exclusive by lease {leased:.0}   write {written:.0}"
    );
    verdict("exclusive / classical", exclusive / classical, bounds.0);
    verdict("write / classical", written / classical, bounds.1);
    println!("    exclusive by lease / classical: {:.2}", leased / classical);
    let [classical, exclusive, leased, written] = fast;
    println!(
        "    10th percentile: classical {classical:.0}   exclusive {exclusive:.0} ({:.2})   by lease {leased:.0} ({:.2})   \
         write {written:.0} ({:.2})",
        exclusive / classical,
        leased / classical,
        written / classical
    );
}

/// One way over and over, for a profiler to watch.
async fn profile(server: &PostgresServer, way: &str) {
    let url = server.url();
    let mode = if way == "lease" { LockMode::Lease } else { LockMode::Advisory };
    let (store, all) = sessions(&url, "profile", mode).await;
    let id = new_session(&all).await;
    let key = id.storage_key();
    let mut connection = PgConnection::connect(&url).await.unwrap();
    let mut times = Vec::new();
    let end = Instant::now() + Duration::from_secs(3);
    while Instant::now() < end {
        let started = Instant::now();
        match way {
            "classical" => Classical::update(&mut connection, 1, Duration::ZERO).await,
            "write" => write(&all, &id).await,
            "read" => drop(all.read(&id).await.unwrap()),
            "load" => drop(store.load(&key).await.unwrap()),
            "replace" => {
                let stored = store.load(&key).await.unwrap().unwrap();
                let put = session_core::Put::new(stored.data.clone(), LEASE);
                drop(store.replace(&key, stored.version, &put).await.unwrap());
            }
            "driver" => {
                use session_core::LockingStore as _;
                let token = Token::random(&SystemRandom).unwrap();
                let loaded = store.acquire_and_load(&key, token, LEASE, LEASE).await.unwrap();
                let session_core::Loaded::Granted(grant, stored) = loaded else { panic!() };
                let put = session_core::Put::new(stored.data.clone(), LEASE);
                drop(store.replace_and_release(&grant, stored.version, &put).await.unwrap());
            }
            _ => exclusive(&all, &id, Duration::ZERO).await,
        }
        times.push(started.elapsed());
    }
    println!("{way}: {:.0} us, {}", micros(median(&mut times)), times.len());
}

/// Statements as the server counts them, round trips as the proxy does.
async fn counts(server: &PostgresServer) {
    const OPERATIONS: u64 = 100;
    server.query("CREATE EXTENSION IF NOT EXISTS pg_stat_statements").await.unwrap();
    let proxy = Proxy::start(server.address(), Duration::ZERO).await.unwrap();
    let url = server.url_at(proxy.address());
    let (_, advisory) = sessions(&url, "counts", LockMode::Advisory).await;
    let (_, lease) = sessions(&url, "counts_lease", LockMode::Lease).await;
    let (id, lease_id) = (new_session(&advisory).await, new_session(&lease).await);
    let mut connection = PgConnection::connect(&url).await.unwrap();
    println!("\nStatements and round trips of one operation, mean of {OPERATIONS}");
    for way in ["classical", "exclusive", "exclusive by lease", "write", "read"] {
        for measured in [false, true] {
            let before = proxy.traffic().trips;
            if measured {
                server.query("SELECT pg_stat_statements_reset()").await.unwrap();
            }
            for _ in 0..if measured { OPERATIONS } else { 10 } {
                match way {
                    "classical" => Classical::update(&mut connection, 2, Duration::ZERO).await,
                    "exclusive" => exclusive(&advisory, &id, Duration::ZERO).await,
                    "exclusive by lease" => exclusive(&lease, &lease_id, Duration::ZERO).await,
                    "write" => write(&advisory, &id).await,
                    _ => drop(advisory.read(&id).await.unwrap().expect("it lives")),
                }
            }
            if measured {
                let trips = (proxy.traffic().trips - before) as f64 / OPERATIONS as f64;
                let sql =
                    "SELECT sum(calls) FROM pg_stat_statements WHERE query NOT LIKE '%pg_stat_statements%'";
                let calls: f64 = server.query(sql).await.unwrap().parse().unwrap();
                if std::env::var("BENCH_TIMES").is_ok() {
                    println!("{}", server.query("SELECT round((mean_exec_time*1000)::numeric,1), round((min_exec_time*1000)::numeric,1), calls, left(query, 90) FROM pg_stat_statements ORDER BY total_exec_time DESC LIMIT 6").await.unwrap());
                }
                println!("    {way}: {:.2} statements, {trips:.2} round trips", calls / OPERATIONS as f64);
            }
        }
    }
}

async fn read_times(store: &PostgresStore, key: &session_core::StorageKey, reads: usize) -> Vec<Duration> {
    let mut times = Vec::with_capacity(reads);
    for _ in 0..reads {
        let started = Instant::now();
        store.load(key).await.unwrap().expect("it lives");
        times.push(started.elapsed());
    }
    times
}

/// A thousand sessions locked, and five hundred waiters on one of them.
async fn crowd(server: &PostgresServer) {
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
async fn contended(server: &PostgresServer) {
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
        sqlx::query(CLASSICAL_READ).bind(1_i64).fetch_optional(pool).await.unwrap();
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

#[tokio::main]
async fn main() {
    // In a task, as a server's requests are: the main thread is none of the runtime's workers, and each wake-up of it is a detour.
    tokio::spawn(run()).await.unwrap();
}

async fn run() {
    let server = match PostgresServer::start().await {
        Ok(server) => Arc::new(server),
        Err(error) => return println!("ABSENT, nothing was measured: {error}"),
    };
    let version = server.query("SHOW server_version").await.unwrap();
    println!("PostgreSQL {version}, fsync off, {SIZE} bytes of data, pool of ten");
    Classical::prepare(&server).await;
    if std::env::var("BENCH_TIMES").is_ok() {
        return counts(&server).await;
    }
    if let Ok(way) = std::env::var("BENCH_PROFILE") {
        return profile(&server, &way).await;
    }
    latency(&server, server.address(), "Loopback", 50, (0.75, 0.52)).await;
    let proxy = Proxy::start(server.address(), Duration::from_micros(700)).await.unwrap();
    latency(&server, proxy.address(), "Round trips of 0.7 ms", 15, (0.45, 0.45)).await;
    counts(&server).await;
    crowd(&server).await;
    contended(&server).await;
}
