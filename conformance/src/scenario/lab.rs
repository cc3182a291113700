//! What the parent of a scenario works with: before the tasks, and after them.

use super::Terms;
use crate::{
    Strategy,
    disk::Disk,
    servers::ServerControl,
    system::{Id, System, Systems, Values},
    trouble::Trial,
};
use serde::{Deserialize, Serialize};
use session_core::{Capabilities, LockingStore, SessionId, SystemRandom};
use std::sync::Arc;

/// The most operations on one session.
const BATCH: u64 = 500;

/// A session, and how many operations the tasks together do on it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Batch {
    /// The session.
    pub id: Id,
    /// The operations.
    pub ops: u64,
}

/// The parent's view of a cell: it prepares, and it judges.
#[derive(Clone, Debug)]
pub struct Lab {
    pub(crate) terms: Terms,
    pub(crate) systems: Systems,
    pub(crate) control: Option<Arc<dyn ServerControl>>,
    pub(crate) disks: Vec<Arc<dyn Disk>>,
}

impl Lab {
    /// The strategy of this cell.
    #[must_use]
    pub fn strategy(&self) -> Strategy {
        self.terms.strategy
    }

    /// The operations of this cell, all tasks together; capped as the scenario says.
    #[must_use]
    pub fn ops(&self) -> u64 {
        self.terms.ops
    }

    /// All tasks of all processes.
    #[must_use]
    pub fn ranks(&self) -> usize {
        self.terms.ranks()
    }

    /// How many processes work.
    #[must_use]
    pub fn processes(&self) -> usize {
        self.terms.processes
    }

    /// The seed of this cell.
    #[must_use]
    pub fn seed(&self) -> u64 {
        self.terms.seed
    }

    /// The store under test.
    #[must_use]
    pub fn store(&self) -> &Arc<dyn LockingStore> {
        self.systems.store()
    }

    /// What it promises.
    #[must_use]
    pub fn capabilities(&self) -> Capabilities {
        self.store().capabilities()
    }

    /// What restarts, pauses and cuts its server; there for whoever needs
    /// [`Need::Control`](super::Need::Control).
    #[must_use]
    pub fn control(&self) -> Option<&Arc<dyn ServerControl>> {
        self.control.as_ref()
    }

    /// Disks with stores of their own; there for whoever needs [`Need::Disk`](super::Need::Disk).
    #[must_use]
    pub fn disks(&self) -> &[Arc<dyn Disk>] {
        &self.disks
    }

    /// Sessions by the strategy of this cell.
    #[must_use]
    pub fn system(&self) -> Arc<dyn System> {
        self.systems.of(self.strategy())
    }

    /// Sessions by another strategy on the same store.
    #[must_use]
    pub fn system_of(&self, strategy: Strategy) -> Arc<dyn System> {
        self.systems.of(strategy)
    }

    /// The product itself, where a scenario is about more than [`System`] can say.
    #[must_use]
    pub fn sessions(&self) -> &session_core::Sessions {
        self.systems.sessions()
    }

    /// An id that nobody has used, for scenarios about drivers.
    ///
    /// # Errors
    /// When there is no randomness.
    pub fn fresh_id(&self) -> Trial<Id> {
        Ok(Id::new(SessionId::random(&SystemRandom)?.expose()))
    }

    /// Spreads the operations of the cell over fresh sessions that each begin with these values.
    ///
    /// # Errors
    /// When a session cannot be made.
    pub async fn batches(&self, values: &Values) -> Trial<Vec<Batch>> {
        let mut batches = Vec::new();
        for ops in shares(self.ops()) {
            batches.push(Batch { id: self.system().create(values).await?, ops });
        }
        Ok(batches)
    }

    /// Spreads the operations of the cell over fresh ids under which there is nothing yet.
    ///
    /// # Errors
    /// When there is no randomness.
    pub fn empty_batches(&self) -> Trial<Vec<Batch>> {
        shares(self.ops()).map(|ops| Ok(Batch { id: self.fresh_id()?, ops })).collect()
    }
}

/// The operations by session.
fn shares(ops: u64) -> impl Iterator<Item = u64> {
    (0..ops.div_ceil(BATCH)).map(move |batch| BATCH.min(ops - batch * BATCH))
}

#[cfg(test)]
mod tests {
    use super::shares;

    #[test]
    fn no_session_gets_more_than_five_hundred() {
        assert_eq!(shares(1200).collect::<Vec<_>>(), [500, 500, 200]);
        assert_eq!(shares(500).collect::<Vec<_>>(), [500]);
        assert_eq!(shares(0).count(), 0);
    }
}
