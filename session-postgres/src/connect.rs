//! From a configuration to a store: what is checked of the server, and what is made there.

use crate::{
    advisory::Advisory,
    config::{LockMode, PostgresConfig, Statements},
    failure,
    lease::Lease,
    link::{self, NONCE, PLAN_ONCE},
    pool::Pool,
    schema,
    store::{Inner, Mode, PostgresStore, StoreSql},
    turns::Turns,
};
use session_core::{Capabilities, Durability, Effect, Error, ErrorKind, Result};
use sqlx::{
    AssertSqlSafe, ConnectOptions as _, PgConnection, Row as _,
    postgres::{PgConnectOptions, PgRow},
};
use std::sync::Arc;
use tokio::time::timeout;

impl PostgresStore {
    /// Connects, and checks everything that this store relies on: the server's version and settings, the
    /// tables and their lock mode, and for advisory locks that the connections are direct ones. Creates or
    /// updates the tables first, unless [`migrate`](PostgresConfig::migrate) is off.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] for a setting that cannot be used, a wrong user or password, missing tables,
    /// another lock mode; [`ErrorKind::Unsupported`] for a server that is too old, and for advisory locks
    /// behind a pooler; each names the cure. [`ErrorKind::Unavailable`] when the server cannot be reached.
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

    /// Creates or updates the tables and functions, if they are not there or of an older version. Any number
    /// of processes may do so at once: one does it, the others wait.
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
}

/// The settings of a connection that no pooler shares out again.
fn directly(config: &PostgresConfig) -> PgConnectOptions {
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
    let connect = async |options: PgConnectOptions| {
        timeout(config.connect_timeout, async { options.connect().await })
            .await
            .map_err(|_| failure::timed_out("connect", "no connection in time", Effect::None))
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
