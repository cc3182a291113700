//! What locking and versions cost beside the classical way, in one run, interleaved: `cargo bench -p
//! session-postgres`, or some of it: `cargo bench -p session-postgres -- latency counts crowd contended
//! durable`.
//!
//! The classical way is five statements: BEGIN; pg_advisory_xact_lock; SELECT; UPSERT; COMMIT. Every figure
//! is a median, and what counts is the ratio of two figures of one table. Bounds are printed beside them; a
//! machine that does other things as well can miss them. On loopback a trip is as long as it takes to wake the
//! other side, which depends on the processor that it was given: `taskset --cpu-list 0` before the command takes
//! that away, and leaves what each way has to compute.
//!
//! What is the same for all: the server, its settings (no wait for the disk, which would be one for each way
//! and hide the rest; `durable` has it), the client library with prepared statements, the runtime, some 1,000
//! bytes a record. What is not: the classical way has a connection of its own and does nothing with the data,
//! ours has pools, and decodes, checks and encodes the record.

#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a bench ends where it fails")]

mod crowd;
mod ways;

use session_conformance::servers::{Proxy, postgres::PostgresServer};
use session_core::{SessionId, Sessions};
use session_postgres::{LockMode, PostgresStore};
use sqlx::PgConnection;
use std::{
    net::SocketAddr,
    pin::Pin,
    time::{Duration, Instant},
};
use tokio::runtime::{Builder, Runtime};
use ways::{
    ByHand, Classical, connect, driver_exclusive, driver_write, exclusive, median, micros, new_session,
    quantile, sessions, verdict, write,
};

/// The ways, and one session for each of them.
struct Bench {
    connection: PgConnection,
    by_hand: ByHand,
    store: PostgresStore,
    advisory: Sessions,
    lease: Sessions,
    ids: [SessionId; 3],
}

impl Bench {
    const WAYS: [&str; 8] = [
        "classical",
        "exclusive",
        "write",
        "exclusive by lease",
        "driver, exclusive",
        "driver, write",
        "by hand, exclusive",
        "by hand, write",
    ];

    async fn new(url: &str) -> Self {
        let (store, advisory) = sessions(url, "latency", LockMode::Advisory).await;
        let (_, lease) = sessions(url, "latency_lease", LockMode::Lease).await;
        let ids = [new_session(&advisory).await, new_session(&advisory).await, new_session(&lease).await];
        let key = new_session(&advisory).await.storage_key();
        let by_hand = ByHand { connection: connect(url).await, key };
        Self { connection: connect(url).await, by_hand, store, advisory, lease, ids }
    }

    async fn run(&mut self, way: &str) {
        let [id, driven, leased] = &self.ids;
        match way {
            "classical" => Classical::update(&mut self.connection, 1, Duration::ZERO).await,
            "exclusive" => exclusive(&self.advisory, id, Duration::ZERO).await,
            "write" => write(&self.advisory, id).await,
            "exclusive by lease" => exclusive(&self.lease, leased, Duration::ZERO).await,
            "driver, exclusive" => driver_exclusive(&self.store, &driven.storage_key()).await,
            "driver, write" => driver_write(&self.store, &driven.storage_key()).await,
            "by hand, exclusive" => self.by_hand.exclusive().await,
            "by hand, write" => self.by_hand.write().await,
            _ => panic!("no such way: {way}"),
        }
    }
}

/// One task, one session, nobody else: what a locked update costs.
async fn latency(
    server: &PostgresServer,
    address: SocketAddr,
    name: &str,
    rounds: usize,
    bounds: (f64, f64),
) {
    let mut bench = Bench::new(&server.url_at(address)).await;
    let mut times: [Vec<Duration>; Bench::WAYS.len()] = Default::default();
    for round in 0..=rounds {
        for (way, times) in Bench::WAYS.iter().zip(&mut times) {
            for _ in 0..20 {
                let started = Instant::now();
                bench.run(way).await;
                if round > 0 {
                    times.push(started.elapsed());
                }
            }
        }
    }
    println!(
        "\n{name}: one locked update, median (and 10th percentile) of {} each, us, and ratio",
        rounds * 20
    );
    let fast = times.clone().map(|mut times| micros(quantile(&mut times, 10)));
    let middle = times.map(|mut times| micros(median(&mut times)));
    for (way, name) in Bench::WAYS.iter().enumerate() {
        let (ratio, fastest) = (middle[way] / middle[0], fast[way] / fast[0]);
        println!("    {name:<20} {:>6.0} {ratio:.2}   ({:.0} {fastest:.2})", middle[way], fast[way]);
    }
    verdict("exclusive / classical", middle[1] / middle[0], bounds.0);
    verdict("write / classical", middle[2] / middle[0], bounds.1);
}

