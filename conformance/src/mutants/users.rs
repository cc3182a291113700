//! Stores that forget whose session it is: the next write would take it out of its user's index.

use super::Store;
use crate::wrapper::{Wrapper, wrap};
use async_trait::async_trait;
use session_core::{Grant, Loaded, Put, Replaced, Result, StorageKey, Stored, Token, Version};
use std::time::Duration;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum When {
    Loaded,
    Refused,
    Replaced,
}

#[derive(Debug)]
struct Forgets(Store, When);

pub(super) fn loads_nobodys(inner: Store) -> Store {
    wrap(Forgets(inner, When::Loaded))
}

pub(super) fn refuses_with_nobodys(inner: Store) -> Store {
    wrap(Forgets(inner, When::Refused))
}

pub(super) fn replaces_with_nobodys(inner: Store) -> Store {
    wrap(Forgets(inner, When::Replaced))
}

impl Forgets {
    fn shown(&self, when: When, stored: Stored) -> Stored {
        if self.1 == when { stored.principal(None) } else { stored }
    }

    fn answer(&self, replaced: Replaced) -> Replaced {
        match replaced {
            Replaced::Conflict(fresh) => Replaced::Conflict(self.shown(When::Refused, fresh)),
            other => other,
        }
    }

    fn put(&self, put: &Put) -> Put {
        let put = put.clone();
        if self.1 == When::Replaced { put.principal(None) } else { put }
    }
}

#[async_trait]
impl Wrapper for Forgets {
    fn inner(&self) -> &Store {
        &self.0
    }

    async fn load(&self, key: &StorageKey) -> Result<Option<Stored>> {
        Ok(self.0.load(key).await?.map(|stored| self.shown(When::Loaded, stored)))
    }

    async fn acquire_and_load(
        &self,
        key: &StorageKey,
        token: Token,
        lease: Duration,
        wait: Duration,
    ) -> Result<Loaded> {
        Ok(match self.0.acquire_and_load(key, token, lease, wait).await? {
            Loaded::Granted(grant, stored) => Loaded::Granted(grant, self.shown(When::Loaded, stored)),
            other => other,
        })
    }

    async fn replace(&self, key: &StorageKey, expected: Version, put: &Put) -> Result<Replaced> {
        Ok(self.answer(self.0.replace(key, expected, &self.put(put)).await?))
    }

    async fn replace_and_release(&self, grant: &Grant, expected: Version, put: &Put) -> Result<Replaced> {
        Ok(self.answer(self.0.replace_and_release(grant, expected, &self.put(put)).await?))
    }
}
