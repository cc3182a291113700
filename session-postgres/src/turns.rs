//! Who of this process holds or asks for which lock: one at a time goes to the server, the others wait here
//! for nothing.
//!
//! This is bookkeeping, not the lock. What it says may be out of date by a moment; the server decides.

use crate::line::Line;
use session_core::{Error, ErrorKind, Result, Token};
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::{
    sync::Notify,
    time::{Instant, timeout_at},
};

/// How often a waiter looks again while the lock is still being asked for: a grant wakes nobody, but it has
/// an end.
const LOOK: Duration = Duration::from_millis(100);

/// Where a lock is held.
#[derive(Clone, Debug)]
pub(crate) enum Place {
    /// On this connection.
    Line(Line),
    /// In its row.
    Row,
}

#[derive(Debug)]
pub(crate) struct Turns {
    /// How many locks may be held or asked for.
    max: usize,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    owned: usize,
    entries: HashMap<i64, Entry>,
}

/// There as long as somebody owns it or waits for it.
#[derive(Debug, Default)]
struct Entry {
    owner: Option<Owner>,
    waiters: usize,
    freed: Arc<Notify>,
}

#[derive(Debug)]
struct Owner {
    token: Token,
    /// Where, and until when; `None` while it is still asked for.
    held: Option<(Place, Instant)>,
}

/// What a contender finds.
pub(crate) enum Turn<'a> {
    /// It is this one's turn to ask the server.
    Asking(Asking<'a>),
    /// This very token holds it, there.
    Mine(Place),
    /// Another of this process holds it or asks for it, and patience is over.
    Held(Option<Duration>),
}

/// The right to ask the server for a lock; passed on when it is dropped.
#[derive(Debug)]
pub(crate) struct Asking<'a> {
    turns: &'a Turns,
    lock: i64,
    token: Token,
    granted: bool,
}

impl Asking<'_> {
    pub(crate) fn granted(mut self, place: Place, until: Instant) {
        self.granted = true;
        self.turns.hold(self.lock, self.token, place, until);
    }
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        if !self.granted {
            self.turns.free(self.lock, self.token);
        }
    }
}

/// Counts a waiter, so that the entry goes with the last of them, however they leave.
struct Waiting<'a> {
    turns: &'a Turns,
    lock: i64,
    freed: Arc<Notify>,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut state = self.turns.state();
        if let Some(entry) = state.entries.get_mut(&self.lock) {
            entry.waiters -= 1;
        }
        state.forget_idle(self.lock);
    }
}

impl State {
    fn forget_idle(&mut self, lock: i64) {
        if self.entries.get(&lock).is_some_and(|entry| entry.waiters == 0 && entry.owner.is_none()) {
            self.entries.remove(&lock);
        }
    }

    /// Counts those no more whose lease in a row ended without a release. (On a connection its task frees
    /// them.) Where somebody waits, the place is his: he takes it over as soon as the lease is over.
    fn forget_expired(&mut self) {
        let (now, before) = (Instant::now(), self.entries.len());
        let over = |owner: &Owner| matches!(owner.held, Some((Place::Row, until)) if until <= now);
        self.entries.retain(|_, entry| entry.waiters > 0 || !entry.owner.as_ref().is_some_and(over));
        self.owned -= before - self.entries.len();
    }
}

enum Try {
    Taken,
    Mine(Place),
    Wait(Option<Instant>),
}

