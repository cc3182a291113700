//! PostgreSQL by hand: a pool as large as the driver's, prepared statements, advisory locks.

use super::{Pool, TTL, failed, option, stamp, strange};
use async_trait::async_trait;
use session_conformance::bench::{ByHand, Hands};
use session_core::Result;
use sqlx::{
    AssertSqlSafe, ConnectOptions as _, Connection as _, PgConnection, Row as _,
    postgres::{PgConnectOptions, PgRow},
    query::Query,
};
use std::sync::Arc;
use url::Url;

/// As many connections as the driver has for statements.
const POOL: usize = 10;

/// What is not the server's but the driver's.
const OPTIONS: [&str; 13] = [
    "schema",
    "prefix",
    "pool",
    "lock",
    "lock_connections",
    "waiter_connections",
    "max_locks",
    "unlogged",
    "migrate",
    "statements",
    "max_value",
    "timeout",
    "connect_timeout",
];

/// Lock and read are a function, since a plain statement would read what was there before it had the lock.
const TABLES: &str = r"
CREATE TABLE IF NOT EXISTS @by_hand (key bytea PRIMARY KEY, version bytea NOT NULL, data bytea NOT NULL, expires timestamptz NOT NULL)
    WITH (fillfactor = 85);
ALTER TABLE @by_hand ALTER COLUMN data SET STORAGE EXTERNAL;
CREATE OR REPLACE FUNCTION @by_hand_lock(a_lock bigint, a_key bytea, OUT version bytea, OUT data bytea) LANGUAGE plpgsql VOLATILE AS $$
BEGIN
    IF NOT pg_try_advisory_lock(a_lock) THEN RAISE 'held'; END IF;
    SELECT s.version, s.data INTO version, data FROM @by_hand s WHERE s.key = a_key AND s.expires > clock_timestamp();
END $$;";

pub(super) struct Postgres(Arc<Server>);

struct Server {
    options: PgConnectOptions,
    pool: Pool<PgConnection>,
    sql: Statements,
}

struct Statements {
    insert: Arc<str>,
    read: Arc<str>,
    write: Arc<str>,
    lock: Arc<str>,
    commit: Arc<str>,
    overwrite: Arc<str>,
    tables: Arc<str>,
}

struct Prepared {
    server: Arc<Server>,
    sessions: Vec<Names>,
    stored: Vec<u8>,
    plain: Vec<u8>,
}

struct Names {
    key: [u8; 16],
    classical: [u8; 16],
}

impl Postgres {
    pub(super) async fn connect(address: &Url) -> Result<Self> {
        let schema = option(address, "schema").unwrap_or_else(|| "public".to_owned());
        let sql =
            |text: &str| -> Arc<str> { text.replace("@by_hand", &format!("\"{schema}\".by_hand")).into() };
        let sql = Statements {
            insert: sql("INSERT INTO @by_hand VALUES ($1, $2, $3, clock_timestamp() + $4)"),
            read: sql("SELECT version, data, expires - clock_timestamp() AS ttl FROM @by_hand \
                WHERE key = $1 AND expires > clock_timestamp()"),
            write: sql("UPDATE @by_hand SET version = $3, data = $4, expires = clock_timestamp() + $5 \
                WHERE key = $1 AND version = $2 AND expires > clock_timestamp() AND pg_try_advisory_xact_lock_shared($6)"),
            lock: sql("SELECT * FROM @by_hand_lock($1, $2)"),
            // What is returned is computed after the row was written: the lock stays, shared, until the
            // commit.
            commit: sql("UPDATE @by_hand SET version = $3, data = $4, expires = clock_timestamp() + $5 \
                WHERE key = $1 AND version = $2 AND expires > clock_timestamp() \
                RETURNING CASE WHEN pg_advisory_xact_lock_shared($6) IS NULL THEN false ELSE pg_advisory_unlock($6) END AS freed"),
            overwrite: sql(
                "INSERT INTO @by_hand VALUES ($1, $2, $3, clock_timestamp() + $4) ON CONFLICT (key) DO UPDATE \
                SET data = excluded.data, expires = excluded.expires",
            ),
            tables: sql(TABLES),
        };
        let mut server = address.clone();
        let others: Vec<_> = address
            .query_pairs()
            .filter(|(option, _)| !OPTIONS.contains(&&**option))
            .map(|(option, value)| (option.into_owned(), value.into_owned()))
            .collect();
        server.query_pairs_mut().clear().extend_pairs(others);
        let options = server.as_str().parse().map_err(failed)?;
        Ok(Self(Arc::new(Server { options, pool: Pool::new(POOL), sql })))
    }

    /// The text of one row with one column.
    pub(super) async fn ask(&self, sql: &str) -> Result<String> {
        self.0.row(sqlx::query(AssertSqlSafe(sql.to_owned()))).await?.try_get(0).map_err(failed)
    }
}

