//! The task that owns one connection for locks, and what that connection holds.
//!
//! It takes commands from a channel and runs them in batches, one statement for many sessions: releases
//! first, then locks. Cancelling a caller never cuts an exchange with the server; a grant that nobody waits
//! for any more is released. When the connection is lost, so are its locks, and everything that is asked
//! under one of its grants from then on is refused.

mod asks;
mod batch;
mod commits;

use self::batch::{Asked, Batch, Commit, Trouble};
use crate::{
    line::{Answer, Command, Line, WeakLine, Written},
    link::{Link, Linker},
    pool::Pool,
    record::{Fetch, arguments},
    turns::Turns,
};
use session_core::{Effect, Token};
use sqlx::{AssertSqlSafe, Postgres, postgres::PgArguments, query::Query};
use std::{collections::HashMap, mem, sync::Arc, time::Duration};
use tokio::{
    sync::{OwnedSemaphorePermit, mpsc},
    time::{Instant, sleep_until, timeout},
};

/// How much later than the last lease the server ends a connection that says nothing: this task is given the
/// time to unlock by itself.
const MARGIN: Duration = Duration::from_millis(500);
/// How much longer than needed the server may be told to wait, before it is told anew.
const SLACK_MS: i32 = 1000;

pub(crate) struct Owner {
    pub(crate) linker: Arc<Linker>,
    pub(crate) turns: Arc<Turns>,
    /// For cancelling what this connection waits for.
    pub(crate) pool: Arc<Pool>,
    pub(crate) commands: mpsc::UnboundedReceiver<Command>,
    pub(crate) me: WeakLine,
    link: Option<Link>,
    held: HashMap<i64, Held>,
    /// A command that has to come after the batch.
    deferred: Option<Command>,
}

/// A lock that the server has given to this connection.
struct Held {
    token: Token,
    /// The end of the lease, on this side: counted from before the lock was asked for, so never later than
    /// the server's.
    until: Instant,
    /// The same as the server said.
    until_us: i64,
    _seat: Option<OwnedSemaphorePermit>,
}

async fn gone(link: &mut Option<Link>) {
    match link {
        Some(link) => link.gone().await,
        None => std::future::pending().await,
    }
}

async fn at(alarm: Option<Instant>) {
    match alarm {
        Some(alarm) => sleep_until(alarm).await,
        None => std::future::pending().await,
    }
}

impl Owner {
    pub(crate) fn new(
        linker: Arc<Linker>,
        turns: Arc<Turns>,
        pool: Arc<Pool>,
        commands: mpsc::UnboundedReceiver<Command>,
        me: WeakLine,
        link: Option<Link>,
    ) -> Self {
        Self { linker, turns, pool, commands, me, link, held: HashMap::new(), deferred: None }
    }

    /// Runs until every [`Line`] to it is gone.
    pub(crate) async fn run(mut self) {
        loop {
            let mut next = self.deferred.take();
            if next.is_none() {
                let alarm = self.alarm();
                tokio::select! {
                    biased;
                    command = self.commands.recv() => match command {
                        Some(command) => next = Some(command),
                        None => return,
                    },
                    () = gone(&mut self.link) => {
                        self.poison("the connection has ended");
                        continue;
                    }
                    () = at(alarm) => {}
                }
            }
            let mut batch = Batch::default();
            self.expire(&mut batch);
            while let Some(command) = next.take() {
                if batch.locks.contains(&command.lock()) || batch.is_full() {
                    self.deferred = Some(command);
                    break;
                }
                self.admit(command, &mut batch);
                next = self.commands.try_recv().ok();
            }
            self.work(batch).await;
        }
    }

    /// When there is something to do though nobody asks.
    fn alarm(&self) -> Option<Instant> {
        let lease = self.held.values().map(|held| held.until).min();
        lease.or_else(|| {
            let link = self.link.as_ref().filter(|link| link.idle_ms > 0)?;
            Some(link.last_used + Duration::from_millis(u64::from(link.idle_ms.unsigned_abs()) / 2))
        })
    }

    /// Whose lease is over holds nothing any more.
    fn expire(&mut self, batch: &mut Batch) {
        let now = Instant::now();
        for (lock, held) in self.held.extract_if(|_, held| held.until <= now) {
            batch.releases.push((lock, held.token, None));
        }
    }