impl Turns {
    pub(crate) fn new(max: usize) -> Self {
        Self { max, state: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // No critical section below can leave the map half changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until it is this contender's turn, at most until `patience`.
    pub(crate) async fn turn(&self, lock: i64, token: Token, patience: Instant) -> Result<Turn<'_>> {
        let mut waiting = None;
        loop {
            let until = match self.try_take(lock, token)? {
                Try::Taken => return Ok(Turn::Asking(Asking { turns: self, lock, token, granted: false })),
                Try::Mine(place) => return Ok(Turn::Mine(place)),
                Try::Wait(until) => until,
            };
            let now = Instant::now();
            if now >= patience {
                return Ok(Turn::Held(until.map(|until| until.saturating_duration_since(now))));
            }
            let waiting = waiting.get_or_insert_with(|| self.enter(lock));
            let next = until.unwrap_or(now + LOOK).min(patience);
            // A permit is kept for whoever comes late, and passed on by whoever leaves: no wake-up is lost.
            drop(timeout_at(next, waiting.freed.notified()).await);
        }
    }

    fn enter(&self, lock: i64) -> Waiting<'_> {
        let mut state = self.state();
        let entry = state.entries.entry(lock).or_default();
        entry.waiters += 1;
        Waiting { turns: self, lock, freed: Arc::clone(&entry.freed) }
    }

    fn try_take(&self, lock: i64, token: Token) -> Result<Try> {
        let mut state = self.state();
        if let Some(owner) = state.entries.get_mut(&lock).and_then(|entry| entry.owner.as_mut()) {
            match &owner.held {
                Some((place, until)) if *until > Instant::now() => {
                    return Ok(if owner.token == token {
                        Try::Mine(place.clone())
                    } else {
                        Try::Wait(Some(*until))
                    });
                }
                // Its lease is over: what it holds on the server is on its way out.
                Some(_) => *owner = Owner { token, held: None },
                None => return Ok(Try::Wait(None)),
            }
            return Ok(Try::Taken);
        }
        if state.owned >= self.max {
            state.forget_expired();
        }
        if state.owned >= self.max {
            return Err(Error::new(ErrorKind::TooLarge, "acquire").with_context(format!(
                "{} locks are held by this process, at most {}",
                state.owned, self.max
            )));
        }
        state.owned += 1;
        state.entries.entry(lock).or_default().owner = Some(Owner { token, held: None });
        Ok(Try::Taken)
    }

    fn hold(&self, lock: i64, token: Token, place: Place, until: Instant) {
        let mut state = self.state();
        if let Some(owner) = state.entries.get_mut(&lock).and_then(|entry| entry.owner.as_mut())
            && owner.token == token
        {
            owner.held = Some((place, until));
        }
        // Otherwise the connection was lost before its reply was read: whoever has this grant holds nothing.
    }

    /// Where this token holds the lock.
    pub(crate) fn holder(&self, lock: i64, token: Token) -> Option<Place> {
        let state = self.state();
        let owner = state.entries.get(&lock)?.owner.as_ref().filter(|owner| owner.token == token)?;
        owner.held.as_ref().map(|(place, _)| place.clone())
    }

    /// How long another of this process holds it at most.
    pub(crate) fn busy(&self, lock: i64) -> Option<Duration> {
        let state = self.state();
        let (_, until) = state.entries.get(&lock)?.owner.as_ref()?.held.as_ref()?;
        Some(until.saturating_duration_since(Instant::now())).filter(|left| !left.is_zero())
    }

    pub(crate) fn renewed(&self, lock: i64, token: Token, until: Instant) {
        let mut state = self.state();
        if let Some(owner) = state.entries.get_mut(&lock).and_then(|entry| entry.owner.as_mut())
            && owner.token == token
            && let Some((_, deadline)) = &mut owner.held
        {
            *deadline = until;
        }
    }

