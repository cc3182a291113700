//! The worker's end of the pipe.

use super::{FromWorker, Job, ToWorker, end};
use crate::{
    scenario::Request,
    trouble::{Trial, Trouble},
};
use serde_json::Value;
use std::{
    collections::HashMap,
    io::{BufRead as _, Write as _},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};
use tokio::sync::{mpsc, oneshot};

/// Questions to the parent, and their answers.
#[derive(Debug, Default)]
pub(crate) struct Line {
    next: AtomicU64,
    waiting: Mutex<HashMap<u64, oneshot::Sender<Trial<Value>>>>,
}

/// What the parent says unasked.
pub(super) struct Orders(mpsc::UnboundedReceiver<ToWorker>);

impl Line {
    /// Begins to listen, on a thread of its own: reading standard input blocks.
    pub(super) fn open() -> (Arc<Self>, Orders) {
        let line = Arc::new(Self::default());
        let (orders, received) = mpsc::unbounded_channel();
        let listening = Arc::clone(&line);
        std::thread::spawn(move || {
            for text in std::io::stdin().lock().lines() {
                let Ok(text) = text else { break };
                match serde_json::from_str(&text) {
                    Ok(ToWorker::Answer { id, reply }) => listening.resolve(id, reply),
                    Ok(order) => drop(orders.send(order)), // who no longer waits for orders needs none
                    Err(error) => {
                        let why = Trouble::unproven(format!("the parent said what no parent says: {error}"));
                        listening.say(&FromWorker::Failed(why));
                    }
                }
            }
            end()
        });
        (line, Orders(received))
    }

    /// Tells the parent; without a parent, ends.
    pub(super) fn say(&self, message: &FromWorker) {
        let Ok(mut text) = serde_json::to_vec(message) else { end() };
        text.push(b'\n');
        let mut out = std::io::stdout().lock();
        if out.write_all(&text).and_then(|()| out.flush()).is_err() {
            end()
        }
    }

    /// Asks the parent and waits for its answer.
    pub(crate) async fn ask(&self, request: Request) -> Trial<Value> {
        let (answer, answered) = oneshot::channel();
        let id = self.next.fetch_add(1, Relaxed);
        self.waiting().insert(id, answer);
        self.say(&FromWorker::Ask { id, request });
        answered.await.unwrap_or_else(|_| Err(Trouble::unproven("the parent is gone")))
    }

    fn resolve(&self, id: u64, reply: Trial<Value>) {
        if let Some(answer) = self.waiting().remove(&id) {
            drop(answer.send(reply)); // who no longer waits needs no answer
        }
    }

    fn waiting(&self) -> MutexGuard<'_, HashMap<u64, oneshot::Sender<Trial<Value>>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Orders {
    pub(super) async fn job(&mut self) -> Trial<Job> {
        match self.0.recv().await {
            Some(ToWorker::Job(job)) => Ok(*job),
            other => Err(Trouble::unproven(format!("expected a job, heard {other:?}"))),
        }
    }

    pub(super) async fn go(&mut self) -> Trial {
        match self.0.recv().await {
            Some(ToWorker::Go) => Ok(()),
            other => Err(Trouble::unproven(format!("expected to be let go, heard {other:?}"))),
        }
    }
}
