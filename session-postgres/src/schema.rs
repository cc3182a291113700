//! The tables and functions: made in numbered steps, safe when many processes start at once.

use crate::{
    config::{LockMode, PostgresConfig},
    failure,
};
use session_core::{Error, ErrorKind, Result};
use sqlx::{AssertSqlSafe, Connection as _, PgConnection, Row as _};

/// The steps, in order. One that was released never changes.
const STEPS: [(&str, &str); 4] = [
    ("tables", include_str!("../migrations/0001_tables.sql")),
    ("verbs", include_str!("../migrations/0002_verbs.sql")),
    ("leases", include_str!("../migrations/0003_leases.sql")),
    ("advisory", include_str!("../migrations/0004_advisory.sql")),
];

/// The time of the server, in microseconds: not of the transaction, which may have waited. As a float, whose
/// 53 bits are enough until the year 2255: `extract` computes with decimals, which takes ten times as long.
const NOW: &str = "((date_part('epoch', clock_timestamp()) * 1000000)::bigint)";

/// Whether a row `s` is one that this driver wrote. Another is left where it is, and reading it is an error.
const INTACT: &str = "octet_length(s.version) = 16 AND coalesce(octet_length(s.principal), 32) = 32";

/// One step on the way to the tables and functions of this version.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Migration {
    /// Counted from 1.
    pub version: i32,
    /// What it makes.
    pub name: &'static str,
    /// Its statements, with the names of this configuration.
    pub sql: String,
}

impl PostgresConfig {
    /// The steps that [`PostgresStore::migrate`](crate::PostgresStore::migrate) takes.
    #[must_use]
    pub fn migrations(&self) -> Vec<Migration> {
        let with_names = |(number, (name, sql))| Migration { version: number, name, sql: self.render(sql) };
        (1..).zip(STEPS).map(with_names).collect()
    }

    /// Everything as one script, for those who create their tables by hand: run it once, on a database that
    /// does not have them.
    #[must_use]
    pub fn schema_sql(&self) -> String {
        let mut script = format!("BEGIN;\n{};\n", self.serialize_sql());
        script.push_str(&self.bookkeeping_sql().join(";\n"));
        script.push_str(";\n");
        for step in self.migrations() {
            script.push_str(&format!("\n{}\n{};\n", step.sql, self.record_sql(&step)));
        }
        script.push_str("COMMIT;\n");
        script
    }

    /// `"schema".prefix`: what the name of each object begins with.
    pub(crate) fn qualified(&self) -> String {
        format!("\"{}\".{}", self.schema, self.prefix)
    }

    /// Replaces what stands for names, settings and the clock. `@@x` is the object `x` of this configuration.
    pub(crate) fn render(&self, sql: &str) -> String {
        // `@hour@(x)`: the hour in which what lives for x from now expires.
        let mut parts = sql.split("@hour@(");
        let mut sql = parts.next().unwrap_or_default().to_owned();
        for part in parts {
            let (ttl, rest) = part.split_once(')').unwrap_or((part, ""));
            sql.push_str(&format!("((@now@ + {ttl}) / 3600000000)::integer{rest}"));
        }
        let sql = sql.replace("@now@", NOW);
        // A lease is two more updates of the row for each of the session.
        let fillfactor = if self.lock_mode == LockMode::Lease { "70" } else { "85" };
        sql.replace("@intact@", INTACT)
            .replace("@@", &self.qualified())
            .replace("@prefix@", &self.prefix)
            .replace("@unlogged@", if self.unlogged { "UNLOGGED" } else { "" })
            .replace("@fillfactor@", fillfactor)
    }

    /// One at a time, among all processes: for this transaction, so that it works behind a pooler, too.
    fn serialize_sql(&self) -> String {
        format!("SELECT pg_advisory_xact_lock({})", self.lock_space() ^ i64::MIN)
    }

    fn bookkeeping_sql(&self) -> Vec<String> {
        // Not `CREATE SCHEMA IF NOT EXISTS`: that needs the privilege to create even when there is nothing to
        // do.
        let schema = format!(
            "DO $$ BEGIN IF to_regnamespace('\"{0}\"') IS NULL THEN CREATE SCHEMA \"{0}\"; END IF; END $$",
            self.schema
        );
        let tables = [
            "CREATE TABLE IF NOT EXISTS @@migrations (version integer PRIMARY KEY, name text NOT NULL, \
             applied_at timestamptz NOT NULL DEFAULT now())",
            "CREATE TABLE IF NOT EXISTS @@settings (name text PRIMARY KEY, value text NOT NULL)",
        ];
        let mode = format!(
            "INSERT INTO @@settings (name, value) VALUES ('lock_mode', '{}') ON CONFLICT DO NOTHING",
            self.lock_mode.name()
        );
        let tables = tables.iter().map(|sql| self.render(sql));
        std::iter::once(schema).chain(tables).chain([self.render(&mode)]).collect()
    }

