//! Redis by hand: one shared connection, as the driver has it.
//!
//! The commands are the driver's, with its scripts, and so is the layout of a record: two bytes, the version,
//! the data.

use super::{LEASE, SPIN, STAMP, TTL, failed, hex, option, stamp, strange};
use async_trait::async_trait;
use redis::{
    AsyncConnectionConfig, Client, Cmd, ConnectionAddr, IntoConnectionInfo as _, ProtocolVersion,
    RedisConnectionInfo, Script, Value, aio::MultiplexedConnection, io::tcp::TcpSettings,
};
use session_conformance::bench::{ByHand, Hands};
use session_core::Result;
use std::{ops::Range, sync::Arc, time::Duration};
use url::Url;

macro_rules! script {
    ($name:literal) => {
        include_str!(concat!("../../../../session-redis/src/scripts/", $name, ".lua"))
    };
}

/// The driver's own scripts: what they check is what the driver promises.
const REPLACE: &str = concat!(script!("index"), script!("replace"));
const ACQUIRE: &str = concat!(script!("acquire_fast"), script!("lib"), script!("acquire"));
const COMMIT: &str = concat!(script!("lib"), script!("index"), script!("commit"));

const UNLOCK: &str =
    "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0";

/// Where a record has its version.
const VERSION: Range<usize> = 2..2 + STAMP;
/// For how long a lock is handed over.
const CLAIM: Duration = Duration::from_secs(1);

pub(super) struct Redis {
    connection: MultiplexedConnection,
    prefix: String,
    scripts: Arc<Scripts>,
}

struct Scripts {
    replace: Script,
    acquire: Script,
    commit: Script,
    unlock: Script,
}

struct Prepared {
    connection: MultiplexedConnection,
    scripts: Arc<Scripts>,
    names: Vec<Names>,
    stored: Vec<u8>,
    plain: Vec<u8>,
}

struct Names {
    record: String,
    lock: String,
    queue: String,
    tickets: String,
    classical: String,
    classical_lock: String,
}

impl Redis {
    pub(super) async fn connect(address: &Url) -> Result<Self> {
        let database = address.path().trim_matches('/').parse().unwrap_or(0);
        let mut login = RedisConnectionInfo::default().set_protocol(ProtocolVersion::RESP3).set_db(database);
        if !address.username().is_empty() {
            login = login.set_username(address.username());
        }
        if let Some(password) = address.password() {
            login = login.set_password(password);
        }
        let host = address.host_str().unwrap_or("localhost").trim_matches(['[', ']']).to_owned();
        let info = ConnectionAddr::Tcp(host, address.port().unwrap_or(6379))
            .into_connection_info()
            .map_err(failed)?
            .set_redis_settings(login)
            .set_tcp_settings(TcpSettings::default().set_nodelay(true));
        let settings = AsyncConnectionConfig::new().set_response_timeout(Some(Duration::from_secs(5)));
        let client = Client::open(info).map_err(failed)?;
        let mut connection =
            client.get_multiplexed_async_connection_with_config(&settings).await.map_err(failed)?;
        let scripts = Scripts {
            replace: Script::new(REPLACE),
            acquire: Script::new(ACQUIRE),
            commit: Script::new(COMMIT),
            unlock: Script::new(UNLOCK),
        };
        for script in [&scripts.replace, &scripts.acquire, &scripts.commit, &scripts.unlock] {
            script.prepare_invoke().load_async(&mut connection).await.map_err(failed)?;
        }
        let prefix = option(address, "prefix").unwrap_or_default();
        Ok(Self { connection, prefix, scripts: Arc::new(scripts) })
    }

    /// A section of INFO.
    pub(super) async fn info(&self, section: &str) -> Result<String> {
        let mut info = redis::cmd("INFO");
        info.arg(section).query_async(&mut self.connection.clone()).await.map_err(failed)
    }
}

