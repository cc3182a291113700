//! The store: records behind versions.

use crate::{
    config::MemcachedConfig,
    hints::{Hint, Hints, Ticks},
    item::{Item, Swapped},
    key::Keys,
    layout::{self, Kind},
    ring::Ring,
    server::{ITEM_OVERHEAD, Lease, Server},
};
use async_trait::async_trait;
use session_core::{
    Capabilities, Deleted, Durability, Effect, Error, ErrorKind, Inserted, Put, Random, Replaced, Result,
    SessionIndex, SessionStore, SessionSweeper, StorageKey, Stored, SystemRandom, Touched, Version,
};
use std::{sync::Arc, time::Duration};

/// How often a delete tries again because others keep writing, before it gives up.
const DELETE_TRIES: usize = 256;

/// Sessions in memcached, on one or several servers. Cheap to clone; clones share the connections.
///
/// See the [crate's documentation](crate) for what it promises.
///
/// ```no_run
/// use session_core::{Durability, SessionStore, Sessions};
/// use session_memcached::{MemcachedConfig, MemcachedStore};
///
/// # async fn run() -> session_core::Result<()> {
/// let store = MemcachedStore::connect(&MemcachedConfig::server("localhost", 11211)).await?;
/// assert_eq!(store.capabilities().durability, Durability::Volatile);
/// assert!(store.capabilities().may_evict && !store.capabilities().fencing);
/// let sessions = Sessions::builder(store).build()?;
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct MemcachedStore(pub(crate) Arc<Inner>);

#[derive(Debug)]
pub(crate) struct Inner {
    ring: Ring,
    servers: Vec<Server>,
    prefix: String,
    capabilities: Capabilities,
    pub(crate) random: Arc<dyn Random>,
    pub(crate) versions: Hints,
    pub(crate) tokens: Hints,
}

/// A record, and its number of the moment.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) stored: Stored,
    pub(crate) cas: u64,
}

/// A record to be written.
#[derive(Debug)]
pub(crate) struct New<'a> {
    pub(crate) version: Version,
    pub(crate) put: &'a Put,
}

impl MemcachedStore {
    /// Connects to the servers, to learn what they can. Those that do not answer now may do so later; one has
    /// to.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] for a configuration that cannot be used, [`ErrorKind::Unsupported`] for a
    /// server that lacks what is needed, with the cure; [`ErrorKind::Unavailable`] when no server answers.
    pub async fn connect(config: &MemcachedConfig) -> Result<Self> {
        Self::connect_with(config, Arc::new(SystemRandom)).await
    }

    /// The same with another source of versions and jitter.
    ///
    /// # Errors
    /// As for [`connect`](Self::connect).
    pub async fn connect_with(config: &MemcachedConfig, random: Arc<dyn Random>) -> Result<Self> {
        config.validate()?;
        let ticks = Arc::new(Ticks::default());
        let servers = config.servers.iter().map(|node| Server::new(node, config, &ticks));
        let servers = servers.collect::<Result<Vec<_>>>()?;
        let overhead = ITEM_OVERHEAD + layout::OVERHEAD + config.prefix.len() + Keys::LENGTH;
        let smallest = smallest_item(&servers).await?.saturating_sub(overhead);
        let max_value = config.max_value.unwrap_or(smallest);
        if max_value > smallest {
            let cure = "raise the item limit (-I) of each, or lower max_value";
            let context = format!("max_value {max_value}: the servers take at most {smallest}; {cure}");
            return Err(Error::new(ErrorKind::Invalid, "connect").with_context(context));
        }
        let mut capabilities = Capabilities::new(Durability::Volatile);
        capabilities.may_evict = true;
        capabilities.max_value = max_value;
        capabilities.ttl_resolution = Duration::from_secs(1);
        Ok(Self(Arc::new(Inner {
            ring: Ring::new(&config.servers),
            servers,
            prefix: config.prefix.clone(),
            capabilities,
            random,
            versions: Hints::default(),
            tokens: Hints::default(),
        })))
    }
}

