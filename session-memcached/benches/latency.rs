//! `cargo bench -p session-memcached [-- latency | -- handover]`: a session's update against the classical
//! way, and the lock from hand to hand.
//!
//! The classical way is what session handlers on memcached do: `add` a lock, `gets`, `cas`, `delete` the lock
//! without waiting for the answer; three waits, spoken by memcache-async on one connection without pool,
//! timeout or checks. All ways take turns in one run, so that the machine is the same for each; the figures
//! are medians, and the ratios are what to read.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a bench that fails says so")]
#![allow(clippy::print_stdout, reason = "this is what it is for")]

#[path = "latency/handover.rs"]
mod handover;

use memcache_async::ascii;
use session_conformance::servers::memcached::MemcachedServer;
use session_core::{
    Inserted, Key, Loaded, LockingStore as _, Put, Replaced, Session, SessionId, SessionStore as _, Sessions,
    StorageKey, SystemRandom, Token,
};
use session_memcached::{MemcachedConfig, MemcachedStore, Protocol};
use std::{env, net::SocketAddr, time::Duration};
use tokio::{
    io::{BufReader, BufWriter},
    net::TcpStream,
    runtime::Builder,
    time::Instant,
};

/// memcached deals connections out to its threads, and a thread that sleeps on another core answers later:
/// here all are on one.
const ONE_THREAD: &[&str] = &["-t", "1"];
const SIZE: usize = 1024;
const TTL: Duration = Duration::from_secs(600);
const LEASE: Duration = Duration::from_secs(10);
const BLOB: Key<String> = Key::new("blob");

type Classical = ascii::Protocol<BufReader<BufWriter<TcpStream>>>;

/// One way to change a session.
struct Way {
    name: &'static str,
    times: Vec<Duration>,
}

fn main() {
    let arguments: Vec<_> = env::args().collect();
    let given = |name: &str| arguments.iter().any(|argument| argument == name);
    let (quick, several) = (given("--test"), Builder::new_multi_thread().enable_all().build().unwrap());
    if let [_, worker, url, id, tasks] = &arguments[..]
        && worker == "handover-worker"
    {
        return several.block_on(handover::work(url, id, tasks.parse().unwrap()));
    }
    let rounds = if quick { 2 } else { 40 };
    if !given("handover") {
        // One thread: the way to the server and back is measured, not the way from one thread to another.
        let one = Builder::new_current_thread().enable_all().build().unwrap();
        one.block_on(async {
            let server = MemcachedServer::with(ONE_THREAD).await.unwrap();
            println!("\nloopback, 1 KiB, one task, {rounds} turns of 100:");
            latency(&server, rounds, 100).await;
        });
        several.block_on(async {
            let round_trip = Duration::from_micros(700);
            let server =
                MemcachedServer::with(ONE_THREAD).await.unwrap().behind_proxy(round_trip).await.unwrap();
            println!("\nround trips of 0.7 ms, 1 KiB, one task, {rounds} turns of 12:");
            latency(&server, rounds, 12).await;
        });
    }
    if !given("latency") {
        several.block_on(handover::bench(quick));
    }
}

