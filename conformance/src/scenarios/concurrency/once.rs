//! What must happen once.

use super::begun;
use crate::{
    Judgement, Strategy,
    history::{Chain, Fork},
    scenario::{Batch, Findings, Lab, Script, Task, Turn},
    system::{Change, Settings, values},
    trouble::Trial,
};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use session_core::ErrorKind;
use std::collections::BTreeMap;

/// One of the things on a session that all ranks are after: each tries each once, at about the same time.
fn prize<N: Serialize + Send>(task: &Task<N>, turn: &Turn<'_>) -> u64 {
    turn.number / task.ranks() as u64
}

/// How often each prize of each session was had by somebody, of all that were tried for with success.
fn had<N>(found: &Findings<N>, had: impl Fn(&N) -> (u64, bool)) -> BTreeMap<(usize, u64), u64> {
    let mut times = BTreeMap::new();
    for operation in &found.operations {
        let (prize, got) = had(&operation.note);
        *times.entry((operation.session, prize)).or_default() += u64::from(got);
    }
    times
}

pub(super) struct FlashIsTakenOnce;

#[derive(Serialize, Deserialize)]
pub(super) struct Taken {
    flash: u64,
    got: bool,
}

impl FlashIsTakenOnce {
    fn flash(number: u64) -> String {
        format!("flash-{number}")
    }
}

impl Script for FlashIsTakenOnce {
    type Plan = Vec<Batch>;
    type Note = Taken;

    async fn setup(lab: &Lab) -> Trial<Vec<Batch>> {
        let flashes = lab.ops().min(500).div_ceil(lab.ranks() as u64);
        lab.batches(&(0..flashes).map(|number| (Self::flash(number), "saved".into())).collect()).await
    }

    async fn work(task: &Task<Taken>, plan: &Vec<Batch>) -> Trial {
        let system = task.system();
        let mut turns = task.turns(plan);
        while let Some(turn) = turns.next().await? {
            let flash = prize(task, &turn);
            let mut got = false;
            let begun = task.begin(turn.session);
            let result = async {
                let mut session = system.request(turn.id).await?;
                got = session.take(&Self::flash(flash)).await?.is_some();
                task.think().await;
                session.commit().await
            }
            .await;
            begun.end(Taken { flash, got: got && result.is_ok() }, &result);
        }
        Ok(())
    }

    async fn judge(_: &Lab, _: &Vec<Batch>, found: &Findings<Taken>) -> Trial<Judgement> {
        let mut judgement = found.judgement();
        let unknown = judgement.unknown;
        for ((session, flash), times) in had(found, |note| (note.flash, note.got)) {
            if times > 1 {
                let evidence = format!("session {session}: flash {flash} was taken by {times} requests");
                judgement = judgement.lost(times - 1, evidence);
            }
            judgement = judgement.require(times > 0 || unknown > 0, || {
                format!("session {session}: flash {flash} was taken by nobody")
            });
        }
        Ok(judgement)
    }
}

pub(super) struct PaymentIsSentOnce;

#[derive(Serialize, Deserialize)]
pub(super) struct Payment {
    order: u64,
    /// Whether the money went out, whatever became of the commit.
    sent: bool,
}

impl Script for PaymentIsSentOnce {
    type Plan = Vec<Batch>;
    type Note = Payment;

    async fn setup(lab: &Lab) -> Trial<Vec<Batch>> {
        lab.batches(&begun()).await
    }

    async fn work(task: &Task<Payment>, plan: &Vec<Batch>) -> Trial {
        let system = task.system();
        let mut turns = task.turns(plan);
        while let Some(turn) = turns.next().await? {
            let order = prize(task, &turn);
            let mut sent = false;
            let begun = task.begin(turn.session);
            let result = async {
                let received = format!("received-{order}");
                let mut session = system.request(turn.id).await?;
                if session.get(&received).await?.is_none() {
                    sent = true;
                    task.think().await;
                    session.change(&received, Change::Insert(true.into())).await?;
                }
                session.commit().await
            }
            .await;
            begun.end(Payment { order, sent }, &result);
        }
        Ok(())
    }

    async fn judge(_: &Lab, _: &Vec<Batch>, found: &Findings<Payment>) -> Trial<Judgement> {
        let mut judgement = found.judgement();
        for ((session, order), times) in had(found, |note| (note.order, note.sent)) {
            judgement = judgement
                .lost(
                    times.saturating_sub(1),
                    format!("session {session}: order {order} was paid {times} times"),
                )
                .require(times > 0, || format!("session {session}: order {order} was never paid"));
        }
        Ok(judgement)
    }
}

