//! Keys that lost their expiry: found at a bounded rate, reported, and removed when asked to.
//!
//! This driver writes no key without a ttl. A restore from a dump, a `PERSIST`, or a client of another make
//! may; and a lock without one would keep its session locked for ever.

use crate::{
    RedisStore,
    connection::{Failure, Link},
    layout::unhex,
    script::{Call, ORPHAN},
};
use redis::{Cmd, Value};
use session_core::{Effect, Error, Result, StorageKey};
use std::time::Duration;

/// How to look.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct OrphanSearch {
    /// How many keys each step looks at, roughly. Default 500.
    pub batch: usize,
    /// The pause after each step. Default 10 ms: at most 50,000 keys a second with a batch of 500.
    pub pause: Duration,
    /// Whether to remove what is found. Default: only report.
    pub remove: bool,
    /// The longest report; the search ends there. Default 10,000.
    pub limit: usize,
}

impl Default for OrphanSearch {
    fn default() -> Self {
        Self { batch: 500, pause: Duration::from_millis(10), remove: false, limit: 10_000 }
    }
}

/// What was found.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Orphans {
    /// How many keys were looked at.
    pub scanned: u64,
    /// The keys without an expiry.
    pub found: Vec<Orphan>,
    /// Whether the search ended at its limit: there may be more.
    pub more: bool,
}

/// A key without an expiry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Orphan {
    /// Whose it is; `None` for an index.
    pub session: Option<StorageKey>,
    /// What it is.
    pub kind: OrphanKind,
    /// Whether it was removed.
    pub removed: bool,
}

impl Orphan {
    /// An orphan, for comparisons.
    #[must_use]
    pub const fn new(session: Option<StorageKey>, kind: OrphanKind, removed: bool) -> Self {
        Self { session, kind, removed }
    }
}

/// What a key is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum OrphanKind {
    /// A session.
    Record,
    /// Its lock.
    Lock,
    /// The queue for its lock, or the tickets in it.
    Queue,
    /// The index of a user. Never removed: what it names may live.
    Index,
}

impl RedisStore {
    /// Looks through all keys with this store's prefix, without blocking the server: SCAN in steps with
    /// pauses.
    ///
    /// A key is removed in one step with the check that it still has no expiry. Keys that begin with the
    /// prefix and are none of this driver's are left alone.
    ///
    /// # Errors
    /// When the server does not answer. What was removed by then is removed.
    pub async fn orphans(&self, search: OrphanSearch) -> Result<Orphans> {
        let failed = |failure: Failure| failure.into_error("orphans");
        let mut report = Orphans::default();
        for link in self.0.router.primaries().await.map_err(failed)? {
            let mut cursor = "0".to_owned();
            loop {
                let keys = self.step(&link, &mut cursor, search.batch).await?;
                report.scanned += keys.len() as u64;
                for key in without_expiry(&link, keys).await.map_err(failed)? {
                    let Some((session, kind)) = self.kind_of(&key) else { continue };
                    if report.found.len() >= search.limit {
                        report.more = true;
                        return Ok(report);
                    }
                    let removed = search.remove && kind != OrphanKind::Index && self.remove(&key).await?;
                    report.found.push(Orphan { session, kind, removed });
                }
                if cursor == "0" {
                    break;
                }
                tokio::time::sleep(search.pause).await;
            }
        }
        Ok(report)
    }

    /// Removes every session, lock and index under this store's prefix, and nothing else. For tests and for
    /// farewells: a session that is written meanwhile may stay.
    ///
    /// # Errors
    /// When the server does not answer. What was removed by then is removed.
    pub async fn purge(&self) -> Result<u64> {
        let failed = |failure: Failure| failure.into_error("purge");
        let mut removed = 0;
        for link in self.0.router.primaries().await.map_err(failed)? {
            let mut cursor = "0".to_owned();
            loop {
                let keys = self.step(&link, &mut cursor, 1000).await?;
                for key in keys.iter().filter(|key| self.kind_of(key).is_some()) {
                    let mut command = Cmd::new();
                    command.arg("UNLINK").arg(key);
                    let reply = self.0.router.send(key, &command).await.map_err(failed)?;
                    removed += u64::from(reply == Value::Int(1));
                }
                if cursor == "0" {
                    break;
                }
            }
        }
        Ok(removed)
    }

    async fn step(&self, link: &Link, cursor: &mut String, batch: usize) -> Result<Vec<Vec<u8>>> {
        let mut scan = Cmd::new();
        // No character of a prefix means anything in a pattern.
        scan.arg("SCAN").arg(&*cursor).arg("MATCH").arg(format!("{}*", self.0.prefix));
        scan.arg("COUNT").arg(batch.max(1));
        let reply = link.run(&scan).await.map_err(|failure| failure.into_error("orphans"))?;
        let (next, keys) = redis::from_redis_value(reply)
            .map_err(|error| Error::backend("orphans", error).with_effect(Effect::None))?;
        *cursor = next;
        Ok(keys)
    }

    fn kind_of(&self, key: &[u8]) -> Option<(Option<StorageKey>, OrphanKind)> {
        let rest = key.strip_prefix(self.0.prefix.as_bytes())?;
        if let Some(user) = rest.strip_prefix(b"user:") {
            return unhex::<32>(user).map(|_| (None, OrphanKind::Index));
        }
        let rest = rest.strip_prefix(b"{")?;
        let (id, suffix) = rest.split_at_checked(64)?;
        let session = Some(StorageKey::from_bytes(unhex(id)?));
        let kind = match suffix {
            b"}" => OrphanKind::Record,
            b"}:lock" => OrphanKind::Lock,
            b"}:q1" | b"}:t1" => OrphanKind::Queue,
            _ => return None,
        };
        Some((session, kind))
    }

    async fn remove(&self, key: &[u8]) -> Result<bool> {
        let removed = self.0.router.call(Call { script: &ORPHAN, keys: &[key], arguments: &[] }).await;
        removed.map(|count| count == Value::Int(1)).map_err(|failure| failure.into_error("orphans"))
    }
}

/// Those of the keys that have no expiry, in one trip.
async fn without_expiry(link: &Link, keys: Vec<Vec<u8>>) -> Result<Vec<Vec<u8>>, Failure> {
    if keys.is_empty() {
        return Ok(keys);
    }
    let mut each = redis::pipe();
    for key in &keys {
        each.cmd("PTTL").arg(key);
    }
    let ttls = link.run_all(&each).await?;
    Ok(keys.into_iter().zip(ttls).filter(|(_, ttl)| *ttl == Value::Int(-1)).map(|(key, _)| key).collect())
}
