//! A store that does not hear its holders: their leases run out under them.

use crate::wrapper::{Wrapper, wrap};
use async_trait::async_trait;
use session_core::{Grant, LockingStore, Renewed, Result};
use std::{sync::Arc, time::Duration};
use tokio::sync::watch;

/// What becomes of a renewal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Deafness {
    /// It is answered, and never reaches the store.
    Swallows,
    /// It reaches the store when [`Ear::open`] lets it.
    Delays,
}

/// The scenario's hold on a deaf store.
#[derive(Clone, Debug)]
pub(super) struct Ear(Arc<watch::Sender<Renewals>>);

#[derive(Debug, Default)]
struct Renewals {
    open: bool,
    under_way: usize,
    revived: bool,
}

#[derive(Debug)]
struct Deaf {
    inner: Arc<dyn LockingStore>,
    deafness: Deafness,
    ear: Ear,
}

/// The store, deaf, and the hold on it.
pub(super) fn deafen(inner: &Arc<dyn LockingStore>, deafness: Deafness) -> (Arc<dyn LockingStore>, Ear) {
    let ear = Ear(Arc::default());
    (wrap(Deaf { inner: Arc::clone(inner), deafness, ear: ear.clone() }), ear)
}

impl Ear {
    /// Lets the delayed renewals through, and waits until they have been answered. Whether one of them was
    /// granted.
    pub(super) async fn open(&self) -> bool {
        self.0.send_modify(|renewals| renewals.open = true);
        self.until(|renewals| renewals.under_way == 0).await;
        self.0.borrow().revived
    }

    async fn until(&self, reached: impl FnMut(&Renewals) -> bool) {
        // The sender is in this very value: it cannot be gone.
        drop(self.0.subscribe().wait_for(reached).await);
    }
}

/// Counts a renewal for as long as it is under way, however it ends.
struct UnderWay<'a>(&'a Ear);

impl<'a> UnderWay<'a> {
    fn begin(ear: &'a Ear) -> Self {
        ear.0.send_modify(|renewals| renewals.under_way += 1);
        Self(ear)
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.0.send_modify(|renewals| renewals.under_way -= 1);
    }
}

#[async_trait]
impl Wrapper for Deaf {
    fn inner(&self) -> &Arc<dyn LockingStore> {
        &self.inner
    }

    async fn renew(&self, grant: &Grant, lease: Duration) -> Result<Renewed> {
        if self.deafness == Deafness::Swallows {
            return Ok(Renewed::Extended);
        }
        let _under_way = UnderWay::begin(&self.ear);
        self.ear.until(|renewals| renewals.open).await;
        let renewed = self.inner.renew(grant, lease).await?;
        self.ear.0.send_modify(|renewals| renewals.revived |= renewed == Renewed::Extended);
        Ok(renewed)
    }
}
