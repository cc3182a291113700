//! A write that frees the lock, in one request.
//!
//! The commands of a request do not depend on each other: memcached deletes the lock also when it has refused
//! the write. That nobody holds for long what another holds, and that no exclusive request is overtaken by
//! another one, rests on this:
//!
//! - Whoever touches a record gives its lock another number, before and after. So a write that is refused
//!   because of a touch deletes no lock, and is sent again by the record's new number.
//! - A write that is refused because another has *written* is not sent again as it is: the exclusive request
//!   is over (`Conflict`), and a replay begins from the fresh record. In the round trip after it the lock is
//!   taken again, for what was left of its lease, in the same request that reads the fresh record. If
//!   somebody else was faster the answer is `NotHolder`.
//! - A waiter's place in the queue is another number of the lock, too: with one, or after a renewal, the lock
//!   is read together with the write, and freed or handed over after it, by the number just read.

use crate::{
    attempt::Attempt,
    exchange::{Asked, Look, Sight},
    item::Swapped,
    store::{New, encode},
};
use session_core::{Effect, Held, Replaced, Result, Version};

/// What to do about a write whose number was not right, or not known.
enum Sequel {
    /// The version is there, under this number.
    Write(u64),
    /// It is not; or there is no record.
    Answer(Replaced),
}

/// What became of one try.
enum Tried {
    Over(Replaced),
    /// The number was not right. If the lock is free because of it: when its lease would have ended.
    Changed(Option<u64>),
}

impl Attempt<'_> {
    /// [`LockingStore::replace_and_release`](session_core::LockingStore::replace_and_release): one round trip
    /// if both numbers are known and nobody waits.
    pub(crate) async fn replace_and_release(&mut self, expected: Version, new: &New<'_>) -> Result<Replaced> {
        let (value, exptime) = encode(&self.lease, self.key, new)?;
        let hint = self.inner.versions.get(self.key, expected.to_bytes());
        let (mut number, mut freed) = (self.lease.number(hint), None);
        loop {
            let cas = match number.take() {
                Some(cas) => cas,
                None => match self.look_again(expected, freed).await? {
                    Sequel::Write(cas) => cas,
                    Sequel::Answer(replaced) => return Ok(replaced),
                },
            };
            match self.try_once((&value, exptime, cas), new).await? {
                Tried::Over(replaced) => {
                    self.inner.versions.forget(self.key, expected.to_bytes());
                    return Ok(replaced);
                }
                Tried::Changed(ends) => freed = ends,
            }
        }
    }

    async fn try_once(&mut self, (value, exptime, cas): (&[u8], u32, u64), new: &New<'_>) -> Result<Tried> {
        let write = (self.keys.data(), value, exptime, cas);
        let hint = self.inner.tokens.get(self.key, *self.token.as_bytes());
        let number = self.lease.number(hint).filter(|_| self.lease.facts().is_ok_and(|facts| facts.meta));
        let (Some(lock_cas), Some(hint)) = (number, hint) else {
            let (written, lock) = self.lease.swap_and_get(write, self.keys.lock()).await?;
            let Some(replaced) = replaced(written?, new) else { return Ok(Tried::Changed(None)) };
            // A lock that could not be read is one that may have changed.
            let let_go = match lock {
                Ok(lock) => self.let_go(lock).await,
                Err(_) => Ok(None),
            };
            match let_go {
                Ok(Some(_)) => {}
                Ok(None) => self.release_after().await,
                Err(error) => tracing::warn!(%error, "a lock could not be released after the write"),
            }
            return Ok(Tried::Over(replaced));
        };
        let (written, freed) = self.lease.swap_and_remove(write, (self.keys.lock(), lock_cas)).await?;
        self.inner.tokens.forget(self.key, *self.token.as_bytes());
        match written.map(|written| replaced(written, new)) {
            Ok(Some(replaced)) => {
                if freed == Swapped::Changed {
                    self.release_after().await; // renewed, or waited for
                }
                Ok(Tried::Over(replaced))
            }
            Ok(None) => Ok(Tried::Changed((freed == Swapped::Done).then_some(hint.ends))),
            Err(refusal) => {
                if freed == Swapped::Done {
                    self.take_back(hint.ends).await;
                }
                Err(refusal)
            }
        }
    }

    /// The record and the lock, which is taken again if a refused write freed it and the lease until `freed`
    /// is not over.
    async fn look_again(&mut self, expected: Version, freed: Option<u64>) -> Result<Sequel> {
        let now = self.lease.facts()?.clock.now();
        let asked = match freed.filter(|ends| *ends > now) {
            Some(ends) => {
                let (value, exptime) = (self.value(self.token, ends, &[]), self.exptime(ends)?);
                let asked =
                    self.lease.ask(self.keys.lock(), &value, exptime, self.keys.data(), Look::Read).await;
                // Whatever becomes of the lock: the write did not happen.
                asked.map_err(|error| error.with_effect(Effect::None))?
            }
            None => {
                let lock = self.lease.get(self.keys.lock()).await?;
                let record = self.lease.get(self.keys.data()).await?.into();
                Asked { added: false, lock, record }
            }
        };
        let lock = asked.lock.map(|item| self.read(&item)).transpose()?;
        let (mine, anothers) = match lock {
            Some(state) if state.holder != *self.token => (false, Some(state.left)),
            Some(state) => {
                self.remember(&state);
                (true, None)
            }
            None => (asked.added, None),
        };
        let Sight::Record(item) = asked.record else {
            if mine {
                self.release_after().await;
            }
            return Ok(Sequel::Answer(Replaced::Missing));
        };
        let found = self.inner.read(&self.lease, self.key, &item, self.operation)?;
        Ok(match anothers {
            _ if found.stored.version == expected => Sequel::Write(found.cas),
            Some(left) => Sequel::Answer(Replaced::NotHolder(Held { retry_after: Some(left) })),
            None => Sequel::Answer(Replaced::Conflict(found.stored)),
        })
    }
}

/// `None`: the number was not right.
fn replaced(written: Swapped, new: &New<'_>) -> Option<Replaced> {
    match written {
        Swapped::Done => Some(Replaced::Done(new.version)),
        Swapped::Missing => Some(Replaced::Missing),
        Swapped::Changed => None,
    }
}
