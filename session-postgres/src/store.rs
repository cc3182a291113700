//! The store: five verbs, the index of users, and the sweeper. Each is one statement; a sweep is one per batch.

use crate::{
    advisory::Advisory,
    config::{LockMode, PostgresConfig, Statements},
    failure,
    lease::Lease,
    link::{self, NONCE, PLAN_ONCE},
    pool::{Arg, Pool, Sql},
    record::{self, left, micros},
    schema,
    turns::Turns,
};
use async_trait::async_trait;
use bytes::Bytes;
use session_core::{
    Capabilities, Deleted, Durability, Error, ErrorKind, Held, Inserted, Page, PrincipalKey, Put, Random,
    Replaced, Result, SessionIndex, SessionStore, SessionSweeper, StorageKey, Stored, Swept, Token, Touched,
    Version,
};
use sqlx::{AssertSqlSafe, ConnectOptions as _, PgConnection, Row as _, postgres::PgRow};
use std::{sync::Arc, time::Duration};
use tokio::time::timeout;

/// How many rows one statement of a sweep removes at most: it is over before anyone would wait for it.
const SWEEP_BATCH: usize = 500;

/// Sessions in PostgreSQL. Cheap to clone; the clones share connections and locks.
#[derive(Clone, Debug)]
pub struct PostgresStore {
    pub(crate) inner: Arc<Inner>,
}

#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) pool: Arc<Pool>,
    pub(crate) turns: Arc<Turns>,
    pub(crate) mode: Mode,
    sql: StoreSql,
    /// What is mixed into the keys of advisory locks.
    lock_space: i64,
    capabilities: Capabilities,
    random: Arc<dyn Random>,
}

#[derive(Debug)]
pub(crate) enum Mode {
    Advisory(Advisory),
    Lease(Lease),
}

#[derive(Debug)]
struct StoreSql {
    load: Sql,
    insert: Sql,
    /// The common case: a row when it is done. Otherwise `replace` does it, or says why not.
    write: Sql,
    write_held: Sql,
    replace: Sql,
    touch: Sql,
    delete: Sql,
    keys_of: Sql,
    sweep: Sql,
    expired: Sql,
}

impl StoreSql {
    fn new(config: &PostgresConfig) -> Self {
        let sql = |text: &str| Sql(config.render(text).into());
        let write = |fence: &str| {
            sql(&format!(
                "UPDATE @@records s SET version = $4, data = $5, expires_us = @now@ + $6, expires_h = @hour@($6), principal = $7, \
                 lock_token = NULL, lock_until_us = 0 \
                 WHERE s.key = $2 AND s.version = $3 AND s.expires_us > @now@ AND {fence} RETURNING true AS done"
            ))
        };
        Self {
            // The fence comes last: shared, so that it is no obstacle to other writers, and until the commit, so that who locks
            // next finds this write. In lease mode there is no lock to try.
            write: write(
                "s.lock_until_us <= @now@ AND ($1::bigint IS NULL OR pg_try_advisory_xact_lock_shared($1))",
            ),
            write_held: write("$1::bigint IS NULL AND s.lock_token = $8 AND s.lock_until_us > @now@"),
            load: sql("SELECT version, data, expires_us - @now@ AS left_us, principal FROM @@records \
                 WHERE key = $1 AND expires_us > @now@"),
            // A row that has expired is no obstacle; a lock in it stays.
            insert: sql("INSERT INTO @@records AS s (key, version, data, expires_us, expires_h, principal) \
                 VALUES ($1, $2, $3, @now@ + $4, @hour@($4), $5) ON CONFLICT (key) DO UPDATE \
                 SET version = excluded.version, data = excluded.data, expires_us = excluded.expires_us, expires_h = excluded.expires_h, \
                 principal = excluded.principal WHERE s.expires_us <= @now@ RETURNING true AS done"),
            replace: sql("SELECT * FROM @@replace($1, $2, $3, $4, $5, $6, $7, $8)"),
            touch: sql("SELECT @@touch($1, $2, $3) AS outcome"),
            delete: sql("SELECT * FROM @@delete($1, $2)"),
            keys_of: sql(
                "SELECT key FROM @@records WHERE principal = $1 AND key > $2 AND expires_us > @now@ \
                 ORDER BY key LIMIT $3",
            ),
            // By `now()`, which the planner can look up in the index; it is never later than the clock.
            sweep: sql(
                "WITH doomed AS MATERIALIZED (SELECT key FROM @@records WHERE @expired@ ORDER BY expires_h \
                 LIMIT $1 FOR UPDATE SKIP LOCKED), gone AS (DELETE FROM @@records s USING doomed \
                 WHERE s.key = doomed.key RETURNING 1) SELECT count(*) AS removed FROM gone"
                    .replace("@expired@", EXPIRED)
                    .as_str(),
            ),
            expired: sql(&format!("SELECT true AS found FROM @@records WHERE {EXPIRED} LIMIT 1")),
        }
    }
}

