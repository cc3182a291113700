//! A server's pool, and the lease of one connection for one operation.

use crate::{
    config::{MemcachedConfig, Node},
    connection::{ConnectError, Connection, Connector, Facts, SHORT},
    exchange::{Asked, Look, WrittenAndFreed, WrittenAndRead},
    fault::Fault,
    hints::{Hint, Ticks},
    item::{Item, Swapped},
};
use deadpool::managed::{Object, Pool, PoolConfig, PoolError, QueueMode, Timeouts};
use session_core::{Effect, Error, ErrorKind, Result};
use std::{sync::Arc, time::Duration};
use tokio::time::{Instant, error::Elapsed, timeout_at};

/// What memcached adds to a key and a value: at most 48 bytes of header, 8 of a cas number, 4 of flags, an
/// end of the key and of the value, and room for what another version may add.
pub(crate) const ITEM_OVERHEAD: usize = 80;

/// One memcached.
#[derive(Debug)]
pub(crate) struct Server {
    name: String,
    pool: Pool<Connector>,
    ticks: Arc<Ticks>,
    timeout: Duration,
}

impl Server {
    pub(crate) fn new(node: &Node, config: &MemcachedConfig, ticks: &Arc<Ticks>) -> Result<Self> {
        let connector = Connector { node: node.clone(), protocol: config.protocol, ticks: Arc::clone(ticks) };
        let settings = PoolConfig {
            max_size: config.pool.get(),
            timeouts: Timeouts::new(), // one deadline covers all: see `lease`
            queue_mode: QueueMode::Lifo,
        };
        let pool = Pool::builder(connector).config(settings).build();
        Ok(Self {
            name: node.to_string(),
            pool: pool.map_err(|error| Error::new(ErrorKind::Invalid, "connect").with_source(error))?,
            ticks: Arc::clone(ticks),
            timeout: config.timeout,
        })
    }

    /// A connection for one operation, which has the configured time from now on, waiting for the connection
    /// included.
    ///
    /// # Errors
    /// Without effect: nothing was sent.
    pub(crate) async fn lease(&self, operation: &'static str) -> Result<Lease<'_>> {
        let deadline = Instant::now() + self.timeout;
        let error = match timeout_at(deadline, self.pool.get()).await {
            Ok(Ok(object)) => {
                let asked = self.ticks.next();
                return Ok(Lease { server: self, object: Some(object), deadline, operation, asked });
            }
            Ok(Err(PoolError::Backend(ConnectError::Unsupported(cure)))) => {
                let context = format!("{}: {cure}", self.name);
                return Err(Error::new(ErrorKind::Unsupported, operation).with_context(context));
            }
            Ok(Err(PoolError::Backend(ConnectError::Fault(fault)))) => {
                Error::unavailable(operation, fault).with_context(self.name.clone())
            }
            // A pool that is closed or whose hooks refuse: this one never is, and has none.
            Ok(Err(other)) => {
                Error::unavailable(operation, format!("{other:?}")).with_context(self.name.clone())
            }
            // All in use, or the server accepts no new one: from here both look the same.
            Err(elapsed) => Error::unavailable(operation, elapsed).with_context(format!(
                "{}: no connection within {:?} (at most {} at a time)",
                self.name,
                self.timeout,
                self.pool.status().max_size,
            )),
        };
        Err(error.with_effect(Effect::None))
    }
}

/// One connection, for one operation. It goes back to the pool when it is clean, and is closed when it is
/// not.
#[derive(Debug)]
pub(crate) struct Lease<'a> {
    server: &'a Server,
    object: Option<Object<Connector>>,
    deadline: Instant,
    operation: &'static str,
    asked: u64,
}

impl Drop for Lease<'_> {
    fn drop(&mut self) {
        if let Some(object) = self.object.take()
            && !object.clean
        {
            drop(Object::take(object)); // out of the pool, and closed
        }
    }
}