/// The orders are lists: payers look into them and add that they were paid, others add remarks. A payer's
/// request that is refused has paid without a trace, which is what a lock is there to prevent.
pub(super) struct ExclusiveExcludesWriters;

#[derive(Serialize, Deserialize)]
pub(super) struct Entry {
    order: u64,
    payer: bool,
    sent: bool,
}

impl ExclusiveExcludesWriters {
    /// Who writes beside the payers: without a lock, in the product's way or the control's.
    fn beside(strategy: Strategy) -> Strategy {
        if strategy.is_control() { Strategy::Blind } else { Strategy::Write }
    }
}

impl Script for ExclusiveExcludesWriters {
    type Plan = Vec<Batch>;
    type Note = Entry;

    async fn setup(lab: &Lab) -> Trial<Vec<Batch>> {
        lab.batches(&begun()).await
    }

    async fn work(task: &Task<Entry>, plan: &Vec<Batch>) -> Trial {
        let (payers, others) = (task.system(), task.system_of(Self::beside(task.strategy())));
        // Within one process, writers see whether somebody has the lock, and the store is hardly ever asked
        // to refuse them.
        let side = if task.processes() > 1 { task.process() } else { task.rank() };
        let payer = side.is_multiple_of(2);
        let mut turns = task.turns(plan);
        while let Some(turn) = turns.next().await? {
            let order = prize(task, &turn);
            let name = format!("order-{order}");
            let mut sent = false;
            let begun = task.begin(turn.session);
            let result = async {
                if !payer {
                    let mut session = others.request(turn.id).await?;
                    task.think().await;
                    session.change(&name, Change::Append("remark".into())).await?;
                    return session.commit().await;
                }
                let mut session = payers.request(turn.id).await?;
                let entries = session.get(&name).await?;
                if !entries.iter().filter_map(Value::as_array).flatten().any(|entry| entry == "paid") {
                    sent = true;
                    task.think().await;
                    session.change(&name, Change::Append("paid".into())).await?;
                }
                session.commit().await
            }
            .await;
            begun.end(Entry { order, payer, sent }, &result);
        }
        Ok(())
    }

    async fn judge(lab: &Lab, plan: &Vec<Batch>, found: &Findings<Entry>) -> Trial<Judgement> {
        let mut judgement = found.judgement();
        for operation in found.operations.iter().filter(|operation| operation.note.payer) {
            judgement = judgement.require(operation.outcome.is_ok(), || {
                format!("a payer was refused: {:?}", operation.outcome)
            });
        }
        for (session, batch) in plan.iter().enumerate() {
            let stored = lab.system().read(&batch.id).await?.unwrap_or_default();
            let mut expected: BTreeMap<u64, (u64, u64)> = BTreeMap::new();
            for operation in found.of_session(session) {
                let (sent, remarks) = expected.entry(operation.note.order).or_default();
                *sent += u64::from(operation.note.sent);
                *remarks += u64::from(!operation.note.payer && operation.outcome.is_ok());
            }
            for (order, (sent, remarks)) in expected {
                let entries = stored.get(&format!("order-{order}")).and_then(Value::as_array);
                let count =
                    |what| entries.into_iter().flatten().filter(|entry| **entry == what).count() as u64;
                let what = format!("session {session}: remarks on order {order}");
                judgement = judgement
                    .lost(
                        sent.saturating_sub(count("paid")),
                        format!("session {session}: order {order} was paid without a record"),
                    )
                    .require(sent <= 1, || format!("session {session}: order {order} was paid {sent} times"))
                    .compare(&what, remarks, found.count(session).unknown, count("remark"));
            }
        }
        Ok(judgement)
    }
}

/// The even rank looks, and is then held up until the odd one has claimed, committed and acted; with locks
/// that is after its lease has run out.
pub(super) struct ClaimedEffectHappensOnce;

#[derive(Serialize, Deserialize)]
pub(super) struct Claim {
    round: u64,
    /// Whether the effect happened.
    acted: bool,
}

impl Script for ClaimedEffectHappensOnce {
    type Plan = Vec<Batch>;
    type Note = Claim;

    async fn setup(lab: &Lab) -> Trial<Vec<Batch>> {
        lab.batches(&begun()).await
    }

