//! A few connections for statements that are over at once.
//!
//! A connection is put back after a whole reply and not otherwise: a caller that is cancelled, or a reply
//! that is late, closes it. So nothing of one session can ever be read by the next caller, and nothing has to
//! be asked before a connection is used again: a statement is one round trip, and no second one.

use crate::{
    config::PostgresConfig,
    failure,
    record::{Fetch, Fetched, arguments},
};
use session_core::{Effect, Error, Result};
use sqlx::{
    AssertSqlSafe, ConnectOptions as _, PgConnection,
    postgres::{PgConnectOptions, PgRow},
};
use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::{
    sync::{Semaphore, SemaphorePermit},
    time::{Instant, timeout_at},
};

/// Connections older than this are replaced: the server keeps memory for each that grows with time.
const MAX_AGE: Duration = Duration::from_secs(30 * 60);

/// A statement, with `$1`, `$2`, … for its arguments.
#[derive(Clone, Debug)]
pub(crate) struct Sql(pub(crate) Arc<str>);

/// An argument. There is no text among them: what is written into a statement is digits.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Arg<'a> {
    Bytes(Option<&'a [u8]>),
    Int(Option<i64>),
    Bool(bool),
}

impl Sql {
    /// The statement as text, for poolers that do not keep prepared statements apart.
    fn with(&self, args: &[Arg<'_>]) -> String {
        let mut parts = self.0.split('$');
        let mut text = parts.next().unwrap_or_default().to_owned();
        for part in parts {
            let digits = part.bytes().take_while(u8::is_ascii_digit).count();
            let (number, rest) = part.split_at(digits);
            let arg = number.parse::<usize>().ok().and_then(|number| args.get(number.checked_sub(1)?));
            arg.copied().unwrap_or(Arg::Int(None)).write(&mut text);
            text.push_str(rest);
        }
        text
    }
}

impl Arg<'_> {
    fn write(self, text: &mut String) {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        match self {
            Self::Bytes(Some(bytes)) => {
                text.reserve(bytes.len() * 2 + 12);
                text.push_str("'\\x");
                for byte in bytes {
                    text.push(char::from(DIGITS[usize::from(byte >> 4)]));
                    text.push(char::from(DIGITS[usize::from(byte & 15)]));
                }
                text.push_str("'::bytea");
            }
            Self::Int(Some(number)) => text.push_str(&format!("({number})::bigint")),
            Self::Bool(value) => text.push_str(if value { "true" } else { "false" }),
            Self::Bytes(None) => text.push_str("NULL::bytea"),
            Self::Int(None) => text.push_str("NULL::bigint"),
        }
    }
}

#[derive(Debug)]
pub(crate) struct Pool {
    options: PgConnectOptions,
    /// Text instead of prepared statements.
    simple: bool,
    timeout: Duration,
    connect_timeout: Duration,
    permits: Semaphore,
    idle: Mutex<Vec<Idle>>,
}

#[derive(Debug)]
struct Idle {
    connection: PgConnection,
    opened: Instant,
}

/// A connection in use. Dropped before [`keep`](Self::keep), it is closed.
struct Checkout<'a> {
    pool: &'a Pool,
    idle: Idle,
    /// Whether it was used before: then it may have died since.
    used: bool,
    _permit: SemaphorePermit<'a>,
}

impl Checkout<'_> {
    fn keep(self) {
        if self.idle.opened.elapsed() < MAX_AGE {
            self.pool.idle().push(self.idle);
        }
    }
}

impl Pool {
    pub(crate) fn new(config: &PostgresConfig, options: PgConnectOptions, simple: bool) -> Self {
        Self {
            options,
            simple,
            timeout: config.timeout,
            connect_timeout: config.connect_timeout,
            permits: Semaphore::new(config.pool_size),
            idle: Mutex::default(),
        }
    }

    /// The first row, if any.
    pub(crate) async fn row(
        &self,
        operation: &'static str,
        sql: &Sql,
        args: &[Arg<'_>],
    ) -> Result<Option<PgRow>> {
        let deadline = Instant::now() + self.timeout;
        self.attempt(operation, sql, args, deadline).await.map_err(|(error, _)| error)
    }

    /// The first row of a statement that always has one.
    pub(crate) async fn one(&self, operation: &'static str, sql: &Sql, args: &[Arg<'_>]) -> Result<PgRow> {
        self.row(operation, sql, args)
            .await?
            .ok_or_else(|| failure::damaged(operation, "no row in the answer"))
    }

