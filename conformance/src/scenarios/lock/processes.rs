//! Holders whose process is stopped, or killed.

use super::{LATE, surely_over};
use crate::{
    Judgement, Strategy,
    scenario::{Begun, Findings, Lab, Script, Task, now},
    system::{Change, Id, OpenSession, values},
    trouble::Trial,
};
use serde::{Deserialize, Serialize};
use session_core::{ErrorKind, Result};
use std::time::Duration;

/// Long enough that no renewal is under way when the process is stopped: a store of files would have to wait for
/// the file that it has locked in that moment.
pub(super) const PAUSED_LEASE: Duration = Duration::from_secs(2);
pub(super) const KILLED_LEASE: Duration = Duration::from_secs(2);
pub(super) const KILLED_WAIT: Duration = KILLED_LEASE.saturating_add(Duration::from_secs(8));

/// Sessions that the first process has open when it is stopped or killed. The others share them.
const SESSIONS: usize = 12;

#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Part {
    /// Of the process that was stopped.
    Stale,
    /// Of another one: how many microseconds it waited for the session; none when it did not get it.
    Next(Option<u64>),
}

async fn sessions(lab: &Lab) -> Trial<Vec<Id>> {
    let mut ids = Vec::new();
    for _ in 0..SESSIONS {
        ids.push(lab.system().create(&values([("count", 0.into())])).await?);
    }
    Ok(ids)
}

type Open<'a> = (Begun<'a, Part>, Result<Box<dyn OpenSession>>);

/// Opens all sessions and changes them, and commits none.
async fn open_all<'a>(task: &'a Task<Part>, plan: &[Id]) -> Vec<Open<'a>> {
    let system = task.system();
    let mut opened = Vec::new();
    for (session, id) in plan.iter().enumerate() {
        let begun = task.begin(session);
        let open = async {
            let mut request = system.request(id).await?;
            request.change("count", Change::Add(1)).await?;
            Ok(request)
        };
        opened.push((begun, open.await));
    }
    opened
}

/// Changes this task's share of the same sessions.
async fn write_share(task: &Task<Part>, plan: &[Id]) -> Trial {
    let (others, system) = (task.ranks() - 1, task.patient_system()?);
    for (session, id) in plan.iter().enumerate().skip(task.rank() - 1).step_by(others) {
        let begun = task.begin(session);
        let (asked, mut waited) = (now(), None);
        let write = async {
            let mut request = system.request(id).await?;
            waited = Some(now() - asked);
            request.change("count", Change::Add(1)).await?;
            request.commit().await
        };
        let written = write.await;
        begun.end(Part::Next(waited), &written);
        if written.is_err() {
            break; // one is enough, and each of the others would wait as long
        }
    }
    Ok(())
}

async fn judge(
    lab: &Lab,
    plan: &[Id],
    found: &Findings<Part>,
    lease: Duration,
    what: &str,
) -> Trial<Judgement> {
    let mut judgement = found.judgement();
    for (session, id) in plan.iter().enumerate() {
        let count = found.count(session);
        let stored = lab.system().number(id, "count").await?;
        let what = format!("session {session}");
        judgement = judgement.compare(&what, count.acknowledged, count.unknown, stored);
    }
    let locks = matches!(lab.strategy(), Strategy::LockOnly | Strategy::Exclusive);
    let limit = surely_over(lease, lab.capabilities()) + LATE;
    let mut longest = Duration::ZERO;
    for one in &found.operations {
        let session = one.session;
        match one.note {
            Part::Next(waited) => {
                judgement = judgement.require(one.outcome.is_ok(), || {
                    format!("session {session}: the next one: {:?}", one.outcome)
                });
                longest = longest.max(Duration::from_micros(waited.unwrap_or_default()));
            }
            Part::Stale if lab.strategy() == Strategy::Exclusive => {
                let told = one.outcome.failed_with(ErrorKind::LockLost)
                    || one.outcome.failed_with(ErrorKind::Conflict);
                judgement = judgement.require(told, || {
                    format!(
                        "session {session}: the holder that was {what} past its lease was told {:?}",
                        one.outcome
                    )
                });
            }
            Part::Stale => {}
        }
    }
    if locks {
        judgement = judgement
            .require(longest <= limit, || {
                format!("the next one was in after {longest:?}, and not within {limit:?}")
            })
            .note(format!(
                "the next one was in {} ms after the holder was {what}; the lease was {} ms",
                longest.as_millis(),
                lease.as_millis()
            ));
    }
    Ok(judgement)
}

/// The first process is stopped with sessions open; the others write to them; it goes on and commits.
pub(super) struct PausedHolderCannotWrite;

impl Script for PausedHolderCannotWrite {
    type Plan = Vec<Id>;
    type Note = Part;

    async fn setup(lab: &Lab) -> Trial<Vec<Id>> {
        sessions(lab).await
    }

    async fn work(task: &Task<Part>, plan: &Vec<Id>) -> Trial {
        if task.rank() == 0 {
            let opened = open_all(task, plan).await;
            task.pause_until("written").await?;
            for (begun, request) in opened {
                let committed = match request {
                    Ok(request) => request.commit().await,
                    Err(error) => Err(error),
                };
                begun.end(Part::Stale, &committed);
            }
            return Ok(());
        }
        task.wait("paused/0").await?;
        write_share(task, plan).await?;
        let all = task.ranks() - 1;
        task.barrier_of("written by all", all, Duration::from_secs(60)).await?;
        task.signal("written", true).await
    }

    async fn judge(lab: &Lab, plan: &Vec<Id>, found: &Findings<Part>) -> Trial<Judgement> {
        judge(lab, plan, found, PAUSED_LEASE, "stopped").await
    }
}

/// The first process is killed with sessions open; the others take them over. What it had not committed is
/// nowhere.
pub(super) struct KilledHolderFreesInTime;

impl Script for KilledHolderFreesInTime {
    type Plan = Vec<Id>;
    type Note = Part;

    async fn setup(lab: &Lab) -> Trial<Vec<Id>> {
        sessions(lab).await
    }

    async fn work(task: &Task<Part>, plan: &Vec<Id>) -> Trial {
        if task.rank() == 0 {
            let opened = open_all(task, plan).await;
            for (_, request) in &opened {
                if let Err(error) = request {
                    return Err(crate::Trouble::wrong(format!("a session that nobody uses: {error}")));
                }
            }
            return task.kill().await;
        }
        task.wait("killed/0").await?;
        write_share(task, plan).await
    }

    async fn judge(lab: &Lab, plan: &Vec<Id>, found: &Findings<Part>) -> Trial<Judgement> {
        judge(lab, plan, found, KILLED_LEASE, "killed").await
    }
}
