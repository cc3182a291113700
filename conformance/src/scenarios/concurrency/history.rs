//! Reads and compare-and-swaps on one session, recorded and put in an order afterwards.

use crate::{
    Judgement, Strategy,
    history::{Call, Chain, Fork, Limits, Ordering, Register, check},
    scenario::{Batch, Findings, Lab, Operation, Script, Task, Turn, now},
    system::{Change, Id, values},
    trouble::{Outcome, Trial, Trouble},
};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use session_core::{Error, ErrorKind, Inserted, Put, Replaced, Stored};
use std::{collections::HashMap, time::Duration};

/// No value is put twice, so that each read says whose write it saw.
pub(super) struct HistoryIsLinearizable;

/// What one operation asked and was shown.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Shown {
    /// What it read.
    saw: Option<u64>,
    /// What a swap named: what it read itself, or, by a driver's version, what was read before.
    named: Option<u64>,
    /// What a swap was to put.
    put: Option<u64>,
    /// What a refused swap was shown in place of what it named.
    found: Option<u64>,
    /// Values with the versions under which a driver said that they are stored.
    versions: Vec<(u64, String)>,
    /// What no store may answer here.
    odd: Option<String>,
}

const NAME: &str = "register";
const TTL: Duration = Duration::from_mins(30);
/// Every value is stored this often over, so that a record of which a part is missing, or another's, is seen to be one.
const TIMES: usize = 64;

fn record(value: u64) -> Put {
    Put::new(Bytes::from(value.to_be_bytes().repeat(TIMES)), TTL)
}

impl Shown {
    /// What a session holds.
    fn read(&mut self, value: Option<&Value>) {
        self.saw = value.and_then(Value::as_u64);
        if self.saw.is_none() {
            self.odd = Some(format!("a read found {value:?}"));
        }
    }

    /// What a driver's record holds.
    fn look(&mut self, stored: Option<&Stored>) -> Option<u64> {
        let Some(stored) = stored else {
            self.odd = Some("the session is gone".to_owned());
            return None;
        };
        let value = stored.data.first_chunk().map(|first| u64::from_be_bytes(*first));
        let Some(value) = value.filter(|value| stored.data == record(*value).data) else {
            self.odd = Some(format!("{} bytes that nobody wrote", stored.data.len()));
            return None;
        };
        self.versions.push((value, stored.version.to_string()));
        Some(value)
    }

    /// The calls that this operation made on the register.
    fn calls(&self, operation: &Operation<Self>) -> Vec<Call<Register>> {
        let Operation { start, end, .. } = *operation;
        let read = self.saw.map(|saw| Call::answered(start, end, Register::Saw(saw)));
        let swap = self.named.zip(self.put).and_then(|(from, to)| match &operation.outcome {
            Outcome::Ok => Some(Call::answered(start, end, Register::Swapped { from, to })),
            Outcome::Unknown(_) => Some(Call::unknown(start, Register::Swapped { from, to })),
            // Without an effect; the driver shows what is there instead.
            Outcome::Failed(..) => {
                self.found.map(|found| Call::answered(start, end, Register::Refused { from, found }))
            }
        });
        // A swap that happened has read what it named, too, and at the same moment.
        let read = read.filter(|_| swap.is_none_or(|swap| swap.end.is_none()));
        read.into_iter().chain(swap).collect()
    }
}

impl HistoryIsLinearizable {
    /// A request that reads the value and puts another one for it.
    async fn swap(task: &Task<Shown>, turn: &Turn<'_>) {
        let (mut shown, to) = (Shown::default(), turn.number + 1);
        let begun = task.begin(turn.session);
        let result = async {
            let mut session = task.system().request(turn.id).await?;
            let read = session.get(NAME).await?;
            shown.read(read.as_ref());
            shown.named = shown.saw;
            task.think().await;
            session.change(NAME, Change::Insert(to.into())).await?;
            shown.put = Some(to);
            session.commit().await
        }
        .await;
        begun.end(shown, &result);
    }

    async fn read(task: &Task<Shown>, turn: &Turn<'_>) {
        let mut shown = Shown::default();
        let begun = task.begin(turn.session);
        let result = task.system().read(turn.id).await;
        if let Ok(read) = &result {
            shown.read(read.as_ref().and_then(|values| values.get(NAME)));
        }
        begun.end(shown, &result);
    }

    /// The same with the driver's own words: a load, and by the version that it showed a replace.
    async fn drive(task: &Task<Shown>, turn: &Turn<'_>) -> Trial {
        let (key, mut shown) = (turn.id.key()?, Shown::default());
        let begun = task.begin(turn.session);
        let loaded = task.store().load(&key).await;
        if let Ok(stored) = &loaded {
            shown.saw = shown.look(stored.as_ref());
        }
        let saw = shown.saw;
        begun.end(shown, &loaded);
        let (Ok(Some(stored)), Some(from)) = (loaded, saw) else { return Ok(()) };
        if turn.number % 3 == 2 {
            return Ok(());
        }
        task.think().await;
        let to = turn.number + 1;
        let mut shown = Shown { named: Some(from), put: Some(to), ..Shown::default() };
        let begun = task.begin(turn.session);
        let result = match task.store().replace(&key, stored.version, &record(to)).await {
            Ok(Replaced::Done(version)) => {
                shown.versions.push((to, version.to_string()));
                Ok(())
            }
            Ok(Replaced::Conflict(fresh)) => {
                shown.found = shown.look(Some(&fresh));
                Err(Error::new(ErrorKind::Conflict, "replace"))
            }
            Ok(other) => {
                shown.odd = Some(format!("nobody deletes or locks here, and a replace answered {other:?}"));
                Err(Error::new(ErrorKind::Gone, "replace"))
            }
            Err(error) => Err(error),
        };
        begun.end(shown, &result);
        Ok(())
    }

