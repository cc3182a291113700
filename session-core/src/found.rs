//! What stands under a key, taken apart.

use crate::{
    PrincipalKey, Version,
    envelope::{Commits, Live, Tombstone},
};
use std::time::Duration;
use tokio::time::Instant;

/// A session as it was found: what a commit builds on.
#[derive(Clone, Debug)]
pub(crate) struct Base {
    pub(crate) version: Version,
    pub(crate) live: Live,
    /// How long it had left at `known`.
    pub(crate) ttl: Duration,
    /// When it was loaded or written.
    pub(crate) known: Instant,
    pub(crate) principal: Option<PrincipalKey>,
}

impl Base {
    /// How long it has left by now, if nobody has used it since.
    pub(crate) fn left(&self) -> Duration {
        self.ttl.saturating_sub(self.known.elapsed())
    }
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