    /// What a statement finds that changes nothing: repeated once when it met a connection that had died.
    pub(crate) async fn read<T: Fetch>(
        &self,
        operation: &'static str,
        sql: &Sql,
        args: &[Arg<'_>],
    ) -> Result<T> {
        let deadline = Instant::now() + self.timeout;
        match self.attempt(operation, sql, args, deadline).await {
            Err((_, true)) => self.attempt(operation, sql, args, deadline).await.map_err(|(error, _)| error),
            first => first.map_err(|(error, _)| error),
        }
    }

    /// An error comes with whether it was a connection's that had been idle.
    async fn attempt<T: Fetch>(
        &self,
        operation: &'static str,
        sql: &Sql,
        args: &[Arg<'_>],
        deadline: Instant,
    ) -> Result<T, (Error, bool)> {
        let mut checkout = self.checkout(operation, deadline).await.map_err(|error| (error, false))?;
        let used = checkout.used;
        match timeout_at(deadline, self.send(&mut checkout.idle.connection, sql, args)).await {
            Ok(Ok(answer)) => {
                checkout.keep();
                Ok(answer)
            }
            Ok(Err(error)) if failure::spares_connection(&error) => {
                checkout.keep();
                Err((failure::of_statement(operation, error), false))
            }
            Ok(Err(error)) => {
                // One that has died is seldom alone.
                self.idle().clear();
                Err((failure::of_statement(operation, error), used))
            }
            Err(_) => {
                self.idle().clear();
                Err((failure::timed_out(operation, "no answer in time", Effect::Unknown), false))
            }
        }
    }

    fn send<'a, T: Fetch>(
        &self,
        connection: &'a mut PgConnection,
        sql: &Sql,
        args: &[Arg<'_>],
    ) -> Fetched<'a, T> {
        if self.simple {
            return T::fetch(sqlx::raw_sql(AssertSqlSafe(sql.with(args))), connection);
        }
        let bytes = |arg: &Arg<'_>| if let Arg::Bytes(Some(bytes)) = arg { bytes.len() } else { 0 };
        let room = arguments(args.len(), args.iter().map(bytes).sum());
        let mut query = sqlx::query_with(AssertSqlSafe(Arc::clone(&sql.0)), room);
        for arg in args {
            query = match *arg {
                Arg::Bytes(bytes) => query.bind(bytes),
                Arg::Int(number) => query.bind(number),
                Arg::Bool(value) => query.bind(value),
            };
        }
        T::fetch(query, connection)
    }

    async fn checkout(&self, operation: &'static str, deadline: Instant) -> Result<Checkout<'_>> {
        let permit = match timeout_at(deadline, self.permits.acquire()).await {
            Ok(Ok(permit)) => permit,
            Ok(Err(_)) | Err(_) => {
                return Err(failure::timed_out(operation, "every connection is busy", Effect::None));
            }
        };
        let usable = || {
            let (now, mut idle) = (Instant::now(), self.idle());
            idle.retain(|idle| now - idle.opened < MAX_AGE);
            idle.pop() // the last one used: the others may grow old
        };
        let (idle, used) = match usable() {
            Some(idle) => (idle, true),
            None => (self.open(operation, deadline).await?, false),
        };
        Ok(Checkout { pool: self, idle, used, _permit: permit })
    }

    async fn open(&self, operation: &'static str, deadline: Instant) -> Result<Idle> {
        let opened = Instant::now();
        match timeout_at(deadline.min(opened + self.connect_timeout), self.options.connect()).await {
            Ok(Ok(connection)) => Ok(Idle { connection, opened }),
            Ok(Err(error)) => {
                self.idle().clear();
                Err(failure::of_connect(operation, error))
            }
            Err(_) => Err(failure::timed_out(operation, "no connection in time", Effect::None)),
        }
    }

    fn idle(&self) -> MutexGuard<'_, Vec<Idle>> {
        // A list of connections has no half-changed state.
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_statement_becomes_text() {
        let sql = Sql("SELECT f($2, $1) WHERE $3 AND x = $4".into());
        let args = [Arg::Int(Some(-1)), Arg::Bytes(Some(b"a'\0")), Arg::Bool(true), Arg::Bytes(None)];
        assert_eq!(
            sql.with(&args),
            "SELECT f('\\x612700'::bytea, (-1)::bigint) WHERE true AND x = NULL::bytea"
        );
    }
}
