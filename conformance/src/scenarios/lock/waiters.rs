//! Many that wait for one lock: that each is served, and that there are not too many.

use crate::{
    Judgement,
    scenario::{Batch, Findings, Lab, Script, Task, now},
    system::{Change, Id, System, values},
    trouble::Trial,
};
use serde::{Deserialize, Serialize};
use session_core::ErrorKind;
use std::{
    future::{Future as _, poll_fn},
    pin::pin,
    sync::{Arc, Mutex, PoisonError},
    task::Poll,
    time::Duration,
};
use tokio::{sync::oneshot, task::JoinSet, time::sleep};

/// Two queues: that of a process, which is first in, first out; and the store's, where contenders of several
/// processes meet.
///
/// For the second one each task has sessions of its own, as if it were a process.
pub(super) struct WaitersAreAllServed;

/// Longer than all of it takes on a busy machine.
pub(super) const WAIT: Duration = Duration::from_secs(15);

#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Served {
    /// The order in which those of a process were served who came in the order 0, 1, 2, …
    InOrder(Vec<usize>),
    /// When one got the lock from the store.
    Entered(u64),
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Queues {
    /// One for each process.
    of_processes: Vec<Id>,
    at_store: Vec<Batch>,
}

impl WaitersAreAllServed {
    /// How many wait in the queue of a process.
    const QUEUE: usize = 12;

    /// Long enough for the others to be back in the queue, though tokio's timers make the shortest pause one or
    /// two milliseconds: a lock that goes to whoever came last then leaves one of three waiting to the end.
    const HELD: Duration = Duration::from_millis(4);

    /// How many may be served while one waits. In a perfect queue, each of the others once. Where the store
    /// cannot wake its waiters they come and look, and who has looked in vain for long must be let in before
    /// long.
    fn bound(ranks: usize) -> usize {
        40 + 10 * (ranks - 1)
    }

    async fn in_order(system: &Arc<dyn System>, id: &Id) -> Trial<Vec<usize>> {
        let holder = system.request(id).await?;
        let served = Arc::new(Mutex::new(Vec::new()));
        let mut waiting = JoinSet::new();
        for number in 0..Self::QUEUE {
            let (queued, in_queue) = oneshot::channel();
            let (system, id, served) = (Arc::clone(system), id.clone(), Arc::clone(&served));
            waiting.spawn(async move {
                let mut open = pin!(system.request(&id));
                // Its first step takes it as far as the queue.
                let first = poll_fn(|context| Poll::Ready(open.as_mut().poll(context))).await;
                let _nobody_waits = queued.send(());
                let mut request = match first {
                    Poll::Ready(opened) => opened?,
                    Poll::Pending => open.await?,
                };
                served.lock().unwrap_or_else(PoisonError::into_inner).push(number);
                request.change("count", Change::Add(1)).await?;
                request.commit().await
            });
            drop(in_queue.await); // one that failed says so below
        }
        drop(holder);
        while let Some(ended) = waiting.join_next().await {
            ended.map_err(|error| crate::Trouble::wrong(error.to_string()))??;
        }
        let served = served.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(served.clone())
    }
}

impl Script for WaitersAreAllServed {
    type Plan = Queues;
    type Note = Served;

    async fn setup(lab: &Lab) -> Trial<Queues> {
        let values = values([("count", 0.into())]);
        let mut of_processes = Vec::new();
        for _ in 0..lab.processes() {
            of_processes.push(lab.system().create(&values).await?);
        }
        Ok(Queues { of_processes, at_store: lab.batches(&values).await? })
    }

    async fn work(task: &Task<Served>, plan: &Queues) -> Trial {
        if task.rank().is_multiple_of(task.tasks()) {
            let begun = task.begin(plan.at_store.len() + task.process());
            let order = Self::in_order(&task.system(), &plan.of_processes[task.process()]).await?;
            begun.end(Served::InOrder(order), &Ok(()));
        }
        let system = task.system_over(Arc::clone(task.store()))?;
        let mut turns = task.turns(&plan.at_store);
        while let Some(turn) = turns.next().await? {
            task.think().await;
            let begun = task.begin(turn.session);
            let mut entered = 0;
            let write = async {
                let mut request = system.request(turn.id).await?;
                entered = now();
                request.change("count", Change::Add(1)).await?;
                sleep(Self::HELD).await;
                request.commit().await
            };
            let written = write.await;
            begun.end(Served::Entered(entered), &written);
            if written.is_err() {
                break; // one is enough, and each of the others would wait as long
            }
        }
        Ok(())
    }

