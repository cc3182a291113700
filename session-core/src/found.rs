//! What stands under a key, taken apart.

use crate::{
    PrincipalKey, Version,
    envelope::{Commits, Live, Tombstone},
};
use std::time::Duration;

/// A session as it was found: what a commit builds on.
#[derive(Clone, Debug)]
pub(crate) struct Base {
    pub(crate) version: Version,
    pub(crate) live: Live,
    pub(crate) ttl: Duration,
    pub(crate) principal: Option<PrincipalKey>,
}

/// What stands under a key.
pub(crate) enum Found {
    Live(Base),
    Tombstone(Version, Tombstone),
}

impl Found {
    pub(crate) fn version(&self) -> Version {
        match self {
            Self::Live(base) => base.version,
            Self::Tombstone(version, _) => *version,
        }
    }

    pub(crate) fn commits(&self) -> &Commits {
        match self {
            Self::Live(base) => &base.live.commits,
            Self::Tombstone(_, tombstone) => &tombstone.commits,
        }
    }
}
