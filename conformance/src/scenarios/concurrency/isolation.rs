//! Sessions beside each other.

use crate::{
    Judgement,
    scenario::{Findings, Lab, Script, Task},
    system::{Change, Id, values},
    trouble::Trial,
};
use serde_json::Value;
use session_core::Result;

/// Sessions are made, opened all at once, changed and read, each with a secret that no other has.
pub(super) struct SessionsDoNotMix;

impl SessionsDoNotMix {
    /// Sessions for each operation that is asked for, up to the ten thousand of the claim.
    const EACH: u64 = 5;
    const MOST: u64 = 10_000;
    /// How many one task has open at a time.
    const OPEN: usize = 64;

    fn sessions(ops: u64) -> u64 {
        (ops * Self::EACH).min(Self::MOST)
    }

    /// What it found in another session's place, if anything.
    async fn visit(task: &Task<Option<String>>, id: &Id, secret: &str) -> Result<Option<String>> {
        let mut session = task.system().request(id).await?;
        let seen = session.get("secret").await?;
        session.change("visits", Change::Add(1)).await?;
        tokio::task::yield_now().await;
        session.commit().await?;
        let stored = task.system().read(id).await?.unwrap_or_default();
        let wrong = [seen.as_ref(), stored.get("secret")]
            .into_iter()
            .find(|found| found.and_then(Value::as_str) != Some(secret))
            .map(|found| format!("{found:?} instead of {secret}"));
        let visits = stored.get("visits").and_then(Value::as_u64).unwrap_or_default();
        Ok(wrong.or_else(|| (visits != 1).then(|| format!("{visits} visits instead of one"))))
    }
}

impl Script for SessionsDoNotMix {
    /// The number of sessions.
    type Plan = u64;
    /// What was wrong.
    type Note = Option<String>;

    async fn setup(lab: &Lab) -> Trial<u64> {
        Ok(Self::sessions(lab.ops()))
    }

    async fn work(task: &Task<Option<String>>, plan: &u64) -> Trial {
        let mine: Vec<_> =
            (0..*plan).filter(|number| *number as usize % task.ranks() == task.rank()).collect();
        let mut sessions = Vec::new();
        for number in mine {
            let secret = format!("secret-{number}");
            sessions.push((
                number,
                task.system().create(&values([("secret", secret.as_str().into())])).await?,
                secret,
            ));
        }
        // All are there before the first is visited.
        task.barrier("made").await?;
        for some in sessions.chunks(Self::OPEN) {
            let visits = some.iter().map(|(number, id, secret)| async move {
                let begun = task.begin(*number as usize);
                let visited = Self::visit(task, id, secret).await;
                begun.end(visited.as_ref().ok().cloned().flatten(), &visited);
            });
            futures_util::future::join_all(visits).await;
        }
        Ok(())
    }

    async fn judge(_: &Lab, plan: &u64, found: &Findings<Option<String>>) -> Trial<Judgement> {
        let mut judgement = found.judgement().note(format!("{plan} sessions"));
        for operation in &found.operations {
            judgement = judgement
                .require(operation.outcome.is_ok(), || format!("a visit failed: {:?}", operation.outcome))
                .require(operation.note.is_none(), || {
                    format!("session {}: {}", operation.session, operation.note.clone().unwrap_or_default())
                });
        }
        Ok(judgement)
    }
}
