//! The end of a session, against everybody who is still at it.

use super::belonging;
use crate::{
    Judgement,
    scenario::{Findings, Lab, Script, Task, now},
    system::{Change, Id, values},
    trouble::{Trial, Trouble},
};
use serde::{Deserialize, Serialize};
use session_core::{Error, ErrorKind, Result, Touched};
use std::time::Duration;

/// The suite's own line broke: that is no verdict on the store, and the cell will say so.
fn suite(trouble: Trouble) -> Error {
    Error::new(ErrorKind::Unavailable, "suite").with_source(trouble)
}

/// Sessions with a counter, each for one round: all ranks are at one at the same time.
async fn rounds(lab: &Lab, values: &crate::system::Values) -> Trial<Vec<Id>> {
    let mut ids = Vec::new();
    for _ in 0..lab.ops().div_ceil(lab.ranks() as u64) {
        ids.push(lab.system().create(values).await?);
    }
    Ok(ids)
}

/// One rank destroys while the others write: requests that were opened before, and requests that come after.
pub(super) struct DestroyedIsNotRevived;

#[derive(Serialize, Deserialize)]
pub(super) enum Deed {
    Write,
    Destroy,
}

impl Script for DestroyedIsNotRevived {
    type Plan = Vec<Id>;
    type Note = Deed;

    async fn setup(lab: &Lab) -> Trial<Vec<Id>> {
        rounds(lab, &values([("counter", 0.into())])).await
    }

    async fn work(task: &Task<Deed>, plan: &Vec<Id>) -> Trial {
        let system = task.system();
        for (round, id) in plan.iter().enumerate() {
            task.barrier(format!("round {round}")).await?;
            if round % task.ranks() == task.rank() {
                task.think().await;
                task.attempt(round, Deed::Destroy, system.destroy(id)).await;
            } else {
                for _ in 0..3 {
                    let write = async {
                        let mut session = system.request(id).await?;
                        task.think().await;
                        session.change("counter", Change::Add(1)).await?;
                        session.commit().await
                    };
                    task.attempt(round, Deed::Write, write).await;
                }
            }
        }
        Ok(())
    }

    async fn judge(lab: &Lab, plan: &Vec<Id>, found: &Findings<Deed>) -> Trial<Judgement> {
        let mut judgement = found.judgement();
        for (round, id) in plan.iter().enumerate() {
            let destroyed = found
                .of_session(round)
                .find(|operation| operation.outcome.is_ok() && matches!(operation.note, Deed::Destroy));
            let Some(destroyed) = destroyed else {
                judgement = judgement.fault(format!("session {round}: it could not be destroyed"));
                continue;
            };
            let back = lab.system().read(id).await?;
            judgement = judgement.lost(
                u64::from(back.is_some()),
                format!("session {round}: destroyed, and there again: {back:?}"),
            );
            let late = found.of_session(round).filter(|write| matches!(write.note, Deed::Write));
            for write in late.filter(|write| write.start > destroyed.end && write.outcome.is_ok()) {
                judgement = judgement.fault(format!(
                    "session {round}: a write that began {} µs after the destroy was acknowledged",
                    write.start - destroyed.end
                ));
            }
        }
        if lab.strategy().is_control() {
            Ok(judgement)
        } else {
            dead_for_the_driver(lab, plan, judgement).await
        }
    }
}

/// What the driver says of a record that was destroyed, to somebody who knew its version.
async fn dead_for_the_driver(lab: &Lab, plan: &[Id], mut judgement: Judgement) -> Trial<Judgement> {
    let (store, ttl) = (lab.store(), Duration::from_secs(600));
    for id in plan.iter().take(3) {
        let fresh = lab.system().create(&values([("counter", 0.into())])).await?;
        let Some(stored) = store.load(&fresh.key()?).await? else { continue };
        lab.system().destroy(&fresh).await?;
        for key in [fresh.key()?, id.key()?] {
            let put = session_core::Put::new(stored.data.clone(), ttl);
            let replaced = store.replace(&key, stored.version, &put).await?;
            let touched = store.touch(&key, stored.version, ttl).await?;
            let loaded = store.load(&key).await?;
            judgement = judgement
                .require(matches!(replaced, session_core::Replaced::Missing), || {
                    format!("a replace after the destroy answered {replaced:?}")
                })
                .require(touched == Touched::Missing, || {
                    format!("a touch after the destroy answered {touched:?}")
                })
                .require(loaded.is_none(), || format!("after the destroy there is {loaded:?}"));
        }
    }
    Ok(judgement)
}

/// The holder destroys the session under the lock for which all others queue.
pub(super) struct DestroyWhileWaitersQueue;

impl Script for DestroyWhileWaitersQueue {
    type Plan = Vec<Id>;
    /// Whether there was a session when the lock was had.
    type Note = bool;

    async fn setup(lab: &Lab) -> Trial<Vec<Id>> {
        rounds(lab, &values([("counter", 0.into())])).await
    }

