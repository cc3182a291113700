//! The store: sessions as versioned strings with a ttl.
//!
//! ```no_run
//! use session_core::{Inserted, Put, SessionId, SessionStore, SystemRandom};
//! use session_redis::{RedisConfig, RedisStore};
//! use std::time::Duration;
//!
//! # async fn run() -> session_core::Result<()> {
//! let store = RedisStore::connect(&RedisConfig::from_url("redis://127.0.0.1")?).await?;
//! let key = SessionId::random(&SystemRandom)?.storage_key();
//! let Inserted::Created(_) = store.insert(&key, &Put::new("data".into(), Duration::from_secs(60))).await? else {
//!     unreachable!("a new id")
//! };
//! # Ok(()) }
//! ```

use crate::{
    config::{LockKind, RedisConfig},
    connection::{Failure, Link, check_version, field},
    layout::{Keys, decode, encode, hex, index_key, milliseconds},
    router::Router,
    script::{Call, DELETE, INDEX_ADD, INSERT, Script, TOUCH},
    waiters::Waiters,
};
use async_trait::async_trait;
use redis::{Cmd, Value};
use session_core::{
    Capabilities, Deleted, Durability, Effect, Error, ErrorKind, Inserted, PrincipalKey, Put, Random,
    Replaced, Result, SessionIndex, SessionStore, SessionSweeper, StorageKey, Stored, SystemRandom, Touched,
    Version,
};
use std::{collections::HashMap, sync::Arc, time::Duration};

/// What PTTL says of a key that is not there.
const MISSING: i64 = -2;

/// The longest record, in bytes. Redis takes more, but one connection carries everybody's replies.
pub const MAX_VALUE: usize = 16 << 20;

/// Sessions in Redis, with their locks and an index by user. Clones share its connections.
///
/// Each method is one script or one command, and atomic; a load is two commands in one trip, of which the
/// second is the record. Times are the server's.
#[derive(Clone, Debug)]
pub struct RedisStore(pub(crate) Arc<Inner>);

#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) router: Router,
    pub(crate) prefix: String,
    pub(crate) lock: LockKind,
    pub(crate) poll: Duration,
    pub(crate) claim: String,
    /// What a ticket says of its waiter: for how long it counts as alive after each poll, and where to wake
    /// it.
    pub(crate) place: String,
    pub(crate) waiters: Waiters,
    random: Arc<dyn Random>,
    capabilities: Capabilities,
}

impl RedisStore {
    /// Connects, and checks what is needed. Later it reconnects by itself.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] for settings that cannot be used, [`ErrorKind::Unsupported`] for what needs a
    /// feature of this crate or a newer server, naming the cure; [`ErrorKind::Unavailable`] when no server
    /// answers in time.
    pub async fn connect(config: &RedisConfig) -> Result<Self> {
        Self::connect_with(config, Arc::new(SystemRandom)).await
    }

    /// The same with a source of randomness of your own, for versions.
    ///
    /// # Errors
    /// As for [`connect`](Self::connect), and [`ErrorKind::Random`].
    pub async fn connect_with(config: &RedisConfig, random: Arc<dyn Random>) -> Result<Self> {
        let router = Router::new(config)?;
        let mut instance = [0; 16];
        random.fill(&mut instance)?;
        let capabilities = capabilities(&router, config).await?;
        let channel = crate::layout::channel(&config.prefix, &instance);
        Ok(Self(Arc::new(Inner {
            // A waiter may be late by one poll and a half. Not longer than the claim: when a dead one has let
            // the first claim pass, all who died before it are known to be dead, and nobody waits for a
            // second one (see tests/driver/model.rs).
            place: format!("{} {channel}", milliseconds(config.claim.min(config.poll * 5 / 2))),
            waiters: Waiters::new(router.clone(), channel),
            router,
            prefix: config.prefix.clone(),
            lock: config.lock,
            poll: config.poll,
            claim: milliseconds(config.claim),
            random,
            capabilities,
        })))
    }

    /// Like [`connect`](Self::connect), from a URL.
    ///
    /// # Errors
    /// As for [`connect`](Self::connect) and [`RedisConfig::from_url`].
    pub async fn connect_url(url: &str) -> Result<Self> {
        Self::connect(&RedisConfig::from_url(url)?).await
    }
}

/// What every server promises, at least; asked once.
async fn capabilities(router: &Router, config: &RedisConfig) -> Result<Capabilities> {
    let mut found = Capabilities::new(Durability::PowerLoss);
    found.fencing = true;
    found.max_value = MAX_VALUE;
    let failed = |failure: Failure| Failure { effect: Effect::None, ..failure }.into_error("connect");
    for link in router.primaries().await.map_err(failed)? {
        let info = link.run(Cmd::new().arg("INFO")).await.map_err(failed)?;
        let info: String = redis::from_redis_value(info).map_err(|error| Error::backend("connect", error))?;
        check_version(&info)?;
        found.durability = found.durability.min(match field(&info, "aof_enabled") {
            Some("1") if flushes_always(&link).await => Durability::PowerLoss,
            Some("1") => Durability::Restart, // handed to the operating system before the reply
            _ => Durability::Volatile,
        });
        found.may_evict |=
            field(&info, "maxmemory") != Some("0") && field(&info, "maxmemory_policy") != Some("noeviction");
    }
    if !matches!(config.topology, crate::Topology::Server(_)) {
        // A replica that takes over lacks what was acknowledged a moment before.
        found.durability = Durability::Volatile;
    }
    Ok(found)
}

