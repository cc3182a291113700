//! One session, four processes of four tasks, each update holds the lock for a millisecond.
//!
//! A task that was served asks again after 0 to 10 ms, as clients do: together they ask three times as often
//! as can be served. Without that pause a spinning task that has just released takes the lock again before
//! anybody else wakes: it does as many updates a second, and the others wait for seconds.

use crate::{Limits, quantile};
use redis::{
    Client, Cmd, ConnectionAddr, IntoConnectionInfo as _, Value, aio::MultiplexedConnection,
    io::tcp::TcpSettings,
};
use session_conformance::servers::redis::{RedisServer, Reply};
use session_core::{
    Inserted, Loaded, LockingStore as _, Put, Replaced, SessionId, SessionStore as _, StorageKey,
    SystemRandom, Token,
};
use session_redis::{RedisConfig, RedisStore};
use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};
use tokio::{process::Command, sync::Mutex};

pub(crate) const WORKER: &str = "handoff-worker";
const PROCESSES: usize = 4;
const TASKS: usize = 4;
const HELD: Duration = Duration::from_millis(1);
/// The longest pause between two updates of a task.
const PAUSE: Duration = Duration::from_millis(10);
const LEASE: Duration = Duration::from_secs(10);
const ROUNDS: usize = 3;
const SECONDS: &str = "3";
const WAYS: [&str; 3] = ["hand-off", "spin every 100 ms", "backoff 1 to 64 ms"];

/// What one way did, all processes and rounds together.
#[derive(Default)]
struct Total {
    rates: Vec<f64>,
    waits: Vec<f64>,
    updates: u64,
    commands: u64,
}

pub(crate) async fn run(limits: &mut Limits) {
    println!("\n# One session, {PROCESSES} processes of {TASKS} tasks, 1 ms held");
    let mut totals: [Total; 3] = Default::default();
    for _ in 0..ROUNDS {
        for (way, total) in WAYS.iter().zip(&mut totals) {
            round(way, total).await;
        }
    }
    println!("{:<24}{:>12}{:>14}{:>14}{:>18}", "", "updates/s", "wait p50, ms", "p99", "commands/update");
    for (way, total) in WAYS.iter().zip(&mut totals) {
        total.waits.sort_by(f64::total_cmp);
        total.rates.sort_by(f64::total_cmp);
        let (p50, p99) = (quantile(&total.waits, 0.5), quantile(&total.waits, 0.99));
        let commands = total.commands as f64 / total.updates as f64;
        println!("{way:<24}{:>12.0}{p50:>14.1}{p99:>14.1}{commands:>18.2}", quantile(&total.rates, 0.5));
    }
    let [ours, spin, backoff] = &totals;
    let rate = |total: &Total| quantile(&total.rates, 0.5);
    limits.at_most("p99 of the wait, ms", quantile(&ours.waits, 0.99), 50.0);
    limits.at_most("commands per update", ours.commands as f64 / ours.updates as f64, 3.1);
    limits.at_least("updates per second / spin every 100 ms", rate(ours) / rate(spin), 1.7);
    limits.at_least("updates per second / backoff 1 to 64 ms", rate(ours) / rate(backoff), 1.2);
}

async fn round(way: &str, total: &mut Total) {
    let server = RedisServer::start().await.expect("redis-server");
    let key = SessionId::random(&SystemRandom).expect("random").storage_key();
    let store = RedisStore::connect(&config(server.address())).await.expect("a store");
    let inserted = store.insert(&key, &Put::new(vec![7; 1024].into(), LEASE * 100)).await;
    assert!(matches!(inserted, Ok(Inserted::Created(_))));
    server.command(["CONFIG", "RESETSTAT"]).await.expect("reset");
    let myself = std::env::current_exe().expect("a path");
    let children: Vec<_> = (0..PROCESSES)
        .map(|_| {
            let mut command = Command::new(&myself);
            command.args([WORKER, way, &server.address().to_string(), &key.to_string(), SECONDS]);
            tokio::spawn(async move { command.kill_on_drop(true).output().await.expect("a worker") })
        })
        .collect();
    let (mut updates, mut sent) = (0, 0);
    for child in children {
        let output = child.await.expect("joined");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8(output.stdout).expect("text");
        let mut numbers =
            text.split_ascii_whitespace().map(|number| number.parse::<f64>().expect("a number"));
        sent += numbers.next().expect("commands") as u64;
        let before = total.waits.len();
        total.waits.extend(numbers);
        updates += (total.waits.len() - before) as u64;
    }
    total.rates.push(updates as f64 / SECONDS.parse::<f64>().expect("seconds"));
    total.updates += updates;
    // Ours are all scripts, which the server counts by itself; the others count what they send.
    total.commands += if way == WAYS[0] { scripts(&server).await } else { sent };
}

async fn scripts(server: &RedisServer) -> u64 {
    let info = server.command(["INFO", "commandstats"]).await.expect("statistics");
    let lines = info.text().unwrap_or_default().lines().map(str::to_owned).collect::<Vec<_>>();
    let calls = |name: &str| {
        let start = format!("cmdstat_{name}:calls=");
        let line =
            lines.iter().find_map(|line| line.strip_prefix(&start)?.split(',').next()?.parse::<u64>().ok());
        line.unwrap_or(0)
    };
    debug_assert!(matches!(info, Reply::Bytes(_)));
    calls("evalsha") + calls("eval") + calls("subscribe")
}