const EXPIRED: &str = "expires_h <= (extract(epoch FROM now()) / 3600)::integer \
    AND expires_us <= (extract(epoch FROM now()) * 1000000)::bigint \
    AND lock_until_us <= (extract(epoch FROM now()) * 1000000)::bigint";

impl PostgresStore {
    /// Connects, and checks everything that this store relies on: the server's version and settings, the tables and their lock mode,
    /// and for advisory locks that the connections are direct ones. Creates or updates the tables first, unless
    /// [`migrate`](PostgresConfig::migrate) is off.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] for a setting that cannot be used, a wrong user or password, missing tables, another lock mode;
    /// [`ErrorKind::Unsupported`] for a server that is too old, and for advisory locks behind a pooler; each names the cure.
    /// [`ErrorKind::Unavailable`] when the server cannot be reached.
    pub async fn connect(config: PostgresConfig) -> Result<Self> {
        config.check()?;
        let (mut connection, direct) = probe(&config).await?;
        let durability = examine(&config, &mut connection).await?;
        let mut found = schema::inspect(&config, &mut connection).await?;
        if config.migrate && !found.as_ref().is_some_and(schema::Schema::is_current) {
            schema::migrate(&config, &mut connection).await?;
            found = schema::inspect(&config, &mut connection).await?;
        }
        drop(connection);
        let Some(found) = found else {
            return Err(Error::new(ErrorKind::Invalid, "connect").with_context(format!(
                "there is no {}records: run PostgresStore::migrate, or connect with migrate=true",
                config.qualified()
            )));
        };
        found.check(&config)?;
        let simple = match config.statements {
            Statements::Prepared => false,
            Statements::Simple => true,
            Statements::Detect => !direct,
        };
        let options = if direct { directly(&config) } else { config.server.clone() };
        let pool = Arc::new(Pool::new(&config, options, simple));
        let turns = Arc::new(Turns::new(config.max_locks));
        let mode = match config.lock_mode {
            LockMode::Advisory if !direct => return Err(link::pooled()),
            LockMode::Advisory => Mode::Advisory(Advisory::connect(&config, &turns, &pool).await?),
            LockMode::Lease => Mode::Lease(Lease::new(&config, &pool)),
        };
        let durability = if config.unlogged { Durability::Volatile } else { durability };
        let mut capabilities = Capabilities::new(durability);
        capabilities.fencing = true;
        capabilities.max_value = config.max_value;
        let inner = Inner {
            pool,
            turns,
            mode,
            sql: StoreSql::new(&config),
            lock_space: config.lock_space(),
            capabilities,
            random: Arc::clone(&config.random),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Creates or updates the tables and functions, if they are not there or of an older version. Any number of processes may do so at
    /// once: one does it, the others wait.
    ///
    /// # Errors
    /// As for [`connect`](Self::connect).
    pub async fn migrate(config: &PostgresConfig) -> Result<()> {
        config.check()?;
        let (mut connection, _) = probe(config).await?;
        schema::migrate(config, &mut connection).await
    }

    /// Drops the schema of this configuration with everything in it, for tests and for those who leave.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] for `public`, which may be others', too; as for [`connect`](Self::connect).
    pub async fn drop_schema(config: &PostgresConfig) -> Result<()> {
        config.check()?;
        if config.schema == "public" {
            return Err(Error::new(ErrorKind::Invalid, "drop_schema").with_context("not the schema `public`"));
        }
        let (mut connection, _) = probe(config).await?;
        let sql = format!("DROP SCHEMA IF EXISTS \"{}\" CASCADE", config.schema); // checked: lowercase, digits, `_`
        let dropped = sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut connection).await;
        dropped.map(drop).map_err(|error| failure::of_statement("drop_schema", error))
    }

    pub(crate) fn lock_key(&self, key: &StorageKey) -> i64 {
        let [a, b, c, d, e, f, g, h, ..] = *key.as_bytes();
        i64::from_be_bytes([a, b, c, d, e, f, g, h]) ^ self.inner.lock_space
    }

    pub(crate) fn new_version(&self, put: &Put, operation: &'static str) -> Result<Version> {
        let max = self.inner.capabilities.max_value;
        if put.data.len() > max {
            return Err(Error::new(ErrorKind::TooLarge, operation)
                .with_context(format!("{} bytes, at most {max}", put.data.len())));
        }
        Version::random(&*self.inner.random)
    }

    /// `token` is that of a lease in the row.
    pub(crate) async fn replace_row(
        &self,
        operation: &'static str,
        key: &StorageKey,
        expected: Version,
        put: &Put,
        token: Option<&Token>,
    ) -> Result<Replaced> {
        let version = self.new_version(put, operation)?;
        let lock = self.lock_key(key);
        let advisory = matches!(self.inner.mode, Mode::Advisory(_));
        let args = [
            Arg::Int(advisory.then_some(lock)),
            Arg::Bytes(Some(key.as_bytes())),
            Arg::Bytes(Some(&expected.to_bytes())),
            Arg::Bytes(Some(&version.to_bytes())),
            Arg::Bytes(Some(&put.data)),
            Arg::Int(Some(micros(put.ttl))),
            Arg::Bytes(put.principal.as_ref().map(|principal| principal.as_bytes().as_slice())),
            Arg::Bytes(token.map(|token| token.as_bytes().as_slice())),
        ];
        let sql = if token.is_some() { &self.inner.sql.write_held } else { &self.inner.sql.write };
        let used = if token.is_some() { args.as_slice() } else { &args[..7] };
        if self.inner.pool.row(operation, sql, used).await?.is_some() {
            return Ok(Replaced::Done(version));
        }
        let row = self.inner.pool.one(operation, &self.inner.sql.replace, &args).await?;
        let failed = |error| failure::of_statement(operation, error);
        Ok(match row.try_get::<i32, _>("outcome").map_err(failed)? {
            0 => Replaced::Done(version),
            1 => Replaced::Missing,
            2 => {
                let busy: Option<i64> = row.try_get("busy_us").map_err(failed)?;
                let known = busy.filter(|busy| *busy > 0).map(left);
                Replaced::NotHolder(Held { retry_after: known.or_else(|| self.inner.turns.busy(lock)) })
            }
            _ => Replaced::Conflict(record::stored(operation, &row)?),
        })
    }

    pub(crate) async fn delete_row(
        &self,
        operation: &'static str,
        key: &StorageKey,
        token: Option<&Token>,
    ) -> Result<Deleted> {
        let args =
            [Arg::Bytes(Some(key.as_bytes())), Arg::Bytes(token.map(|token| token.as_bytes().as_slice()))];
        let row = self.inner.pool.one(operation, &self.inner.sql.delete, &args).await?;
        let failed = |error| failure::of_statement(operation, error);
        Ok(match row.try_get::<i32, _>("outcome").map_err(failed)? {
            0 => Deleted::Removed(record::stored(operation, &row)?),
            _ => Deleted::Missing,
        })
    }
}

/// The settings of a connection that no pooler shares out again.
fn directly(config: &PostgresConfig) -> sqlx::postgres::PgConnectOptions {
    let limit = format!("{}ms", config.timeout.as_millis().max(1));
    config.server.clone().options([
        ("default_transaction_isolation", "read committed"),
        PLAN_ONCE,
        // What this side has given up is not carried out later.
        ("statement_timeout", limit.as_str()),
    ])
}

/// The first connection, and whether it is a direct one: a pooler refuses startup options, or swallows them.
async fn probe(config: &PostgresConfig) -> Result<(PgConnection, bool)> {
    let connect = async |options: sqlx::postgres::PgConnectOptions| {
        timeout(config.connect_timeout, async { options.connect().await })
            .await
            .map_err(|_| failure::timed_out("connect", "no connection in time", session_core::Effect::None))
    };
    let options = config.server.clone().options([(NONCE, "direct")]);
    match connect(options).await? {
        Ok(mut connection) => {
            let sql = format!("SELECT coalesce(current_setting('{NONCE}', true), '') AS nonce");
            let row = sqlx::raw_sql(AssertSqlSafe(sql)).fetch_one(&mut connection).await;
            let nonce = row.and_then(|row| row.try_get::<String, _>("nonce"));
            let direct = nonce.map_err(|error| failure::of_statement("connect", error))? == "direct";
            Ok((connection, direct))
        }
        Err(error) if failure::code(&error).as_deref() == Some("08P01") => {
            let connection = connect(config.server.clone()).await?;
            Ok((connection.map_err(|error| failure::of_connect("connect", error))?, false))
        }
        Err(error) => Err(failure::of_connect("connect", error)),
    }
}

/// Whether the server is one that this store can rely on, and what its commits survive.
async fn examine(config: &PostgresConfig, connection: &mut PgConnection) -> Result<Durability> {
    let failed = |error| failure::of_statement("connect", error);
    let refused = |context: String| Err(Error::new(ErrorKind::Unsupported, "connect").with_context(context));
    let row: PgRow = sqlx::raw_sql(
        "SELECT current_setting('server_version_num') AS version, \
         current_setting('default_transaction_isolation') AS isolation, \
         current_setting('synchronous_commit') <> 'off' AS waits, \
         current_setting('fsync') = 'on' AS syncs",
    )
    .fetch_one(connection)
    .await
    .map_err(failed)?;
    let text = |name| row.try_get::<String, _>(name).map_err(failed);
    let version: u32 = text("version")?.parse().unwrap_or(0);
    if version < 140_000 {
        return refused(format!(
            "the server is of version {}; 14 is the oldest that works",
            version / 10_000
        ));
    }
    let isolation = text("isolation")?;
    if isolation != "read committed" && config.lock_mode == LockMode::Lease {
        return refused(format!(
            "default_transaction_isolation is {isolation}: ALTER ROLE … SET default_transaction_isolation = 'read committed'"
        ));
    }
    let (waits, syncs): (bool, bool) =
        (row.try_get("waits").map_err(failed)?, row.try_get("syncs").map_err(failed)?);
    Ok(match (waits, syncs) {
        (false, _) => Durability::Volatile,
        (true, false) => Durability::Restart,
        (true, true) => Durability::PowerLoss,
    })
}

#[async_trait]
impl SessionStore for PostgresStore {
    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities
    }

