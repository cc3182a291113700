//! Changes that need no answer: all of them must be there in the end.

use super::begun;
use crate::{
    Judgement,
    scenario::{Batch, Findings, Lab, Script, Task},
    system::{Change, Values, values},
    trouble::Trial,
};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};

pub(super) struct IncrementsAreAllKept;

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

pub(super) struct DistinctKeysAreAllKept;

impl DistinctKeysAreAllKept {
    fn item(number: u64) -> String {
        format!("item-{number}")
    }
}

impl Script for DistinctKeysAreAllKept {
    type Plan = Vec<Batch>;
    /// The number of the item.
    type Note = u64;

    async fn setup(lab: &Lab) -> Trial<Vec<Batch>> {
        lab.batches(&begun()).await
    }

    async fn work(task: &Task<u64>, plan: &Vec<Batch>) -> Trial {
        let system = task.system();
        let mut turns = task.turns(plan);
        while let Some(turn) = turns.next().await? {
            let add = async {
                let mut session = system.request(turn.id).await?;
                task.think().await;
                session.change(&Self::item(turn.number), Change::Insert(task.rank().into())).await?;
                session.commit().await
            };
            task.attempt(turn.session, turn.number, add).await;
        }
        Ok(())
    }

    async fn judge(lab: &Lab, plan: &Vec<Batch>, found: &Findings<u64>) -> Trial<Judgement> {
        let mut judgement = found.judgement();
        for (session, batch) in plan.iter().enumerate() {
            let stored = lab.system().read(&batch.id).await?.unwrap_or_default();
            let missing: Vec<_> = found
                .of_session(session)
                .filter(|add| add.outcome.is_ok() && !stored.contains_key(&Self::item(add.note)))
                .map(|add| add.note)
                .collect();
            let shown = &missing[..missing.len().min(5)];
            judgement = judgement.lost(
                missing.len() as u64,
                format!("session {session}: items {shown:?} and so on are missing"),
            );
            for add in found.of_session(session) {
                let refused = !add.outcome.is_ok() && !add.outcome.is_unknown();
                judgement = judgement
                    .require(!refused || !stored.contains_key(&Self::item(add.note)), || {
                        format!("session {session}: item {} was refused and is there", add.note)
                    });
            }
        }
        Ok(judgement)
    }
}

pub(super) struct AppendsKeepOrderAndCount;

/// What one request of this scenario did.
#[derive(Serialize, Deserialize)]
pub(super) enum Step {
    Append(String),
    /// How long the list was, and the hash of it.
    Read(usize, u64),
}

impl AppendsKeepOrderAndCount {
    fn hash(list: &[Value]) -> u64 {
        let mut hasher = DefaultHasher::new(); // with fixed keys: the same in every process
        list.iter().for_each(|item| item.as_str().hash(&mut hasher));
        hasher.finish()
    }

    fn list(values: &Values) -> &[Value] {
        values.get("list").and_then(Value::as_array).map_or(&[], Vec::as_slice)
    }
}

impl Script for AppendsKeepOrderAndCount {
    type Plan = Vec<Batch>;
    type Note = Step;

    async fn setup(lab: &Lab) -> Trial<Vec<Batch>> {
        lab.batches(&begun()).await
    }

    async fn work(task: &Task<Step>, plan: &Vec<Batch>) -> Trial {
        let system = task.system();
        let mut turns = task.turns(plan);
        while let Some(turn) = turns.next().await? {
            if turn.number % 4 == 3 {
                let begun = task.begin(turn.session);
                let read = system.read(turn.id).await;
                let seen = read.as_ref().ok().and_then(Option::as_ref).map(Self::list).unwrap_or_default();
                begun.end(Step::Read(seen.len(), Self::hash(seen)), &read);
                continue;
            }
            let element = format!("{}-{}", task.rank(), turn.number);
            let append = async {
                let mut session = system.request(turn.id).await?;
                session.change("list", Change::Append(element.clone().into())).await?;
                task.think().await;
                session.commit().await
            };
            task.attempt(turn.session, Step::Append(element.clone()), append).await;
        }
        Ok(())
    }

    async fn judge(lab: &Lab, plan: &Vec<Batch>, found: &Findings<Step>) -> Trial<Judgement> {
        let mut judgement = found.judgement();
        for (session, batch) in plan.iter().enumerate() {
            let stored = lab.system().read(&batch.id).await?.unwrap_or_default();
            let list = Self::list(&stored);
            let mut missing = 0;
            for operation in found.of_session(session).filter(|operation| operation.outcome.is_ok()) {
                match &operation.note {
                    Step::Append(element) => match list.iter().filter(|item| *item == element).count() {
                        0 => missing += 1,
                        1 => {}
                        times => {
                            judgement = judgement
                                .fault(format!("session {session}: {element} is there {times} times"));
                        }
                    },
                    Step::Read(len, hash) => {
                        let prefix = list.get(..*len).map(Self::hash);
                        judgement = judgement.require(prefix == Some(*hash), || {
                            format!("session {session}: a read saw {len} elements that the final list does not begin with")
                        });
                    }
                }
            }
            judgement = judgement.lost(missing, format!("session {session}: {missing} elements are missing"));
        }
        Ok(judgement)
    }
}

pub(super) struct RemovedStaysRemoved;

impl RemovedStaysRemoved {
    /// Every other request removes one of these; the rest change something else.
    fn old(number: u64) -> String {
        format!("old-{number}")
    }
}

impl Script for RemovedStaysRemoved {
    type Plan = Vec<Batch>;
    /// The number of the key that was removed.
    type Note = Option<u64>;

    async fn setup(lab: &Lab) -> Trial<Vec<Batch>> {
        let most = lab.ops().min(500);
        let old = (0..most).step_by(2).map(|number| (Self::old(number), number.into()));
        lab.batches(&old.collect()).await
    }

    async fn work(task: &Task<Option<u64>>, plan: &Vec<Batch>) -> Trial {
        let system = task.system();
        let mut turns = task.turns(plan);
        while let Some(turn) = turns.next().await? {
            // Neighbours of one rank alternate, too, whatever the number of ranks.
            let removed = (turn.number % 2 == 0).then_some(turn.number);
            let request = async {
                let mut session = system.request(turn.id).await?;
                match removed {
                    Some(number) => session.change(&Self::old(number), Change::Remove).await?,
                    None => session.change("visits", Change::Add(1)).await?,
                }
                task.think().await;
                session.commit().await
            };
            task.attempt(turn.session, removed, request).await;
        }
        Ok(())
    }

    async fn judge(lab: &Lab, plan: &Vec<Batch>, found: &Findings<Option<u64>>) -> Trial<Judgement> {
        let mut judgement = found.judgement();
        for (session, batch) in plan.iter().enumerate() {
            let stored = lab.system().read(&batch.id).await?.unwrap_or_default();
            let back: Vec<_> = found
                .of_session(session)
                .filter(|operation| operation.outcome.is_ok())
                .filter_map(|operation| operation.note)
                .filter(|number| stored.contains_key(&Self::old(*number)))
                .collect();
            let shown = &back[..back.len().min(5)];
            judgement = judgement
                .lost(back.len() as u64, format!("session {session}: keys {shown:?} and so on are back"));
        }
        Ok(judgement)
    }
}
