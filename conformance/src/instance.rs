//! A store to be judged.

use crate::{disk::Disk, servers::ServerControl};
use session_core::LockingStore;
use std::{any::Any, fmt, sync::Arc};

/// One fresh store: every cell of the matrix gets its own.
///
/// ```
/// use session_conformance::Instance;
/// use session_core::MemoryStore;
/// use std::sync::Arc;
///
/// let instance = Instance::new(Arc::new(MemoryStore::default()));
/// ```
#[non_exhaustive]
pub struct Instance {
    /// What is judged.
    pub store: Arc<dyn LockingStore>,
    /// Dropped at the end of the scenario: cleans up.
    pub guard: Box<dyn Any + Send>,
    /// What restarts, pauses and cuts its server, where there is one. Without it the scenarios that do so are
    /// `absent`.
    pub control: Option<Arc<dyn ServerControl>>,
    /// How a worker process finds the same store: a path, a URL, whatever the worker's `connect` understands.
    pub address: Option<String>,
    /// For a store that keeps files: one disk for each way in which it can be told to keep them, to be
    /// treated badly. Without any, the scenarios that do so are `absent`.
    pub disks: Vec<Arc<dyn Disk>>,
}

impl Instance {
    /// A store that needs no cleaning up.
    #[must_use]
    pub fn new(store: Arc<dyn LockingStore>) -> Self {
        Self { store, guard: Box::new(()), control: None, address: None, disks: Vec::new() }
    }

    /// What to drop at the end.
    #[must_use]
    pub fn guard(mut self, guard: impl Any + Send) -> Self {
        self.guard = Box::new(guard);
        self
    }

    /// What has power over its server.
    #[must_use]
    pub fn control(mut self, control: Arc<dyn ServerControl>) -> Self {
        self.control = Some(control);
        self
    }

    /// Where workers find it.
    #[must_use]
    pub fn address(mut self, address: impl Into<String>) -> Self {
        self.address = Some(address.into());
        self
    }

    /// What has power over its disks.
    #[must_use]
    pub fn disks(mut self, disks: Vec<Arc<dyn Disk>>) -> Self {
        self.disks = disks;
        self
    }
}

impl fmt::Debug for Instance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Instance")
            .field("store", &self.store)
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}