/// One way over and over, for a profiler to watch: `-- "profile=driver, write"`.
async fn profile(server: PostgresServer, way: String) {
    let mut bench = Bench::new(&server.url()).await;
    server.query("CREATE EXTENSION pg_stat_statements").await.unwrap();
    let end = Instant::now() + Duration::from_secs(5);
    let mut times = Vec::new();
    while Instant::now() < end {
        let started = Instant::now();
        bench.run(&way).await;
        times.push(started.elapsed());
    }
    println!(
        "{way}: {} times, {:.0} us each; of these, in the server:",
        times.len(),
        micros(median(&mut times))
    );
    let sql = "SELECT round(1000 * mean_exec_time) || ' us: ' || left(query, 80) FROM pg_stat_statements ORDER BY calls DESC LIMIT 2";
    println!("{}", server.query(sql).await.unwrap());
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
    let mut connection = connect(&url).await;
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
                println!("    {way}: {:.2} statements, {trips:.2} round trips", calls / OPERATIONS as f64);
            }
        }
    }
}

/// In a task, as a server's requests are: the main thread is none of the runtime's workers, and each wake-up
/// of it is a detour.
fn run<T: Send + 'static>(runtime: &Runtime, work: impl Future<Output = T> + Send + 'static) -> T {
    runtime.block_on(runtime.spawn(work)).unwrap()
}

fn main() {
    let chosen: Vec<_> = std::env::args().skip(1).filter(|arg| !arg.starts_with('-')).collect();
    let is_chosen = |name: &str| chosen.is_empty() || chosen.iter().any(|chosen| chosen == name);
    let threads = Builder::new_multi_thread().enable_all().build().unwrap();
    let single = Builder::new_current_thread().enable_all().build().unwrap();

    let lazy = ["fsync=off", "full_page_writes=off", "synchronous_commit=off"];
    let server = match run(&threads, async move { PostgresServer::with(&lazy).await }) {
        Ok(server) => server,
        Err(error) => return println!("ABSENT, nothing was measured: {error}"),
    };
    let version = run(&threads, {
        let server = server.clone();
        async move { server.query("SHOW server_version").await.unwrap() }
    });
    println!("PostgreSQL {version}, {}", lazy.join(", "));
    let each = |name: &str,
                runtime: &Runtime,
                work: fn(PostgresServer) -> Pin<Box<dyn Future<Output = ()> + Send>>| {
        if is_chosen(name) {
            run(runtime, work(server.clone()));
        }
    };
    run(&threads, {
        let server = server.clone();
        async move { Classical::prepare(&server).await }
    });
    if let Some(way) = chosen.iter().find_map(|chosen| chosen.strip_prefix("profile=")) {
        return run(&threads, profile(server, way.to_owned()));
    }
    each("latency", &threads, |server| {
        Box::pin(async move {
            latency(&server, server.address(), "Loopback", 100, (0.75, 0.52)).await;
        })
    });
    each("latency", &single, |server| {
        Box::pin(async move {
            latency(&server, server.address(), "Loopback, runtime of one thread", 100, (0.75, 0.52)).await;
        })
    });
    each("latency", &threads, |server| {
        Box::pin(async move {
            let proxy = Proxy::start(server.address(), Duration::from_micros(700)).await.unwrap();
            latency(&server, proxy.address(), "Round trips of 0.7 ms", 15, (0.45, 0.45)).await;
        })
    });
    each("counts", &threads, |server| Box::pin(async move { counts(&server).await }));
    each("crowd", &threads, |server| Box::pin(async move { crowd::crowd(&server).await }));
    each("contended", &threads, |server| Box::pin(async move { crowd::contended(&server).await }));
    each("durable", &threads, |_| {
        Box::pin(async move {
            let server = PostgresServer::durable().await.unwrap();
            Classical::prepare(&server).await;
            latency(&server, server.address(), "Loopback, each commit waits for the disk", 20, (1.0, 1.0))
                .await;
        })
    });
}
