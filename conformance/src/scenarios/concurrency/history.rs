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
use session_core::{Error, ErrorKind, Inserted, Put, Replaced, Result, StorageKey, Stored};
use std::{collections::HashMap, time::Duration};

/// No value is put twice, so that each read says whose write it saw.
pub(super) struct HistoryIsLinearizable;

/// What one operation asked and was shown: a read, and on the strength of it a swap.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Shown {
    read: Option<Read>,
    swap: Option<Swap>,
    /// Values with the versions under which a driver said that they are stored.
    versions: Vec<(u64, String)>,
    /// What no store may answer here.
    odd: Option<String>,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Read {
    start: u64,
    end: u64,
    saw: u64,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Swap {
    start: u64,
    end: u64,
    from: u64,
    to: u64,
    /// What it was shown in place of what it named, where it was refused and a driver shows that.
    found: Option<u64>,
}

const NAME: &str = "register";
const TTL: Duration = Duration::from_mins(30);
/// Every value is stored this often over, so that a record of which a part is missing, or another's, is seen
/// to be one.
const TIMES: usize = 64;

fn record(value: u64) -> Put {
    Put::new(Bytes::from(value.to_be_bytes().repeat(TIMES)), TTL)
}

impl Shown {
    /// What a session holds.
    fn read(&mut self, start: u64, value: Option<&Value>) -> Option<u64> {
        let saw = value.and_then(Value::as_u64);
        match saw {
            Some(saw) => self.read = Some(Read { start, end: now(), saw }),
            None => self.odd = Some(format!("a read found {value:?}")),
        }
        saw
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
    fn calls(&self, outcome: &Outcome) -> impl Iterator<Item = Call<Register>> {
        let read = self.read.map(|Read { start, end, saw }| Call::answered(start, end, Register::Saw(saw)));
        let swap = self.swap.and_then(|Swap { start, end, from, to, found }| match outcome {
            Outcome::Ok => Some(Call::answered(start, end, Register::Swapped { from, to })),
            Outcome::Unknown(_) => Some(Call::unknown(start, Register::Swapped { from, to })),
            // Without an effect: it says no more than what it was shown.
            Outcome::Failed(..) => {
                found.map(|found| Call::answered(start, end, Register::Refused { from, found }))
            }
        });
        read.into_iter().chain(swap)
    }
}

impl HistoryIsLinearizable {
    /// Every third only reads.
    fn only_reads(turn: &Turn<'_>) -> bool {
        turn.number % 3 == 2
    }

    /// A request that reads the value and puts another one for it.
    async fn request(task: &Task<Shown>, turn: &Turn<'_>, shown: &mut Shown) -> Result<()> {
        let start = now();
        if Self::only_reads(turn) {
            let read = task.system().read(turn.id).await?;
            shown.read(start, read.as_ref().and_then(|values| values.get(NAME)));
            return Ok(());
        }
        let mut session = task.system().request(turn.id).await?;
        let from = shown.read(start, session.get(NAME).await?.as_ref());
        task.think().await;
        let to = turn.number + 1;
        session.change(NAME, Change::Insert(to.into())).await?;
        let start = now();
        let committed = session.commit().await;
        shown.swap = from.map(|from| Swap { start, end: now(), from, to, found: None });
        committed.map(drop)
    }

    /// The same with the driver's own words: a load, and by the version that it showed a replace.
    async fn drive(task: &Task<Shown>, key: &StorageKey, turn: &Turn<'_>, shown: &mut Shown) -> Result<()> {
        let start = now();
        let stored = task.store().load(key).await?;
        let end = now();
        let from = shown.look(stored.as_ref());
        shown.read = from.map(|saw| Read { start, end, saw });
        task.think().await;
        let (Some(stored), Some(from), false) = (stored, from, Self::only_reads(turn)) else { return Ok(()) };
        let (to, start) = (turn.number + 1, now());
        let replaced = task.store().replace(key, stored.version, &record(to)).await;
        let end = now();
        let mut swap = Swap { start, end, from, to, found: None };
        let result = match replaced {
            Ok(Replaced::Done(version)) => {
                shown.versions.push((to, version.to_string()));
                Ok(())
            }
            Ok(Replaced::Conflict(fresh)) => {
                swap.found = shown.look(Some(&fresh));
                Err(Error::new(ErrorKind::Conflict, "replace"))
            }
            Ok(other) => {
                shown.odd = Some(format!("nobody deletes or locks here, and a replace answered {other:?}"));
                Err(Error::new(ErrorKind::Gone, "replace"))
            }
            Err(error) => Err(error),
        };
        shown.swap = Some(swap);
        result
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
            let (mut shown, key) = (Shown::default(), turn.id.key()?);
            let begun = task.begin(turn.session);
            let result = match task.strategy() {
                Strategy::Driver => Self::drive(task, &key, &turn, &mut shown).await,
                _ => Self::request(task, &turn, &mut shown).await,
            };
            begun.end(shown, &result);
        }
        Ok(())
    }

    async fn judge(lab: &Lab, plan: &Vec<Batch>, found: &Findings<Shown>) -> Trial<Judgement> {
        let mut judgement = found.judgement();
        for (session, batch) in plan.iter().enumerate() {
            let operations: Vec<_> = found.of_session(session).collect();
            let mut calls: Vec<_> =
                operations.iter().flat_map(|operation| operation.note.calls(&operation.outcome)).collect();
            let asked = now();
            let Some(last) = Self::last(lab, &batch.id).await? else {
                judgement = judgement.fault(format!("session {session}: gone or torn in the end"));
                continue;
            };
            calls.push(Call::answered(asked, now(), Register::Saw(last)));
            judgement = cheap(judgement, session, &operations, last);
            if !judgement.is_broken() {
                judgement = search(judgement, session, calls).await?;
            }
        }
        Ok(judgement)
    }
}

/// What convicts without a search.
fn cheap(mut judgement: Judgement, session: usize, operations: &[&Operation<Shown>], last: u64) -> Judgement {
    let swaps = operations.iter().filter(|operation| operation.outcome.is_ok());
    let chain = Chain::new(swaps.filter_map(|one| one.note.swap).map(|swap| (swap.from, swap.to)));
    for Fork { from, first, second } in chain.forks() {
        judgement = judgement.fault(format!("session {session}: {first} and {second} both replaced {from}"));
    }
    // A swap of which nobody knows may be a link of the chain.
    if operations.iter().all(|operation| !operation.outcome.is_unknown()) {
        let ((_, kept), swaps) = (chain.behind(last), chain.len());
        let evidence = format!("session {session}: {kept} of {swaps} swaps led to {last}, which is stored");
        judgement = judgement.lost((swaps - kept) as u64, evidence);
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
