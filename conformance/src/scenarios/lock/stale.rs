//! A holder whose lease runs out under it, and its write.

use super::{
    deaf::{Deafness, deafen},
    stale_driver,
};
use crate::{
    Judgement, Strategy,
    scenario::{Findings, Lab, Script, Task},
    system::{Change, Id, values},
    trouble::Trial,
};
use serde::{Deserialize, Serialize};
use session_core::ErrorKind;
use std::time::Duration;

pub(super) const LEASE: Duration = Duration::from_millis(300);
/// How long the next one waits for a lease that is not renewed.
pub(super) const WAIT: Duration = Duration::from_secs(6);

/// The first one's renewals do not reach the store; it goes on when the next one has written. Each has a
/// process of its own, where there are several, and in any case sessions of its own: in one queue the next
/// one would wait for the first one's end.
pub(super) struct StaleHolderCannotWrite;

#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Part {
    /// The one whose lease ran out, and whether a late renewal of it was granted.
    Stale { revived: bool },
    /// The one who wrote meanwhile.
    Next,
    /// For the driver: what went wrong.
    Driver(Vec<String>),
}

const BOTH: [Deafness; 2] = [Deafness::Swallows, Deafness::Delays];

impl StaleHolderCannotWrite {
    async fn hold(task: &Task<Part>, plan: &[Id], which: usize) -> Trial {
        let session = BOTH.len() * task.rank() + which;
        let (deaf, ear) = deafen(task.store(), BOTH[which]);
        let system = task.system_over(deaf)?;
        let begun = task.begin(session);
        let opened = async {
            let mut request = system.request(&plan[session]).await?;
            request.change("count", Change::Add(1)).await?;
            Ok(request)
        };
        let opened = opened.await;
        task.signal(format!("opened/{session}"), true).await?;
        task.wait(format!("written/{session}")).await?;
        let revived = ear.open().await;
        let committed = match opened {
            Ok(request) => request.commit().await,
            Err(error) => Err(error),
        };
        begun.end(Part::Stale { revived }, &committed);
        Ok(())
    }

    async fn write_meanwhile(task: &Task<Part>, plan: &[Id], which: usize) -> Trial {
        let session = BOTH.len() * task.across() + which;
        task.wait(format!("opened/{session}")).await?;
        let system = task.patient_system()?;
        let write = async {
            let mut request = system.request(&plan[session]).await?;
            request.change("count", Change::Add(1)).await?;
            request.commit().await
        };
        task.attempt(session, Part::Next, write).await;
        task.signal(format!("written/{session}"), true).await
    }
}

impl Script for StaleHolderCannotWrite {
    type Plan = Vec<Id>;
    type Note = Part;

    async fn setup(lab: &Lab) -> Trial<Vec<Id>> {
        if lab.strategy() == Strategy::Driver {
            return stale_driver::records(lab, stale_driver::WAYS).await;
        }
        let mut ids = Vec::new();
        for _ in 0..BOTH.len() * lab.ranks() {
            ids.push(lab.system().create(&values([("count", 0.into())])).await?);
        }
        Ok(ids)
    }

    async fn work(task: &Task<Part>, plan: &Vec<Id>) -> Trial {
        if task.strategy() == Strategy::Driver {
            return stale_driver::writes(task, plan).await;
        }
        tokio::try_join!(
            Self::hold(task, plan, 0),
            Self::hold(task, plan, 1),
            Self::write_meanwhile(task, plan, 0),
            Self::write_meanwhile(task, plan, 1),
        )
        .map(drop)
    }

    async fn judge(lab: &Lab, plan: &Vec<Id>, found: &Findings<Part>) -> Trial<Judgement> {
        let mut judgement = found.judgement();
        let exclusive = lab.strategy() == Strategy::Exclusive;
        for one in &found.operations {
            let session = one.session;
            match &one.note {
                Part::Driver(breaches) => {
                    for breach in breaches {
                        judgement = judgement.fault(format!("session {session}: {breach}"));
                    }
                }
                Part::Next => {
                    judgement = judgement.require(one.outcome.is_ok(), || {
                        format!("session {session}: the next one's write after the lease: {:?}", one.outcome)
                    });
                }
                Part::Stale { revived } => {
                    judgement = judgement.require(!revived, || {
                        format!("session {session}: a lease that was over, and another's since, was renewed")
                    });
                    let told = [ErrorKind::LockLost, ErrorKind::Conflict]
                        .iter()
                        .any(|kind| one.outcome.failed_with(*kind));
                    judgement = judgement.require(told || !exclusive, || {
                        format!("session {session}: the stale holder was told {:?}", one.outcome)
                    });
                }
            }
        }
        if lab.strategy() == Strategy::Driver {
            return Ok(judgement);
        }
        for (session, id) in plan.iter().enumerate() {
            let count = found.count(session);
            let stored = lab.system().number(id, "count").await?;
            judgement =
                judgement.compare(&format!("session {session}"), count.acknowledged, count.unknown, stored);
        }
        Ok(judgement)
    }
}
