//! The two lifetimes of a session: the idle one, which slides, and the maximum, which does not.

use super::{super::late, SKEW, micros};
use crate::{
    Judgement,
    scenario::{Findings, Lab, Script, Task},
    system::{Change, Id, Settings, System, values},
    trouble::Trial,
};
use serde::{Deserialize, Serialize};
use session_core::{ErrorKind, LockingStore};
use std::{sync::Arc, time::Duration};
use tokio::time::{Instant, sleep};

/// The lifetimes of a scenario's sessions: such that the backend can tell them apart.
#[derive(Clone, Copy)]
struct Lifetimes {
    idle: Duration,
    most: Duration,
    resolution: Duration,
}

impl Lifetimes {
    fn on(store: &Arc<dyn LockingStore>) -> Self {
        let resolution = store.capabilities().ttl_resolution;
        let idle = Duration::from_millis(500).max(resolution);
        // Between the end of one that is left alone, however it is rounded, and this there are some uses that
        // show that it slid.
        let most = Duration::from_millis(1200).max(idle + late(resolution) + 4 * PACE);
        Self { idle, most, resolution }
    }

    fn system(self, task: &Task<Did>) -> Trial<Arc<dyn System>> {
        let Self { idle: idle_timeout, most: max_lifetime, .. } = self;
        task.system_with(Settings { idle_timeout, max_lifetime, ..Settings::DEFAULT })
    }
}

/// How often a session in use is used.
const PACE: Duration = Duration::from_millis(100);

/// How a session is used by the task across.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Use {
    Written,
    Read,
    LeftAlone,
}

const USES: [Use; 3] = [Use::Written, Use::Read, Use::LeftAlone];

pub(super) struct IdleSlidesCapDoesNot;

/// What was done with a session, and whether it was there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Did {
    Create,
    Write { there: bool },
    Read { there: bool },
}

impl IdleSlidesCapDoesNot {
    fn session(rank: usize, which: usize) -> usize {
        USES.len() * rank + which
    }

    async fn write(task: &Task<Did>, system: &Arc<dyn System>, session: usize, id: &Id) -> Trial {
        let begun = task.begin(session);
        let write = async {
            let mut request = system.request(id).await?;
            request.change("used", Change::Add(1)).await?;
            request.commit().await
        };
        let there = match write.await {
            Ok(_) => true,
            Err(error) if error.kind() == ErrorKind::Gone => false,
            Err(error) => return Err(error.into()),
        };
        begun.end(Did::Write { there }, &Ok(()));
        Ok(())
    }

    async fn read(task: &Task<Did>, system: &Arc<dyn System>, session: usize, id: &Id) -> Trial {
        let begun = task.begin(session);
        let there = system.read(id).await?.is_some();
        begun.end(Did::Read { there }, &Ok(()));
        Ok(())
    }

    async fn use_it(task: &Task<Did>, which: usize, id: &Id) -> Trial {
        let times = Lifetimes::on(task.store());
        let (system, session) = (times.system(task)?, Self::session(task.across(), which));
        let grace = late(times.resolution) + 2 * SKEW;
        if USES[which] == Use::LeftAlone {
            Self::read(task, &system, session, id).await?;
            sleep(times.idle + grace).await;
        } else {
            let end = Instant::now() + times.most + grace;
            while Instant::now() < end {
                match USES[which] {
                    Use::Written => Self::write(task, &system, session, id).await?,
                    _ => Self::read(task, &system, session, id).await?,
                }
                sleep(PACE).await;
            }
        }
        // By now it is gone, for every kind of use.
        Self::read(task, &system, session, id).await?;
        Self::write(task, &system, session, id).await
    }
}

impl Script for IdleSlidesCapDoesNot {
    /// Nothing: the sessions are made when they begin to be used.
    type Plan = ();
    type Note = Did;

    async fn setup(_: &Lab) -> Trial {
        Ok(())
    }

    async fn work(task: &Task<Did>, (): &()) -> Trial {
        task.barrier("begin").await?;
        let (system, mut mine) = (Lifetimes::on(task.store()).system(task)?, Vec::new());
        for which in 0..USES.len() {
            let begun = task.begin(Self::session(task.rank(), which));
            let created = system.create(&values([("used", 0.into())])).await;
            begun.end(Did::Create, &created);
            mine.push(created?);
        }
        task.signal(format!("made/{}", task.rank()), serde_json::to_value(mine)?).await?;
        let ids = task.wait(format!("made/{}", task.across())).await?;
        let ids: Vec<Id> = serde_json::from_value(ids)?;
        tokio::try_join!(
            Self::use_it(task, 0, &ids[0]),
            Self::use_it(task, 1, &ids[1]),
            Self::use_it(task, 2, &ids[2])
        )
        .map(drop)
    }

