//! Requests that work on one session at the same time.

use crate::{
    Judgement,
    scenario::{Batch, Convictor, Findings, Lab, Scenario, Script, Task},
    system::{Change, values},
    trouble::Trial,
};

pub(super) const SCENARIOS: &[Scenario] = &[Scenario::new::<IncrementsAreAllKept>(
    "concurrency/increments_are_all_kept",
    "N increments of one counter: final = acknowledged",
    Convictor::BLIND,
)
.overlap(10)];

struct IncrementsAreAllKept;

impl Script for IncrementsAreAllKept {
    type Plan = Vec<Batch>;
    type Note = ();

    async fn setup(lab: &Lab) -> Trial<Vec<Batch>> {
        lab.batches(&values([("counter", 0.into())])).await
    }

    async fn work(task: &Task<()>, plan: &Vec<Batch>) -> Trial {
        let system = task.system();
        let mut turns = task.turns(plan);
        while let Some(turn) = turns.next().await? {
            let increment = async {
                let mut session = system.request(turn.id).await?;
                session.change("counter", Change::Add(1)).await?;
                task.think().await;
                session.commit().await
            };
            task.attempt(turn.session, (), increment).await;
        }
        Ok(())
    }

    async fn judge(lab: &Lab, plan: &Vec<Batch>, found: &Findings<()>) -> Trial<Judgement> {
        let mut judgement = found.judgement();
        for (session, batch) in plan.iter().enumerate() {
            let count = found.count(session);
            let counter = lab.system().number(&batch.id, "counter").await?;
            let what = format!("session {session}");
            judgement = judgement.compare(&what, count.acknowledged, count.unknown, counter);
        }
        Ok(judgement)
    }
}
