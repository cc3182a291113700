//! What one round of the task deals with, and how it is told that it failed.

use crate::{
    failure,
    line::{Ask, Write, Written},
};
use session_core::{Effect, Error, ErrorKind, Result, Token};
use std::{collections::HashSet, time::Duration};
use tokio::{
    sync::{OwnedSemaphorePermit, oneshot},
    time::Instant,
};

/// How many sessions one statement serves at most.
const MAX_LEN: usize = 64;
/// After how much data of commits a batch ends, the longest record to come on top. The server ends a
/// connection, and with it the locks of others, that sends more than 1 GiB at once.
const MAX_BYTES: usize = 64 << 20;

/// A lock to be freed; without a reply it is this task's own doing.
pub(super) type Release = (i64, Token, Option<oneshot::Sender<Result<bool>>>);

#[derive(Default)]
pub(super) struct Batch {
    pub(super) releases: Vec<Release>,
    pub(super) asks: Vec<Asked>,
    pub(super) commits: Vec<Commit>,
    /// The data of `commits`.
    pub(super) bytes: usize,
    pub(super) wait: Option<(Ask, Duration, OwnedSemaphorePermit)>,
    /// The locks of `asks` and `commits`, each once.
    pub(super) locks: HashSet<i64>,
}

pub(super) enum Asked {
    /// And whether it is held already.
    Lock(Ask, bool),
    Renew {
        lock: i64,
        token: Token,
        lease: Duration,
        reply: oneshot::Sender<Result<Option<Instant>>>,
    },
}

pub(super) struct Commit {
    pub(super) lock: i64,
    pub(super) token: Token,
    pub(super) until_us: i64,
    pub(super) write: Write,
    pub(super) reply: oneshot::Sender<Result<Written>>,
}

/// Why a statement failed; as many errors can be made of it as there were callers.
pub(super) struct Trouble {
    pub(super) kind: ErrorKind,
    pub(super) effect: Effect,
    pub(super) why: String,
    /// Whether the wait for a lock took too long.
    pub(super) waited: bool,
    /// Whether the connection cannot be trusted any more.
    pub(super) lost: bool,
}

impl Trouble {
    pub(super) fn of(error: sqlx::Error) -> Self {
        let lost = !failure::spares_connection(&error);
        let waited = failure::code(&error).as_deref() == Some("55P03");
        let why = error.to_string();
        let error = failure::of_statement("lock", error);
        Self { kind: error.kind(), effect: error.effect(), why, waited, lost }
    }

    pub(super) fn of_connect(error: &Error) -> Self {
        let source = std::error::Error::source(error).map(|source| format!(": {source}")).unwrap_or_default();
        let why = format!("{}{source}", error.context().unwrap_or("connecting"));
        Self { kind: error.kind(), effect: Effect::None, why, waited: false, lost: true }
    }

    /// The connection is given up for this reason.
    pub(super) fn lost(effect: Effect, why: &str) -> Self {
        Self { kind: ErrorKind::Unavailable, effect, why: why.to_owned(), waited: false, lost: true }
    }

    pub(super) fn error(&self, operation: &'static str) -> Error {
        Error::new(self.kind, operation).with_effect(self.effect).with_context(self.why.clone())
    }
}

impl Batch {
    pub(super) fn len(&self) -> usize {
        self.releases.len() + self.asks.len() + self.commits.len() + usize::from(self.wait.is_some())
    }

    pub(super) fn is_full(&self) -> bool {
        self.len() >= MAX_LEN || self.bytes >= MAX_BYTES || self.wait.is_some()
    }

    /// A caller that has gone does not hear of it; the reply's failure is of no interest then, here and
    /// below.
    pub(super) fn fail(self, trouble: &Trouble) {
        for (_, _, reply) in self.releases {
            // Without the connection there is no lock.
            drop(reply.map(|reply| {
                reply.send(if trouble.lost { Ok(false) } else { Err(trouble.error("release")) })
            }));
        }
        for asked in self.asks {
            match asked {
                Asked::Lock(ask, _) => drop(ask.reply.send(Err(trouble.error("acquire")))),
                Asked::Renew { reply, .. } => drop(reply.send(Err(trouble.error("renew")))),
            }
        }
        for commit in self.commits {
            drop(commit.reply.send(Err(trouble.error("commit"))));
        }
        if let Some((ask, ..)) = self.wait {
            drop(ask.reply.send(Err(trouble.error("acquire"))));
        }
    }
}