/// Whether each write is on the disk before its reply. Who may not ask is promised less.
async fn flushes_always(link: &Link) -> bool {
    let mut question = redis::cmd("CONFIG");
    question.arg("GET").arg("appendfsync");
    let answer = link.run(&question).await.ok().map(redis::from_redis_value::<HashMap<String, String>>);
    matches!(answer, Some(Ok(settings)) if settings.get("appendfsync").is_some_and(|value| value == "always"))
}

impl Inner {
    pub(crate) fn keys(&self, key: &StorageKey) -> Keys {
        Keys::new(&self.prefix, key)
    }

    pub(crate) async fn call(
        &self,
        operation: &'static str,
        script: &Script,
        keys: &[&[u8]],
        arguments: &[&[u8]],
    ) -> Result<Value> {
        let reply = self.router.call(Call { script, keys, arguments }).await;
        reply.map_err(|failure| failure.into_error(operation))
    }

    /// The new version and the bytes of the record.
    pub(crate) fn record(&self, put: &Put, operation: &'static str) -> Result<(Version, Vec<u8>)> {
        if put.data.len() > MAX_VALUE {
            return Err(Error::new(ErrorKind::TooLarge, operation)
                .with_context(format!("{} bytes, at most {MAX_VALUE}", put.data.len())));
        }
        let version = Version::random(&*self.random)?;
        Ok((version, encode(version, put)))
    }

    /// The key of the user's index, when the script that writes the record can write it, too.
    ///
    /// In a cluster the index is in another slot, often on another server. So it is written *before* the
    /// record and waited for: a crash between the two leaves a name without a session, never a session that
    /// nobody finds. Should the record then not be written (a conflict), the same: a name too many.
    pub(crate) async fn index_first(
        &self,
        operation: &'static str,
        key: &StorageKey,
        user: Option<&PrincipalKey>,
        ttl: &str,
    ) -> Result<Option<String>> {
        let Some(index) = user.map(|user| index_key(&self.prefix, user)) else { return Ok(None) };
        if !self.router.is_cluster() {
            return Ok(Some(index));
        }
        let arguments = [hex(key.as_bytes()), ttl.to_owned()];
        let added = self
            .call(operation, &INDEX_ADD, &[index.as_bytes()], &arguments.each_ref().map(String::as_bytes))
            .await;
        // Whatever happened to the index: nothing has happened to the session.
        added.map(|_| None).map_err(|error| error.with_effect(Effect::None))
    }

    pub(crate) async fn delete(
        &self,
        operation: &'static str,
        key: &StorageKey,
        token: &str,
    ) -> Result<Deleted> {
        let keys = self.keys(key);
        let reply = self.call(operation, &DELETE, &keys.all(), &[token.as_bytes()]).await?;
        let mut reply = Reply::new(reply, operation)?;
        match &*reply.word {
            "missing" => Ok(Deleted::Missing),
            "removed" | "damaged" => {
                let stored = reply.stored()?;
                if let Some(user) = &stored.principal {
                    self.forget(key, user).await;
                }
                Ok(Deleted::Removed(stored))
            }
            _ => Err(reply.unexpected()),
        }
    }

    /// Takes a deleted session out of its user's index. Before the caller hears of the deletion, so that it
    /// cannot overtake an insert of the same key.
    async fn forget(&self, key: &StorageKey, user: &PrincipalKey) {
        let index = index_key(&self.prefix, user);
        let mut command = Cmd::new();
        command.arg("ZREM").arg(&index).arg(hex(key.as_bytes()));
        if let Err(failure) = self.router.send(index.as_bytes(), &command).await {
            // The session is deleted. Its name may stay in the index until its time: that is what an index
            // may do.
            tracing::debug!(error = %failure.error, "a deleted session stays in its user's index");
        }
    }
}

#[async_trait]
impl SessionStore for RedisStore {
    fn capabilities(&self) -> Capabilities {
        self.0.capabilities
    }

    fn index(&self) -> Option<&dyn SessionIndex> {
        // A server that evicts may evict an index before the sessions that it names: none to rely on.
        (!self.0.capabilities.may_evict).then_some(self as &dyn SessionIndex)
    }

    fn sweeper(&self) -> Option<&dyn SessionSweeper> {
        None // Redis does it
    }

