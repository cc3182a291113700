//! Lease mode: token and deadline in the row, each step one statement on the pool. Works behind poolers.

use crate::{
    advisory::Wanted,
    config::PostgresConfig,
    failure,
    pool::{Arg, Pool, Sql},
    record::{self, left, micros},
};
use session_core::{Grant, Result, StorageKey, Stored, Token};
use sqlx::Row as _;
use std::{sync::Arc, time::Duration};
use tokio::{runtime::Handle, time::Instant};

#[derive(Clone, Debug)]
pub(crate) struct Lease {
    pool: Arc<Pool>,
    sql: Arc<LeaseSql>,
}

#[derive(Debug)]
struct LeaseSql {
    lock: Sql,
    renew: Sql,
    release: Sql,
}

/// What became of asking.
#[derive(Debug)]
pub(crate) enum Asked {
    Granted(RowGrant, Instant, Option<Stored>),
    Missing,
    /// For how long at most, and since when the caller waits, by the server's clock.
    Held(Duration, i64),
}

/// A grant on its way to who asked for it. Dropped on the way, it is released.
#[derive(Debug)]
pub(crate) struct RowGrant {
    lease: Lease,
    key: StorageKey,
    token: Token,
    kept: bool,
}

impl RowGrant {
    /// It has arrived.
    pub(crate) fn keep(mut self) {
        self.kept = true;
    }
}

impl Drop for RowGrant {
    fn drop(&mut self) {
        // Without a runtime nobody can release it: it ends by itself.
        if let (false, Ok(runtime)) = (self.kept, Handle::try_current()) {
            let (lease, grant) = (self.lease.clone(), Grant::new(self.key, self.token));
            runtime.spawn(async move {
                if let Err(error) = lease.release(&grant).await {
                    tracing::debug!(%error, "a lease that nobody wanted was not released; it ends by itself");
                }
            });
        }
    }
}

impl Lease {
    pub(crate) fn new(config: &PostgresConfig, pool: &Arc<Pool>) -> Self {
        let sql = |text: &str| Sql(config.render(text).into());
        let sql = LeaseSql {
            lock: sql("SELECT * FROM @@lock($1, $2, $3, $4, $5)"),
            renew: sql("SELECT @@renew($1, $2, $3) AS done"),
            release: sql("SELECT @@release($1, $2) AS done"),
        };
        Self { pool: Arc::clone(pool), sql: Arc::new(sql) }
    }

    /// In a task of its own: a caller that goes away must not leave the statement behind, to take the lock
    /// after the caller has released it.
    pub(crate) async fn ask(&self, wanted: Wanted<'_>) -> Result<Asked> {
        let (this, key, Wanted { token, lease, load, since_us, .. }) = (self.clone(), *wanted.key, wanted);
        let asked = tokio::spawn(async move { this.ask_here(key, token, lease, load, since_us).await });
        asked.await.map_err(|error| session_core::Error::backend("acquire", error))?
    }

    async fn ask_here(
        &self,
        key: StorageKey,
        token: Token,
        lease: Duration,
        load: bool,
        since_us: Option<i64>,
    ) -> Result<Asked> {
        const OPERATION: &str = "acquire";
        let sent = Instant::now();
        let args = [
            Arg::Bytes(Some(key.as_bytes())),
            Arg::Bytes(Some(token.as_bytes())),
            Arg::Int(Some(micros(lease))),
            Arg::Bool(load),
            Arg::Int(since_us),
        ];
        let row = self.pool.one(OPERATION, &self.sql.lock, &args).await?;
        let failed = |error| failure::of_statement(OPERATION, error);
        Ok(match row.try_get::<i32, _>("outcome").map_err(failed)? {
            0 => {
                let grant = RowGrant { lease: self.clone(), key, token, kept: false };
                let stored = load.then(|| record::stored(OPERATION, &row)).transpose()?;
                Asked::Granted(grant, sent + lease, stored)
            }
            1 => Asked::Missing,
            _ => Asked::Held(
                left(row.try_get("busy_us").map_err(failed)?),
                row.try_get("since_us").map_err(failed)?,
            ),
        })
    }

    /// When the new lease ends at the earliest, if the old one was alive.
    pub(crate) async fn renew(&self, grant: &Grant, lease: Duration) -> Result<Option<Instant>> {
        let sent = Instant::now();
        let args = [
            Arg::Bytes(Some(grant.key().as_bytes())),
            Arg::Bytes(Some(grant.token().as_bytes())),
            Arg::Int(Some(micros(lease))),
        ];
        let row = self.pool.one("renew", &self.sql.renew, &args).await?;
        let done: bool = row.try_get("done").map_err(|error| failure::of_statement("renew", error))?;
        Ok(done.then(|| sent + lease))
    }

    /// Whether it was held.
    pub(crate) async fn release(&self, grant: &Grant) -> Result<bool> {
        let args = [Arg::Bytes(Some(grant.key().as_bytes())), Arg::Bytes(Some(grant.token().as_bytes()))];
        let row = self.pool.one("release", &self.sql.release, &args).await?;
        row.try_get("done").map_err(|error| failure::of_statement("release", error))
    }
}