    async fn work(task: &Task<Claim>, plan: &Vec<Batch>) -> Trial {
        if task.rank() > 1 {
            return Ok(());
        }
        let slow = task.rank() == 0;
        // The other one is to succeed, also on a machine that stands still for a while.
        let system = if slow { task.system() } else { task.system_with(Settings::DEFAULT)? };
        for (session, batch) in plan.iter().enumerate() {
            for round in 0..batch.ops.div_ceil(2) {
                let (claim, looked, acted) = (
                    format!("claim-{round}"),
                    format!("looked {session}/{round}"),
                    format!("acted {session}/{round}"),
                );
                if !slow {
                    task.wait(&looked).await?;
                }
                let begun = task.begin(session);
                let result = async {
                    let mut request = system.request(&batch.id).await?;
                    let mine = request.get(&claim).await?.is_none();
                    if slow {
                        Box::pin(task.signal(&looked, true)).await.map_err(lost)?;
                        Box::pin(task.wait(&acted)).await.map_err(lost)?;
                    }
                    if mine {
                        request.change(&claim, Change::Insert(task.rank().into())).await?;
                    }
                    request.commit().await.map(|_| mine)
                }
                .await;
                // Only who has claimed it acts.
                begun.end(Claim { round, acted: matches!(result, Ok(true)) }, &result);
                // Also who could not even look: the other one waits for no longer than that.
                task.signal(if slow { &looked } else { &acted }, true).await?;
            }
        }
        Ok(())
    }

    async fn judge(_: &Lab, _: &Vec<Batch>, found: &Findings<Claim>) -> Trial<Judgement> {
        let mut judgement = found.judgement();
        for ((session, round), times) in had(found, |note| (note.round, note.acted)) {
            judgement = judgement
                .lost(
                    times.saturating_sub(1),
                    format!("session {session}: effect {round} happened {times} times"),
                )
                .require(times > 0, || format!("session {session}: effect {round} never happened"));
        }
        Ok(judgement)
    }
}

/// The suite's own line broke: that is no verdict on the store, and the cell will say so.
fn lost(trouble: crate::Trouble) -> session_core::Error {
    session_core::Error::new(ErrorKind::Unavailable, "suite").with_source(trouble)
}

pub(super) struct TokenRegenerationHasOneWinner;

#[derive(Serialize, Deserialize)]
pub(super) struct Regenerated {
    old: String,
    new: String,
}

impl Script for TokenRegenerationHasOneWinner {
    type Plan = Vec<Batch>;
    type Note = Regenerated;

    async fn setup(lab: &Lab) -> Trial<Vec<Batch>> {
        lab.batches(&values([("csrf", "first".into())])).await
    }

    async fn work(task: &Task<Regenerated>, plan: &Vec<Batch>) -> Trial {
        let system = task.system();
        let mut turns = task.turns(plan);
        while let Some(turn) = turns.next().await? {
            let new = format!("token-{}", turn.number);
            let mut old = String::new();
            let begun = task.begin(turn.session);
            let result = async {
                let mut session = system.request(turn.id).await?;
                let token = session.get("csrf").await?.unwrap_or_default();
                old = token.as_str().unwrap_or_default().to_owned();
                task.think().await;
                session.change("csrf", Change::Insert(new.clone().into())).await?;
                session.commit().await
            }
            .await;
            begun.end(Regenerated { old, new }, &result);
        }
        Ok(())
    }

    /// The acknowledged replacements are one chain from the first token to the last: two that replaced the
    /// same one cannot be.
    async fn judge(lab: &Lab, plan: &Vec<Batch>, found: &Findings<Regenerated>) -> Trial<Judgement> {
        let mut judgement = found.judgement();
        for (session, batch) in plan.iter().enumerate() {
            let winners = found.of_session(session).filter(|operation| operation.outcome.is_ok());
            let chain =
                Chain::new(winners.map(|winner| (winner.note.old.as_str(), winner.note.new.as_str())));
            for Fork { from, first, second } in chain.forks() {
                judgement = judgement.fault(format!(
                    "session {session}: {first} and {second} both replaced {from}, and both were told that they won"
                ));
            }
            if found.count(session).unknown > 0 {
                continue; // one of them may be a link
            }
            let stored = lab.system().read(&batch.id).await?.unwrap_or_default();
            let last = stored.get("csrf").and_then(Value::as_str).unwrap_or_default();
            let (begun, kept) = chain.behind(last);
            judgement = judgement
                .lost(
                    (chain.len() - kept) as u64,
                    format!(
                        "session {session}: {kept} of {} winners led to {last}, which is stored",
                        chain.len()
                    ),
                )
                .require(begun == "first", || {
                    format!("session {session}: the winners replaced {begun}, which was not there")
                });
        }
        Ok(judgement)
    }
}