    async fn load(&self, key: &StorageKey) -> Result<Option<Stored>> {
        let keys = self.0.keys(key);
        let key = keys.record();
        let reply = match &self.0.router {
            // Neither a script nor a transaction, which cost the server twice as much. The record is that of
            // one moment, and the ttl that of a moment before: a write in between has made it longer, and
            // whoever slides the expiry because of it names a version that is gone.
            Router::One(link) => link.run_all(redis::pipe().cmd("PTTL").arg(key).cmd("GET").arg(key)).await,
            // A server that a slot is moving to takes only one command after ASKING.
            #[cfg(feature = "cluster")]
            router => {
                let call = Call { script: &crate::script::LOAD, keys: &[key], arguments: &[] };
                router.call(call).await.map(|reply| match reply {
                    Value::Array(parts) => parts,
                    reply => vec![Value::Nil, reply],
                })
            }
        };
        let reply =
            reply.map_err(|failure| Failure { effect: Effect::None, ..failure }.into_error("load"))?;
        match <[Value; 2]>::try_from(reply) {
            Ok([Value::Int(MISSING), _] | [_, Value::Nil]) => Ok(None),
            Ok([Value::Int(ttl), Value::BulkString(record)]) => decode(record, ttl, "load").map(Some),
            _ => Err(Reply::strange("load").with_effect(Effect::None)),
        }
    }

    async fn insert(&self, key: &StorageKey, put: &Put) -> Result<Inserted> {
        let (version, record) = self.0.record(put, "insert")?;
        let keys = self.0.keys(key);
        let ttl = milliseconds(put.ttl);
        let index = self.0.index_first("insert", key, put.principal.as_ref(), &ttl).await?;
        let mut names = vec![keys.record()];
        names.extend(index.as_ref().map(String::as_bytes));
        let arguments = [&record[..], ttl.as_bytes()];
        match self.0.call("insert", &INSERT, &names, &arguments).await? {
            Value::Int(0) => Ok(Inserted::Exists),
            Value::Int(_) => Ok(Inserted::Created(version)),
            _ => Err(Reply::strange("insert")),
        }
    }

    async fn replace(&self, key: &StorageKey, expected: Version, put: &Put) -> Result<Replaced> {
        self.0.commit("replace", key, None, expected, put).await
    }

    async fn touch(&self, key: &StorageKey, expected: Version, ttl: Duration) -> Result<Touched> {
        let keys = self.0.keys(key);
        let (expected, ttl) = (expected.to_bytes(), milliseconds(ttl));
        // A user's session takes a second step, with the index that has to know of the longer life first.
        let mut index = None;
        let mut indexed: &[u8] = b"";
        for _ in 0..2 {
            let mut names = vec![keys.record()];
            names.extend(index.as_ref().map(String::as_bytes));
            let arguments = [&expected[..], ttl.as_bytes(), indexed];
            let mut reply = Reply::new(self.0.call("touch", &TOUCH, &names, &arguments).await?, "touch")?;
            match &*reply.word {
                "missing" => return Ok(Touched::Missing),
                "conflict" => return Ok(Touched::Conflict),
                "extended" => return Ok(Touched::Extended),
                "user" => {
                    let user = PrincipalKey::from_bytes(reply.user()?);
                    index = self.0.index_first("touch", key, Some(&user), &ttl).await?;
                    indexed = b"1";
                }
                _ => return Err(reply.unexpected()),
            }
        }
        Err(Reply::strange("touch").with_effect(Effect::None))
    }

    async fn delete(&self, key: &StorageKey) -> Result<Deleted> {
        self.0.delete("delete", key, "").await
    }
}

/// The reply of a script: a word, or a list of a word and what belongs to it.
pub(crate) struct Reply {
    pub(crate) word: String,
    parts: std::vec::IntoIter<Value>,
    operation: &'static str,
}

impl Reply {
    pub(crate) fn new(value: Value, operation: &'static str) -> Result<Self> {
        let parts = match value {
            Value::Array(parts) => parts,
            word => vec![word],
        };
        let mut parts = parts.into_iter();
        match parts.next() {
            Some(Value::BulkString(word)) => {
                let word = String::from_utf8_lossy(&word).into_owned();
                Ok(Self { word, parts, operation })
            }
            _ => Err(Self::strange(operation)),
        }
    }

    /// A record and its ttl.
    pub(crate) fn stored(&mut self) -> Result<Stored> {
        match (self.parts.next(), self.parts.next()) {
            (Some(Value::BulkString(record)), Some(Value::Int(ttl))) => decode(record, ttl, self.operation),
            _ => Err(self.unexpected()),
        }
    }

    /// What is left of a lease; `None` when there is none or it never ends.
    pub(crate) fn left(&mut self) -> Option<Duration> {
        match self.parts.next() {
            Some(Value::Int(left)) => u64::try_from(left).ok().map(Duration::from_millis),
            _ => None,
        }
    }

    fn user(&mut self) -> Result<[u8; 32]> {
        match self.parts.next() {
            Some(Value::BulkString(user)) => user.try_into().map_err(|_| {
                Error::new(ErrorKind::Damaged, self.operation).with_context("a record that was cut off")
            }),
            _ => Err(self.unexpected()),
        }
    }

    pub(crate) fn unexpected(&self) -> Error {
        Self::strange(self.operation)
    }

    fn strange(operation: &'static str) -> Error {
        Error::new(ErrorKind::Backend, operation)
            .with_effect(Effect::Unknown)
            .with_context("a reply that our scripts do not give: is this Redis?")
    }
}
