//! Asking for locks, keeping them, and giving them back.

use super::{
    Held, MARGIN, Owner, SLACK_MS,
    batch::{Asked, Batch, Trouble},
};
use crate::{
    failure,
    line::{Answer, Ask, Owned},
    pool::{Arg, Sql},
    record::{self, micros, setting_ms},
};
use session_core::{Effect, Result, Token};
use sqlx::{Row as _, postgres::PgRow};
use std::{sync::Arc, time::Duration};
use tokio::{sync::OwnedSemaphorePermit, time::Instant};

/// An answer of the server that does not fit the question.
const ODD: &str = "an answer that cannot be read";

impl Owner {
    /// Releases, and whatever is asked for locks: one trip.
    pub(super) async fn step(&mut self, mut batch: Batch) {
        let sent = Instant::now();
        let lease = |asked: &Asked| match asked {
            Asked::Lock(Ask { lease, .. }, _) | Asked::Renew { lease, .. } => *lease,
        };
        let longest = batch.asks.iter().map(lease).max();
        let last = self.held.values().map(|held| held.until.saturating_duration_since(sent)).max();
        let idle = self.idle(last.max(longest), batch.len() == 0);
        if idle.is_none() && batch.len() == 1 {
            match batch.asks.pop() {
                Some(Asked::Lock(ask, false)) => return self.take(ask).await,
                asked => batch.asks.extend(asked),
            }
        }
        let (mut locks, mut keys, mut loads, mut helds) = (vec![], vec![], vec![], vec![]);
        for asked in &batch.asks {
            let (lock, key, load, held) = match asked {
                Asked::Lock(ask, held) => (ask.lock, ask.key.as_bytes().to_vec(), ask.load, *held),
                Asked::Renew { lock, .. } => (*lock, vec![], false, true),
            };
            locks.push(lock);
            keys.push(key);
            loads.push(load);
            helds.push(held);
        }
        let releases: Vec<_> = batch.releases.iter().map(|(lock, ..)| *lock).collect();
        let new = locks.iter().zip(&helds).filter(|(_, held)| !**held).map(|(lock, _)| *lock);
        let to_undo: Vec<_> = releases.iter().copied().chain(new).collect();
        let sql = Arc::clone(&self.linker.sql.step);
        let answer: Result<Vec<PgRow>, Trouble> = self
            .send(&sql, Duration::ZERO, 0, |query| {
                query.bind(releases).bind(locks).bind(keys).bind(loads).bind(helds).bind(idle)
            })
            .await;
        let rows = match answer {
            Ok(rows) if rows.len() == batch.asks.len() => rows,
            Ok(_) => {
                self.poison(ODD);
                return batch.fail(&Trouble::lost(Effect::Unknown, ODD));
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
                Asked::Lock(ask, _) => self.answer(ask, Some(row), sent, None),
                Asked::Renew { lock, token, lease, reply } => {
                    let until = self.renewed(lock, token, lease, sent, &row);
                    drop(reply.send(until.map(Some)));
                }
            }
        }
    }

    /// The common case: one lock, and nothing else to do.
    async fn take(&mut self, ask: Ask) {
        let (sent, sql) = (Instant::now(), Arc::clone(&self.linker.sql.take));
        let (lock, key, load) = (ask.lock, ask.key, ask.load);
        let answer = self.send(&sql, Duration::ZERO, 32, |query| {
            query.bind(lock).bind(key.as_bytes().as_slice()).bind(load).bind(false)
        });
        match answer.await {
            Ok(row) => self.answer(ask, row, sent, None),
            Err(trouble) => self.not_taken(ask, &trouble).await,
        }
    }

    /// A lock that was taken before the error is not undone by it: it is this connection's, whatever became
    /// of the statement.
    async fn not_taken(&mut self, ask: Ask, trouble: &Trouble) {
        if !trouble.lost {
            self.undo(vec![ask.lock]).await;
        }
        drop(ask.reply.send(if trouble.waited {
            Ok(Answer::Held(None))
        } else {
            Err(trouble.error("acquire"))
        }));
    }

    /// Unlocks what may have been locked.
    async fn undo(&mut self, locks: Vec<i64>) {
        let sql = Arc::clone(&self.linker.sql.step);
        let none = (Vec::<i64>::new(), Vec::<Vec<u8>>::new(), Vec::<bool>::new());
        let answer: Result<Vec<PgRow>, Trouble> = self
            .send(&sql, Duration::ZERO, 0, |query| {
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
    fn answer(&mut self, ask: Ask, row: Option<PgRow>, sent: Instant, seat: Option<OwnedSemaphorePermit>) {
        let Ask { lock, token, lease, load, reply, .. } = ask;
        let decode = |row: &PgRow| -> sqlx::Result<(i32, i64)> {
            Ok((row.try_get("outcome")?, row.try_get("now_us")?))
        };
        let row = row.ok_or(sqlx::Error::RowNotFound).and_then(|row| Ok((decode(&row)?, row)));
        let ((outcome, now_us), row) = match row {
            Ok(read) => read,
            Err(error) => {
                drop(reply.send(Err(failure::of_statement("acquire", error))));
                return self.poison(ODD);
            }
        };
        let answer = match outcome {
            0 => {
                let (until, until_us) = (sent + lease, now_us.saturating_add(micros(lease)));
                self.held.insert(lock, Held { token, until, until_us, _seat: seat });
                // Without a line nobody is left to ask for anything, and this task ends.
                let Some(line) = self.me.upgrade() else { return };
                let owned = Owned::new(line, lock, token);
                let stored = load.then(|| record::stored("acquire_and_load", &row)).transpose();
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

    /// One lock, in the server's own queue. Nothing else happens on this connection meanwhile.
    pub(super) async fn wait(&mut self, mut ask: Ask, patience: Duration, seat: OwnedSemaphorePermit) {
        let idle = setting_ms(ask.lease.saturating_add(MARGIN));
        let (lock, load) = (ask.lock, ask.load);
        let key = ask.key;
        let (sql, pool) = (Arc::clone(&self.linker.sql.wait), Arc::clone(&self.pool));
        let pid = self.link.as_ref().map_or(0, |link| link.pid);
        let answer = {
            let mut waiting = std::pin::pin!(self.send(&sql, patience, 32, |query| {
                query
                    .bind(lock)
                    .bind(key.as_bytes().as_slice())
                    .bind(load)
                    .bind(setting_ms(patience))
                    .bind(idle)
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
            Ok(row) => {
                if let Some(link) = &mut self.link {
                    link.idle_ms = idle;
                }
                self.answer(ask, row, Instant::now(), Some(seat));
            }
            // Cancelled or out of patience, it may have come just before.
            Err(trouble) => self.not_taken(ask, &trouble).await,
        }
    }
}
