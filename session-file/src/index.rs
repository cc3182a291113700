//! Sessions by user: an empty file for each.
//!
//! An entry is created before the record that needs it and removed after it, both under the flock of the
//! session: so the entries are a superset of the truth at any time, and reading them needs no lock. Most
//! writes leave the user as it is and touch no entry.

use crate::{
    FileDurability, FileStore,
    layout::{self, user_entry},
    shard::{Shard, blocking},
    store::{Shared, sync},
};
use async_trait::async_trait;
use bytes::Bytes;
use session_core::{Effect, Error, ErrorKind, Page, PrincipalKey, Result, SessionIndex, StorageKey};
use std::{io, sync::Arc};

/// How often an entry is tried when a sweep removes its empty directory again and again.
const TRIES: usize = 16;

impl Shard<'_> {
    /// Makes sure that the user's index names this session.
    pub(crate) fn index(&self, principal: &PrincipalKey, key: &StorageKey) -> Result<()> {
        let (fs, layout) = (self.shared.fs(), &self.shared.layout);
        let (directory, entry) = layout.user_entry(principal, key);
        let above = layout.users_of(usize::from(principal.as_bytes()[0]));
        let create = || -> io::Result<()> {
            for _ in 0..TRIES {
                match fs.create_new(&entry) {
                    // The directory is not there yet, or was empty and was swept a moment ago: the kernel
                    // removes none that has an entry, so this ends with one side's success.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {
                        fs.create_dir(&above)?;
                        fs.create_dir(&directory)?;
                    }
                    Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(()),
                    created => return created.map(drop),
                }
            }
            Err(io::ErrorKind::ResourceBusy.into())
        };
        let sync_names = || -> io::Result<()> {
            if self.shared.config.durability == FileDurability::FileAndDirectory {
                // All, always: who created them may not have come to this line yet. It happens at a login,
                // not at each write.
                for directory in [&directory, &above, &layout.users()] {
                    sync(fs, directory)?;
                }
            }
            Ok(())
        };
        // No record was written so far; an entry too many is swept.
        create().and_then(|()| sync_names()).map_err(|error| self.failed(Effect::None, &entry, error))
    }

    /// Takes this session out of the user's index. What fails here is no reason to call the step failed: an
    /// entry too many is allowed, and swept.
    pub(crate) fn unindex(&self, principal: &PrincipalKey, key: &StorageKey) {
        let (_, entry) = self.shared.layout.user_entry(principal, key);
        match self.shared.fs().remove_file(&entry) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(%error, entry = %entry.display(), "an entry of the user index could not be removed");
            }
            _ => {}
        }
    }
}

impl Shared {
    /// The names in one of the 16 directories of a user.
    pub(crate) fn user_names(
        &self,
        operation: &'static str,
        path: &std::path::Path,
    ) -> Result<Vec<(PrincipalKey, StorageKey)>> {
        match self.fs().list(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.is_there(operation, &self.layout.users()).map(|()| Vec::new())
            }
            Err(error) => Err(self.failed(operation, Effect::None, path, error)),
            Ok(names) => Ok(names.iter().filter_map(|name| user_entry(name)).collect()),
        }
    }

    /// By the last digit of the keys, and by the keys in that: an order that insertions and removals do not
    /// change, so that a session which is there all the time is on exactly one page.
    fn keys_of(&self, principal: &PrincipalKey, after: Option<StorageKey>, limit: usize) -> Result<Page> {
        let mut keys = Vec::new();
        let first = after.map_or(0, |after| layout::last_digit(&after));
        for digit in first..16 {
            let mut found: Vec<_> = self
                .user_names("keys_of", &self.layout.user(principal, digit))?
                .into_iter()
                .filter(|(user, _)| user == principal)
                .map(|(_, key)| key)
                .filter(|key| digit > first || after.is_none_or(|after| *key > after))
                .collect();
            found.sort_unstable();
            keys.extend(found);
            if keys.len() > limit {
                keys.truncate(limit);
                let next = keys.last().map(|key| Bytes::copy_from_slice(key.as_bytes()));
                return Ok(Page { keys, next });
            }
        }
        Ok(Page { keys, next: None })
    }
}

#[async_trait]
impl SessionIndex for FileStore {
    async fn keys_of(&self, principal: &PrincipalKey, after: Option<Bytes>, limit: usize) -> Result<Page> {
        let after = after.as_deref().map(<[u8; 32]>::try_from).transpose().map_err(|_| {
            Error::new(ErrorKind::Invalid, "keys_of").with_context("not a page of this index")
        })?;
        let (shared, principal) = (Arc::clone(&self.shared), *principal);
        blocking("keys_of", move || shared.keys_of(&principal, after.map(StorageKey::from_bytes), limit))
            .await?
    }
}
