//! The task that owns one connection for locks, and what that connection holds.
//!
//! It takes commands from a channel and runs them in batches, one statement for many sessions: releases first, then locks. Cancelling a
//! caller never cuts an exchange with the server; a grant that nobody waits for any more is released. When the connection is
//! lost, so are its locks, and everything that is asked under one of its grants from then on is refused.

use crate::{
    failure,
    line::{Answer, Ask, Command, Line, Owned, WeakLine, Write, Written},
    link::{Link, Linker},
    pool::{Arg, Pool, Sql},
    record::{self, micros, setting_ms},
    turns::Turns,
};
use session_core::{Effect, Error, ErrorKind, Result, Stored, Token};
use sqlx::{
    AssertSqlSafe, PgConnection, Postgres, Row as _,
    postgres::{PgArguments, PgRow},
    query::Query,
};
use std::{
    collections::{HashMap, HashSet},
    mem,
    sync::Arc,
    time::Duration,
};
use tokio::{
    sync::{OwnedSemaphorePermit, mpsc, oneshot},
    time::{Instant, sleep_until, timeout},
};

/// How many sessions one statement serves at most.
const MAX_BATCH: usize = 64;
/// How much later than the last lease the server ends a connection that says nothing: this task is given the time to unlock by itself.
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
    /// The end of the lease, on this side: counted from before the lock was asked for, so never later than the server's.
    until: Instant,
    /// The same as the server said.
    until_us: i64,
    _seat: Option<OwnedSemaphorePermit>,
}

/// A lock to be freed; without a reply it is this task's own doing.
type Release = (i64, Token, Option<oneshot::Sender<Result<bool>>>);

#[derive(Default)]
struct Batch {
    releases: Vec<Release>,
    asks: Vec<Asked>,
    commits: Vec<Commit>,
    wait: Option<(Ask, Duration, OwnedSemaphorePermit)>,
    /// The locks of `asks` and `commits`, each once.
    locks: HashSet<i64>,
}

enum Asked {
    Lock(Ask, bool),
    Renew { lock: i64, token: Token, lease: Duration, reply: oneshot::Sender<Result<Option<Instant>>> },
}

struct Commit {
    lock: i64,
    token: Token,
    until_us: i64,
    write: Write,
    reply: oneshot::Sender<Result<Written>>,
}

/// Why a statement failed; as many errors can be made of it as there were callers.
struct Trouble {
    kind: ErrorKind,
    effect: Effect,
    why: String,
    /// Whether the wait for a lock took too long.
    waited: bool,
    /// Whether the connection cannot be trusted any more.
    lost: bool,
}

impl Trouble {
    fn of(error: sqlx::Error) -> Self {
        let lost = !failure::spares_connection(&error);
        let waited = failure::code(&error).as_deref() == Some("55P03");
        let why = error.to_string();
        let error = failure::of_statement("lock", error);
        Self { kind: error.kind(), effect: error.effect(), why, waited, lost }
    }

    fn of_connect(error: &Error) -> Self {
        let source = std::error::Error::source(error).map(|source| format!(": {source}")).unwrap_or_default();
        let why = format!("{}{source}", error.context().unwrap_or("connecting"));
        Self { kind: error.kind(), effect: Effect::None, why, waited: false, lost: true }
    }

    /// The connection is given up for this reason.
    fn lost(effect: Effect, why: &str) -> Self {
        Self { kind: ErrorKind::Unavailable, effect, why: why.to_owned(), waited: false, lost: true }
    }

    fn error(&self, operation: &'static str) -> Error {
        Error::new(self.kind, operation).with_effect(self.effect).with_context(self.why.clone())
    }
}

impl Batch {
    fn len(&self) -> usize {
        self.releases.len() + self.asks.len() + self.commits.len() + usize::from(self.wait.is_some())
    }

