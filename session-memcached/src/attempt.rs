//! One operation on one lock, on one connection.
//!
//! A lock is an item with the holder's token and the tokens of those who wait, in the order in which they
//! came. Whoever finds none adds one; whoever finds another's appends his token by `cas`; whoever releases it
//! writes the next one's token into it, by `cas` again, with a short lease in which that one has to claim it.
//! It is deleted when nobody waits. So waiters are served in turn, and one who died costs the others the time
//! to claim at most. When the item expires or is evicted its queue goes with it: who waited comes again.
//!
//! A queue that changes writes the holder's item, and memcached cannot do that without setting its expiry, in
//! whole seconds from now. So nobody joins or leaves the queue of a lease that is over: the item of a dead
//! holder would live for as long as waiters come and go.

use crate::{
    connection::RELATIVE,
    exchange::{Asked, Look, Sight},
    hints::Hint,
    item::{Item, Swapped},
    key::Keys,
    layout::{self, Kind},
    server::Lease,
    store::Inner,
};
use session_core::{Error, ErrorKind, Released, Result, StorageKey, Token};
use std::time::Duration;

/// How long a lock that was handed over waits to be claimed.
const CLAIM: Duration = Duration::from_secs(1);
/// How many can wait in turn; more than these only try.
const LONGEST_QUEUE: usize = 64;

/// See the [module](self).
#[derive(Debug)]
pub(crate) struct Attempt<'a> {
    pub(crate) inner: &'a Inner,
    pub(crate) lease: Lease<'a>,
    pub(crate) key: &'a StorageKey,
    pub(crate) keys: Keys,
    pub(crate) token: &'a Token,
    pub(crate) operation: &'static str,
}

/// A lock, as it was read.
#[derive(Debug)]
pub(crate) struct State {
    pub(crate) holder: Token,
    queue: Vec<Token>,
    /// When its lease ends, by the server's clock in milliseconds.
    ends: u64,
    /// The server's expiry, as it takes it: see [`exptime`](crate::connection::ServerClock::exptime).
    exptime: u32,
    cas: u64,
    /// What is left of the lease.
    pub(crate) left: Duration,
}

/// What came of asking for a lock once.
#[derive(Debug)]
pub(crate) enum Taken {
    Granted(Sight),
    Held(State),
    /// There is no record, and the lock, if it was taken, is free again.
    Missing,
}

impl State {
    pub(crate) fn place_of(&self, token: &Token) -> Option<usize> {
        self.queue.iter().position(|waiter| waiter == token)
    }
}

impl<'a> Attempt<'a> {
    pub(crate) async fn new(
        inner: &'a Inner,
        key: &'a StorageKey,
        token: &'a Token,
        operation: &'static str,
    ) -> Result<Self> {
        let lease = inner.lease(key, operation).await?;
        Ok(Self { inner, lease, key, keys: inner.keys(key), token, operation })
    }

    /// When a lease of this length ends that begins now.
    pub(crate) fn end_of(&self, length: Duration) -> Result<u64> {
        Ok(self.lease.facts()?.clock.end_of(length))
    }

    pub(crate) fn value(&self, holder: &Token, ends: u64, queue: &[Token]) -> Vec<u8> {
        let queue: Vec<u8> = queue.iter().flat_map(|token| *token.as_bytes()).collect();
        layout::encode(Kind::Lock, self.key, holder.as_bytes(), ends, &queue)
    }

    pub(crate) fn exptime(&self, ends: u64) -> Result<u32> {
        let clock = self.lease.facts()?.clock;
        Ok(clock.exptime(Duration::from_millis(ends.saturating_sub(clock.now()))))
    }

    pub(crate) fn read(&self, item: &Item) -> Result<State> {
        let damaged = || Error::new(ErrorKind::Damaged, self.operation).with_context("the lock");
        let value = layout::decode(Kind::Lock, self.key, &item.value).ok_or_else(damaged)?;
        let (tokens, rest) = value.data.as_chunks();
        if !rest.is_empty() {
            return Err(damaged());
        }
        Ok(State {
            holder: Token::from_bytes(value.stamp),
            queue: tokens.iter().map(|token| Token::from_bytes(*token)).collect(),
            ends: value.ends,
            // As the server says, so that writing it back moves nothing. Zero would mean for ever, and more than
            // this a date in 1970.
            exptime: match item.left.map(u32::try_from) {
                Some(Ok(left)) if left <= RELATIVE => left.max(1),
                Some(_) | None => self.exptime(value.ends)?,
            },
            cas: item.cas,
            left: self.lease.left(item, value.ends)?.max(Duration::from_secs(1)),
        })
    }

