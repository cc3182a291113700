//! Requests of one session that need not wait for each other, and those that must.

use crate::{
    Judgement, Strategy,
    scenario::{Batch, Findings, Lab, Script, Task, now},
    system::{Change, OpenSession, values},
    trouble::Trial,
};
use serde_json::Value;
use session_core::{Access, Error, ErrorKind, Result};
use std::time::Duration;

/// How many requests must be in their handlers at once.
const AT_ONCE: usize = 10;

/// How long they wait for each other there.
const PATIENCE: Duration = Duration::from_secs(3);

/// The place of this task among the ten, spread over the processes; `None` for those that are not needed.
fn place<N: serde::Serialize + Send>(task: &Task<N>) -> Option<usize> {
    let step = (task.ranks() / AT_ONCE).max(1);
    (task.rank().is_multiple_of(step) && task.rank() / step < AT_ONCE).then_some(task.rank() / step)
}

/// One session, and the ten once on it.
async fn one_session(lab: &Lab) -> Trial<Vec<Batch>> {
    let id = lab.system().create(&values([("greeting", "hello".into())])).await?;
    Ok(vec![Batch { id, ops: AT_ONCE as u64 }])
}

/// Waits inside the handler until all ten are inside theirs. Who gave up once does not keep the others
/// waiting.
async fn meet<N: serde::Serialize + Send>(task: &Task<N>) -> Result<bool> {
    let suite = |trouble: crate::Trouble| Error::new(ErrorKind::Unavailable, "suite").with_source(trouble);
    if !task.wait_at_most("gave up", Duration::ZERO).await.map_err(suite)?.is_null() {
        return Ok(false);
    }
    let met = task.barrier_of("inside", AT_ONCE, PATIENCE).await.map_err(suite)?;
    if !met {
        task.signal("gave up", true).await.map_err(suite)?;
    }
    Ok(met)
}

pub(super) struct ReadsRunInParallel;

impl Script for ReadsRunInParallel {
    type Plan = Vec<Batch>;
    /// Whether it met the others inside, and what it read.
    type Note = (bool, Option<Value>);

    async fn setup(lab: &Lab) -> Trial<Vec<Batch>> {
        one_session(lab).await
    }

    async fn work(task: &Task<Self::Note>, plan: &Vec<Batch>) -> Trial {
        let (Some(_), [batch]) = (place(task), plan.as_slice()) else { return Ok(()) };
        let mut note = (false, None);
        let begun = task.begin(0);
        let result = async {
            // The controls know one way to open a session; the product's readers say that they only read.
            if task.strategy().is_control() {
                let mut session = task.system().request(&batch.id).await?;
                note = (meet(task).await?, session.get("greeting").await?);
                return session.commit().await.map(drop);
            }
            let gone = || Error::new(ErrorKind::Gone, "open");
            let id = batch.id.session_id().ok_or_else(gone)?;
            let session = task.sessions().open(&id, Access::Read).await?.ok_or_else(gone)?;
            const GREETING: session_core::Key<Value> = session_core::Key::new("greeting");
            note = (meet(task).await?, session.get(GREETING)?);
            session.commit().await
        }
        .await;
        begun.end(note, &result);
        Ok(())
    }

    async fn judge(_: &Lab, _: &Vec<Batch>, found: &Findings<Self::Note>) -> Trial<Judgement> {
        let mut judgement = found.judgement().note(duration(found));
        let met = found.operations.iter().filter(|read| read.note.0).count();
        judgement = judgement.require(met == AT_ONCE, || {
            format!("{met} of {AT_ONCE} readers were inside their handlers at once")
        });
        for read in &found.operations {
            judgement = judgement
                .require(read.outcome.is_ok(), || format!("a reader was refused: {:?}", read.outcome))
                .require(read.note.1 == Some("hello".into()), || format!("a reader saw {:?}", read.note.1));
        }
        Ok(judgement)
    }
}

pub(super) struct WritersRunInParallel;

impl WritersRunInParallel {
    /// What a handler of this scenario takes.
    const WORK: Duration = Duration::from_millis(200);

    /// Whether writers of this strategy wait for each other.
    const fn locks(strategy: Strategy) -> bool {
        matches!(strategy, Strategy::LockOnly | Strategy::Exclusive)
    }

    async fn handle(
        task: &Task<(u64, u64)>,
        session: &mut Box<dyn OpenSession>,
        place: usize,
    ) -> Result<(u64, u64)> {
        let entered = now();
        if !Self::locks(task.strategy()) && !meet(task).await? {
            return Err(
                Error::new(ErrorKind::Busy, "handler").with_context("the writers were not inside at once")
            );
        }
        tokio::time::sleep(Self::WORK).await;
        session.change(&format!("item-{place}"), Change::Insert(place.into())).await?;
        Ok((entered, now()))
    }
}

impl Script for WritersRunInParallel {
    type Plan = Vec<Batch>;
    /// When it was inside its handler.
    type Note = (u64, u64);

    async fn setup(lab: &Lab) -> Trial<Vec<Batch>> {
        one_session(lab).await
    }

    async fn work(task: &Task<(u64, u64)>, plan: &Vec<Batch>) -> Trial {
        let (Some(place), [batch]) = (place(task), plan.as_slice()) else { return Ok(()) };
        let mut inside = (0, 0);
        let begun = task.begin(0);
        let result = async {
            let mut session = task.system().request(&batch.id).await?;
            inside = Self::handle(task, &mut session, place).await?;
            session.commit().await
        }
        .await;
        begun.end(inside, &result);
        Ok(())
    }

    async fn judge(lab: &Lab, plan: &Vec<Batch>, found: &Findings<(u64, u64)>) -> Trial<Judgement> {
        let [batch] = plan.as_slice() else { return Ok(Judgement::default().unproven("no session")) };
        let stored = lab.system().read(&batch.id).await?.unwrap_or_default();
        let kept = (0..AT_ONCE).filter(|place| stored.contains_key(&format!("item-{place}"))).count() as u64;
        let mut judgement = found.judgement().note(duration(found));
        for write in &found.operations {
            judgement = judgement
                .require(write.outcome.is_ok(), || format!("a writer was refused: {:?}", write.outcome));
        }
        if Self::locks(lab.strategy()) {
            let mut inside: Vec<_> = found.acknowledged().map(|write| write.note).collect();
            inside.sort_unstable();
            let together = inside.windows(2).filter(|pair| pair[1].0 < pair[0].1).count();
            judgement = judgement
                .require(together == 0, || format!("{together} writers were inside with another one"));
        }
        let acknowledged = judgement.acknowledged;
        Ok(judgement.compare("items", acknowledged, 0, kept))
    }
}

/// How long all of them took together: reported, never judged.
fn duration<N>(found: &Findings<N>) -> String {
    let (start, end) = (
        found.operations.iter().map(|operation| operation.start).min().unwrap_or_default(),
        found.operations.iter().map(|operation| operation.end).max().unwrap_or_default(),
    );
    format!("{} requests in {} ms", found.operations.len(), (end - start) / 1000)
}