    async fn judge(lab: &Lab, plan: &Queues, found: &Findings<Served>) -> Trial<Judgement> {
        let mut judgement = found.judgement();
        let (mut most, bound) = (0, Self::bound(lab.ranks()));
        for (session, batch) in plan.at_store.iter().enumerate() {
            let count = found.count(session);
            let stored = lab.system().number(&batch.id, "count").await?;
            let what = format!("session {session}");
            judgement = judgement
                .compare(&what, count.acknowledged, count.unknown, stored)
                .require(count.rejected == 0, || format!("{what}: {} waited in vain", count.rejected));
            let mut entries: Vec<u64> = found
                .of_session(session)
                .filter_map(|one| match one.note {
                    Served::Entered(at) if one.outcome.is_ok() => Some(at),
                    _ => None,
                })
                .collect();
            entries.sort_unstable();
            for one in found.of_session(session) {
                let Served::Entered(entered) = one.note else { continue };
                let before = entries.partition_point(|at| *at < entered);
                let meanwhile = before - entries.partition_point(|at| *at < one.start).min(before);
                most = most.max(meanwhile);
                judgement = judgement.require(meanwhile <= bound, || {
                    let rank = one.rank;
                    format!("{what}: {meanwhile} others were served while task {rank} waited, at most {bound} are fair")
                });
            }
        }
        for one in &found.operations {
            let Served::InOrder(order) = &one.note else { continue };
            judgement = judgement
                .require(order.is_sorted(), || format!("in one process, in the order of coming: {order:?}"))
                .require(order.len() == Self::QUEUE, || {
                    format!("{} of {} were served", order.len(), Self::QUEUE)
                });
        }
        Ok(judgement
            .note(format!("at most {most} others were served while one waited, of {} tasks", lab.ranks())))
    }
}

/// Tasks of a process, of which one holds the lock.
pub(super) const CROWD: usize = 8;
/// How many of the others may wait.
pub(super) const MOST: usize = 3;

/// The holder stays until all that are too many have been refused, so that who was refused was refused at
/// once.
pub(super) struct TooManyWaitersAreRefused;

impl TooManyWaitersAreRefused {
    const REFUSED: usize = CROWD - 1 - MOST;

    async fn hold(task: &Task<u64>, id: &Id, process: usize) -> Trial {
        // A control refuses nobody: to find that out takes no longer than it must.
        let patience = if task.strategy().is_control() { 300 } else { 10_000 };
        let begun = task.begin(process);
        let mut request = task.system().request(id).await?;
        task.signal(format!("held/{process}"), true).await?;
        let all = Self::REFUSED + 1;
        task.barrier_of(format!("refused/{process}"), all, Duration::from_millis(patience)).await?;
        let left = now();
        let commit = async {
            request.change("count", Change::Add(1)).await?;
            request.commit().await
        };
        let committed = commit.await;
        begun.end(left, &committed);
        Ok(())
    }

    async fn want(task: &Task<u64>, id: &Id, process: usize) -> Trial {
        task.wait(format!("held/{process}")).await?;
        let system = task.system();
        let begun = task.begin(process);
        let write = async {
            let mut request = system.request(id).await?;
            request.change("count", Change::Add(1)).await?;
            request.commit().await
        };
        let written = write.await;
        begun.end(0, &written);
        if written.is_err() {
            let all = Self::REFUSED + 1;
            task.barrier_of(format!("refused/{process}"), all, Duration::ZERO).await?;
        }
        Ok(())
    }
}

impl Script for TooManyWaitersAreRefused {
    /// A session for each process.
    type Plan = Vec<Id>;
    /// When the holder left.
    type Note = u64;

    async fn setup(lab: &Lab) -> Trial<Vec<Id>> {
        let mut ids = Vec::new();
        for _ in 0..lab.processes() {
            ids.push(lab.system().create(&values([("count", 0.into())])).await?);
        }
        Ok(ids)
    }

    async fn work(task: &Task<u64>, plan: &Vec<Id>) -> Trial {
        let process = task.process();
        if task.rank().is_multiple_of(task.tasks()) {
            Self::hold(task, &plan[process], process).await
        } else {
            Self::want(task, &plan[process], process).await
        }
    }

    async fn judge(lab: &Lab, plan: &Vec<Id>, found: &Findings<u64>) -> Trial<Judgement> {
        let mut judgement = found.judgement();
        for (process, id) in plan.iter().enumerate() {
            let count = found.count(process);
            let stored = lab.system().number(id, "count").await?;
            let what = format!("process {process}");
            judgement = judgement.compare(&what, count.acknowledged, count.unknown, stored);
            let left = found.of_session(process).map(|one| one.note).max().unwrap_or_default();
            let refused: Vec<_> = found.of_session(process).filter(|one| !one.outcome.is_ok()).collect();
            let at_once = refused.iter().filter(|one| one.end <= left).count();
            judgement = judgement.require(at_once == Self::REFUSED && refused.len() == at_once, || {
                format!(
                    "{what}: {} of {} were refused, {at_once} of them at once; {MOST} may wait, so {} are too many",
                    refused.len(),
                    CROWD - 1,
                    Self::REFUSED
                )
            });
            for one in refused {
                judgement = judgement.require(one.outcome.failed_with(ErrorKind::Busy), || {
                    format!("{what}: refused with {:?}", one.outcome)
                });
            }
        }
        Ok(judgement)
    }
}
