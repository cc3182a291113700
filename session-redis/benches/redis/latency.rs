//! One task, one session of 1 KiB: the latency of one update, p50. By the driver alone, and as an application
//! has it: with its values decoded, changed and encoded.

use crate::{Limits, quantile};
use redis::{
    AsyncConnectionConfig, Client, Cmd, ConnectionAddr, IntoConnectionInfo as _, Script, Value,
    aio::MultiplexedConnection, io::tcp::TcpSettings,
};
use session_conformance::servers::{Proxy, redis::RedisServer};
use session_core::{
    Inserted, Key, Loaded, LockingStore as _, Put, Replaced, Session, SessionId, SessionStore as _, Sessions,
    StorageKey, SystemRandom, Token, Version,
};
use session_redis::{RedisConfig, RedisStore};
use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

const TTL: Duration = Duration::from_secs(1800);
const LEASE: Duration = Duration::from_secs(10);

const LIB: &str = include_str!("../../src/scripts/lib.lua");
const INDEX: &str = include_str!("../../src/scripts/index.lua");
const ACQUIRE_FAST: &str = include_str!("../../src/scripts/acquire_fast.lua");
const ACQUIRE: &str = include_str!("../../src/scripts/acquire.lua");
const COMMIT: &str = include_str!("../../src/scripts/commit.lua");
const REPLACE: &str = include_str!("../../src/scripts/replace.lua");
const COMPARE_AND_DELETE: &str =
    "if redis.call('get', KEYS[1]) == ARGV[1] then return redis.call('del', KEYS[1]) else return 0 end";

pub(crate) async fn run(limits: &mut Limits) {
    let server = RedisServer::start().await.expect("redis-server");
    println!("\n# Latency of one update, microseconds (p50), 1 KiB");
    let near = measure(server.address(), 8000).await;
    let proxy = Proxy::start(server.address(), Duration::from_micros(700)).await.expect("a proxy");
    let far = measure(proxy.address(), 600).await;
    println!("{:<34}{:>10}{:>14}", "", "loopback", "0.7 ms away");
    for (way, (near, far)) in WAYS.iter().zip(near.iter().zip(&far)) {
        println!("{way:<34}{near:>10.0}{far:>14.0}");
    }
    let ratio = |of: &[f64], a: usize, b: usize| of[a] / of[b];
    // The portable part has its price, a few microseconds of each update.
    for (of, exclusive, write, most) in [("", 1, 3, (0.75, 0.62)), (", application", 5, 6, (0.80, 0.67))] {
        limits.at_most(&format!("exclusive / classical, loopback{of}"), ratio(&near, exclusive, 0), most.0);
        limits.at_most(&format!("exclusive / classical, 0.7 ms{of}"), ratio(&far, exclusive, 0), 0.55);
        limits.at_most(&format!("write / classical, loopback{of}"), ratio(&near, write, 0), most.1);
        limits.at_most(&format!("write / classical, 0.7 ms{of}"), ratio(&far, write, 0), 0.55);
    }
    for (place, of) in [("loopback", &near), ("0.7 ms", &far)] {
        limits.at_most(&format!("exclusive / by hand, {place}"), ratio(of, 1, 2), 1.15);
        limits.at_most(&format!("write / by hand, {place}"), ratio(of, 3, 4), 1.15);
    }
}

const WAYS: [&str; 7] = [
    "classical (SET NX, GET, SET, Lua)",
    "exclusive",
    "exclusive, same commands by hand",
    "write",
    "write, same commands by hand",
    "exclusive, application",
    "write, application",
];

/// The p50 of each way.
async fn measure(address: SocketAddr, rounds: usize) -> Vec<f64> {
    let mut config = RedisConfig::server(address.ip().to_string(), address.port());
    config.prefix = "bench:".to_owned();
    let store = RedisStore::connect(&config).await.expect("a store");
    let mut hand = ByHand::connect(address).await;
    let data = vec![7_u8; 1024];
    let key = SessionId::random(&SystemRandom).expect("random").storage_key();
    let inserted = store.insert(&key, &Put::new(data.clone().into(), TTL)).await;
    assert!(matches!(inserted, Ok(Inserted::Created(_))));
    let put = Put::new(data.into(), TTL);
    let application = Application::new(store.clone()).await;
    let mut times = vec![Vec::new(); WAYS.len()];
    for round in 0..rounds + rounds / 10 {
        for (way, times) in times.iter_mut().enumerate() {
            let start = Instant::now();
            match way {
                0 => hand.classical(&put).await,
                1 => exclusive(&store, &key, &put).await,
                2 => hand.exclusive(&key, &put).await,
                3 => write(&store, &key, &put).await,
                4 => hand.write(&key, &put).await,
                5 => application.exclusive().await,
                _ => application.write().await,
            }
            if round >= rounds / 10 {
                times.push(start.elapsed().as_secs_f64() * 1e6);
            }
        }
    }
    times
        .into_iter()
        .map(|mut times| {
            times.sort_by(f64::total_cmp);
            quantile(&times, 0.5)
        })
        .collect()
}

async fn exclusive(store: &RedisStore, key: &StorageKey, put: &Put) {
    let token = Token::random(&SystemRandom).expect("random");
    let Ok(Loaded::Granted(grant, stored)) =
        store.acquire_and_load(key, token, LEASE, Duration::from_secs(5)).await
    else {
        panic!("not granted")
    };
    let replaced = store.replace_and_release(&grant, stored.version, put).await;
    assert!(matches!(replaced, Ok(Replaced::Done(_))));
}