#[async_trait]
impl ByHand for Redis {
    async fn prepare(&self, sessions: usize, stored: &[u8], plain: &[u8]) -> Result<Arc<dyn Hands>> {
        // Named like sessions of the driver, so that they are cleaned up with them.
        let name = || Ok(format!("{}{{{}{}}}", self.prefix, hex(&stamp()?), hex(&stamp()?)));
        let mut names = Vec::with_capacity(sessions);
        while names.len() < sessions {
            let (record, classical): (_, String) = (name()?, name()?);
            names.push(Names {
                lock: format!("{record}:lock"),
                queue: format!("{record}:q1"),
                tickets: format!("{record}:t1"),
                record,
                classical_lock: format!("{classical}:lock"),
                classical,
            });
        }
        let prepared = Prepared {
            connection: self.connection.clone(),
            scripts: Arc::clone(&self.scripts),
            names,
            stored: stored.to_vec(),
            plain: plain.to_vec(),
        };
        for names in &prepared.names {
            prepared.set(&names.record, &prepared.record()?).await?;
            prepared.set(&names.classical, &prepared.plain).await?;
        }
        Ok(Arc::new(prepared))
    }
}

impl Prepared {
    async fn query(&self, command: &Cmd) -> Result<Value> {
        command.query_async(&mut self.connection.clone()).await.map_err(failed)
    }

    async fn set(&self, key: &str, value: &[u8]) -> Result<()> {
        let ttl = TTL.as_millis() as u64;
        self.query(redis::cmd("SET").arg(key).arg(value).arg("PX").arg(ttl)).await.map(drop)
    }

    fn record(&self) -> Result<Vec<u8>> {
        Ok([&[1, 0], &stamp()?[..], &self.stored].concat())
    }

    /// How long the record lives, and the record.
    async fn load(&self, key: &str) -> Result<Vec<u8>> {
        let mut both = redis::pipe();
        both.cmd("PTTL").arg(key).cmd("GET").arg(key);
        let (_, record): (i64, Vec<u8>) =
            both.query_async(&mut self.connection.clone()).await.map_err(failed)?;
        Ok(record)
    }

    async fn run(&self, script: &Script, keys: &[&str], arguments: &[&[u8]]) -> Result<Value> {
        let mut command = redis::cmd("EVALSHA");
        command.arg(script.get_hash()).arg(keys.len()).arg(keys).arg(arguments);
        self.query(&command).await
    }
}

fn stored(reply: &Value) -> Result<()> {
    match reply {
        Value::BulkString(word) if word == b"stored" => Ok(()),
        _ => Err(strange("a write was refused")),
    }
}

#[async_trait]
impl Hands for Prepared {
    async fn read(&self, session: usize) -> Result<()> {
        self.load(&self.names[session].record).await.map(drop)
    }

    async fn write(&self, session: usize) -> Result<()> {
        let Names { record, lock, .. } = &self.names[session];
        let found = self.load(record).await?;
        let ttl = TTL.as_millis().to_string();
        let arguments = [&found[VERSION], &self.record()?, ttl.as_bytes()];
        stored(&self.run(&self.scripts.replace, &[record, lock], &arguments).await?)
    }

    async fn exclusive(&self, session: usize) -> Result<()> {
        let Names { record, lock, queue, tickets, .. } = &self.names[session];
        let (token, ttl) = (hex(&stamp()?), TTL.as_millis().to_string());
        let (lease, claim) = (LEASE.as_millis().to_string(), CLAIM.as_millis().to_string());
        let keys = [record.as_str(), lock, queue, tickets];
        let arguments: [&[u8]; 5] = [token.as_bytes(), lease.as_bytes(), claim.as_bytes(), b"l", b""];
        let reply = self.run(&self.scripts.acquire, &keys, &arguments).await?;
        let Value::Array(parts) = reply else { return Err(strange("not granted")) };
        let Some(Value::BulkString(found)) = parts.get(1) else { return Err(strange("not granted")) };
        let record = self.record()?;
        let arguments = [token.as_bytes(), &found[VERSION], &record, ttl.as_bytes(), claim.as_bytes()];
        stored(&self.run(&self.scripts.commit, &keys, &arguments).await?)
    }

    /// As phpredis does it, with a lock that is renewed by nobody: four trips.
    async fn classical(&self, session: usize) -> Result<()> {
        let Names { classical, classical_lock, .. } = &self.names[session];
        let token = hex(&stamp()?);
        let mut lock = redis::cmd("SET");
        lock.arg(classical_lock).arg(&token).arg("NX").arg("PX").arg(LEASE.as_millis() as u64);
        while self.query(&lock).await? != Value::Okay {
            tokio::time::sleep(SPIN).await;
        }
        self.query(redis::cmd("GET").arg(classical)).await?;
        self.set(classical, &self.plain).await?;
        self.run(&self.scripts.unlock, &[classical_lock], &[token.as_bytes()]).await.map(drop)
    }
}
