//! Storing what a request did: the one place where versions, replays, locks, rotations and lost replies meet.
//!
//! A commit draws an id of its own, which stays in the record among the last sixteen. So whatever happened to
//! a reply, the record itself tells whether the commit was applied.

use crate::{
    Effect, Error, ErrorKind, PrincipalKey, Put, Released, Replaced, Result, SessionId, StorageKey, Stored,
    Version,
    engine::{Core, MAX_LOST_REPLIES},
    envelope::{CommitId, Commits, Envelope, Grace, Live, Tombstone},
    found::{Base, Found},
    hold::Hold,
    log::Log,
    queue::Turn,
    record::Record,
    telemetry,
};
use std::{sync::Arc, time::Duration};
use tokio::time::{Instant, sleep};

/// A tombstone outlives every request that may still use the old id.
const TOMBSTONE_TTL: Duration = Duration::from_mins(5);

/// After so many conflicts in a row a commit takes the lock, where it can be had: then it is its turn.
const PATIENCE: u32 = 3;

/// What one request did to a session.
pub(crate) struct Work {
    /// What it was opened as; `None` for a session that does not exist yet.
    pub(crate) opened: Option<(SessionId, Base)>,
    /// As the request sees it now.
    pub(crate) record: Arc<Record>,
    pub(crate) log: Log,
    pub(crate) principal: Option<PrincipalKey>,
    pub(crate) rotate: bool,
    pub(crate) destroy: bool,
    /// Opened for exclusive use: a side effect may have happened, so nothing is replayed.
    pub(crate) exclusive: bool,
    pub(crate) hold: Option<Hold>,
}

/// What became of it.
pub(crate) struct Committed {
    pub(crate) id: Option<SessionId>,
    pub(crate) record: Arc<Record>,
    /// How long it lives from now on, when that was moved.
    pub(crate) renewed: Option<Duration>,
}

impl Core {
    pub(crate) async fn commit(&self, work: Work) -> Result<Committed> {
        let Work { opened, record, log, principal, rotate, destroy, exclusive, hold } = work;
        let Some((id, base)) = opened else {
            if destroy || (record.values.is_empty() && principal.is_none()) {
                return Ok(Committed { id: None, record, renewed: None });
            }
            let deadline = self.clock.now().saturating_add(self.settings.max_lifetime);
            let commits = Commits::default().and(self.commit_id()?);
            let (id, base) = self.insert(Live { commits, deadline, record }, principal).await?;
            return Ok(Committed { id: Some(id), record: base.live.record, renewed: Some(base.ttl) });
        };
        let key = id.storage_key();
        if destroy {
            self.destroy_opened(key, hold).await?;
            let record = Arc::new(Record::new(record.codec));
            return Ok(Committed { id: None, record, renewed: None });
        }
        if !rotate && record == base.live.record && principal.is_none_or(|new| base.principal == Some(new)) {
            if let Some(hold) = hold
                && hold.release().await == Some(Released::Lost)
                && exclusive
            {
                // There was nothing to store, but what was done under the lock was not done alone.
                return Err(lock_lost());
            }
            let renewed = self.touch_if_due(&key, &base).await;
            return Ok(Committed { id: Some(id), record, renewed });
        }
        let commit = self.commit_id()?;
        let writer = Writer {
            core: self,
            commit,
            id,
            key,
            base,
            record,
            log,
            principal,
            rotate,
            exclusive,
            hold,
            turn: None,
            prepared: None,
            uncertain: false,
            wants_lock: false,
            lock_free: false,
            replays: 0,
            lock_refusals: 0,
            lost_replies: 0,
        };
        writer.run().await
    }
}

struct Writer<'a> {
    core: &'a Core,
    commit: CommitId,
    id: SessionId,
    key: StorageKey,
    base: Base,
    record: Arc<Record>,
    log: Log,
    principal: Option<PrincipalKey>,
    rotate: bool,
    exclusive: bool,
    hold: Option<Hold>,
    turn: Option<Turn>,
    /// What is sent for the present base; the same each time, since an earlier copy may still be under way.
    prepared: Option<Prepared>,
    /// A write of the present base was sent and its reply was lost: it may land as long as that version is
    /// there.
    uncertain: bool,
    wants_lock: bool,
    /// The lock was not to be had where it is not needed: it is not asked for again.
    lock_free: bool,
    replays: u32,
    /// How often the store has said that the lock is another's, or no longer this commit's.
    lock_refusals: u32,
    lost_replies: u32,
}