type Statement<'q> = Query<'q, sqlx::Postgres, <sqlx::Postgres as sqlx::Database>::Arguments>;

fn statement(sql: &Arc<str>) -> Statement<'_> {
    sqlx::query(AssertSqlSafe(Arc::clone(sql)))
}

impl Server {
    async fn open(&self) -> Result<PgConnection> {
        self.options.connect().await.map_err(failed)
    }

    /// One statement on any connection, and its one row.
    async fn row(&self, statement: Statement<'_>) -> Result<PgRow> {
        let mut lent = self.pool.lend(self.open()).await?;
        let row = statement.fetch_one(&mut lent.connection).await.map_err(failed)?;
        lent.keep();
        Ok(row)
    }

    async fn execute(&self, statement: Statement<'_>) -> Result<u64> {
        let mut lent = self.pool.lend(self.open()).await?;
        let done = statement.execute(&mut lent.connection).await.map_err(failed)?;
        lent.keep();
        Ok(done.rows_affected())
    }
}

#[async_trait]
impl ByHand for Postgres {
    async fn prepare(&self, sessions: usize, stored: &[u8], plain: &[u8]) -> Result<Arc<dyn Hands>> {
        let server = Arc::clone(&self.0);
        let mut connection = server.open().await?;
        let tables = sqlx::raw_sql(AssertSqlSafe(Arc::clone(&server.sql.tables)));
        tables.execute(&mut connection).await.map_err(failed)?;
        let mut names = Vec::with_capacity(sessions);
        for _ in 0..sessions {
            let session = Names { key: stamp()?, classical: stamp()? };
            for (key, data) in [(session.key, stored), (session.classical, plain)] {
                server
                    .execute(statement(&server.sql.insert).bind(key).bind(stamp()?).bind(data).bind(TTL))
                    .await?;
            }
            names.push(session);
        }
        Ok(Arc::new(Prepared { server, sessions: names, stored: stored.to_vec(), plain: plain.to_vec() }))
    }
}

/// The lock of a session: a part of its key.
fn lock(key: &[u8; 16]) -> i64 {
    let [a, b, c, d, e, f, g, h, ..] = *key;
    i64::from_be_bytes([a, b, c, d, e, f, g, h])
}

fn version(row: &PgRow) -> Result<Vec<u8>> {
    row.try_get::<Vec<u8>, _>("data").map_err(failed)?;
    row.try_get("version").map_err(failed)
}

#[async_trait]
impl Hands for Prepared {
    async fn read(&self, session: usize) -> Result<()> {
        let key = self.sessions[session].key;
        version(&self.server.row(statement(&self.server.sql.read).bind(key)).await?).map(drop)
    }

    async fn write(&self, session: usize) -> Result<()> {
        let (key, sql) = (self.sessions[session].key, &self.server.sql);
        let found = version(&self.server.row(statement(&sql.read).bind(key)).await?)?;
        let writing = statement(&sql.write).bind(key).bind(found).bind(stamp()?).bind(&self.stored).bind(TTL);
        match self.server.execute(writing.bind(lock(&key))).await? {
            1 => Ok(()),
            _ => Err(strange("a write was refused")),
        }
    }

    async fn exclusive(&self, session: usize) -> Result<()> {
        let (key, sql) = (self.sessions[session].key, &self.server.sql);
        let mut lent = self.server.pool.lend(self.server.open()).await?;
        let locking = statement(&sql.lock).bind(lock(&key)).bind(key);
        let found = version(&locking.fetch_one(&mut lent.connection).await.map_err(failed)?)?;
        let commit = statement(&sql.commit).bind(key).bind(found).bind(stamp()?).bind(&self.stored).bind(TTL);
        commit.bind(lock(&key)).fetch_one(&mut lent.connection).await.map_err(failed)?;
        lent.keep();
        Ok(())
    }

    /// A transaction that waits for its lock in the server: five trips.
    async fn classical(&self, session: usize) -> Result<()> {
        let (key, sql) = (self.sessions[session].classical, &self.server.sql);
        let mut lent = self.server.pool.lend(self.server.open()).await?;
        let mut transaction = lent.connection.begin().await.map_err(failed)?;
        let locking = sqlx::query("SELECT pg_advisory_xact_lock($1)").bind(lock(&key));
        locking.execute(&mut *transaction).await.map_err(failed)?;
        statement(&sql.read).bind(key).fetch_one(&mut *transaction).await.map_err(failed)?;
        let writing = statement(&sql.overwrite).bind(key).bind(stamp()?).bind(&self.plain).bind(TTL);
        writing.execute(&mut *transaction).await.map_err(failed)?;
        transaction.commit().await.map_err(failed)?;
        lent.keep();
        Ok(())
    }
}
