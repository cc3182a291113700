//! This driver, wrong in the ways in which others that speak to memcached are: each is convicted by the
//! suite, or it would not notice them here either.

use crate::{common::*, with_server};
use async_trait::async_trait;
use memcache_async::ascii;
use session_conformance::{
    Cell, Instance, Strategy, Suite, Verdict,
    servers::memcached::MemcachedServer,
    wrapper::{Wrapper, wrap},
};
use session_core::{
    Deleted, ErrorKind, Grant, Inserted, LockingStore, Put, Released, Replaced, Result, SessionStore as _,
    StorageKey, SystemRandom, Version,
};
use std::sync::Arc;
use tokio::net::TcpStream;

#[derive(Clone, Copy, Debug)]
enum Flaw {
    /// The seconds of a ttl are sent as they are: more than 30 days of them are a date long past.
    RawTtl,
    /// The lock is deleted, whoever's it is by now.
    DeletesAnyLock,
    /// What is written is not waited for: a refusal looks like success.
    WritesWithoutReply,
}

#[derive(Debug)]
struct Mutant {
    flaw: Flaw,
    inner: Arc<dyn LockingStore>,
    server: Arc<MemcachedServer>,
}

impl Mutant {
    async fn naive(&self) -> ascii::Protocol<TcpStream> {
        ascii::Protocol::new(TcpStream::connect(self.server.address()).await.unwrap())
    }

    async fn delete_lock(&self, key: &StorageKey) {
        self.naive().await.delete(lock_key(key)).await.unwrap();
        self.server.command("mn").await.unwrap();
    }
}

#[async_trait]
impl Wrapper for Mutant {
    fn inner(&self) -> &Arc<dyn LockingStore> {
        &self.inner
    }

    async fn insert(&self, key: &StorageKey, put: &Put) -> Result<Inserted> {
        let inserted = self.inner.insert(key, put).await?;
        if matches!(self.flaw, Flaw::RawTtl) {
            let raw = format!("touch {} {}", data_key(key), put.ttl.as_secs());
            self.server.command(&raw).await.unwrap();
        }
        Ok(inserted)
    }

    async fn replace(&self, key: &StorageKey, expected: Version, put: &Put) -> Result<Replaced> {
        match self.inner.replace(key, expected, put).await {
            Err(error)
                if error.kind() == ErrorKind::TooLarge && matches!(self.flaw, Flaw::WritesWithoutReply) =>
            {
                self.naive().await.set(data_key(key), &put.data, 600).await.unwrap();
                Ok(Replaced::Done(Version::random(&SystemRandom)?))
            }
            replaced => replaced,
        }
    }

    async fn release(&self, grant: &Grant) -> Result<Released> {
        if matches!(self.flaw, Flaw::DeletesAnyLock) {
            self.delete_lock(grant.key()).await;
            return Ok(Released::Freed);
        }
        self.inner.release(grant).await
    }

    async fn replace_and_release(&self, grant: &Grant, expected: Version, put: &Put) -> Result<Replaced> {
        if !matches!(self.flaw, Flaw::DeletesAnyLock) {
            return self.inner.replace_and_release(grant, expected, put).await;
        }
        let replaced = self.inner.replace(grant.key(), expected, put).await?;
        self.delete_lock(grant.key()).await;
        Ok(replaced)
    }

    async fn delete_and_release(&self, grant: &Grant) -> Result<Deleted> {
        if !matches!(self.flaw, Flaw::DeletesAnyLock) {
            return self.inner.delete_and_release(grant).await;
        }
        let deleted = self.inner.delete(grant.key()).await?;
        self.delete_lock(grant.key()).await;
        Ok(deleted)
    }
}

async fn mutant(server: &Arc<MemcachedServer>, flaw: Flaw) -> Arc<dyn LockingStore> {
    let inner = Arc::new(store(server, BOTH[0]).await);
    wrap(Mutant { flaw, inner, server: Arc::clone(server) })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_flaws_of_others_are_convicted() {
    let server = Arc::new(with_server!());
    // With what each is told: another reason would be luck.
    for (flaw, scenario, evidence) in [
        (Flaw::RawTtl, "expiry/long_ttl_is_kept", "gone at once"),
        (Flaw::DeletesAnyLock, "lock/stale_holder_cannot_release", "a release after the lease: Freed"),
        (Flaw::WritesWithoutReply, "limits/too_large_is_refused", "replace was answered with Ok(Done("),
    ] {
        let server = Arc::clone(&server);
        let make = move || {
            let server = Arc::clone(&server);
            async move { Ok(Instance::new(mutant(&server, flaw).await)) }
        };
        let suite = Suite::new(make).private().strategies([Strategy::Driver]);
        let report = suite.scenarios([scenario]).run().await;
        let convicts = |cell: &Cell| cell.verdict == Verdict::Fail && cell.detail.contains(evidence);
        assert!(report.cells.iter().any(convicts), "{flaw:?} in {scenario}:\n{report}");
    }
}

#[tokio::test]
async fn a_write_that_is_not_waited_for_loses_the_record_and_says_done() {
    let server = Arc::new(with_server!());
    let mutant = mutant(&server, Flaw::WritesWithoutReply).await;
    let right = store(&server, BOTH[0]).await;
    let (key, too_long) = (new_key(), put(vec![0; 2 << 20]));
    let version = insert(&right, &key, "old").await;
    assert_eq!(right.replace(&key, version, &too_long).await.unwrap_err().kind(), ErrorKind::TooLarge);
    assert_eq!(load(&right, &key).await.data, "old");
    let done = mutant.replace(&key, version, &too_long).await.unwrap();
    assert!(matches!(done, Replaced::Done(_)), "{done:?}");
    // A refused `set` drops what was there. (Its connection is another one: wait until it was read.)
    while right.load(&key).await.unwrap().is_some_and(|stored| stored.version == version) {
        tokio::task::yield_now().await;
    }
    assert!(
        !right.load(&key).await.is_ok_and(|stored| stored.is_some_and(|stored| stored.data == too_long.data))
    );
}