    fn index(&self) -> Option<&dyn SessionIndex> {
        Some(self)
    }

    fn sweeper(&self) -> Option<&dyn SessionSweeper> {
        Some(self)
    }

    async fn load(&self, key: &StorageKey) -> Result<Option<Stored>> {
        let args = [Arg::Bytes(Some(key.as_bytes()))];
        let rows = self.inner.pool.read("load", &self.inner.sql.load, &args).await?;
        rows.first().map(|row| record::stored("load", row)).transpose()
    }

    async fn insert(&self, key: &StorageKey, put: &Put) -> Result<Inserted> {
        let version = self.new_version(put, "insert")?;
        let args = [
            Arg::Bytes(Some(key.as_bytes())),
            Arg::Bytes(Some(&version.to_bytes())),
            Arg::Bytes(Some(&put.data)),
            Arg::Int(Some(micros(put.ttl))),
            Arg::Bytes(put.principal.as_ref().map(|principal| principal.as_bytes().as_slice())),
        ];
        let row = self.inner.pool.row("insert", &self.inner.sql.insert, &args).await?;
        Ok(row.map_or(Inserted::Exists, |_| Inserted::Created(version)))
    }

    async fn replace(&self, key: &StorageKey, expected: Version, put: &Put) -> Result<Replaced> {
        self.replace_row("replace", key, expected, put, None).await
    }

