//! Advisory mode: a few connections hold all locks of this process, a few others wait for those of other
//! processes.

use crate::{
    config::PostgresConfig,
    line::{Answer, Ask, Line},
    link::{Link, LinkSql, Linker},
    owner,
    pool::Pool,
    turns::Turns,
};
use session_core::{Result, StorageKey, Token};
use std::{sync::Arc, time::Duration};

#[derive(Debug)]
pub(crate) struct Advisory {
    /// A lock always goes over the same one: for one connection, its own lock is no obstacle.
    lines: Vec<Line>,
    waiters: Vec<Line>,
}

/// What is asked for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted<'a> {
    pub(crate) lock: i64,
    pub(crate) key: &'a StorageKey,
    pub(crate) token: Token,
    pub(crate) lease: Duration,
    pub(crate) load: bool,
    /// Lease mode: since when it is waited for, 0 at first; `None` when it is not.
    pub(crate) since_us: Option<i64>,
}

impl Wanted<'_> {
    fn ask(self, reply: tokio::sync::oneshot::Sender<Result<Answer>>) -> Ask {
        let Wanted { lock, key, token, lease, load, .. } = self;
        Ask { lock, key: *key, token, lease, load, reply }
    }
}

impl Advisory {
    /// Opens the connections that hold locks; those that wait are opened when they are needed.
    pub(crate) async fn connect(
        config: &PostgresConfig,
        turns: &Arc<Turns>,
        pool: &Arc<Pool>,
    ) -> Result<Self> {
        let linker = Arc::new(Linker {
            server: config.server.clone(),
            sql: LinkSql::new(config),
            timeout: config.timeout,
            connect_timeout: config.connect_timeout,
            max_value: config.max_value,
            // Random bytes as text; a token is just that.
            nonce: Token::random(&*config.random)?.to_string(),
        });
        let mut links: Vec<Link> = Vec::with_capacity(config.lock_connections);
        for _ in 0..config.lock_connections {
            links.push(linker.connect().await?);
        }
        let spawn = |link| owner::spawn(&linker, turns, pool, link);
        let lines = links.into_iter().map(|link| spawn(Some(link))).collect();
        let waiters = (0..config.waiter_connections).map(|_| spawn(None)).collect();
        Ok(Self { lines, waiters })
    }

    fn line(&self, lock: i64) -> &Line {
        // Keys are hashes: their lowest bits are as good as any. The list is never empty.
        let index = usize::from(lock.to_le_bytes()[0]) % self.lines.len();
        &self.lines[index]
    }

    /// Takes the lock if it is free; `held` is where it is held already.
    pub(crate) async fn ask(&self, wanted: Wanted<'_>, held: Option<&Line>) -> Result<Answer> {
        let line = held.unwrap_or_else(|| self.line(wanted.lock));
        line.ask(|reply| wanted.ask(reply)).await
    }

    /// Waits for the lock in the server's queue; `None` when all who could wait do.
    pub(crate) async fn wait(&self, wanted: Wanted<'_>, patience: Duration) -> Option<Result<Answer>> {
        let (line, seat) = self.waiters.iter().find_map(|line| Some((line, line.seat()?)))?;
        Some(line.wait(seat, patience, |reply| wanted.ask(reply)).await)
    }
}
