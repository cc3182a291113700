//! Replies that never come, or too late.

use super::unreliable::unreliable;
use crate::{
    Judgement,
    scenario::{Batch, Findings, Lab, Script, Task},
    system::{Change, values},
    trouble::Trial,
};

pub(super) struct LostReplyIsResolved;

impl Script for LostReplyIsResolved {
    type Plan = Vec<Batch>;
    type Note = ();

    async fn setup(lab: &Lab) -> Trial<Vec<Batch>> {
        lab.batches(&values([("count", 0.into())])).await
    }

    async fn work(task: &Task<()>, plan: &Vec<Batch>) -> Trial {
        let (line, shared) = unreliable(task.store(), task.draw(0..u64::MAX));
        let system = task.system_over(line)?;
        let mut turns = task.turns(plan);
        while let Some(turn) = turns.next().await? {
            let increment = async {
                let mut session = system.request(turn.id).await?;
                session.change("count", Change::Add(1)).await?;
                task.think().await;
                session.commit().await
            };
            task.attempt(turn.session, (), increment).await;
        }
        shared.settled().await;
        Ok(())
    }

    async fn judge(lab: &Lab, plan: &Vec<Batch>, found: &Findings<()>) -> Trial<Judgement> {
        let mut judgement = found.judgement();
        for (session, batch) in plan.iter().enumerate() {
            let count = found.count(session);
            let stored = lab.system().number(&batch.id, "count").await?;
            judgement =
                judgement.compare(&format!("session {session}"), count.acknowledged, count.unknown, stored);
        }
        Ok(judgement)
    }
}