    async fn work(task: &Task<bool>, plan: &Vec<Id>) -> Trial {
        let system = task.system();
        for (round, id) in plan.iter().enumerate() {
            let (held, holder) = (format!("held {round}"), round % task.ranks() == task.rank());
            if !holder {
                task.wait(&held).await?;
                let begun = task.begin(round);
                let opened = system.open(id).await;
                let there = matches!(opened, Ok(Some(_)));
                begun.end(there, &opened);
                continue;
            }
            let begun = task.begin(round);
            let result: Result<()> = async {
                let mut session = system.request(id).await?;
                task.signal(&held, now())
                    .await
                    .map_err(|trouble| Error::new(ErrorKind::Unavailable, "suite").with_source(trouble))?;
                // The others come to the lock meanwhile; whoever is later finds nothing, which is right, too.
                tokio::time::sleep(Duration::from_millis(10)).await;
                session.destroy().await?;
                session.commit().await.map(drop)
            }
            .await;
            begun.end(false, &result);
        }
        Ok(())
    }

    async fn judge(lab: &Lab, plan: &Vec<Id>, found: &Findings<bool>) -> Trial<Judgement> {
        let mut judgement = found.judgement();
        for operation in &found.operations {
            let round = operation.session;
            judgement = judgement
                .require(operation.outcome.is_ok(), || format!("session {round}: {:?}", operation.outcome))
                .require(!operation.note, || {
                    format!("session {round}: a waiter got the lock and the old data")
                });
        }
        for (round, id) in plan.iter().enumerate() {
            let back = lab.system().read(id).await?;
            judgement =
                judgement.require(back.is_none(), || format!("session {round}: there again: {back:?}"));
        }
        Ok(judgement)
    }
}

/// One rank ends all sessions of a user while the others write to them and rotate them.
pub(super) struct RevokeAllBeatsWriters;

impl RevokeAllBeatsWriters {
    const USER: &'static str = "revoked@example.org";
}

#[derive(Serialize, Deserialize)]
pub(super) enum Act {
    Revoke,
    Write,
    /// The id that it was given, if it was.
    Rotate(Option<Id>),
}

impl Script for RevokeAllBeatsWriters {
    type Plan = Vec<Id>;
    type Note = Act;

    async fn setup(lab: &Lab) -> Trial<Vec<Id>> {
        if lab.ranks() < 2 {
            return Err(Trouble::unproven("one task alone has no writers against it"));
        }
        let ids = rounds(lab, &values([("counter", 0.into())])).await?;
        let mut sessions = Vec::new();
        for id in ids {
            let mut session = lab.system().request(&id).await?;
            session.set_principal(Self::USER).await?;
            session.commit().await?;
            sessions.push(id);
        }
        Ok(sessions)
    }

    async fn work(task: &Task<Act>, plan: &Vec<Id>) -> Trial {
        let system = task.system();
        task.barrier("start").await?;
        if task.rank() == 0 {
            task.think().await;
            task.wait("opened").await?;
            task.attempt(0, Act::Revoke, system.revoke_all(Self::USER)).await;
            return task.signal("revoked", true).await;
        }
        for (number, id) in plan.iter().enumerate() {
            let straddles = number == 0; // one request was opened before, and commits after
            if straddles && task.rank() != 1 {
                continue;
            }
            let begun = task.begin(number);
            let rotates = (number + task.rank()).is_multiple_of(3);
            let result = async {
                let mut session = system.request(id).await?;
                if straddles {
                    task.signal("opened", true).await.map_err(suite)?;
                    task.wait("revoked").await.map_err(suite)?;
                } else {
                    task.think().await;
                }
                if rotates {
                    session.rotate().await?;
                } else {
                    session.change("counter", Change::Add(1)).await?;
                }
                session.commit().await
            }
            .await;
            let new = result.as_ref().ok().cloned().flatten();
            begun.end(if rotates { Act::Rotate(new) } else { Act::Write }, &result);
        }
        Ok(())
    }

    async fn judge(lab: &Lab, plan: &Vec<Id>, found: &Findings<Act>) -> Trial<Judgement> {
        let mut judgement = found.judgement();
        let revoked = found.operations.iter().find(|operation| matches!(operation.note, Act::Revoke));
        judgement = judgement.require(revoked.is_some_and(|operation| operation.outcome.is_ok()), || {
            format!("the sessions could not be revoked: {:?}", revoked.map(|operation| &operation.outcome))
        });
        let given = found.operations.iter().filter_map(|operation| match &operation.note {
            Act::Rotate(id) => id.as_ref(),
            Act::Revoke | Act::Write => None,
        });
        let mut living = 0;
        for id in plan.iter().chain(given) {
            living += u64::from(lab.system().read(id).await?.is_some());
        }
        judgement = judgement.lost(living, format!("{living} sessions of the user live on"));
        if !lab.strategy().is_control() {
            let listed = lab.sessions().for_principal(Self::USER).await?.len();
            judgement =
                judgement.require(listed == 0, || format!("the index still names {listed} living sessions"));
            // That what was refused, locked or deleted is shown as the user's, too, is not left to chance.
            judgement = belonging::by_every_verb(lab, judgement).await?;
        }
        Ok(judgement)
    }
}