    /// What is there in the end.
    async fn last(lab: &Lab, id: &Id) -> Trial<Option<u64>> {
        if lab.strategy() == Strategy::Driver {
            return Ok(Shown::default().look(lab.store().load(&id.key()?).await?.as_ref()));
        }
        let values = lab.system().read(id).await?.unwrap_or_default();
        Ok(values.get(NAME).and_then(Value::as_u64))
    }
}

impl Script for HistoryIsLinearizable {
    type Plan = Vec<Batch>;
    type Note = Shown;

    async fn setup(lab: &Lab) -> Trial<Vec<Batch>> {
        if lab.strategy() != Strategy::Driver {
            return lab.batches(&values([(NAME, 0.into())])).await;
        }
        let batches = lab.empty_batches()?;
        for batch in &batches {
            let Inserted::Created(_) = lab.store().insert(&batch.id.key()?, &record(0)).await? else {
                return Err(Trouble::wrong("a new id exists"));
            };
        }
        Ok(batches)
    }

    async fn work(task: &Task<Shown>, plan: &Vec<Batch>) -> Trial {
        let mut turns = task.turns(plan);
        while let Some(turn) = turns.next().await? {
            match task.strategy() {
                Strategy::Driver => Self::drive(task, &turn).await?,
                _ if turn.number % 3 == 2 => Self::read(task, &turn).await,
                _ => Self::swap(task, &turn).await,
            }
        }
        Ok(())
    }

    async fn judge(lab: &Lab, plan: &Vec<Batch>, found: &Findings<Shown>) -> Trial<Judgement> {
        let mut judgement = found.judgement();
        for (session, batch) in plan.iter().enumerate() {
            let operations: Vec<_> = found.of_session(session).collect();
            judgement = cheap(judgement, session, &operations);
            let mut calls: Vec<_> =
                operations.iter().flat_map(|operation| operation.note.calls(operation)).collect();
            let asked = now();
            match Self::last(lab, &batch.id).await? {
                Some(last) => calls.push(Call::answered(asked, now(), Register::Saw(last))),
                None => judgement = judgement.fault(format!("session {session}: gone or torn in the end")),
            }
            if !judgement.is_broken() {
                judgement = search(judgement, session, calls).await?;
            }
        }
        Ok(judgement)
    }
}

/// What convicts without a search.
fn cheap(mut judgement: Judgement, session: usize, operations: &[&Operation<Shown>]) -> Judgement {
    let swaps = operations.iter().filter(|operation| operation.outcome.is_ok());
    let chain = Chain::new(swaps.filter_map(|swap| swap.note.named.zip(swap.note.put)));
    for Fork { from, first, second } in chain.forks() {
        let evidence = format!("session {session}: {first} and {second} both replaced {from}");
        judgement = judgement.lost(1, evidence);
    }
    let mut stored = HashMap::new();
    for operation in operations {
        if let Some(odd) = &operation.note.odd {
            judgement = judgement.fault(format!("session {session}: {odd}"));
        }
        for (value, version) in &operation.note.versions {
            let first = *stored.entry(version.as_str()).or_insert(*value);
            judgement = judgement.require(first == *value, || {
                format!("session {session}: version {version} names both {first} and {value}")
            });
        }
    }
    judgement
}

async fn search(judgement: Judgement, session: usize, calls: Vec<Call<Register>>) -> Trial<Judgement> {
    let history = calls.clone();
    let ordering = tokio::task::spawn_blocking(move || check(&0, &history, Limits::DEFAULT))
        .await
        .map_err(|error| Trouble::unproven(format!("the checker ended: {error}")))?;
    Ok(match ordering {
        Ordering::Found(_) => judgement,
        Ordering::Unknown => judgement
            .unproven(format!("session {session}: {} calls were too many to put in an order", calls.len())),
        Ordering::None(longest) => {
            let mut rest: Vec<_> = (0..calls.len()).filter(|index| !longest.contains(index)).collect();
            rest.sort_by_key(|index| calls[*index].start);
            let next: Vec<_> = rest.iter().take(3).map(|index| &calls[*index].step).collect();
            let (before, all) = (longest.last().map(|index| &calls[*index].step), calls.len());
            judgement.fault(format!(
                "session {session}: no order explains its {all} calls: after {} of them, the last {before:?}, came {next:?}",
                longest.len()
            ))
        }
    })
}