/// The item limit that all servers keep which answer now.
async fn smallest_item(servers: &[Server]) -> Result<usize> {
    let (mut smallest, mut silent) = (None, None);
    for server in servers {
        match server.lease("connect").await {
            Ok(lease) => {
                let limit = lease.facts()?.max_item;
                smallest = Some(smallest.map_or(limit, |smallest: usize| smallest.min(limit)));
            }
            Err(error) if error.kind() == ErrorKind::Unavailable => {
                tracing::warn!(%error, "a memcached does not answer; its sessions are unavailable");
                silent = Some(error);
            }
            Err(error) => return Err(error),
        }
    }
    smallest.ok_or_else(|| silent.unwrap_or_else(|| Error::new(ErrorKind::Unavailable, "connect")))
}

impl Inner {
    pub(crate) fn keys(&self, key: &StorageKey) -> Keys {
        Keys::new(&self.prefix, key)
    }

    pub(crate) async fn lease(&self, key: &StorageKey, operation: &'static str) -> Result<Lease<'_>> {
        // The ring names no server that there is not.
        self.servers[self.ring.server_of(key)].lease(operation).await
    }

    /// What is to be written, if it is not too long.
    pub(crate) fn new_record<'a>(&self, put: &'a Put, operation: &'static str) -> Result<New<'a>> {
        let (length, limit) = (put.data.len(), self.capabilities.max_value);
        if length > limit {
            let context = format!("{length} bytes, at most {limit}");
            return Err(Error::new(ErrorKind::TooLarge, operation).with_context(context));
        }
        Ok(New { version: Version::random(&*self.random)?, put })
    }

    /// The record as the server gave it; its number is remembered.
    pub(crate) fn read(
        &self,
        lease: &Lease<'_>,
        key: &StorageKey,
        item: &Item,
        operation: &'static str,
    ) -> Result<Found> {
        let value = layout::decode(Kind::Record, key, &item.value)
            .ok_or_else(|| Error::new(ErrorKind::Damaged, operation))?;
        let hint = Hint { cas: item.cas, asked: lease.asked(), ends: value.ends };
        self.versions.keep(key, value.stamp, hint);
        let ttl = lease.left(item, value.ends)?;
        Ok(Found { stored: Stored::new(Version::from_bytes(value.stamp), value.data, ttl), cas: item.cas })
    }

    pub(crate) async fn look(
        &self,
        lease: &mut Lease<'_>,
        key: &StorageKey,
        keys: &Keys,
        operation: &'static str,
    ) -> Result<Option<Found>> {
        let item = lease.get(keys.data()).await?;
        item.map(|item| self.read(lease, key, &item, operation)).transpose()
    }

    /// [`SessionStore::replace`] on this lease: one round trip when the version's number is known, else two.
    pub(crate) async fn replace(
        &self,
        lease: &mut Lease<'_>,
        key: &StorageKey,
        expected: Version,
        new: &New<'_>,
        operation: &'static str,
    ) -> Result<Replaced> {
        let keys = self.keys(key);
        let (value, exptime) = encode(lease, key, new)?;
        let mut number = lease.number(self.versions.get(key, expected.to_bytes()));
        loop {
            let cas = match number.take() {
                Some(cas) => cas,
                None => match self.look(lease, key, &keys, operation).await? {
                    None => return Ok(Replaced::Missing),
                    Some(found) if found.stored.version != expected => {
                        return Ok(Replaced::Conflict(found.stored));
                    }
                    Some(found) => found.cas,
                },
            };
            match lease.swap(keys.data(), &value, exptime, cas).await? {
                Swapped::Done => {
                    self.versions.forget(key, expected.to_bytes());
                    return Ok(Replaced::Done(new.version));
                }
                Swapped::Missing => return Ok(Replaced::Missing),
                // It was replaced, or only touched: that shows when it is read.
                Swapped::Changed => {}
            }
        }
    }

    /// [`SessionStore::delete`] on this lease.
    pub(crate) async fn delete(
        &self,
        lease: &mut Lease<'_>,
        key: &StorageKey,
        operation: &'static str,
    ) -> Result<Deleted> {
        let keys = self.keys(key);
        for _ in 0..DELETE_TRIES {
            let Some(found) = self.look(lease, key, &keys, operation).await? else {
                return Ok(Deleted::Missing);
            };
            match lease.remove(keys.data(), found.cas).await? {
                Swapped::Done => return Ok(Deleted::Removed(found.stored)),
                Swapped::Missing => return Ok(Deleted::Missing),
                Swapped::Changed => {}
            }
        }
        let context = format!("written {DELETE_TRIES} times between reading and deleting it");
        Err(Error::new(ErrorKind::Unavailable, operation).with_effect(Effect::None).with_context(context))
    }
}

/// The value of a record, and how long the server is to keep it.
pub(crate) fn encode(lease: &Lease<'_>, key: &StorageKey, new: &New<'_>) -> Result<(Vec<u8>, u32)> {
    let clock = lease.facts()?.clock;
    let (ends, stamp) = (clock.end_of(new.put.ttl), new.version.to_bytes());
    Ok((layout::encode(Kind::Record, key, &stamp, ends, &new.put.data), clock.exptime(new.put.ttl)))
}

#[async_trait]
impl SessionStore for MemcachedStore {
    fn capabilities(&self) -> Capabilities {
        self.0.capabilities
    }

