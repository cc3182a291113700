//! Every verb that writes, on a session in a known state: for tests that make each of their file calls go
//! wrong.

use super::*;
use session_core::{
    Deleted, Grant, Loaded, LockingStore as _, PrincipalKey, Released, Renewed, Replaced, Result,
    SessionLock as _, Touched,
};

/// The session that a verb finds: of ann's, and locked with this token where the verb needs a grant.
pub const OLD: &str = "the old record";
pub const NEW: &str = "the new record, which is longer";
pub const TOKEN: Token = Token::from_bytes([7; 16]);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    Insert,
    Replace,
    Touch,
    Delete,
    AcquireAndLoad,
    ReplaceAndRelease,
    DeleteAndRelease,
    Renew,
    Release,
}

pub const VERBS: [Verb; 9] = [
    Verb::Insert,
    Verb::Replace,
    Verb::Touch,
    Verb::Delete,
    Verb::AcquireAndLoad,
    Verb::ReplaceAndRelease,
    Verb::DeleteAndRelease,
    Verb::Renew,
    Verb::Release,
];

pub fn ann() -> PrincipalKey {
    PrincipalKey::of("ann")
}

pub fn bob() -> PrincipalKey {
    PrincipalKey::of("bob")
}

impl Verb {
    pub fn named(name: &str) -> Self {
        VERBS.into_iter().find(|verb| format!("{verb:?}") == name).unwrap()
    }

    pub fn needs_grant(self) -> bool {
        matches!(self, Self::ReplaceAndRelease | Self::DeleteAndRelease | Self::Renew | Self::Release)
    }

    /// What is there before; the version.
    pub async fn prepare(self, store: &FileStore, key: &StorageKey) -> Version {
        if self == Self::Insert {
            return Version::from_u64(0);
        }
        insert(store, key, &put(OLD).principal(Some(ann()))).await
    }

    /// Takes the lock that the verb needs: by the store that performs it, as a lease dies with its store.
    pub async fn lock(self, store: &FileStore, key: &StorageKey) {
        if self.needs_grant() {
            let acquired = store.acquire(key, TOKEN, MINUTE, NO_WAIT).await.unwrap();
            assert!(matches!(acquired, Acquired::Granted(_)));
        }
    }

    /// The verb itself. A refusal is a bug of the test.
    pub async fn run(self, store: &FileStore, key: &StorageKey, version: Version) -> Result<()> {
        let grant = Grant::new(*key, TOKEN);
        let new = put(NEW).principal(Some(bob()));
        match self {
            Self::Insert => assert!(matches!(store.insert(key, &new).await?, Inserted::Created(_))),
            Self::Replace => assert!(matches!(store.replace(key, version, &new).await?, Replaced::Done(_))),
            Self::Touch => assert_eq!(store.touch(key, version, MINUTE * 2).await?, Touched::Extended),
            Self::Delete => assert!(matches!(store.delete(key).await?, Deleted::Removed(_))),
            Self::AcquireAndLoad => {
                let loaded = store.acquire_and_load(key, TOKEN, MINUTE, NO_WAIT).await?;
                assert!(matches!(loaded, Loaded::Granted(..)), "{loaded:?}");
            }
            Self::ReplaceAndRelease => {
                let replaced = store.replace_and_release(&grant, version, &new).await?;
                assert!(matches!(replaced, Replaced::Done(_)), "{replaced:?}");
            }
            Self::DeleteAndRelease => {
                assert!(matches!(store.delete_and_release(&grant).await?, Deleted::Removed(_)));
            }
            Self::Renew => assert_eq!(store.renew(&grant, MINUTE).await?, Renewed::Extended),
            Self::Release => assert_eq!(store.release(&grant).await?, Released::Freed),
        }
        Ok(())
    }

    /// Whether what is there now is what was there before (`false`) or what the verb makes of it (`true`):
    /// anything else is a mixture. `None` where the record cannot tell.
    pub async fn happened(self, store: &FileStore, key: &StorageKey, version: Version) -> Option<bool> {
        let found = store.load(key).await.unwrap_or_else(|error| panic!("{self:?}: {error}"));
        let found = found.map(|stored| {
            let old = stored.version == version;
            assert_eq!(stored.data, if old { OLD } else { NEW }, "{self:?}");
            assert_eq!(stored.principal, Some(if old { ann() } else { bob() }), "{self:?}");
            (old, stored.ttl)
        });
        match (self, found) {
            (Self::Insert, None) => Some(false),
            (Self::Replace | Self::ReplaceAndRelease | Self::Insert, Some((old, MINUTE))) => Some(!old),
            (Self::Touch, Some((true, ttl))) if ttl == MINUTE || ttl == MINUTE * 2 => Some(ttl != MINUTE),
            (Self::Delete | Self::DeleteAndRelease, None) => Some(true),
            (Self::Delete | Self::DeleteAndRelease, Some((true, MINUTE))) => Some(false),
            (Self::AcquireAndLoad | Self::Renew | Self::Release, Some((true, MINUTE))) => None,
            other => panic!("neither before nor after: {other:?}"),
        }
    }
}
