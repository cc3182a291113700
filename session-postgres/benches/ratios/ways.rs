//! The ways that are compared.

use session_conformance::servers::postgres::PostgresServer;
use session_core::{
    Key, Loaded, LockingStore as _, Put, Replaced, Session, SessionId, SessionStore as _, Sessions,
    StorageKey, SystemRandom, Token,
};
use session_postgres::{LockMode, PostgresConfig, PostgresStore};
use sqlx::{
    ConnectOptions as _, Connection as _, Executor as _, PgConnection, Row as _, postgres::PgConnectOptions,
};
use std::time::Duration;
use tokio::time::sleep;

pub(crate) const LEASE: Duration = Duration::from_secs(60);
const COUNT: Key<u64> = Key::new("count");
const FILLER: Key<String> = Key::new("filler");
/// What a session holds, in bytes; as stored it is some 1,000.
const SIZE: usize = 850;

pub(crate) fn quantile(times: &mut [Duration], percent: usize) -> Duration {
    times.sort();
    times.get(times.len() * percent / 100).copied().unwrap_or_default()
}

pub(crate) fn median(times: &mut [Duration]) -> Duration {
    quantile(times, 50)
}

pub(crate) fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

pub(crate) fn verdict(name: &str, ratio: f64, bound: f64) {
    let word = if ratio <= bound { "within" } else { "ABOVE" };
    println!("    {name}: {ratio:.2}, {word} {bound:.2}");
}

/// A connection as the store's own are: statements are prepared once and not logged.
pub(crate) async fn connect(url: &str) -> PgConnection {
    url.parse::<PgConnectOptions>().unwrap().disable_statement_logging().connect().await.unwrap()
}

/// The classical way, on a table of its own.
pub(crate) struct Classical;

impl Classical {
    const LOCK: &str = "SELECT pg_advisory_xact_lock($1)";
    pub(crate) const READ: &str = "SELECT data FROM classical WHERE key = $1";
    const WRITE: &str = "INSERT INTO classical (key, data, expires) VALUES ($1, $2, now() + interval '1 hour') \
        ON CONFLICT (key) DO UPDATE SET data = excluded.data, expires = excluded.expires";

    pub(crate) async fn prepare(server: &PostgresServer) {
        let sql = "CREATE TABLE classical (key bigint PRIMARY KEY, data bytea NOT NULL, expires timestamptz NOT NULL)";
        server.query(sql).await.unwrap();
    }

    /// One locked update that keeps the lock for so long. A new row has as many bytes as a record of ours.
    pub(crate) async fn update(connection: &mut PgConnection, key: i64, held: Duration) {
        let mut transaction = connection.begin().await.unwrap();
        transaction.execute(sqlx::query(Self::LOCK).bind(key)).await.unwrap();
        let row = sqlx::query(Self::READ).bind(key).fetch_optional(&mut *transaction).await.unwrap();
        let mut data: Vec<u8> = row.map_or_else(|| vec![b'x'; 1000], |row| row.get("data"));
        data[0] = data[0].wrapping_add(1);
        if !held.is_zero() {
            sleep(held).await;
        }
        transaction.execute(sqlx::query(Self::WRITE).bind(key).bind(data)).await.unwrap();
        transaction.commit().await.unwrap();
    }
}

/// The same two statements as ours, by hand and with nothing around them: what no driver on this client
/// library can be faster than.
pub(crate) struct ByHand {
    pub(crate) connection: PgConnection,
    pub(crate) key: StorageKey,
}

impl ByHand {
    pub(crate) async fn write(&mut self) {
        let read = "SELECT version, data FROM latency.session_records WHERE key = $1";
        let key = self.key.as_bytes().as_slice();
        let row = sqlx::query(read).bind(key).fetch_one(&mut self.connection).await.unwrap();
        let (version, data): (Vec<u8>, Vec<u8>) = (row.get("version"), row.get("data"));
        let write =
            "UPDATE latency.session_records SET version = $2, data = $3 WHERE key = $1 AND version = $2";
        let done = sqlx::query(write).bind(key).bind(version).bind(data).execute(&mut self.connection).await;
        assert_eq!(done.unwrap().rows_affected(), 1);
    }

    pub(crate) async fn exclusive(&mut self) {
        let read = "SELECT * FROM latency.session_take(7, $1, true, false)";
        let key = self.key.as_bytes().as_slice();
        let row = sqlx::query(read).bind(key).fetch_one(&mut self.connection).await.unwrap();
        let (version, data): (Vec<u8>, Vec<u8>) = (row.get("version"), row.get("data"));
        let write = "UPDATE latency.session_records SET version = $2, data = $3 WHERE key = $1 AND version = $2 \
            RETURNING pg_advisory_xact_lock_shared(7) IS NULL OR pg_advisory_unlock(7)";
        let freed =
            sqlx::query(write).bind(key).bind(version).bind(data).fetch_one(&mut self.connection).await;
        assert!(freed.unwrap().get::<bool, _>(0));
    }
}

/// The two steps of a request on the driver alone, without what the sessions do with the record.
pub(crate) async fn driver_write(store: &PostgresStore, key: &StorageKey) {
    let stored = store.load(key).await.unwrap().expect("it lives");
    let replaced = store.replace(key, stored.version, &Put::new(stored.data, LEASE)).await.unwrap();
    assert!(matches!(replaced, Replaced::Done(_)), "{replaced:?}");
}

pub(crate) async fn driver_exclusive(store: &PostgresStore, key: &StorageKey) {
    let token = Token::random(&SystemRandom).unwrap();
    let loaded = store.acquire_and_load(key, token, LEASE, LEASE).await.unwrap();
    let Loaded::Granted(grant, stored) = loaded else { unreachable!("it is free: {loaded:?}") };
    let put = Put::new(stored.data, LEASE);
    let replaced = store.replace_and_release(&grant, stored.version, &put).await.unwrap();
    assert!(matches!(replaced, Replaced::Done(_)), "{replaced:?}");
}

pub(crate) async fn sessions(url: &str, schema: &str, mode: LockMode) -> (PostgresStore, Sessions) {
    let config = PostgresConfig::from_url(url).unwrap().schema(schema).lock_mode(mode).pool_size(10);
    let store = PostgresStore::connect(config).await.unwrap();
    // Compression is not what is measured here.
    let sessions = Sessions::builder(store.clone()).max_waiters(1000).lock_wait(LEASE).compress_from(1 << 20);
    (store, sessions.build().unwrap())
}

pub(crate) async fn new_session(sessions: &Sessions) -> SessionId {
    let session = sessions.create();
    session.insert(COUNT, &0).unwrap();
    session.insert(FILLER, &"x".repeat(SIZE)).unwrap();
    session.commit().await.unwrap();
    session.id().unwrap()
}

pub(crate) async fn write(sessions: &Sessions, id: &SessionId) {
    sessions.update(id, |session| session.update(COUNT, |count| *count += 1)).await.unwrap();
}

pub(crate) async fn exclusive(sessions: &Sessions, id: &SessionId, held: Duration) {
    let run = async |session: &Session| {
        if !held.is_zero() {
            sleep(held).await;
        }
        session.update(COUNT, |count| *count += 1)
    };
    sessions.exclusive(id, run).await.unwrap();
}