impl Lease<'_> {
    /// A moment before anything was asked on this lease: what a [`Hint`] of it carries.
    pub(crate) fn asked(&self) -> u64 {
        self.asked
    }

    /// The number of a hint, if it means something here: see [`hints`](crate::hints).
    pub(crate) fn number(&self, hint: Option<Hint>) -> Option<u64> {
        let opened = self.object.as_ref()?.opened;
        hint.filter(|hint| opened < hint.asked).map(|hint| hint.cas)
    }

    /// What is known of the server.
    pub(crate) fn facts(&self) -> Result<&Facts> {
        self.object.as_deref().map(|connection| &connection.facts).ok_or_else(|| self.closed())
    }

    /// What is left of an item whose header says when it `ends`, in the contract's terms: without what
    /// rounding up added.
    pub(crate) fn left(&self, item: &Item, ends: u64) -> Result<Duration> {
        match item.left.map(u64::try_from) {
            Some(Ok(seconds)) => Ok(Duration::from_secs(seconds.saturating_sub(SHORT))),
            // It was there a moment ago, whatever two clocks make of it.
            Some(Err(_)) | None => {
                let left = ends.saturating_sub(self.facts()?.clock.now());
                Ok(Duration::from_millis(left.max(1)))
            }
        }
    }

    /// Its effect is none, as for every read.
    pub(crate) async fn get(&mut self, key: &str) -> Result<Option<Item>> {
        let (connection, deadline) = self.begin()?;
        let outcome = timeout_at(deadline, connection.get(key)).await;
        self.end(outcome, Effect::None)
    }

    pub(crate) async fn add(&mut self, key: &str, value: &[u8], exptime: u32) -> Result<bool> {
        self.fits(key, value)?;
        let (connection, deadline) = self.begin()?;
        let outcome = timeout_at(deadline, connection.add(key, value, exptime)).await;
        self.end(outcome, Effect::Unknown)
    }

    pub(crate) async fn swap(&mut self, key: &str, value: &[u8], exptime: u32, cas: u64) -> Result<Swapped> {
        self.fits(key, value)?;
        let (connection, deadline) = self.begin()?;
        let outcome = timeout_at(deadline, connection.swap(key, value, exptime, cas)).await;
        self.end(outcome, Effect::Unknown)
    }

    pub(crate) async fn remove(&mut self, key: &str, cas: u64) -> Result<Swapped> {
        let (connection, deadline) = self.begin()?;
        let outcome = timeout_at(deadline, connection.remove(key, cas)).await;
        self.end(outcome, Effect::Unknown)
    }

    pub(crate) async fn touch(
        &mut self,
        record: &str,
        how: (Option<&[u8]>, u32, u64),
        lock: &str,
    ) -> Result<Swapped> {
        self.fits(record, how.0.unwrap_or_default())?;
        let (connection, deadline) = self.begin()?;
        let outcome = timeout_at(deadline, connection.touch(record, how, lock)).await;
        self.end(outcome, Effect::Unknown)
    }

    pub(crate) async fn ask(
        &mut self,
        lock: &str,
        value: &[u8],
        exptime: u32,
        record: &str,
        look: Look,
    ) -> Result<Asked> {
        let (connection, deadline) = self.begin()?;
        let outcome = timeout_at(deadline, connection.ask(lock, value, exptime, record, look)).await;
        self.end(outcome, Effect::Unknown)
    }

    pub(crate) async fn swap_and_get(
        &mut self,
        write: (&str, &[u8], u32, u64),
        other: &str,
    ) -> Result<(Result<Swapped>, Result<Option<Item>>)> {
        self.fits(write.0, write.1)?;
        let (connection, deadline) = self.begin()?;
        let outcome = timeout_at(deadline, connection.swap_and_get(write, other)).await;
        let WrittenAndRead { written, item } = self.end(outcome, Effect::Unknown)?;
        let refused = |refusal| self.error(refusal, Effect::Unknown);
        Ok((written.map_err(refused), item.map_err(refused)))
    }

    pub(crate) async fn swap_and_remove(
        &mut self,
        record: (&str, &[u8], u32, u64),
        lock: (&str, u64),
    ) -> Result<(Result<Swapped>, Swapped)> {
        self.fits(record.0, record.1)?;
        let (connection, deadline) = self.begin()?;
        let outcome = timeout_at(deadline, connection.swap_and_remove(record, lock)).await;
        let WrittenAndFreed { written, freed } = self.end(outcome, Effect::Unknown)?;
        Ok((written.map_err(|refusal| self.error(refusal, Effect::Unknown)), freed))
    }

    /// Refuses what this server would refuse, before it is sent. (Its limit may be another than at connect.)
    fn fits(&self, key: &str, value: &[u8]) -> Result<()> {
        let (needed, limit) = (ITEM_OVERHEAD + key.len() + value.len(), self.facts()?.max_item);
        if needed <= limit {
            return Ok(());
        }
        let context = format!("an item of {needed} bytes; {} takes {limit} (-I)", self.server.name);
        Err(Error::new(ErrorKind::TooLarge, self.operation).with_context(context))
    }

    /// From here to [`end`](Self::end) the connection is not clean: if that is never reached, it is closed.
    fn begin(&mut self) -> Result<(&mut Connection, Instant)> {
        let (deadline, closed) = (self.deadline, self.closed());
        let connection: &mut Connection = self.object.as_mut().filter(|object| object.clean).ok_or(closed)?;
        connection.clean = false;
        Ok((connection, deadline))
    }

    fn end<T>(&mut self, outcome: Result<Result<T, Fault>, Elapsed>, effect: Effect) -> Result<T> {
        match outcome {
            Ok(Ok(reply)) => {
                if let Some(connection) = &mut self.object {
                    connection.clean = true;
                }
                Ok(reply)
            }
            Ok(Err(fault)) => Err(self.error(fault, effect)),
            Err(elapsed) => {
                let context = format!("{}: no reply within {:?}", self.server.name, self.server.timeout);
                Err(Error::unavailable(self.operation, elapsed).with_effect(effect).with_context(context))
            }
        }
    }

    fn error(&self, fault: Fault, effect: Effect) -> Error {
        let error = match fault {
            Fault::Io(_) => Error::unavailable(self.operation, fault).with_effect(effect),
            Fault::Refused(_) => Error::backend(self.operation, fault).with_effect(Effect::None),
            Fault::RefusedInPart(_) | Fault::Garbled(_) => {
                Error::backend(self.operation, fault).with_effect(effect)
            }
        };
        error.with_context(self.server.name.clone())
    }

    fn closed(&self) -> Error {
        let closed = std::io::Error::from(std::io::ErrorKind::NotConnected);
        Error::unavailable(self.operation, closed).with_effect(Effect::None)
    }
}