    fn admit(&mut self, command: Command, batch: &mut Batch) {
        let lock = command.lock();
        let mine = |token: Token| self.held.get(&lock).filter(|held| held.token == token);
        match command {
            Command::Ask(ask) if ask.reply.is_closed() => {}
            Command::Ask(ask) => match self.held.get(&lock) {
                Some(held) if held.token != ask.token => {
                    let left = held.until.saturating_duration_since(Instant::now());
                    drop(ask.reply.send(Ok(Answer::Held(Some(left)))));
                }
                held => {
                    batch.locks.insert(lock);
                    batch.asks.push(Asked::Lock(ask, held.is_some()));
                }
            },
            // What is held here could not be released while this connection waits.
            Command::Wait(ask, ..) if !self.held.is_empty() || batch.len() > 0 => {
                drop(ask.reply.send(Ok(Answer::Held(None))));
            }
            Command::Wait(ask, patience, seat) => batch.wait = Some((ask, patience, seat)),
            Command::Renew { token, lease, reply, .. } => {
                if mine(token).is_some() {
                    batch.locks.insert(lock);
                    batch.asks.push(Asked::Renew { lock, token, lease, reply });
                } else {
                    drop(reply.send(Ok(None)));
                }
            }
            Command::Release { token, reply, .. } => {
                if mine(token).is_some() {
                    self.held.remove(&lock);
                    batch.releases.push((lock, token, reply));
                } else {
                    drop(reply.map(|reply| reply.send(Ok(false))));
                }
            }
            Command::Commit { token, write, reply, .. } => match mine(token) {
                Some(held) => {
                    batch.locks.insert(lock);
                    // What is deleted is in the answer.
                    batch.bytes += write.put.as_ref().map_or(self.linker.max_value, |put| put.data.len());
                    batch.commits.push(Commit { lock, token, until_us: held.until_us, write, reply });
                }
                None => drop(reply.send(Ok(Written::NotHolder))),
            },
        }
    }

    async fn work(&mut self, mut batch: Batch) {
        if self.link.is_none() {
            if batch.len() == 0 {
                return;
            }
            match self.linker.connect().await {
                Ok(link) => self.link = Some(link),
                Err(error) => return batch.fail(&Trouble::of_connect(&error)),
            }
        }
        if let Some((ask, patience, seat)) = batch.wait.take() {
            return self.wait(ask, patience, seat).await;
        }
        if !batch.commits.is_empty() {
            self.commit(mem::take(&mut batch.commits)).await;
        }
        let idle = self.held.is_empty() && self.link.as_ref().is_some_and(|link| link.idle_ms > 0);
        if batch.len() > 0 || (idle && self.alarm().is_some_and(|alarm| alarm <= Instant::now())) {
            self.step(batch).await;
        }
    }

    /// Sends a statement of up to nine arguments, about `bytes` long; whatever ends without an answer ends the
    /// connection.
    async fn send<'q, T: Fetch>(
        &mut self,
        sql: &Arc<str>,
        patience: Duration,
        bytes: usize,
        bind: impl FnOnce(Query<'q, Postgres, PgArguments>) -> Query<'q, Postgres, PgArguments>,
    ) -> Result<T, Trouble> {
        let query = bind(sqlx::query_with(AssertSqlSafe(Arc::clone(sql)), arguments(9, bytes)));
        let Some(link) = &mut self.link else {
            return Err(Trouble::lost(Effect::None, "the connection was lost"));
        };
        let exchange = async { T::fetch(query, link.connection().await?).await };
        let trouble = match timeout(self.linker.timeout + patience, exchange).await {
            Ok(Ok(answer)) => return Ok(answer),
            Ok(Err(error)) => Trouble::of(error),
            Err(_) => Trouble::lost(Effect::Unknown, "no answer in time"),
        };
        if trouble.lost {
            self.poison(&trouble.why);
        }
        Err(trouble)
    }

    /// The connection is gone, or must go: and with it every lock that it holds.
    fn poison(&mut self, why: &str) {
        tracing::warn!(locks = self.held.len(), why, "a connection with locks was lost");
        self.link = None;
        for (lock, held) in self.held.drain() {
            self.turns.free(lock, held.token);
        }
    }
}

impl std::fmt::Debug for Owner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Owner").field("held", &self.held.len()).finish_non_exhaustive()
    }
}

/// Starts the task of a line.
pub(crate) fn spawn(linker: &Arc<Linker>, turns: &Arc<Turns>, pool: &Arc<Pool>, link: Option<Link>) -> Line {
    let (line, commands) = Line::new(linker.timeout);
    let owner =
        Owner::new(Arc::clone(linker), Arc::clone(turns), Arc::clone(pool), commands, line.downgrade(), link);
    tokio::spawn(owner.run());
    line
}