    /// None: memcached has nothing that could hold one.
    fn index(&self) -> Option<&dyn SessionIndex> {
        None
    }

    /// None: memcached removes what has expired.
    fn sweeper(&self) -> Option<&dyn SessionSweeper> {
        None
    }

    /// One round trip.
    async fn load(&self, key: &StorageKey) -> Result<Option<Stored>> {
        let mut lease = self.0.lease(key, "load").await?;
        let found = self.0.look(&mut lease, key, &self.0.keys(key), "load").await?;
        Ok(found.map(|found| found.stored))
    }

    /// One `add`.
    async fn insert(&self, key: &StorageKey, put: &Put) -> Result<Inserted> {
        let new = self.0.new_record(put, "insert")?;
        let mut lease = self.0.lease(key, "insert").await?;
        let (value, exptime) = encode(&lease, key, &new)?;
        let added = lease.add(self.0.keys(key).data(), &value, exptime).await?;
        Ok(if added { Inserted::Created(new.version) } else { Inserted::Exists })
    }

    /// One `cas` after a load of this version here; otherwise the record is read first. Not fenced.
    async fn replace(&self, key: &StorageKey, expected: Version, put: &Put) -> Result<Replaced> {
        let new = self.0.new_record(put, "replace")?;
        let mut lease = self.0.lease(key, "replace").await?;
        self.0.replace(&mut lease, key, expected, &new, "replace").await
    }

    /// With the meta protocol one comparing touch after a load of this version here, and the record does not
    /// travel. In the plain one it is read and written again, under the same version.
    async fn touch(&self, key: &StorageKey, expected: Version, ttl: Duration) -> Result<Touched> {
        let mut lease = self.0.lease(key, "touch").await?;
        let keys = self.0.keys(key);
        let (clock, meta) = (lease.facts()?.clock, lease.facts()?.meta);
        let (stamp, exptime) = (expected.to_bytes(), clock.exptime(ttl));
        let mut number = lease.number(self.0.versions.get(key, stamp)).filter(|_| meta);
        loop {
            let touched = if let Some(cas) = number.take() {
                lease.touch(keys.data(), (None, exptime, cas), keys.lock()).await?
            } else {
                let found = match self.0.look(&mut lease, key, &keys, "touch").await? {
                    None => return Ok(Touched::Missing),
                    Some(found) if found.stored.version != expected => return Ok(Touched::Conflict),
                    Some(found) => found,
                };
                let value = (!meta).then(|| {
                    layout::encode(Kind::Record, key, &stamp, clock.end_of(ttl), &found.stored.data)
                });
                lease.touch(keys.data(), (value.as_deref(), exptime, found.cas), keys.lock()).await?
            };
            match touched {
                Swapped::Done => {
                    self.0.versions.forget(key, stamp); // it has another number now
                    return Ok(Touched::Extended);
                }
                Swapped::Missing => return Ok(Touched::Missing),
                Swapped::Changed => {}
            }
        }
    }

    /// Two round trips: it is read, and deleted if it is still what was read; again, if not.
    async fn delete(&self, key: &StorageKey) -> Result<Deleted> {
        let mut lease = self.0.lease(key, "delete").await?;
        self.0.delete(&mut lease, key, "delete").await
    }
}