async fn latency(server: &MemcachedServer, rounds: usize, batch: usize) {
    let meta = store(&server.url(), Protocol::Meta).await;
    let plain = store(&server.url(), Protocol::Plain).await;
    let mut naive = classical(server.address()).await;
    let data = vec![b'x'; SIZE];
    naive.add("classical", &data, 600).await.unwrap();
    let key = SessionId::random(&SystemRandom).unwrap().storage_key();
    let Inserted::Created(_) = meta.insert(&key, &Put::new(data.into(), TTL)).await.unwrap() else {
        panic!("a new key")
    };
    let id = {
        let session = as_it_is(&meta).create();
        session.insert(BLOB, &"x".repeat(SIZE)).unwrap();
        session.commit().await.unwrap();
        session.id().unwrap()
    };
    let (plainly, deflating) = (as_it_is(&meta), Sessions::builder(meta.clone()).build().unwrap());
    let texts = [SIZE, SIZE - 1].map(|width| format!("{:0>width$}", 7));

    let names = [
        "classical",
        "write",
        "exclusive",
        "write, plain",
        "exclusive, plain",
        "Sessions::update",
        "Sessions::exclusive",
        "Sessions::update, deflated",
    ];
    let mut ways = names.map(|name| Way { name, times: Vec::new() });
    for round in 0..rounds {
        // Begin with another one each time: what the one before left behind costs none of them more than the
        // others.
        for turn in 0..ways.len() {
            let way = &mut ways[(round + turn) % names.len()];
            for count in 0..batch {
                let start = Instant::now();
                match way.name {
                    "classical" => classical_update(&mut naive).await,
                    "write" => write(&meta, &key).await,
                    "exclusive" => exclusive(&meta, &key).await,
                    "write, plain" => write(&plain, &key).await,
                    "exclusive, plain" => exclusive(&plain, &key).await,
                    "Sessions::exclusive" => {
                        let change = async |session: &Session| session.insert(BLOB, &texts[count % 2]);
                        plainly.exclusive(&id, change).await.unwrap();
                    }
                    name => {
                        let sessions = if name.ends_with("deflated") { &deflating } else { &plainly };
                        let change = |session: &Session| session.insert(BLOB, &texts[count % 2]);
                        sessions.update(&id, change).await.unwrap();
                    }
                }
                way.times.push(start.elapsed());
            }
        }
    }
    let base = median(&mut ways[0].times);
    for way in &mut ways {
        let median = median(&mut way.times);
        let ratio = median.as_secs_f64() / base.as_secs_f64();
        println!("  {:<26} {:>9.1} us   {ratio:.2} of the classical", way.name, median.as_secs_f64() * 1e6);
    }
}

/// The portable part without its compression, which begins at 1 KiB: the other ways do not compress either.
fn as_it_is(store: &MemcachedStore) -> Sessions {
    Sessions::builder(store.clone()).compress_from(usize::MAX).build().unwrap()
}

fn median(times: &mut [Duration]) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

async fn store(url: &str, protocol: Protocol) -> MemcachedStore {
    let mut config = MemcachedConfig::from_url(url).unwrap();
    config.protocol = protocol;
    MemcachedStore::connect(&config).await.unwrap()
}

async fn classical(address: SocketAddr) -> Classical {
    let stream = TcpStream::connect(address).await.unwrap();
    stream.set_nodelay(true).unwrap();
    ascii::Protocol::new(BufReader::new(BufWriter::new(stream)))
}

async fn classical_update(naive: &mut Classical) {
    naive.add("classical:lock", b"0123456789abcdef", 10).await.unwrap();
    let (mut data, cas) = naive.gets_cas("classical").await.unwrap();
    data[0] = data[0].wrapping_add(1);
    assert!(naive.cas("classical", &data, cas, 600).await.unwrap());
    naive.delete("classical:lock").await.unwrap();
}

async fn write(store: &MemcachedStore, key: &StorageKey) {
    let stored = store.load(key).await.unwrap().unwrap();
    let mut data = stored.data.to_vec();
    data[0] = data[0].wrapping_add(1);
    let done = store.replace(key, stored.version, &Put::new(data.into(), TTL)).await.unwrap();
    assert!(matches!(done, Replaced::Done(_)));
}

async fn exclusive(store: &MemcachedStore, key: &StorageKey) {
    let token = Token::random(&SystemRandom).unwrap();
    let Loaded::Granted(grant, stored) =
        store.acquire_and_load(key, token, LEASE, Duration::ZERO).await.unwrap()
    else {
        panic!("it is free")
    };
    let mut data = stored.data.to_vec();
    data[0] = data[0].wrapping_add(1);
    let put = Put::new(data.into(), TTL);
    let done = store.replace_and_release(&grant, stored.version, &put).await.unwrap();
    assert!(matches!(done, Replaced::Done(_)));
}