    async fn touch(&self, key: &StorageKey, expected: Version, ttl: Duration) -> Result<Touched> {
        let args = [
            Arg::Bytes(Some(key.as_bytes())),
            Arg::Bytes(Some(&expected.to_bytes())),
            Arg::Int(Some(micros(ttl))),
        ];
        let row = self.inner.pool.one("touch", &self.inner.sql.touch, &args).await?;
        Ok(match row.try_get::<i32, _>("outcome").map_err(|error| failure::of_statement("touch", error))? {
            0 => Touched::Extended,
            1 => Touched::Missing,
            _ => Touched::Conflict,
        })
    }

    async fn delete(&self, key: &StorageKey) -> Result<Deleted> {
        self.delete_row("delete", key, None).await
    }
}

#[async_trait]
impl SessionIndex for PostgresStore {
    async fn keys_of(&self, principal: &PrincipalKey, after: Option<Bytes>, limit: usize) -> Result<Page> {
        let after = after.unwrap_or_default();
        if !matches!(after.len(), 0 | 32) {
            return Err(Error::new(ErrorKind::Invalid, "keys_of").with_context("not a page of this index"));
        }
        let count = i64::try_from(limit).unwrap_or(i64::MAX).saturating_add(1);
        let args = [Arg::Bytes(Some(principal.as_bytes())), Arg::Bytes(Some(&after)), Arg::Int(Some(count))];
        let rows = self.inner.pool.read("keys_of", &self.inner.sql.keys_of, &args).await?;
        let more = rows.len() > limit;
        let keys = rows.iter().take(limit).map(|row| -> Result<StorageKey> {
            let key: Vec<u8> = row.try_get("key").map_err(|error| failure::of_statement("keys_of", error))?;
            let key = key.try_into().map_err(|_| failure::damaged("keys_of", "a key is 32 bytes"))?;
            Ok(StorageKey::from_bytes(key))
        });
        let keys = keys.collect::<Result<Vec<_>>>()?;
        let next = keys.last().filter(|_| more).map(|key| Bytes::copy_from_slice(key.as_bytes()));
        Ok(Page { keys, next })
    }
}

#[async_trait]
impl SessionSweeper for PostgresStore {
    /// In statements of at most 500 rows, each its own transaction. Rows that somebody is working on are passed over, and are found
    /// by the next sweep.
    async fn sweep(&self, limit: usize) -> Result<Swept> {
        let failed = |error| failure::of_statement("sweep", error);
        let mut removed = 0;
        while removed < limit {
            let batch = SWEEP_BATCH.min(limit - removed);
            let args = [Arg::Int(i64::try_from(batch).ok())];
            let row = self.inner.pool.one("sweep", &self.inner.sql.sweep, &args).await?;
            let count = row.try_get::<i64, _>("removed").map_err(failed)?;
            let count = usize::try_from(count).unwrap_or(0);
            removed += count;
            if count < batch {
                return Ok(Swept { removed, more: false });
            }
        }
        let more = !self.inner.pool.read("sweep", &self.inner.sql.expired, &[]).await?.is_empty();
        Ok(Swept { removed, more })
    }
}