async fn write(store: &RedisStore, key: &StorageKey, put: &Put) {
    let stored = store.load(key).await.expect("loaded").expect("there");
    let replaced = store.replace(key, stored.version, put).await;
    assert!(matches!(replaced, Ok(Replaced::Done(_))));
}

/// As applications do it: by the portable part, a counter beside some text, a little less than what would be
/// compressed.
struct Application {
    sessions: Sessions,
    id: SessionId,
}

impl Application {
    const COUNT: Key<u64> = Key::new("count");
    const TEXT: Key<String> = Key::new("text");

    async fn new(store: RedisStore) -> Self {
        let sessions = Sessions::builder(store).build().expect("settings");
        let session = sessions.create();
        session.insert(Self::TEXT, &"x".repeat(700)).expect("inserted");
        session.commit().await.expect("committed");
        let id = session.id().expect("stored");
        Self { sessions, id }
    }

    fn count(session: &Session) -> session_core::Result<()> {
        session.update(Self::COUNT, |count| *count += 1)
    }

    async fn exclusive(&self) {
        let done = self.sessions.exclusive(&self.id, async |session| Self::count(session)).await;
        done.expect("committed");
    }

    async fn write(&self) {
        self.sessions.update(&self.id, Self::count).await.expect("committed");
    }
}

/// The same client library and the same kind of connection, without us.
struct ByHand {
    connection: MultiplexedConnection,
    acquire: Script,
    commit: Script,
    replace: Script,
    compare_and_delete: Script,
}

impl ByHand {
    async fn connect(address: SocketAddr) -> Self {
        let info = ConnectionAddr::Tcp(address.ip().to_string(), address.port()).into_connection_info();
        let info = info.expect("an address").set_tcp_settings(TcpSettings::default().set_nodelay(true));
        let client = Client::open(info).expect("a client");
        let settings = AsyncConnectionConfig::new().set_response_timeout(Some(Duration::from_secs(5)));
        let connection = client.get_multiplexed_async_connection_with_config(&settings).await;
        let (acquire, commit) = ([ACQUIRE_FAST, LIB, ACQUIRE].concat(), [LIB, INDEX, COMMIT].concat());
        let replace = [INDEX, REPLACE].concat();
        let mut hand = Self {
            connection: connection.expect("a connection"),
            acquire: Script::new(&acquire),
            commit: Script::new(&commit),
            replace: Script::new(&replace),
            compare_and_delete: Script::new(COMPARE_AND_DELETE),
        };
        for code in [&*acquire, &commit, &replace, COMPARE_AND_DELETE] {
            let loaded = Cmd::new().arg("SCRIPT").arg("LOAD").arg(code).to_owned();
            let _: Value = loaded.query_async(&mut hand.connection).await.expect("loaded");
        }
        hand
    }

    async fn query(&mut self, command: &Cmd) -> Value {
        command.query_async(&mut self.connection).await.expect("a reply")
    }

    /// What handlers that add a lock do: four trips.
    async fn classical(&mut self, put: &Put) {
        let token = Token::random(&SystemRandom).expect("random").to_string();
        let set =
            redis::cmd("SET").arg("classical:lock").arg(&token).arg("NX").arg("PX").arg(10_000).to_owned();
        assert_eq!(self.query(&set).await, Value::Okay);
        self.query(redis::cmd("GET").arg("classical")).await;
        self.query(redis::cmd("SET").arg("classical").arg(&put.data[..]).arg("PX").arg(1_800_000)).await;
        let mut delete = redis::cmd("EVALSHA");
        delete.arg(self.compare_and_delete.get_hash()).arg(1).arg("classical:lock").arg(&token);
        assert_eq!(self.query(&delete).await, Value::Int(1));
    }

    async fn exclusive(&mut self, key: &StorageKey, put: &Put) {
        let token = Token::random(&SystemRandom).expect("random").to_string();
        let mut acquire = self.evalsha(self.acquire.get_hash(), key, &["", ":lock", ":q1", ":t1"]);
        acquire.arg(&token).arg("10000").arg("1000").arg("l").arg("");
        let Value::Array(reply) = self.query(&acquire).await else { panic!("no reply") };
        let Value::BulkString(record) = &reply[1] else { panic!("not granted") };
        let mut commit = self.evalsha(self.commit.get_hash(), key, &["", ":lock", ":q1", ":t1"]);
        commit.arg(&token).arg(&record[2..18]).arg(Self::record(put)).arg("1800000").arg("1000");
        self.stored(&commit).await;
    }

    async fn write(&mut self, key: &StorageKey, put: &Put) {
        let name = format!("bench:{{{key}}}");
        let mut both = redis::pipe();
        both.cmd("PTTL").arg(&name).cmd("GET").arg(&name);
        let (_, record): (i64, Vec<u8>) = both.query_async(&mut self.connection).await.expect("loaded");
        let mut replace = self.evalsha(self.replace.get_hash(), key, &["", ":lock"]);
        replace.arg(&record[2..18]).arg(Self::record(put)).arg("1800000");
        self.stored(&replace).await;
    }

    fn record(put: &Put) -> Vec<u8> {
        let version = Version::random(&SystemRandom).expect("random").to_bytes();
        [&[1, 0][..], &version, &put.data].concat()
    }

    async fn stored(&mut self, command: &Cmd) {
        assert_eq!(self.query(command).await, Value::BulkString(b"stored".to_vec()));
    }

    fn evalsha(&self, hash: &str, key: &StorageKey, suffixes: &[&str]) -> Cmd {
        let mut command = redis::cmd("EVALSHA");
        command.arg(hash).arg(suffixes.len());
        for suffix in suffixes {
            command.arg(format!("bench:{{{key}}}{suffix}"));
        }
        command
    }
}
