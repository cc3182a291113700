//! A connection that holds advisory locks: its own statements, its own settings, and a way to notice at once
//! that it is gone.

use crate::{config::PostgresConfig, failure};
use session_core::{Effect, Error, ErrorKind, Result};
use sqlx::{
    Acquire as _, AssertSqlSafe, PgConnection, PgPool, Row as _,
    postgres::{PgConnectOptions, PgListener, PgPoolOptions, PgRow},
};
use std::{fmt, sync::Arc, time::Duration};
use tokio::time::{Instant, timeout_at};

/// The startup option that only a direct connection keeps.
pub(crate) const NONCE: &str = "session_store.nonce";

/// Every statement here finds its rows by a key, whichever that is: planning it anew for each would only
/// cost.
pub(crate) const PLAN_ONCE: (&str, &str) = ("plan_cache_mode", "force_generic_plan");

/// The statements of a connection that holds locks.
#[derive(Debug)]
pub(crate) struct LinkSql {
    pub(crate) step: Arc<str>,
    /// The same for one lock alone.
    pub(crate) take: Arc<str>,
    pub(crate) wait: Arc<str>,
    pub(crate) commit: Arc<str>,
    /// The same for one session that is replaced; no row when it is refused, and `commit` says why then.
    pub(crate) replace: Arc<str>,
}

impl LinkSql {
    pub(crate) fn new(config: &PostgresConfig) -> Self {
        let arc = |sql: &str| Arc::from(config.render(sql));
        Self {
            step: arc("SELECT * FROM @@step($1, $2, $3, $4, $5, $6)"),
            take: arc("SELECT * FROM @@take($1, $2, $3, $4)"),
            wait: arc("SELECT * FROM @@wait($1, $2, $3, $4, $5)"),
            commit: arc("SELECT * FROM @@commit($1, $2, $3, $4, $5, $6, $7, $8, $9)"),
            // What is returned is computed after the row was written: the lock stays, shared, until the
            // commit, and then is free.
            replace: arc(
                "UPDATE @@records s SET version = $4, data = $5, expires_us = @now@ + $6, expires_h = @hour@($6), principal = $7 \
                 WHERE s.key = $2 AND s.version = $3 AND s.expires_us > @now@ AND $8 > @now@ \
                 RETURNING CASE WHEN pg_advisory_xact_lock_shared($1) IS NULL THEN false \
                 ELSE pg_advisory_unlock($1) END AS freed",
            ),
        }
    }
}

/// How links are made.
#[derive(Debug)]
pub(crate) struct Linker {
    pub(crate) server: PgConnectOptions,
    pub(crate) sql: LinkSql,
    pub(crate) timeout: Duration,
    pub(crate) connect_timeout: Duration,
    /// The longest record, in bytes.
    pub(crate) max_value: usize,
    /// Unpredictable, so that no pooler has another client's by chance.
    pub(crate) nonce: String,
}

/// One open connection. Dropped, it is closed, and the server frees what it locked.
pub(crate) struct Link {
    /// sqlx's listener is the one thing of it that reads while nothing was asked: it sees the end of the
    /// connection within milliseconds. After that it would connect again silently, without the locks; so it
    /// is dropped then.
    listener: PgListener,
    pool: PgPool,
    /// The server's process, to cancel what it waits for.
    pub(crate) pid: i32,
    /// What the server's `idle_session_timeout` was set to last, and when a statement last began to count
    /// anew.
    pub(crate) idle_ms: i32,
    pub(crate) last_used: Instant,
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link").field("pid", &self.pid).finish_non_exhaustive()
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        // Marks the pool of this one connection as closed, now: the listener then ends the connection instead
        // of keeping it.
        drop(self.pool.close());
    }
}

/// Why advisory locks cannot be used here.
pub(crate) fn pooled() -> Error {
    Error::new(ErrorKind::Unsupported, "connect").with_context(
        "a pooler stands between this process and the server, and would lose advisory locks: connect directly, or use lock=lease",
    )
}

impl Linker {
    pub(crate) async fn connect(&self) -> Result<Link> {
        let deadline = Instant::now() + self.connect_timeout;
        match timeout_at(deadline, self.open()).await {
            Ok(link) => link,
            Err(_) => Err(failure::timed_out("connect", "no connection in time", Effect::None)),
        }
    }

    async fn open(&self) -> Result<Link> {
        let failed = |error| failure::of_connect("connect", error);
        let lock_timeout = format!("{}ms", (self.timeout.as_millis() / 2).max(1));
        let options = self.server.clone().options([
            (NONCE, self.nonce.as_str()),
            ("default_transaction_isolation", "read committed"),
            PLAN_ONCE,
            ("statement_timeout", "0"), // waiting is bounded by lock_timeout, and by this side
            ("lock_timeout", lock_timeout.as_str()),
        ]);
        let pool = PgPoolOptions::new()
            .max_connections(1)
            .test_before_acquire(false)
            .max_lifetime(None)
            .idle_timeout(None)
            .acquire_timeout(self.connect_timeout)
            .connect_lazy_with(options);
        let mut listener = PgListener::connect_with(&pool).await.map_err(|error| {
            match failure::code(&error).as_deref() {
                // What PgBouncer says to a startup option that it does not know.
                Some("08P01") => pooled().with_source(error),
                _ => failed(error),
            }
        })?;
        listener.ignore_pool_close_event(true);
        listener.eager_reconnect(false);
        let mut link = Link { listener, pool, pid: 0, idle_ms: 0, last_used: Instant::now() };
        let connection = link.connection().await.map_err(failed)?;
        let row: PgRow = sqlx::raw_sql(AssertSqlSafe(format!(
            "SELECT coalesce(current_setting('{NONCE}', true), '') AS nonce, pg_backend_pid() AS pid"
        )))
        .fetch_one(&mut *connection)
        .await
        .map_err(failed)?;
        if row.try_get::<String, _>("nonce").map_err(failed)? != self.nonce {
            return Err(pooled());
        }
        let pid = row.try_get("pid").map_err(failed)?;
        // Lets the server notice a client that is gone while it waits for a lock. Some operating systems
        // cannot; then the end of the wait bounds it.
        drop(sqlx::raw_sql("SET client_connection_check_interval = '100ms'").execute(&mut *connection).await);
        // Prepares the two statements of the uncontended path.
        let sql = [&self.sql.take, &self.sql.replace].map(|sql| AssertSqlSafe(Arc::clone(sql)));
        let [take, replace] = sql.map(sqlx::query);
        let none = None::<Vec<u8>>;
        let take = take.bind(0_i64).bind(none.clone()).bind(true).bind(true); // as if it were held: nothing is locked
        let replace = replace.bind(0_i64).bind(none.clone()).bind(none.clone()).bind(none.clone());
        let replace = replace.bind(none.clone()).bind(0_i64).bind(none).bind(0_i64);
        for query in [take, replace] {
            let prepared = query.fetch_all(&mut *connection).await;
            prepared.map_err(|error| failure::of_statement("connect", error))?;
        }
        link.pid = pid;
        Ok(link)
    }
}

impl Link {
    /// The connection, as long as the listener has not lost it.
    pub(crate) async fn connection(&mut self) -> sqlx::Result<&mut PgConnection> {
        self.last_used = Instant::now();
        (&mut self.listener).acquire().await
    }

    /// Returns when the connection is gone. Safe to cancel; after it returned, drop the link.
    pub(crate) async fn gone(&mut self) {
        while let Ok(Some(_)) = self.listener.try_recv().await {} // nobody sends notifications here
    }
}