    fn record_sql(&self, step: &Migration) -> String {
        let sql =
            format!("INSERT INTO @@migrations (version, name) VALUES ({}, '{}')", step.version, step.name);
        self.render(&sql)
    }

    /// What sets the advisory locks of this schema and prefix apart from those of others in the same
    /// database: FNV-1a of the names, so that every process computes the same.
    pub(crate) fn lock_space(&self) -> i64 {
        let hash = self.qualified().bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
        hash.cast_signed()
    }
}

/// What the server said about the schema.
#[derive(Debug)]
pub(crate) struct Schema {
    pub(crate) version: i32,
    pub(crate) lock_mode: String,
    pub(crate) unlogged: bool,
}

/// What is there, if anything is.
pub(crate) async fn inspect(
    config: &PostgresConfig,
    connection: &mut PgConnection,
) -> Result<Option<Schema>> {
    let failed = |error| failure::of_statement("connect", error);
    let exists = format!("SELECT to_regclass('{}migrations') IS NOT NULL AS found", config.qualified());
    let row = sqlx::raw_sql(AssertSqlSafe(exists)).fetch_one(&mut *connection).await.map_err(failed)?;
    if !row.try_get::<bool, _>("found").map_err(failed)? {
        return Ok(None);
    }
    let state = config.render(
        "SELECT (SELECT coalesce(max(version), 0) FROM @@migrations) AS version, \
         (SELECT value FROM @@settings WHERE name = 'lock_mode') AS lock_mode, \
         coalesce((SELECT relpersistence = 'u' FROM pg_class WHERE oid = to_regclass('@@records')), false) AS unlogged",
    );
    let row = sqlx::raw_sql(AssertSqlSafe(state)).fetch_one(connection).await.map_err(failed)?;
    Ok(Some(Schema {
        version: row.try_get("version").map_err(failed)?,
        lock_mode: row.try_get::<Option<String>, _>("lock_mode").map_err(failed)?.unwrap_or_default(),
        unlogged: row.try_get("unlogged").map_err(failed)?,
    }))
}

impl Schema {
    /// Whether every step of this version was taken. Later steps are no obstacle: they are made so that older
    /// processes go on.
    pub(crate) fn is_current(&self) -> bool {
        usize::try_from(self.version).is_ok_and(|version| version >= STEPS.len())
    }

    /// Whether this process may work on it.
    pub(crate) fn check(&self, config: &PostgresConfig) -> Result<()> {
        let refused = |context: String| Err(Error::new(ErrorKind::Invalid, "connect").with_context(context));
        let name = config.qualified();
        if !self.is_current() {
            return refused(format!(
                "{name}records is at step {} of {}: run PostgresStore::migrate, or connect with migrate=true",
                self.version,
                STEPS.len()
            ));
        }
        if self.lock_mode != config.lock_mode.name() {
            // Locks of different modes would not exclude each other.
            return refused(format!(
                "{name}records is used with lock={0}: connect with lock={0}, or stop all processes and set lock_mode in \
                 {name}settings to {1}",
                self.lock_mode,
                config.lock_mode.name()
            ));
        }
        if self.unlogged != config.unlogged {
            let (is, set) = if self.unlogged { ("UNLOGGED", "LOGGED") } else { ("LOGGED", "UNLOGGED") };
            return refused(format!(
                "{name}records is {is}: connect with unlogged={}, or ALTER TABLE {name}records SET {set}",
                self.unlogged
            ));
        }
        Ok(())
    }
}

/// Takes the steps that were not taken yet, in one transaction.
pub(crate) async fn migrate(config: &PostgresConfig, connection: &mut PgConnection) -> Result<()> {
    let failed = |error| failure::of_statement("migrate", error);
    let mut transaction =
        connection.begin_with("BEGIN ISOLATION LEVEL READ COMMITTED").await.map_err(failed)?;
    sqlx::raw_sql(AssertSqlSafe(config.serialize_sql())).execute(&mut *transaction).await.map_err(failed)?;
    for sql in config.bookkeeping_sql() {
        sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut *transaction).await.map_err(failed)?;
    }
    let newest = config.render("SELECT coalesce(max(version), 0) AS version FROM @@migrations");
    let row = sqlx::raw_sql(AssertSqlSafe(newest)).fetch_one(&mut *transaction).await.map_err(failed)?;
    let taken: i32 = row.try_get("version").map_err(failed)?;
    for step in config.migrations().into_iter().filter(|step| step.version > taken) {
        let record = config.record_sql(&step);
        for sql in [step.sql, record] {
            sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut *transaction).await.map_err(failed)?;
        }
    }
    transaction.commit().await.map_err(failed)
}