    async fn judge(lab: &Lab, (): &(), found: &Findings<Did>) -> Trial<Judgement> {
        let mut judgement = found.judgement();
        let mut proofs = Proofs::default();
        let times = Lifetimes::on(lab.store());
        for session in 0..USES.len() * lab.ranks() {
            let Some(mut life) = found.of_session(session).find_map(|one| Life::new(one, times)) else {
                continue;
            };
            for one in found.of_session(session) {
                let used = USES[session % USES.len()];
                if let Some(wrong) = life.goes_on(one.note, used, (one.start, one.end), &mut proofs) {
                    judgement = judgement.fault(format!("session {session}: {wrong}"));
                }
            }
        }
        let Proofs { slid, idled, capped } = proofs;
        if slid.min(idled).min(capped) == 0 {
            return Ok(judgement.unproven("the machine stood still for longer than a session lives unused"));
        }
        Ok(judgement.note(format!(
            "{slid} uses of sessions older than the idle timeout, {idled} of one left alone for it, {capped} beyond the maximum"
        )))
    }
}

/// How many uses were certain of what.
#[derive(Default)]
struct Proofs {
    slid: u64,
    idled: u64,
    capped: u64,
}

/// What is certain of a session, in microseconds: until when it lives, and from when on it is gone.
struct Life {
    created: u64,
    alive_until: u64,
    idle_from: u64,
    /// By its maximum lifetime.
    capped: (u64, u64),
    times: Lifetimes,
}

impl Life {
    fn new(created: &crate::scenario::Operation<Did>, times: Lifetimes) -> Option<Self> {
        let (idle, most) = (micros(times.idle), micros(times.most));
        (created.note == Did::Create).then(|| Self {
            created: created.end,
            alive_until: created.start + idle,
            idle_from: created.end + idle,
            capped: (created.start + most, created.end + most),
            times,
        })
    }

    /// What is wrong with what a use was told.
    fn goes_on(&mut self, did: Did, used: Use, at: (u64, u64), proofs: &mut Proofs) -> Option<String> {
        let (start, end) = at;
        let Lifetimes { idle: unused, most, resolution } = self.times;
        let grace = micros(late(resolution) + SKEW);
        let (there, slides) = match did {
            Did::Create => return None,
            Did::Write { there } => (there, micros(unused)),
            // A read slides when a tenth has passed, so that much may be missing.
            Did::Read { there } => (there, micros(unused - unused / 10)),
        };
        // A touch that would add less than a tenth is not made, also at the end.
        let alive = end + micros(SKEW) < self.alive_until.min(self.capped.0 - micros(unused / 10));
        let idle = start > self.idle_from + grace;
        let capped = start > self.capped.1 + grace;
        if alive && end > self.created + micros(unused) + grace {
            proofs.slid += 1;
        }
        proofs.idled += u64::from(idle && used == Use::LeftAlone);
        proofs.capped += u64::from(capped && used != Use::LeftAlone);
        let age = (start - self.created.min(start)) / 1000;
        if there {
            // A read loads and then slides: one that was stopped in between, until the session had ended, has
            // moved nothing.
            let slid = matches!(did, Did::Write { .. }) || end + micros(SKEW) < self.alive_until;
            if slid {
                self.alive_until = self.alive_until.max(start + slides);
            }
            self.idle_from = end + micros(unused);
        }
        match (there, alive, capped, idle) {
            (false, true, ..) => Some(format!("gone {age} ms after it was made, though it was in use")),
            (true, _, true, _) => Some(format!("there {age} ms after it was made; the maximum is {most:?}")),
            (true, _, _, true) => {
                Some(format!("there {age} ms after it was made, unused for more than {unused:?}"))
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Outcome, scenario::Operation};

    const MS: u64 = 1000;

    fn judge(uses: &[(Did, u64, u64)]) -> Option<String> {
        let idle = Duration::from_millis(500);
        let times = Lifetimes { idle, most: Duration::from_secs(60), resolution: Duration::ZERO };
        let created =
            Operation { rank: 0, session: 0, start: 0, end: 0, outcome: Outcome::Ok, note: Did::Create };
        let (mut life, mut proofs) = (Life::new(&created, times).unwrap(), Proofs::default());
        uses.iter()
            .find_map(|(did, start, end)| life.goes_on(*did, Use::Read, (start * MS, end * MS), &mut proofs))
    }

    #[test]
    fn a_session_that_was_read_in_time_must_live() {
        let read = |there, at| (Did::Read { there }, at, at + 1);
        assert!(judge(&[read(true, 400), read(false, 700)]).is_some());
        assert!(judge(&[read(true, 400), read(true, 700)]).is_none());
    }

    #[test]
    fn a_read_that_ended_after_the_session_promises_nothing() {
        let stopped = (Did::Read { there: true }, 400, 600);
        assert!(judge(&[stopped, (Did::Read { there: false }, 700, 701)]).is_none());
        let stopped = (Did::Write { there: true }, 400, 600);
        assert!(
            judge(&[stopped, (Did::Read { there: false }, 700, 701)]).is_some(),
            "a write is alive at its commit"
        );
    }
}