    /// Remembers the lock's number while nobody waits: then releasing is deleting what has it.
    pub(crate) fn remember(&self, state: &State) {
        if state.queue.is_empty() {
            let hint = Hint { cas: state.cas, asked: self.lease.asked(), ends: state.ends };
            self.inner.tokens.keep(self.key, *self.token.as_bytes(), hint);
        }
    }

    /// Asks once, and again only when the lock changed between two looks at it.
    pub(crate) async fn take(&mut self, length: Duration, look: Look) -> Result<Taken> {
        loop {
            let ends = self.end_of(length)?;
            let (value, exptime) = (self.value(self.token, ends, &[]), self.exptime(ends)?);
            let asked = self.lease.ask(self.keys.lock(), &value, exptime, self.keys.data(), look).await?;
            let Asked { added, lock, mut record } = asked;
            let state = lock.map(|item| self.read(&item)).transpose()?;
            let Some(state) = state else {
                if !added {
                    continue; // it was freed between the two commands
                }
                // Not read in this protocol, or evicted at once: the version check does not need it.
                return self.granted(record).await;
            };
            if state.holder == *self.token {
                if added {
                    self.remember(&state);
                } else {
                    // Handed over, or ours since before: the lease begins anew.
                    match self.claim(&state, ends, look).await? {
                        Some(seen) => record = seen,
                        None => continue,
                    }
                }
                return self.granted(record).await;
            }
            if matches!(record, Sight::Nothing) {
                if state.place_of(self.token).is_some() {
                    let (Released::Freed | Released::Lost) = self.release().await?;
                }
                return Ok(Taken::Missing);
            }
            return Ok(Taken::Held(state));
        }
    }

    /// Looks at nothing but the lock, behind a holder that was seen; takes what was handed over.
    pub(crate) async fn glance(&mut self, seen: &State, length: Duration, look: Look) -> Result<Glance> {
        let Some(item) = self.lease.get(self.keys.lock()).await? else { return Ok(Glance::Changed(None)) };
        if item.cas == seen.cas {
            return Ok(Glance::Same);
        }
        let state = self.read(&item)?;
        if state.holder != *self.token {
            return Ok(Glance::Changed(Some(state)));
        }
        let ends = self.end_of(length)?;
        Ok(match self.claim(&state, ends, look).await? {
            Some(record) => Glance::Ours(self.granted(record).await?),
            None => Glance::Changed(None),
        })
    }

    async fn granted(&mut self, record: Sight) -> Result<Taken> {
        if matches!(record, Sight::Nothing) {
            let (Released::Freed | Released::Lost) = self.release().await?;
            return Ok(Taken::Missing);
        }
        Ok(Taken::Granted(record))
    }

    /// A new lease for what is ours, and the record after that. `None`: it is not ours any more.
    async fn claim(&mut self, state: &State, ends: u64, look: Look) -> Result<Option<Sight>> {
        let (value, exptime) = (self.value(self.token, ends, &state.queue), self.exptime(ends)?);
        if look == Look::Away {
            let swapped = self.lease.swap(self.keys.lock(), &value, exptime, state.cas).await?;
            return Ok((swapped == Swapped::Done).then_some(Sight::Something));
        }
        let write = (self.keys.lock(), value.as_slice(), exptime, state.cas);
        let (swapped, item) = self.lease.swap_and_get(write, self.keys.data()).await?;
        (swapped? == Swapped::Done).then(|| item.map(Sight::from)).transpose()
    }

    /// Whether a lease is over, and only the item is left of it: see the [module](self).
    fn is_over(&self, state: &State) -> Result<bool> {
        Ok(self.lease.facts()?.clock.now() >= state.ends)
    }

    /// Waits in the queue from now on, behind those who are there.
    pub(crate) async fn join(&mut self, state: &State) -> Result<Joined> {
        if let Some(place) = state.place_of(self.token) {
            return Ok(Joined::At(place));
        }
        let place = state.queue.len();
        if place >= LONGEST_QUEUE || self.is_over(state)? {
            return Ok(Joined::At(place));
        }
        let queue = [&state.queue[..], &[*self.token]].concat();
        let value = self.value(&state.holder, state.ends, &queue);
        Ok(match self.lease.swap(self.keys.lock(), &value, state.exptime, state.cas).await? {
            Swapped::Done => Joined::At(place),
            Swapped::Changed | Swapped::Missing => Joined::TooLate,
        })
    }

