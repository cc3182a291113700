//! A new id for an old session, and who may have which.

use crate::{
    Judgement,
    scenario::{Findings, Lab, Script, Task},
    system::{Change, Id, values},
    trouble::Trial,
};
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize)]
pub(super) enum Act {
    /// The id that it was given, if it was.
    Rotate(Option<Id>),
    /// The number of the item that was put in.
    Write(usize),
    Destroy,
}

/// Sessions, each for one round in which all ranks are at it at the same time.
async fn rounds(lab: &Lab) -> Trial<Vec<Id>> {
    let mut ids = Vec::new();
    for _ in 0..lab.ops().div_ceil(lab.ranks() as u64) {
        ids.push(lab.system().create(&values([("user", 7.into())])).await?);
    }
    Ok(ids)
}

async fn rotate(task: &Task<Act>, round: usize, id: &Id) {
    let begun = task.begin(round);
    let result = async {
        let mut session = task.system().request(id).await?;
        task.think().await;
        session.rotate().await?;
        session.commit().await
    }
    .await;
    let new = result.as_ref().ok().cloned().flatten();
    begun.end(Act::Rotate(new), &result);
}

/// The ids that rotations of this round were given.
fn given(found: &Findings<Act>, round: usize) -> Vec<&Id> {
    let rotations = found.of_session(round).filter_map(|operation| match &operation.note {
        Act::Rotate(id) => id.as_ref(),
        Act::Write(_) | Act::Destroy => None,
    });
    rotations.collect()
}

/// Half of the ranks rotate, the others put items in.
pub(super) struct RotationHasOneWinner;

impl RotationHasOneWinner {
    fn item(rank: usize) -> String {
        format!("item-{rank}")
    }
}

impl Script for RotationHasOneWinner {
    type Plan = Vec<Id>;
    type Note = Act;

    async fn setup(lab: &Lab) -> Trial<Vec<Id>> {
        rounds(lab).await
    }

    async fn work(task: &Task<Act>, plan: &Vec<Id>) -> Trial {
        let system = task.system();
        for (round, id) in plan.iter().enumerate() {
            task.barrier(format!("round {round}")).await?;
            if task.rank().is_multiple_of(2) {
                rotate(task, round, id).await;
                continue;
            }
            let write = async {
                let mut session = system.request(id).await?;
                session.change(&Self::item(task.rank()), Change::Insert(true.into())).await?;
                task.think().await;
                session.commit().await
            };
            task.attempt(round, Act::Write(task.rank()), write).await;
        }
        Ok(())
    }

    async fn judge(lab: &Lab, plan: &Vec<Id>, found: &Findings<Act>) -> Trial<Judgement> {
        let (system, mut judgement) = (lab.system(), found.judgement());
        for (round, old) in plan.iter().enumerate() {
            let new = given(found, round);
            judgement = judgement
                .require(new.len() == 1, || format!("session {round}: {} rotations won", new.len()))
                .require(!new.contains(&old), || format!("session {round}: a rotation was given the old id"));
            let at_old = system.read(old).await?;
            judgement = judgement
                .require(at_old.is_none(), || format!("session {round}: the old id lives: {at_old:?}"));
            let mut living = Vec::new();
            for id in new {
                living.extend(system.read(id).await?);
            }
            judgement = judgement.require(living.len() == 1, || {
                format!("session {round}: {} records live, one must", living.len())
            });
            let Some(stored) = living.first() else { continue };
            judgement = judgement.require(stored.get("user") == Some(&7.into()), || {
                format!("session {round}: its data is gone: {stored:?}")
            });
            for write in found.of_session(round).filter(|write| write.outcome.is_ok()) {
                if let Act::Write(rank) = write.note {
                    let lost = !stored.contains_key(&Self::item(rank));
                    judgement =
                        judgement.lost(lost.into(), format!("session {round}: item {rank} was acknowledged"));
                }
            }
        }
        Ok(judgement)
    }
}

/// One rank logs out with the old id while the others rotate it away.
pub(super) struct DestroyFollowsRotation;

impl Script for DestroyFollowsRotation {
    type Plan = Vec<Id>;
    type Note = Act;

    async fn setup(lab: &Lab) -> Trial<Vec<Id>> {
        rounds(lab).await
    }

    async fn work(task: &Task<Act>, plan: &Vec<Id>) -> Trial {
        let system = task.system();
        for (round, id) in plan.iter().enumerate() {
            task.barrier(format!("round {round}")).await?;
            if task.rank() != round % task.ranks() {
                rotate(task, round, id).await;
                // Every other round the logout surely comes after the rotations.
                task.barrier(format!("rotated {round}")).await?;
                continue;
            }
            if round % 2 == 0 {
                task.think().await;
                task.attempt(round, Act::Destroy, system.destroy(id)).await;
                task.barrier(format!("rotated {round}")).await?;
            } else {
                task.barrier(format!("rotated {round}")).await?;
                task.attempt(round, Act::Destroy, system.destroy(id)).await;
            }
        }
        Ok(())
    }

    async fn judge(lab: &Lab, plan: &Vec<Id>, found: &Findings<Act>) -> Trial<Judgement> {
        let mut judgement = found.judgement();
        for (round, old) in plan.iter().enumerate() {
            let destroyed = found
                .of_session(round)
                .any(|operation| operation.outcome.is_ok() && matches!(operation.note, Act::Destroy));
            judgement = judgement.require(destroyed, || format!("session {round}: the logout failed"));
            for id in given(found, round).into_iter().chain([old]) {
                let lives = lab.system().read(id).await?.is_some();
                judgement = judgement.lost(
                    lives.into(),
                    format!("session {round}: logged out, and it lives on under another id"),
                );
            }
        }
        Ok(judgement)
    }
}
