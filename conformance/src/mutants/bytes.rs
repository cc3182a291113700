//! Stores that take bytes for something else.

use super::Store;
use crate::wrapper::{Wrapper, wrap};
use async_trait::async_trait;
use bytes::Bytes;
use flate2::read::ZlibDecoder;
use session_core::{
    Error, ErrorKind, Grant, Inserted, Loaded, LockingStore as _, Put, Replaced, Result, StorageKey, Stored,
    Token, Version,
};
use std::{fmt, io::Read as _, time::Duration};

/// Changes data on its way in and out.
struct Changes {
    inner: Store,
    put: fn(&Self, &Bytes) -> Bytes,
    got: fn(Bytes) -> Result<Bytes>,
}

impl fmt::Debug for Changes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Changes").field("inner", &self.inner).finish_non_exhaustive()
    }
}

/// As in C.
pub(super) fn stops_at_nul(inner: Store) -> Store {
    let put = |_: &Changes, data: &Bytes| {
        let end = data.iter().position(|byte| *byte == 0).unwrap_or(data.len());
        data.slice(..end)
    };
    wrap(Changes { inner, put, got: Ok })
}

/// As in a column of a database that warns and goes on.
pub(super) fn cuts_what_is_too_long(inner: Store) -> Store {
    let put =
        |mutant: &Changes, data: &Bytes| data.slice(..data.len().min(mutant.inner.capabilities().max_value));
    wrap(Changes { inner, put, got: Ok })
}

/// As clients that compress do, which tell by the first byte what they have compressed.
pub(super) fn inflates_what_looks_compressed(inner: Store) -> Store {
    const ZLIB: u8 = 0x78;
    let got = |data: Bytes| {
        if data.first() != Some(&ZLIB) {
            return Ok(data);
        }
        let mut inflated = Vec::new();
        match ZlibDecoder::new(&data[..]).read_to_end(&mut inflated) {
            Ok(_) => Ok(inflated.into()),
            Err(error) => Err(Error::new(ErrorKind::Damaged, "load").with_source(error)),
        }
    };
    wrap(Changes { inner, put: |_, data| data.clone(), got })
}

impl Changes {
    fn put(&self, put: &Put) -> Put {
        Put::new((self.put)(self, &put.data), put.ttl).principal(put.principal)
    }

    fn got(&self, mut stored: Stored) -> Result<Stored> {
        stored.data = (self.got)(stored.data)?;
        Ok(stored)
    }
}

#[async_trait]
impl Wrapper for Changes {
    fn inner(&self) -> &Store {
        &self.inner
    }

    async fn load(&self, key: &StorageKey) -> Result<Option<Stored>> {
        self.inner.load(key).await?.map(|stored| self.got(stored)).transpose()
    }

    async fn insert(&self, key: &StorageKey, put: &Put) -> Result<Inserted> {
        self.inner.insert(key, &self.put(put)).await
    }

    async fn replace(&self, key: &StorageKey, expected: Version, put: &Put) -> Result<Replaced> {
        self.inner.replace(key, expected, &self.put(put)).await
    }

    async fn acquire_and_load(
        &self,
        key: &StorageKey,
        token: Token,
        lease: Duration,
        wait: Duration,
    ) -> Result<Loaded> {
        Ok(match self.inner.acquire_and_load(key, token, lease, wait).await? {
            Loaded::Granted(grant, stored) => Loaded::Granted(grant, self.got(stored)?),
            loaded => loaded,
        })
    }

    async fn replace_and_release(&self, grant: &Grant, expected: Version, put: &Put) -> Result<Replaced> {
        self.inner.replace_and_release(grant, expected, &self.put(put)).await
    }
}