    /// A caller that has gone does not hear of it; the reply's failure is of no interest then, here and below.
    fn fail(self, trouble: &Trouble) {
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
                if batch.locks.contains(&command.lock()) || batch.len() >= MAX_BATCH || batch.wait.is_some() {
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

    /// Sends a statement; whatever ends without an answer ends the connection.
    async fn send<'q>(
        &mut self,
        sql: &Arc<str>,
        patience: Duration,
        bind: impl FnOnce(Query<'q, Postgres, PgArguments>) -> Query<'q, Postgres, PgArguments>,
    ) -> Result<Vec<PgRow>, Trouble> {
        let query = bind(sqlx::query(AssertSqlSafe(Arc::clone(sql))));
        let Some(link) = &mut self.link else {
            return Err(Trouble::lost(Effect::None, "the connection was lost"));
        };
        let connection: &mut PgConnection = link.connection().await.map_err(Trouble::of)?;
        let trouble = match timeout(self.linker.timeout + patience, query.fetch_all(connection)).await {
            Ok(Ok(rows)) => return Ok(rows),
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

    async fn step(&mut self, batch: Batch) {
        let sent = Instant::now();
        let (mut locks, mut keys, mut loads, mut helds) = (vec![], vec![], vec![], vec![]);
        let mut last = self.held.values().map(|held| held.until).max();
        for asked in &batch.asks {
            let (lock, key, load, held, lease) = match asked {
                Asked::Lock(ask, held) => (ask.lock, ask.key.as_bytes().to_vec(), ask.load, *held, ask.lease),
                Asked::Renew { lock, lease, .. } => (*lock, vec![], false, true, *lease),
            };
            locks.push(lock);
            keys.push(key);
            loads.push(load);
            helds.push(held);
            last = last.max(Some(sent + lease));
        }
        let releases: Vec<_> = batch.releases.iter().map(|(lock, ..)| *lock).collect();
        let idle = self.idle(last.map(|last| last.saturating_duration_since(sent)), batch.len() == 0);
        let new = locks.iter().zip(&helds).filter(|(_, held)| !**held).map(|(lock, _)| *lock);
        let to_undo: Vec<_> = releases.iter().copied().chain(new).collect();
        let sql = Arc::clone(&self.linker.sql.step);
        let answer = self
            .send(&sql, Duration::ZERO, |query| {
                query.bind(releases).bind(locks).bind(keys).bind(loads).bind(helds).bind(idle)
            })
            .await;
        let rows = match answer {
            Ok(rows) if rows.len() == batch.asks.len() => rows,
            Ok(_) => {
                let why = "an answer of another length";
                self.poison(why);
                return batch.fail(&Trouble::lost(Effect::Unknown, why));
            }
            Err(trouble) => {
                // Locks that were taken before the error are not undone by it.
                if !trouble.lost && !to_undo.is_empty() {
                    self.undo(to_undo).await;
                }
                for (lock, token, _) in &batch.releases {
                    self.turns.free(*lock, *token);
                }
                return batch.fail(&trouble);
            }
        };
        if let (Some(idle), Some(link)) = (idle, &mut self.link) {
            link.idle_ms = idle;
        }
        for (lock, token, reply) in batch.releases {
            self.turns.free(lock, token);
            drop(reply.map(|reply| reply.send(Ok(true))));
        }
        for (asked, row) in batch.asks.into_iter().zip(rows) {
            match asked {
                Asked::Lock(ask, _) => self.answer(ask, &row, sent, None),
                Asked::Renew { lock, token, lease, reply } => {
                    let until = self.renewed(lock, token, lease, sent, &row);
                    drop(reply.send(until.map(Some)));
                }
            }
        }
    }

    /// Unlocks what may have been locked.
    async fn undo(&mut self, locks: Vec<i64>) {
        let sql = Arc::clone(&self.linker.sql.step);
        let none = (Vec::<i64>::new(), Vec::<Vec<u8>>::new(), Vec::<bool>::new());
        let answer = self
            .send(&sql, Duration::ZERO, |query| {
                query
                    .bind(locks)
                    .bind(none.0)
                    .bind(none.1)
                    .bind(none.2.clone())
                    .bind(none.2)
                    .bind(None::<i32>)
            })
            .await;
        if answer.is_err() && self.link.is_some() {
            self.poison("locks could not be undone");
        }
    }

    /// What the server's idle timeout has to be; `None`: as it is.
    ///
    /// A process that is stopped says nothing, and loses its locks when the last of its leases here is over.
    fn idle(&self, last: Option<Duration>, resting: bool) -> Option<i32> {
        let now = self.link.as_ref().map_or(0, |link| link.idle_ms);
        match last {
            None => (resting && now > 0).then_some(0),
            Some(last) => {
                let needed = setting_ms(last.saturating_add(MARGIN));
                (!(needed..=needed.saturating_add(SLACK_MS)).contains(&now)).then_some(needed)
            }
        }
    }

    fn renewed(
        &mut self,
        lock: i64,
        token: Token,
        lease: Duration,
        sent: Instant,
        row: &PgRow,
    ) -> Result<Instant> {
        let now_us: i64 = row.try_get("now_us").map_err(|error| failure::of_statement("renew", error))?;
        let until = sent + lease;
        if let Some(held) = self.held.get_mut(&lock).filter(|held| held.token == token) {
            (held.until, held.until_us) = (until, now_us.saturating_add(micros(lease)));
        }
        Ok(until)
    }

    /// Tells who asked, and keeps the lock if it was granted.
    fn answer(&mut self, ask: Ask, row: &PgRow, sent: Instant, seat: Option<OwnedSemaphorePermit>) {
        let Ask { lock, token, lease, load, reply, .. } = ask;
        let decode = |row: &PgRow| -> sqlx::Result<(i32, i64)> {
            Ok((row.try_get("outcome")?, row.try_get("now_us")?))
        };
        let (outcome, now_us) = match decode(row) {
            Ok(decoded) => decoded,
            Err(error) => {
                drop(reply.send(Err(failure::of_statement("acquire", error))));
                return self.poison("an answer that cannot be read");
            }
        };
        let answer = match outcome {
            0 => {
                let (until, until_us) = (sent + lease, now_us.saturating_add(micros(lease)));
                self.held.insert(lock, Held { token, until, until_us, _seat: seat });
                // Without a line nobody is left to ask for anything, and this task ends.
                let Some(line) = self.me.upgrade() else { return };
                let owned = Owned::new(line, lock, token);
                let stored = load.then(|| record::stored("acquire_and_load", row)).transpose();
                stored.map(|stored| Answer::Granted(owned, until, stored))
            }
            1 => {
                if self.held.remove(&lock).is_some() {
                    self.turns.free(lock, token);
                }
                Ok(Answer::Missing)
            }
            4 => Ok(Answer::Fenced),
            _ => Ok(Answer::Held(None)),
        };
        // When nobody listens any more, the grant is dropped here, and its release is the next command.
        drop(reply.send(answer));
    }

    async fn wait(&mut self, mut ask: Ask, patience: Duration, seat: OwnedSemaphorePermit) {
        let idle = setting_ms(ask.lease.saturating_add(MARGIN));
        let (lock, load) = (ask.lock, ask.load);
        let key = ask.key.as_bytes().to_vec();
        let (sql, pool) = (Arc::clone(&self.linker.sql.wait), Arc::clone(&self.pool));
        let pid = self.link.as_ref().map_or(0, |link| link.pid);
        let answer = {
            let mut waiting = std::pin::pin!(self.send(&sql, patience, |query| {
                query.bind(lock).bind(key).bind(load).bind(setting_ms(patience)).bind(idle)
            }));
            tokio::select! {
                answer = &mut waiting => answer,
                () = ask.reply.closed() => {
                    // Nobody wants it any more: the server must not give it to this connection later.
                    let cancel = Sql("SELECT pg_cancel_backend($1::integer) AS sent".into());
                    if let Err(error) = pool.row("acquire", &cancel, &[Arg::Int(Some(pid.into()))]).await {
                        tracing::warn!(%error, "a wait for a lock could not be cancelled; it ends with its patience");
                    }
                    waiting.await
                }
            }
        };
        match answer {
            Ok(rows) => {
                if let Some(link) = &mut self.link {
                    link.idle_ms = idle;
                }
                if let Some(row) = rows.first() {
                    self.answer(ask, row, Instant::now(), Some(seat));
                }
            }
            Err(trouble) if trouble.waited => drop(ask.reply.send(Ok(Answer::Held(None)))),
            Err(trouble) => drop(ask.reply.send(Err(trouble.error("acquire")))),
        }
    }

    async fn commit(&mut self, mut commits: Vec<Commit>) {
        // So that two of these, of whatever process, never wait for each other's rows.
        commits.sort_by_key(|commit| commit.write.key);
        if let [one] = commits.as_slice() {
            match self.send_replace(one).await {
                Ok(true) => return self.committed(commits, vec![Ok(Written::Done)]),
                Ok(false) => {} // refused, or a deletion
                Err(trouble) => return self.not_committed(commits, &trouble),
            }
        }
        match self.send_commits(&commits).await {
            Ok(written) => self.committed(commits, written),
            Err(trouble) if trouble.effect == Effect::None && !trouble.lost && commits.len() > 1 => {
                // One of them is refused, and was refused for all: each for itself.
                for commit in commits {
                    match self.send_commits(std::slice::from_ref(&commit)).await {
                        Ok(written) => self.committed(vec![commit], written),
                        Err(trouble) => self.not_committed(vec![commit], &trouble),
                    }
                }
            }
            Err(trouble) => self.not_committed(commits, &trouble),
        }
    }

    fn not_committed(&mut self, commits: Vec<Commit>, trouble: &Trouble) {
        // Perhaps committed, perhaps unlocked: what this connection still holds is not known.
        if trouble.effect == Effect::Unknown && self.link.is_some() {
            self.poison(&trouble.why);
        }
        for commit in commits {
            drop(commit.reply.send(Err(trouble.error("commit"))));
        }
    }

    /// The common case in one plain statement: whether it was done.
    async fn send_replace(&mut self, commit: &Commit) -> Result<bool, Trouble> {
        let Some(put) = &commit.write.put else { return Ok(false) };
        let sql = Arc::clone(&self.linker.sql.replace);
        let key = commit.write.key.as_bytes().as_slice();
        let (expected, version) = (put.expected.to_bytes(), put.version.to_bytes());
        let rows = self
            .send(&sql, Duration::ZERO, |query| {
                let query =
                    query.bind(commit.lock).bind(key).bind(expected.as_slice()).bind(version.as_slice());
                let principal = put.principal.as_ref().map(|principal| principal.as_bytes().as_slice());
                query.bind(put.data.as_ref()).bind(put.ttl_us).bind(principal).bind(commit.until_us)
            })
            .await?;
        let Some(row) = rows.first() else { return Ok(false) };
        if !row.try_get("freed").unwrap_or(false) {
            // It is written. That the server did not know of the lock cannot be; if it is, none of the others is certain.
            self.poison("a lock was not held");
        }
        Ok(true)
    }

    async fn send_commits(&mut self, commits: &[Commit]) -> Result<Vec<Result<Written>>, Trouble> {
        let locks: Vec<_> = commits.iter().map(|commit| commit.lock).collect();
        let keys: Vec<_> = commits.iter().map(|commit| commit.write.key.as_bytes().to_vec()).collect();
        let untils: Vec<_> = commits.iter().map(|commit| commit.until_us).collect();
        let puts: Vec<_> = commits.iter().map(|commit| commit.write.put.as_ref()).collect();
        let deletes: Vec<_> = puts.iter().map(Option::is_none).collect();
        let olds: Vec<_> = puts.iter().map(|put| put.map(|put| put.expected.to_bytes().to_vec())).collect();
        let news: Vec<_> = puts.iter().map(|put| put.map(|put| put.version.to_bytes().to_vec())).collect();
        let datas: Vec<_> = puts.iter().map(|put| put.map(|put| put.data.to_vec())).collect();
        let ttls: Vec<_> = puts.iter().map(|put| put.map(|put| put.ttl_us)).collect();
        let principals: Vec<_> = puts
            .iter()
            .map(|put| put.and_then(|put| put.principal).map(|key| key.as_bytes().to_vec()))
            .collect();
        let sql = Arc::clone(&self.linker.sql.commit);
        let rows = self
            .send(&sql, Duration::ZERO, |query| {
                let query = query.bind(locks).bind(keys).bind(untils).bind(deletes);
                query.bind(olds).bind(news).bind(datas).bind(ttls).bind(principals)
            })
            .await?;
        let decoded = rows.first().ok_or(sqlx::Error::RowNotFound).and_then(|row| outcomes(row, commits));
        decoded.map_err(|error| {
            let trouble = Trouble { effect: Effect::Unknown, lost: true, ..Trouble::of(error) };
            self.poison(&trouble.why);
            trouble
        })
    }

    fn committed(&mut self, commits: Vec<Commit>, written: Vec<Result<Written>>) {
        for (commit, written) in commits.into_iter().zip(written) {
            let kept = matches!(written, Ok(Written::Conflict(_))) || written.is_err();
            if !kept && self.held.remove(&commit.lock).is_some() {
                self.turns.free(commit.lock, commit.token);
            }
            drop(commit.reply.send(written));
        }
    }
}

/// Reads the arrays that the procedure gives back.
fn outcomes(row: &PgRow, commits: &[Commit]) -> sqlx::Result<Vec<Result<Written>>> {
    type Blobs = Vec<Option<Vec<u8>>>;
    let outcomes: Vec<i32> = row.try_get("outcome")?;
    let versions: Blobs = row.try_get("version")?;
    let datas: Blobs = row.try_get("data")?;
    let lefts: Vec<Option<i64>> = row.try_get("left_us")?;
    let principals: Blobs = row.try_get("principal")?;
    if outcomes.len() != commits.len() {
        return Err(sqlx::Error::RowNotFound);
    }
    let records = versions.into_iter().zip(datas).zip(lefts.into_iter().zip(principals));
    type Record = ((Option<Vec<u8>>, Option<Vec<u8>>), (Option<i64>, Option<Vec<u8>>));
    let read = |((version, data), (left, principal)): Record| -> Result<Stored> {
        record::assemble(
            "commit",
            version.unwrap_or_default(),
            data.unwrap_or_default(),
            left.unwrap_or(0),
            principal,
        )
    };
    let written = outcomes.into_iter().zip(records).zip(commits).map(|((outcome, record), commit)| {
        Ok(match (outcome, commit.write.put.is_some()) {
            (0, true) => Written::Done,
            (0, false) => Written::Removed(read(record)?),
            (1, _) => Written::Missing,
            (3, _) => Written::Conflict(read(record)?),
            _ => Written::NotHolder,
        })
    });
    Ok(written.collect())
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
