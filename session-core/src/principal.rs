//! The sessions of one user.

use crate::{
    Error, ErrorKind, PrincipalKey, Result, SessionIndex, StorageKey,
    engine::Core,
    found::{Base, Found},
};
use std::collections::{BTreeMap, HashSet};

/// Keys asked for at once.
const PAGE: usize = 256;

/// Rounds of listing and deleting; each but the last has removed something.
const MAX_ROUNDS: usize = 1_000;

impl Core {
    pub(crate) fn index(&self, operation: &'static str) -> Result<&dyn SessionIndex> {
        self.store.index().ok_or_else(|| {
            Error::new(ErrorKind::Unsupported, operation).with_context("this backend keeps no index of users")
        })
    }

    pub(crate) async fn sessions_of(&self, user: &str) -> Result<Vec<(StorageKey, Base)>> {
        let principal = PrincipalKey::of(user);
        let (mut found, mut seen) = (BTreeMap::new(), HashSet::new());
        for key in self.keys_of(&principal).await? {
            if let Some((key, base)) = self.living_successor(key, &principal, &mut seen).await? {
                found.insert(key, base);
            }
        }
        Ok(found.into_iter().collect())
    }

    pub(crate) async fn revoke_all(&self, user: &str) -> Result<usize> {
        let principal = PrincipalKey::of(user);
        let mut removed = 0;
        for _ in 0..MAX_ROUNDS {
            let before = removed;
            let (mut failed, mut seen) = (None, HashSet::new());
            for key in self.keys_of(&principal).await? {
                match self.revoke_if(key, &principal, &mut seen).await {
                    Ok(there_was_one) => removed += usize::from(there_was_one),
                    Err(error) => failed = Some(error), // the others must go all the same
                }
            }
            match failed {
                Some(error) => return Err(error),
                None if removed == before => return Ok(removed),
                None => {}
            }
        }
        Err(Error::new(ErrorKind::TooLarge, "revoke_all")
            .with_context("sessions appear faster than they are removed"))
    }

    async fn revoke_if(
        &self,
        key: StorageKey,
        principal: &PrincipalKey,
        seen: &mut HashSet<StorageKey>,
    ) -> Result<bool> {
        match self.living_successor(key, principal, seen).await? {
            Some((key, _)) => self.destroy_opened(key, None).await,
            None => Ok(false),
        }
    }

    async fn keys_of(&self, principal: &PrincipalKey) -> Result<Vec<StorageKey>> {
        let index = self.index("for_principal")?;
        let mut keys = Vec::new();
        let mut after = None;
        loop {
            let page = index.keys_of(principal, after, PAGE).await?;
            keys.extend(page.keys);
            match page.next {
                None => return Ok(keys),
                next => after = next,
            }
        }
    }

    /// The index may be behind: a session that it names may be gone, another's by now, or rotated. What this
    /// list has led to before is not looked at again.
    async fn living_successor(
        &self,
        mut key: StorageKey,
        of: &PrincipalKey,
        seen: &mut HashSet<StorageKey>,
    ) -> Result<Option<(StorageKey, Base)>> {
        while seen.insert(key) {
            let Some(stored) = self.load(&key).await? else { return Ok(None) };
            match self.decode(stored).await? {
                Found::Live(base) => return Ok((base.principal == Some(*of)).then_some((key, base))),
                Found::Tombstone(_, tombstone) => key = tombstone.successor,
            }
        }
        Ok(None)
    }
}
