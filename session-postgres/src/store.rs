//! The store: five verbs, the index of users, and the sweeper. Each is one statement; a sweep is one per
//! batch.

use crate::{
    advisory::Advisory,
    config::PostgresConfig,
    failure,
    lease::Lease,
    pool::{Arg, Pool, Sql},
    record::{self, left, micros},
    turns::Turns,
};
use async_trait::async_trait;
use bytes::Bytes;
use session_core::{
    Capabilities, Deleted, Error, ErrorKind, Held, Inserted, Page, PrincipalKey, Put, Random, Replaced,
    Result, SessionIndex, SessionStore, SessionSweeper, StorageKey, Stored, Swept, Token, Touched, Version,
};
use sqlx::{Row as _, postgres::PgRow};
use std::{sync::Arc, time::Duration};

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
    pub(crate) sql: StoreSql,
    /// What is mixed into the keys of advisory locks.
    pub(crate) lock_space: i64,
    pub(crate) capabilities: Capabilities,
    pub(crate) random: Arc<dyn Random>,
}

#[derive(Debug)]
pub(crate) enum Mode {
    Advisory(Advisory),
    Lease(Lease),
}

#[derive(Debug)]
pub(crate) struct StoreSql {
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
    pub(crate) fn new(config: &PostgresConfig) -> Self {
        let sql = |text: &str| Sql(config.render(text).into());
        let write = |fence: &str| {
            sql(&format!(
                "UPDATE @@records s SET version = $4, data = $5, expires_us = @now@ + $6, expires_h = @hour@($6), principal = $7, \
                 lock_token = NULL, lock_until_us = 0 \
                 WHERE s.key = $2 AND s.version = $3 AND s.expires_us > @now@ AND {fence} RETURNING true AS done"
            ))
        };
        Self {
            // The fence comes last: shared, so that it is no obstacle to other writers, and until the commit,
            // so that who locks next finds this write. In lease mode there is no lock to try.
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
        let row: Option<PgRow> = self.inner.pool.read("load", &self.inner.sql.load, &args).await?;
        row.map(|row| record::stored("load", &row)).transpose()
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
        let rows: Vec<PgRow> = self.inner.pool.read("keys_of", &self.inner.sql.keys_of, &args).await?;
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
    /// In statements of at most 500 rows, each its own transaction. Rows that somebody is working on are
    /// passed over, and are found by the next sweep.
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
        let more: Option<PgRow> = self.inner.pool.read("sweep", &self.inner.sql.expired, &[]).await?;
        Ok(Swept { removed, more: more.is_some() })
    }
}