    /// Whether the lock was this token's, and now ends then.
    pub(crate) async fn renew(&mut self, ends: u64) -> Result<bool> {
        let exptime = self.exptime(ends)?;
        loop {
            let Some(item) = self.lease.get(self.keys.lock()).await? else { return Ok(false) };
            let state = self.read(&item)?;
            if state.holder != *self.token {
                return Ok(false);
            }
            self.inner.tokens.forget(self.key, *self.token.as_bytes());
            let value = self.value(self.token, ends, &state.queue);
            match self.lease.swap(self.keys.lock(), &value, exptime, state.cas).await? {
                Swapped::Done => return Ok(true),
                Swapped::Missing => return Ok(false),
                Swapped::Changed => {}
            }
        }
    }

    /// Frees the lock iff it is this token's, or leaves its queue. By the number that it had when it was
    /// taken, where that means something; else it is read, its tokens compared, and changed by the number
    /// just read.
    pub(crate) async fn release(&mut self) -> Result<Released> {
        let hint = self.inner.tokens.get(self.key, *self.token.as_bytes());
        self.inner.tokens.forget(self.key, *self.token.as_bytes());
        if let Some(cas) = self.lease.number(hint) {
            match self.lease.remove(self.keys.lock(), cas).await? {
                Swapped::Done => return Ok(Released::Freed),
                Swapped::Missing => return Ok(Released::Lost),
                Swapped::Changed => {} // renewed, waited for, or another's
            }
        }
        loop {
            let item = self.lease.get(self.keys.lock()).await?;
            if let Some(released) = self.let_go(item).await? {
                return Ok(released);
            }
        }
    }

    /// The same for a lock that was just read; `None`: it has changed since.
    pub(crate) async fn let_go(&mut self, lock: Option<Item>) -> Result<Option<Released>> {
        let Some(item) = lock else { return Ok(Some(Released::Lost)) };
        let state = self.read(&item)?;
        let lock = self.keys.lock();
        let (swapped, released) = if state.holder == *self.token {
            let swapped = match state.queue.split_first() {
                None => self.lease.remove(lock, state.cas).await?,
                Some((next, rest)) => {
                    let ends = self.end_of(CLAIM)?;
                    let (value, exptime) = (self.value(next, ends, rest), self.exptime(ends)?);
                    self.lease.swap(lock, &value, exptime, state.cas).await?
                }
            };
            (swapped, Released::Freed)
        } else if let Some(place) = state.place_of(self.token)
            && !self.is_over(&state)?
        {
            let mut queue = state.queue;
            queue.remove(place);
            let value = self.value(&state.holder, state.ends, &queue);
            (self.lease.swap(lock, &value, state.exptime, state.cas).await?, Released::Lost)
        } else {
            return Ok(Some(Released::Lost));
        };
        Ok(match swapped {
            Swapped::Done => Some(released),
            Swapped::Missing => Some(Released::Lost),
            Swapped::Changed => None,
        })
    }

    /// Takes the lock again that was released together with a write which failed, and which this makes no
    /// worse.
    pub(crate) async fn take_back(&mut self, ends: u64) {
        let taken = async {
            let (value, exptime) = (self.value(self.token, ends, &[]), self.exptime(ends)?);
            self.lease.add(self.keys.lock(), &value, exptime).await
        };
        match taken.await {
            Ok(true) => {}
            Ok(false) => tracing::debug!("a lock was lost while its write failed"),
            Err(error) => tracing::warn!(%error, "a lock could not be taken back after its write failed"),
        }
    }

    /// A release that is no reason to call the write before it failed: the lock ends with its lease.
    pub(crate) async fn release_after(&mut self) {
        if let Err(error) = self.release().await {
            tracing::warn!(%error, "a lock could not be released after the write");
        }
    }
}

/// What came of a look at a lock by one who waits for it.
#[derive(Debug)]
pub(crate) enum Glance {
    Same,
    /// It is another's, as before, or nobody's.
    Changed(Option<State>),
    /// It was handed over.
    Ours(Taken),
}

/// What came of joining the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Joined {
    /// In this place, the first being 0; or behind a queue that is full.
    At(usize),
    /// The lock has changed since it was read.
    TooLate,
}
