//! What a holder asks of the store for its lease, and when: whether the lease lived all the time, by the
//! store's own answers.

use crate::{
    scenario::now,
    wrapper::{Wrapper, wrap},
};
use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use session_core::{Grant, Loaded, LockingStore, Put, Renewed, Replaced, Result, StorageKey, Token, Version};
use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

/// How the lease of one holder went, from its grant to the answer to its write; times in microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Life {
    /// Each renewal was answered before the lease before it was over, and so was the write.
    Whole,
    /// A renewal was refused, so soon after the last one was sent that the lease was surely alive.
    Refused { after: u64 },
    /// No renewal was sent, and the lease may have been over before the write was answered.
    NotRenewed,
    /// A renewal, or the write, was answered so long after the renewal before it was sent that the lease may
    /// have been over. Whether that was the holder, the store or the machine is not to be seen from here.
    Late { after: u64 },
    /// The write was not answered.
    Open,
}

/// A call that was answered.
#[derive(Clone, Copy, Debug)]
struct Call {
    sent: u64,
    answered: u64,
    answer: Answer,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    Granted,
    Extended,
    Lost,
    Written,
}

/// The calls of one holder.
#[derive(Clone, Debug, Default)]
pub(super) struct Lifeline(Arc<Mutex<Calls>>);

#[derive(Debug, Default)]
struct Calls {
    answered: Vec<Call>,
    renewals: usize,
}

#[derive(Debug)]
struct Watched(Arc<dyn LockingStore>, Lifeline);

/// The store, and what one holder asks of it.
pub(super) fn watched(store: &Arc<dyn LockingStore>) -> (Arc<dyn LockingStore>, Lifeline) {
    let lifeline = Lifeline::default();
    (wrap(Watched(Arc::clone(store), lifeline.clone())), lifeline)
}

impl Lifeline {
    fn calls(&self) -> MutexGuard<'_, Calls> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn answered(&self, sent: u64, answer: Answer) {
        self.calls().answered.push(Call { sent, answered: now(), answer });
    }

    /// What is to be seen, once the write was made.
    pub(super) fn life(&self, lease: Duration) -> Life {
        self.calls().life(lease)
    }
}

impl Calls {
    /// A lease begins at the earliest when it was asked for, and a call reaches the store at the latest when
    /// it is answered: whatever stood still in between, so far it surely lives.
    fn life(&self, lease: Duration) -> Life {
        // Clocks of stores count milliseconds, and need not run as fast as this one.
        let sure = u64::try_from((lease - lease / 10).as_micros()).unwrap_or(u64::MAX);
        let Some(written) = self.answered.iter().find(|call| call.answer == Answer::Written) else {
            return Life::Open;
        };
        let mut since = None;
        for call in &self.answered {
            let after = since.map_or(0, |since| call.answered.saturating_sub(since));
            match call.answer {
                Answer::Granted => {}
                // One that crosses the write may come after it, when the lock is free.
                Answer::Lost if call.answered > written.sent => continue,
                _ if after >= sure && self.renewals == 0 => return Life::NotRenewed,
                _ if after >= sure => return Life::Late { after },
                Answer::Lost => return Life::Refused { after },
                Answer::Written => break,
                Answer::Extended => {}
            }
            since = Some(call.sent);
        }
        Life::Whole
    }
}

#[async_trait]
impl Wrapper for Watched {
    fn inner(&self) -> &Arc<dyn LockingStore> {
        &self.0
    }

    async fn acquire_and_load(
        &self,
        key: &StorageKey,
        token: Token,
        lease: Duration,
        wait: Duration,
    ) -> Result<Loaded> {
        let sent = now();
        let loaded = self.0.acquire_and_load(key, token, lease, wait).await?;
        if matches!(loaded, Loaded::Granted(..)) {
            self.1.answered(sent, Answer::Granted);
        }
        Ok(loaded)
    }

    async fn renew(&self, grant: &Grant, lease: Duration) -> Result<Renewed> {
        let sent = now();
        self.1.calls().renewals += 1;
        let renewed = self.0.renew(grant, lease).await?;
        self.1.answered(sent, if renewed == Renewed::Lost { Answer::Lost } else { Answer::Extended });
        Ok(renewed)
    }

    async fn replace_and_release(&self, grant: &Grant, expected: Version, put: &Put) -> Result<Replaced> {
        let sent = now();
        let replaced = self.0.replace_and_release(grant, expected, put).await?;
        self.1.answered(sent, Answer::Written);
        Ok(replaced)
    }
}

#[cfg(test)]
mod tests {
    use super::{Answer::*, *};

    const LEASE: Duration = Duration::from_micros(100);

    fn life(renewals: usize, calls: &[(u64, u64, Answer)]) -> Life {
        let answered =
            calls.iter().map(|&(sent, answered, answer)| Call { sent, answered, answer }).collect();
        Calls { answered, renewals }.life(LEASE)
    }

    #[test]
    fn it_is_whole_while_each_answer_comes_in_time() {
        let calls = [(0, 10, Granted), (40, 50, Extended), (90, 129, Extended), (170, 179, Written)];
        assert_eq!(life(2, &calls), Life::Whole);
        assert_eq!(life(0, &[(0, 10, Granted), (20, 89, Written)]), Life::Whole);
        // The next of the write's own tries is another matter.
        assert_eq!(life(0, &[(0, 10, Granted), (20, 89, Written), (95, 500, Written)]), Life::Whole);
    }

    #[test]
    fn what_may_have_come_too_late_shows_nothing() {
        assert_eq!(
            life(1, &[(0, 60, Granted), (80, 90, Extended), (95, 99, Written)]),
            Life::Late { after: 90 }
        );
        assert_eq!(life(1, &[(0, 60, Granted), (80, 90, Lost), (95, 99, Written)]), Life::Late { after: 90 });
        assert_eq!(
            life(1, &[(0, 9, Granted), (30, 40, Extended), (99, 120, Written)]),
            Life::Late { after: 90 }
        );
        assert_eq!(life(1, &[(0, 9, Granted), (30, 40, Extended)]), Life::Open);
        // Asked, and not answered.
        assert_eq!(life(1, &[(0, 9, Granted), (80, 90, Written)]), Life::Late { after: 90 });
    }

    #[test]
    fn a_refusal_in_time_and_no_renewal_at_all_are_told_apart() {
        let calls = [(0, 9, Granted), (30, 40, Extended), (60, 70, Lost), (500, 510, Written)];
        assert_eq!(life(2, &calls), Life::Refused { after: 40 });
        assert_eq!(life(0, &[(0, 9, Granted), (500, 510, Written)]), Life::NotRenewed);
        // It came after the write that freed the lock.
        assert_eq!(life(1, &[(0, 9, Granted), (20, 35, Lost), (30, 40, Written)]), Life::Whole);
    }
}