fn config(address: SocketAddr) -> RedisConfig {
    RedisConfig::server(address.ip().to_string(), address.port())
}

/// A process: prints how many commands it sent, and each wait in milliseconds.
pub(crate) async fn work(way: &str, address: &str, key: &str, seconds: &str) {
    let address: SocketAddr = address.parse().expect("an address");
    let until = Instant::now() + Duration::from_secs(seconds.parse().expect("seconds"));
    let key = parse(key);
    let sent = Arc::new(AtomicU64::new(0));
    let ours = way == WAYS[0];
    let store = if ours { Some(RedisStore::connect(&config(address)).await.expect("a store")) } else { None };
    let connection = connect(address).await;
    // As the portable part does it: one contender per process goes to the server.
    let turn = Arc::new(Mutex::new(()));
    let tasks: Vec<_> = (0..TASKS)
        .map(|_| {
            let (store, turn) = (store.clone(), Arc::clone(&turn));
            let mut spinner =
                Spinner { connection: connection.clone(), sent: Arc::clone(&sent), way: way.to_owned() };
            tokio::spawn(async move {
                let mut waits = Vec::new();
                while Instant::now() < until {
                    let start = Instant::now();
                    let waited = match &store {
                        Some(store) => {
                            let _turn = turn.lock().await;
                            update(store, &key, start).await
                        } // the next one's turn
                        None => spinner.update(start).await,
                    };
                    waits.push(waited.as_secs_f64() * 1e3);
                    let random = Token::random(&SystemRandom).expect("random").as_bytes()[0];
                    tokio::time::sleep(PAUSE * u32::from(random) / 255).await;
                }
                waits
            })
        })
        .collect();
    let mut waits = Vec::new();
    for task in tasks {
        waits.extend(task.await.expect("a task"));
    }
    let waits: Vec<_> = waits.iter().map(|wait| format!("{wait:.3}")).collect();
    println!("{} {}", sent.load(Relaxed), waits.join(" "));
}

async fn update(store: &RedisStore, key: &StorageKey, start: Instant) -> Duration {
    let token = Token::random(&SystemRandom).expect("random");
    let Ok(Loaded::Granted(grant, stored)) = store.acquire_and_load(key, token, LEASE, LEASE).await else {
        panic!("not granted")
    };
    let waited = start.elapsed();
    tokio::time::sleep(HELD).await;
    let put = Put::new(stored.data, LEASE * 100);
    let replaced = store.replace_and_release(&grant, stored.version, &put).await;
    assert!(matches!(replaced, Ok(Replaced::Done(_))));
    waited
}

/// The classical way, with one or the other pause.
struct Spinner {
    connection: MultiplexedConnection,
    sent: Arc<AtomicU64>,
    way: String,
}

impl Spinner {
    async fn query(&mut self, command: &Cmd) -> Value {
        self.sent.fetch_add(1, Relaxed);
        command.query_async(&mut self.connection).await.expect("a reply")
    }

    async fn update(&mut self, start: Instant) -> Duration {
        let token = Token::random(&SystemRandom).expect("random");
        let name = token.to_string();
        let set =
            redis::cmd("SET").arg("classical:lock").arg(&name).arg("NX").arg("PX").arg(10_000).to_owned();
        let mut tries = 0;
        while self.query(&set).await != Value::Okay {
            tokio::time::sleep(self.pause(&token, tries)).await;
            tries += 1;
        }
        let waited = start.elapsed();
        self.query(redis::cmd("GET").arg("classical")).await;
        tokio::time::sleep(HELD).await;
        self.query(redis::cmd("SET").arg("classical").arg(&[7_u8; 1024][..])).await;
        let code = "if redis.call('get', KEYS[1]) == ARGV[1] then return redis.call('del', KEYS[1]) else return 0 end";
        let mut delete = redis::cmd("EVAL");
        delete.arg(code).arg(1).arg("classical:lock").arg(&name);
        self.query(&delete).await;
        waited
    }

    fn pause(&self, token: &Token, tries: usize) -> Duration {
        if self.way == WAYS[1] {
            return Duration::from_millis(100);
        }
        let longest = Duration::from_millis(1 << tries.min(6));
        longest / 2 + longest * u32::from(token.as_bytes()[tries % 16]) / 512
    }
}

async fn connect(address: SocketAddr) -> MultiplexedConnection {
    let info = ConnectionAddr::Tcp(address.ip().to_string(), address.port()).into_connection_info();
    let info = info.expect("an address").set_tcp_settings(TcpSettings::default().set_nodelay(true));
    let client = Client::open(info).expect("a client");
    client.get_multiplexed_async_connection().await.expect("a connection")
}

fn parse(key: &str) -> StorageKey {
    let mut bytes = [0; 32];
    for (byte, pair) in bytes.iter_mut().zip(key.as_bytes().chunks(2)) {
        let pair = std::str::from_utf8(pair).expect("ASCII");
        *byte = u8::from_str_radix(pair, 16).expect("hexadecimal");
    }
    StorageKey::from_bytes(bytes)
}
