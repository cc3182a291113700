//! A lock that is held: renewed while it is, released when it is not, whatever happens to its holder.

use crate::{Grant, LockingStore, Renewed, StorageKey, Token, queue::Place, telemetry};
use std::{sync::Arc, time::Duration};
use tokio::{
    runtime::Handle,
    task::AbortHandle,
    time::{Instant, sleep},
};

/// What is released by [`Hold::release`], or in the background when it is dropped.
#[derive(Debug)]
pub(crate) struct Hold {
    renewal: AbortHandle,
    held: Asked,
}

impl Hold {
    /// Renews the lease at a third of its length until `max_hold` is over.
    pub(crate) fn new(held: Asked, lease: Duration, max_hold: Duration) -> Self {
        let renewal = renew(Arc::clone(&held.store), Arc::clone(&held.grant), lease, max_hold);
        Self { renewal: tokio::spawn(renewal).abort_handle(), held }
    }

    pub(crate) fn grant(&self) -> &Grant {
        &self.held.grant
    }

    /// Frees the lock before it returns; in the background when this future is dropped.
    pub(crate) async fn release(mut self) {
        self.renewal.abort();
        release(&*self.held.store, &self.held.grant).await;
        self.held.disarm();
    }

    /// The store has released it already, or it is lost: nothing is left to do.
    pub(crate) fn forget(mut self) {
        self.held.disarm();
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.renewal.abort();
    }
}

/// A lock that was asked for and may have been granted, whatever became of the reply.
#[derive(Debug)]
pub(crate) struct Asked {
    store: Arc<dyn LockingStore>,
    grant: Arc<Grant>,
    /// The head of the local queue: the next one of this process asks when the lock was released.
    place: Option<Place>,
    armed: bool,
}

impl Asked {
    pub(crate) fn new(store: Arc<dyn LockingStore>, key: StorageKey, token: Token, place: Place) -> Self {
        Self { store, grant: Arc::new(Grant::new(key, token)), place: Some(place), armed: true }
    }

    /// Nothing is held.
    pub(crate) fn disarm(&mut self) {
        self.armed = false;
        self.place = None;
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        if !self.armed {
            return;
        }
        let (store, grant, place) = (Arc::clone(&self.store), Arc::clone(&self.grant), self.place.take());
        // Without a runtime there is nobody to do it: the lease runs out by itself.
        if let Ok(runtime) = Handle::try_current() {
            runtime.spawn(async move {
                release(&*store, &grant).await;
                drop(place);
            });
        }
    }
}

/// Both outcomes are fine here, and a store that does not answer lets the lease run out.
async fn release(store: &dyn LockingStore, grant: &Grant) {
    if let Err(error) = store.release(grant).await {
        tracing::warn!(%error, "a lock could not be released; it ends with its lease");
    }
}

async fn renew(store: Arc<dyn LockingStore>, grant: Arc<Grant>, lease: Duration, max_hold: Duration) {
    let end = Instant::now() + max_hold;
    loop {
        sleep(lease / 3).await;
        if Instant::now() + lease > end {
            tracing::warn!(?max_hold, "a lock is held for longer than max_hold; it is no longer renewed");
            return;
        }
        match store.renew(&grant, lease).await {
            Ok(Renewed::Extended) => {}
            Ok(Renewed::Lost) => {
                telemetry::lease_lost();
                return tracing::warn!("a lease ran out under its holder; its write will be refused");
            }
            // There are two more tries before the lease runs out, and the write checks it in any case.
            Err(error) => tracing::warn!(%error, "a lock could not be renewed"),
        }
    }
}