    /// It is held no more: the next one may ask.
    pub(crate) fn free(&self, lock: i64, token: Token) {
        let mut state = self.state();
        let Some(entry) = state.entries.get_mut(&lock) else { return };
        if entry.owner.as_ref().is_none_or(|owner| owner.token != token) {
            return;
        }
        entry.owner = None;
        entry.freed.notify_one();
        state.owned -= 1;
        state.forget_idle(lock);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOCK: i64 = 7;

    fn token(byte: u8) -> Token {
        Token::from_bytes([byte; 16])
    }

    #[tokio::test(start_paused = true)]
    async fn one_asks_and_the_others_follow_in_turn() {
        let turns = Turns::new(10);
        let soon = || Instant::now() + Duration::from_secs(1);
        let Ok(Turn::Asking(first)) = turns.turn(LOCK, token(1), soon()).await else { panic!("free") };
        assert!(matches!(turns.turn(LOCK, token(2), Instant::now()).await, Ok(Turn::Held(None))));
        first.granted(Place::Row, Instant::now() + Duration::from_secs(60));
        assert!(matches!(turns.turn(LOCK, token(1), soon()).await, Ok(Turn::Mine(_))));
        assert!(matches!(turns.turn(LOCK, token(2), soon()).await, Ok(Turn::Held(Some(_)))));
        let (second, ()) = tokio::join!(turns.turn(LOCK, token(2), soon()), async {
            tokio::task::yield_now().await;
            turns.free(LOCK, token(3)); // not the holder: nothing happens
            turns.free(LOCK, token(1));
        });
        assert!(matches!(second, Ok(Turn::Asking(_))));
        drop(second);
        assert!(turns.state().entries.is_empty() && turns.state().owned == 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_lease_that_is_over_is_no_obstacle() {
        let turns = Turns::new(1);
        let now = Instant::now();
        let Ok(Turn::Asking(first)) = turns.turn(LOCK, token(1), now).await else { panic!("free") };
        first.granted(Place::Row, now + Duration::from_millis(10));
        let patience = now + Duration::from_secs(1);
        let Ok(Turn::Asking(second)) = turns.turn(LOCK, token(2), patience).await else { panic!("over") };
        assert_eq!(now.elapsed(), Duration::from_millis(10));
        assert!(turns.holder(LOCK, token(1)).is_none());
        turns.free(LOCK, token(1)); // late, and no longer its own
        assert!(matches!(turns.turn(LOCK, token(3), now).await, Ok(Turn::Held(None))));
        drop(second);
    }

    #[tokio::test(start_paused = true)]
    async fn there_is_a_limit() {
        let turns = Turns::new(1);
        let first = turns.turn(1, token(1), Instant::now()).await;
        let Err(error) = turns.turn(2, token(2), Instant::now()).await else { panic!("one too many") };
        assert_eq!(error.kind(), ErrorKind::TooLarge);
        drop(first);
        assert!(turns.turn(2, token(2), Instant::now()).await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn who_leaves_without_a_release_counts_until_the_lease_is_over() {
        let turns = Turns::new(1);
        let (now, lease) = (Instant::now(), Duration::from_millis(10));
        for lock in 1..4 {
            let Ok(Turn::Asking(asking)) = turns.turn(lock, token(1), now).await else { panic!("{lock}") };
            asking.granted(Place::Row, Instant::now() + lease);
            let Err(error) = turns.turn(9, token(9), now).await else { panic!("{lock} is held") };
            assert_eq!(error.kind(), ErrorKind::TooLarge);
            tokio::time::advance(lease).await;
        }
        assert_eq!(turns.state().entries.len(), 1);
    }

    /// At the limit, too, the place of who left without a release is for who waits for that very lock.
    #[tokio::test(start_paused = true)]
    async fn who_waits_takes_the_place_over() {
        let turns = Turns::new(1);
        let (now, lease) = (Instant::now(), Duration::from_millis(10));
        let Ok(Turn::Asking(first)) = turns.turn(LOCK, token(1), now).await else { panic!("free") };
        first.granted(Place::Row, now + lease);
        let mut second = std::pin::pin!(turns.turn(LOCK, token(2), now + 2 * lease));
        tokio::select! {
            biased;
            _ = &mut second => panic!("it is held"),
            () = std::future::ready(()) => {}
        }
        tokio::time::advance(lease).await;
        assert!(turns.turn(2, token(3), now).await.is_err());
        assert!(matches!(second.await, Ok(Turn::Asking(_))));
    }
}
