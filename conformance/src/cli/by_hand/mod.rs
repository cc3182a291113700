//! What the latency of a backend is compared with: raw clients, and the commands that somebody would send by
//! hand.
//!
//! One file for each backend that has a client worth the name. They share the namespace of the store under
//! test (its address says which), so that what they leave goes with it.

mod facts;
mod file;
mod memcached;
mod postgres;
mod redis;

pub(super) use facts::{version, weight};

use session_conformance::{bench::ByHand, bench::Counted, servers::Proxy};
use session_core::{Error, ErrorKind, Random as _, Result, SystemRandom};
use std::{
    future::Future,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::{
    net::lookup_host,
    sync::{Semaphore, SemaphorePermit},
};
use url::Url;

/// How long the sessions live.
const TTL: Duration = Duration::from_secs(1800);
/// How long a lock lives whose holder has died.
const LEASE: Duration = Duration::from_secs(10);
/// How long to wait before the lock is tried again, where the server wakes nobody: what phpredis does.
const SPIN: Duration = Duration::from_millis(20);
/// The length of a version and of a token.
const STAMP: usize = 16;

/// The raw client of this backend; `None` where there is nothing to speak to.
pub(super) async fn connect(backend: &str, address: &Url) -> Result<Option<Arc<dyn ByHand>>> {
    Ok(match backend {
        "file" => Some(Arc::new(file::Files::at(address)?)),
        "memcached" => Some(Arc::new(memcached::Memcached::at(address).await?)),
        "postgres" => Some(Arc::new(postgres::Postgres::connect(address).await?)),
        "redis" if address.scheme() == "redis" => Some(Arc::new(redis::Redis::connect(address).await?)),
        _ => None,
    })
}

/// A second way to the same store, through what counts; `None` where no single server is spoken to in the
/// clear.
pub(super) async fn counted(backend: &str, address: &Url) -> Result<Option<Counted>> {
    if !["memcached", "postgres", "postgresql", "redis"].contains(&address.scheme()) {
        return Ok(None);
    }
    let failed = |error| Error::unavailable("bench", error);
    let server = resolve(address).await?;
    let proxy = Proxy::start(server, Duration::ZERO).await.map_err(failed)?;
    let address = at(address, proxy.address())?;
    let store = session_store::connect(address.as_str()).await?;
    let by_hand = connect(backend, &address).await?;
    Ok(Some(Counted { proxy, store, by_hand }))
}

/// The same URL, with another server.
pub(super) fn at(address: &Url, server: SocketAddr) -> Result<Url> {
    let mut address = address.clone();
    let moved = address.set_ip_host(server.ip()).is_ok() && address.set_port(Some(server.port())).is_ok();
    // `set_ip_host` refuses schemes that it does not know to have a host, but takes text for one.
    let moved = moved
        || address.set_host(Some(&server.ip().to_string())).is_ok()
            && address.set_port(Some(server.port())).is_ok();
    if moved {
        Ok(address)
    } else {
        Err(Error::new(ErrorKind::Invalid, "bench").with_context("no server in the URL"))
    }
}

async fn resolve(address: &Url) -> Result<SocketAddr> {
    let usual = match address.scheme() {
        "memcached" => 11211,
        "redis" => 6379,
        _ => 5432,
    };
    let host = address.host_str().unwrap_or("localhost").trim_matches(['[', ']']);
    let mut found = lookup_host((host, address.port().unwrap_or(usual)))
        .await
        .map_err(|error| Error::unavailable("bench", error))?;
    found.next().ok_or_else(|| Error::new(ErrorKind::Unavailable, "bench").with_context(host.to_owned()))
}

/// An option of the URL; of two equal ones the last counts.
fn option(address: &Url, name: &str) -> Option<String> {
    address.query_pairs().filter(|(option, _)| option == name).last().map(|(_, value)| value.into_owned())
}

fn stamp() -> Result<[u8; STAMP]> {
    let mut bytes = [0; STAMP];
    SystemRandom.fill(&mut bytes)?;
    Ok(bytes)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn failed(error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::backend("by hand", error)
}

/// A reply that these commands do not have.
fn strange(what: &str) -> Error {
    Error::new(ErrorKind::Backend, "by hand").with_context(what.to_owned())
}

/// Connections for one task at a time, as many as the driver has. (A pool from a crate would ask more than by
/// hand is asked: sqlx's own sends a ping whenever a connection comes back.)
struct Pool<T> {
    permits: Semaphore,
    idle: Mutex<Vec<T>>,
}

/// A connection in use. Dropped before [`keep`](Self::keep), it is closed.
struct Lent<'a, T> {
    pool: &'a Pool<T>,
    connection: T,
    _permit: SemaphorePermit<'a>,
}

impl<T> Pool<T> {
    fn new(connections: usize) -> Self {
        Self { permits: Semaphore::new(connections), idle: Mutex::default() }
    }

    async fn lend(&self, open: impl Future<Output = Result<T>>) -> Result<Lent<'_, T>> {
        let permit = self.permits.acquire().await.map_err(failed)?;
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let connection = match idle {
            Some(connection) => connection,
            None => open.await?,
        };
        Ok(Lent { pool: self, connection, _permit: permit })
    }
}

impl<T> Lent<'_, T> {
    fn keep(self) {
        self.pool.idle.lock().unwrap_or_else(PoisonError::into_inner).push(self.connection);
    }
}
