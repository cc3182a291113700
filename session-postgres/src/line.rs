//! The way to a connection that holds locks: commands to the task that owns it, and their answers.

use crate::failure;
use bytes::Bytes;
use session_core::{Effect, PrincipalKey, Result, StorageKey, Stored, Token, Version};
use std::{sync::Arc, time::Duration};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot},
    time::{Instant, timeout},
};

type Reply<T> = oneshot::Sender<Result<T>>;

/// A handle; the task ends with the last of them.
///
/// The channel has no bound of its own: each command has its caller, who waits for the answer, or is the
/// release of one grant.
#[derive(Clone, Debug)]
pub(crate) struct Line {
    commands: mpsc::UnboundedSender<Command>,
    /// On a connection for waiters: one at a time, and nobody else while it holds what it got.
    seat: Arc<Semaphore>,
    timeout: Duration,
}

#[derive(Debug)]
pub(crate) enum Command {
    /// Takes the lock, or has it already; never waits for it.
    Ask(Ask),
    /// The same, in the server's queue.
    Wait(Ask, Duration, OwnedSemaphorePermit),
    Renew {
        lock: i64,
        token: Token,
        lease: Duration,
        reply: Reply<Option<Instant>>,
    },
    Release {
        lock: i64,
        token: Token,
        reply: Option<Reply<bool>>,
    },
    Commit {
        lock: i64,
        token: Token,
        write: Write,
        reply: Reply<Written>,
    },
}

impl Command {
    pub(crate) fn lock(&self) -> i64 {
        match self {
            Self::Ask(ask) | Self::Wait(ask, ..) => ask.lock,
            Self::Renew { lock, .. } | Self::Release { lock, .. } | Self::Commit { lock, .. } => *lock,
        }
    }
}

#[derive(Debug)]
pub(crate) struct Ask {
    pub(crate) lock: i64,
    pub(crate) key: StorageKey,
    pub(crate) token: Token,
    pub(crate) lease: Duration,
    /// Whether a session without a record is refused, and its record wanted.
    pub(crate) load: bool,
    pub(crate) reply: Reply<Answer>,
}

#[derive(Debug)]
pub(crate) enum Answer {
    Granted(Owned, Instant, Option<Stored>),
    Missing,
    /// By another; until then, if it is one of this process.
    Held(Option<Duration>),
    /// By nobody, but a write without a lock is just being committed.
    Fenced,
}

/// What a holder writes.
#[derive(Debug)]
pub(crate) struct Write {
    pub(crate) key: StorageKey,
    pub(crate) put: Option<Replacement>,
}

#[derive(Debug)]
pub(crate) struct Replacement {
    pub(crate) expected: Version,
    pub(crate) version: Version,
    pub(crate) data: Bytes,
    pub(crate) ttl_us: i64,
    pub(crate) principal: Option<PrincipalKey>,
}

#[derive(Debug)]
pub(crate) enum Written {
    Done,
    Removed(Stored),
    Missing,
    Conflict(Stored),
    /// Nothing was written: the lock is not held here (any more).
    NotHolder,
}

/// A grant on its way to who asked for it. Dropped on the way, it is released.
#[derive(Debug)]
pub(crate) struct Owned {
    line: Line,
    lock: i64,
    token: Token,
    kept: bool,
}

impl Owned {
    pub(crate) fn new(line: Line, lock: i64, token: Token) -> Self {
        Self { line, lock, token, kept: false }
    }

    /// It has arrived.
    pub(crate) fn keep(mut self) -> Line {
        self.kept = true;
        self.line.clone()
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        if !self.kept {
            let release = Command::Release { lock: self.lock, token: self.token, reply: None };
            // No task any more: then there is no connection, and no lock.
            drop(self.line.commands.send(release));
        }
    }
}

impl Line {
    pub(crate) fn new(timeout: Duration) -> (Self, mpsc::UnboundedReceiver<Command>) {
        let (commands, receiver) = mpsc::unbounded_channel();
        (Self { commands, seat: Arc::new(Semaphore::new(1)), timeout }, receiver)
    }

    /// Does not keep the task alive.
    pub(crate) fn downgrade(&self) -> WeakLine {
        WeakLine { commands: self.commands.downgrade(), seat: Arc::clone(&self.seat), timeout: self.timeout }
    }

    /// The right to wait here, if nobody else does.
    pub(crate) fn seat(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.seat).try_acquire_owned().ok()
    }

    pub(crate) async fn ask(&self, make: impl FnOnce(Reply<Answer>) -> Ask) -> Result<Answer> {
        self.exchange("acquire", Duration::ZERO, |reply| Command::Ask(make(reply))).await
    }

    pub(crate) async fn wait(
        &self,
        seat: OwnedSemaphorePermit,
        patience: Duration,
        make: impl FnOnce(Reply<Answer>) -> Ask,
    ) -> Result<Answer> {
        self.exchange("acquire", patience, |reply| Command::Wait(make(reply), patience, seat)).await
    }

    /// When the new lease ends, if the old one was alive.
    pub(crate) async fn renew(&self, lock: i64, token: Token, lease: Duration) -> Result<Option<Instant>> {
        self.exchange("renew", Duration::ZERO, |reply| Command::Renew { lock, token, lease, reply }).await
    }

    /// Whether it was held.
    pub(crate) async fn release(&self, lock: i64, token: Token) -> Result<bool> {
        let make = |reply| Command::Release { lock, token, reply: Some(reply) };
        self.exchange("release", Duration::ZERO, make).await
    }

    pub(crate) async fn commit(
        &self,
        operation: &'static str,
        lock: i64,
        token: Token,
        write: Write,
    ) -> Result<Written> {
        self.exchange(operation, Duration::ZERO, |reply| Command::Commit { lock, token, write, reply }).await
    }

    async fn exchange<T>(
        &self,
        operation: &'static str,
        patience: Duration,
        make: impl FnOnce(Reply<T>) -> Command,
    ) -> Result<T> {
        let (reply, answer) = oneshot::channel();
        let gone = |effect| failure::timed_out(operation, "the connection's task has ended", effect);
        self.commands.send(make(reply)).map_err(|_| gone(Effect::None))?;
        match timeout(self.timeout + patience, answer).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err(gone(Effect::Unknown)),
            Err(_) => Err(failure::timed_out(operation, "no answer in time", Effect::Unknown)),
        }
    }
}

#[derive(Debug)]
pub(crate) struct WeakLine {
    commands: mpsc::WeakUnboundedSender<Command>,
    seat: Arc<Semaphore>,
    timeout: Duration,
}

impl WeakLine {
    /// `None` when nobody is there any more who could ask.
    pub(crate) fn upgrade(&self) -> Option<Line> {
        let commands = self.commands.upgrade()?;
        Some(Line { commands, seat: Arc::clone(&self.seat), timeout: self.timeout })
    }
}