struct Prepared {
    put: Put,
    /// A rotation's copy under the new id.
    copy: Option<SessionId>,
    /// How long the session lives (a rotation's tombstone lives for another time).
    lifetime: Duration,
}

enum Sent {
    Replied(Replaced),
    /// It may have been applied, and may still be.
    Lost(Error),
}

/// What a look at the fresh record told.
enum Verdict {
    /// The commit is in it.
    Applied,
    /// It is not; send (again).
    Send,
    /// There is nothing to write any more: the record is as this request would leave it.
    Nothing,
}

impl Writer<'_> {
    async fn run(mut self) -> Result<Committed> {
        match self.write().await {
            Ok(()) => {
                // What was last sent is what is stored; without it there was nothing to write in the end.
                let (successor, renewed) = match self.prepared {
                    Some(Prepared { copy, lifetime, .. }) => (copy, Some(lifetime)),
                    None => (None, None),
                };
                Ok(Committed { id: Some(successor.unwrap_or(self.id)), record: self.record, renewed })
            }
            Err(error) if self.uncertain => Err(error.with_effect(Effect::Unknown)),
            Err(error) => {
                if error.is_conflict() {
                    telemetry::conflict();
                }
                self.withdraw().await;
                // What failed without a reply was a look, a lock or a copy that nobody knows: the session is
                // as it was.
                Err(error.with_effect(Effect::None))
            }
        }
    }

    async fn write(&mut self) -> Result<()> {
        self.line_up().await;
        loop {
            let verdict = if self.wants_lock && self.hold.is_none() {
                match self.take_lock().await? {
                    Some(fresh) => self.rebase(fresh).await?,
                    None => Verdict::Send,
                }
            } else {
                match self.send().await? {
                    Sent::Replied(Replaced::Done(version)) => return self.finish(version),
                    Sent::Replied(Replaced::Missing) => {
                        self.lock_is_over();
                        self.uncertain = false; // whatever is under way finds nothing to replace
                        return Err(gone());
                    }
                    Sent::Replied(Replaced::NotHolder(_)) => self.not_holder().await?,
                    Sent::Replied(Replaced::Conflict(fresh)) => {
                        telemetry::refused();
                        self.rebase(fresh).await?
                    }
                    Sent::Lost(error) => {
                        self.uncertain = true;
                        let fresh = self.look_up(error).await?;
                        self.rebase(fresh).await?
                    }
                }
            };
            match verdict {
                Verdict::Send => {}
                Verdict::Applied | Verdict::Nothing => return Ok(()),
            }
        }
    }

    /// Waits for its turn among this process's writers, and builds on what the one before wrote, if it may.
    async fn line_up(&mut self) {
        if self.hold.is_some() {
            return;
        }
        if self.core.store.capabilities().fencing && self.core.queue.is_locked(&self.key) {
            self.wants_lock = true; // the store would refuse a write without it: that trip is saved
            return;
        }
        let deadline = Instant::now() + self.core.settings.lock_wait;
        self.turn = self.core.queue.turn(&self.key, deadline).await;
        if let Some(last) = self.turn.as_ref().and_then(Turn::last)
            && last.version != self.base.version
            && self.core.settings.max_replays > 0
        {
            // It may be older than what this request has loaded: the store decides, and a replay that fails
            // here says nothing. Without replays there is no way back from it: then it is left alone.
            let mut record = (*last.live.record).clone();
            if self.log.replay(&mut record).is_ok() {
                self.base = last.clone();
                self.record = Arc::new(record);
            }
        }
    }

    /// One write, which names the version that it replaces.
    async fn send(&mut self) -> Result<Sent> {
        let prepared = match self.prepared.take() {
            Some(prepared) => prepared,
            None => self.prepare().await?,
        };
        let put = &self.prepared.insert(prepared).put;
        let replaced = match &self.hold {
            Some(hold) => self.core.store.replace_and_release(hold.grant(), self.base.version, put).await,
            None => self.core.store.replace(&self.key, self.base.version, put).await,
        };
        match replaced {
            Ok(replaced) => Ok(Sent::Replied(replaced)),
            Err(error) if error.effect() == Effect::Unknown => Ok(Sent::Lost(error)),
            Err(error) => Err(error),
        }
    }

    async fn prepare(&mut self) -> Result<Prepared> {
        let commits = self.base.live.commits.and(self.commit);
        let principal = self.principal.or(self.base.principal);
        let deadline = self.base.live.deadline;
        let live = Live { commits: commits.clone(), deadline, record: Arc::clone(&self.record) };
        let limits = self.core.settings.limits;
        if !self.rotate {
            let ttl = self.core.ttl(deadline)?;
            let put = Put::new(Envelope::Live(live).encode(limits).await?, ttl).principal(principal);
            return Ok(Prepared { put, copy: None, lifetime: ttl });
        }
        let (successor, inserted) = self.core.insert(live, principal).await?;
        let grace = self.core.settings.rotation_grace;
        let sealed = if grace.is_zero() {
            None
        } else {
            let until = self.core.clock.now().saturating_add(grace);
            Some(Grace::seal(until, &self.id, &successor, &*self.core.random)?)
        };
        let tombstone = Tombstone { commits, successor: successor.storage_key(), grace: sealed };
        let data = Envelope::Tombstone(tombstone).encode(limits).await?;
        // It stays in its user's index: a list that comes in pages would miss a session that moves from a
        // later page to an earlier one, but not the tombstone that leads to it.
        let put = Put::new(data, grace.max(TOMBSTONE_TTL)).principal(principal);
        Ok(Prepared { put, copy: Some(successor), lifetime: inserted.ttl })
    }

    fn finish(&mut self, version: Version) -> Result<()> {
        self.uncertain = false;
        self.lock_is_over();
        let Some(Prepared { put, copy, .. }) = &self.prepared else { return Ok(()) };
        telemetry::committed(put.data.len());
        if let Some(turn) = self.turn.take() {
            let written = copy.is_none().then(|| Base {
                version,
                live: Live {
                    commits: self.base.live.commits.and(self.commit),
                    deadline: self.base.live.deadline,
                    record: Arc::clone(&self.record),
                },
                ttl: put.ttl,
                known: Instant::now(),
                principal: put.principal,
            });
            turn.leave(written);
        }
        Ok(())
    }

    /// The record as it is now: was this commit applied, may it be sent (again), and on what?
    async fn rebase(&mut self, stored: Stored) -> Result<Verdict> {
        let mut found = self.core.decode(stored).await?;
        if found.commits().contains(&self.commit) {
            self.uncertain = false;
            return Ok(Verdict::Applied);
        }
        if found.version() == self.base.version {
            return Ok(Verdict::Send);
        }
        // Another version: a write of the old one can no longer land. But was it applied, and are its traces
        // gone?
        if self.uncertain && !self.base.live.commits.last().is_some_and(|last| found.commits().contains(last))
        {
            return Err(Error::new(ErrorKind::Unavailable, "commit").with_context("too many commits since"));
        }
        self.uncertain = false;
        self.withdraw().await;
        // A tombstone has the commits of its successor's first version, so all that was to be known is known.
        // The base's version is of the old key: nothing is compared with it under another one.
        loop {
            match found {
                Found::Live(fresh) => return self.replay(fresh),
                Found::Tombstone(_, tombstone) => found = self.follow(&tombstone).await?,
            }
        }
    }

    fn replay(&mut self, fresh: Base) -> Result<Verdict> {
        if self.core.is_over(&fresh) {
            return Err(gone());
        }
        if self.exclusive {
            return Err(Error::new(ErrorKind::Conflict, "commit")
                .with_context("changed under an exclusive request, whose effects are not repeated"));
        }
        self.replays += 1;
        if self.replays > self.core.settings.max_replays {
            return Err(Error::new(ErrorKind::Conflict, "commit")
                .with_context(format!("still refused after {} replays", self.core.settings.max_replays)));
        }
        telemetry::replayed();
        let mut record = (*fresh.live.record).clone();
        self.log.replay(&mut record)?;
        let principal_stays = self.principal.is_none_or(|new| fresh.principal == Some(new));
        let nothing = !self.rotate && principal_stays && record == *fresh.live.record;
        self.record = Arc::new(record);
        self.base = fresh;
        self.wants_lock |= self.replays >= PATIENCE && !self.lock_free;
        Ok(if nothing { Verdict::Nothing } else { Verdict::Send })
    }

    /// Another request has rotated the session: within the grace this one goes on under the new id.
    async fn follow(&mut self, tombstone: &Tombstone) -> Result<Found> {
        let now = self.core.clock.now();
        let Some(successor) = tombstone.follow(&self.id, now)?.filter(|_| !self.exclusive) else {
            return Err(gone());
        };
        (self.hold, self.turn) = (None, None); // both are of the old id
        self.rotate = false; // it has happened: a second new id would leave the winner's client with a dead one
        self.key = successor.storage_key();
        self.id = successor;
        match self.core.load(&self.key).await? {
            Some(stored) => self.core.decode(stored).await,
            None => Err(gone()),
        }
    }

    async fn not_holder(&mut self) -> Result<Verdict> {
        telemetry::refused();
        self.lock_is_over();
        if !self.exclusive {
            // Somebody's lease is alive: this commit waits for its place like everybody who wants the lock.
            // That is no replay, but who loses the lock again and again must end, too.
            self.wants_lock = true;
            self.lock_refusals += 1;
            if self.lock_refusals > self.core.settings.max_replays.max(1) {
                return Err(
                    Error::new(ErrorKind::Busy, "commit").with_context("the lock was lost again and again")
                );
            }
            return Ok(Verdict::Send);
        }
        if !self.uncertain {
            return Err(lock_lost());
        }
        // An earlier copy of this write may have come before the lease ran out.
        let found = self.look_up(lock_lost()).await?;
        match self.rebase(found).await {
            Ok(Verdict::Send) | Err(_) => Err(lock_lost()),
            Ok(applied) => Ok(applied),
        }
    }

    /// The record as the holder of the lock finds it. `None`: the lock is not to be had, and is not needed
    /// either.
    async fn take_lock(&mut self) -> Result<Option<Stored>> {
        self.turn = None;
        match self.core.lock(&self.key).await {
            Ok(Some((hold, stored))) => {
                self.hold = Some(hold);
                Ok(Some(stored))
            }
            Ok(None) => {
                self.uncertain = false; // whatever is under way finds nothing to replace
                Err(gone())
            }
            // Nothing fences: the lock was to save conflicts, and another's lease does not stop a write.
            Err(error) if error.kind() == ErrorKind::Busy && !self.core.store.capabilities().fencing => {
                (self.wants_lock, self.lock_free) = (false, true);
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Loads what there is after a lost reply, as often as it takes within reason: for no longer than it
    /// would wait for a lock, so that a store that hangs does not hang its clients for many timeouts.
    async fn look_up(&mut self, lost: Error) -> Result<Stored> {
        telemetry::looked_up();
        self.lost_replies += 1;
        if self.lost_replies > MAX_LOST_REPLIES {
            return Err(lost);
        }
        let deadline = Instant::now() + self.core.settings.lock_wait;
        for attempt in 0..MAX_LOST_REPLIES {
            if attempt > 0 && Instant::now() >= deadline {
                break;
            }
            sleep(Duration::from_millis(10) * 2u32.pow(attempt)).await;
            match self.core.store.load(&self.key).await {
                Ok(Some(stored)) => return Ok(stored),
                Ok(None) => {
                    self.uncertain = false;
                    return Err(gone());
                }
                Err(error) => tracing::debug!(%error, "a lost reply could not be looked up yet"),
            }
        }
        Err(lost)
    }

    /// Takes back a rotation's copy that nothing points to. Failing that it ends with its time: nobody knows
    /// its id.
    async fn withdraw(&mut self) {
        let Some(copy) = self.prepared.take().and_then(|prepared| prepared.copy) else { return };
        if let Err(error) = self.core.store.delete(&copy.storage_key()).await {
            tracing::warn!(%error, "the copy of a rotation that lost could not be removed");
        }
    }

    /// The store says that nothing is held any more.
    fn lock_is_over(&mut self) {
        if let Some(hold) = self.hold.take() {
            hold.forget();
        }
    }
}

fn gone() -> Error {
    Error::new(ErrorKind::Gone, "commit")
}

fn lock_lost() -> Error {
    Error::new(ErrorKind::LockLost, "commit")
}
