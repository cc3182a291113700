//! A lock that is held: renewed while it is, released when it is not, whatever happens to its holder.

use crate::{Grant, LockingStore, Renewed, StorageKey, Token, queue::Place, telemetry};
use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::{
    runtime::Handle,
    task::AbortHandle,
    time::{Instant, sleep, sleep_until},
};

/// What is released by [`Hold::release`], or in the background when it is dropped.
#[derive(Debug)]
pub(crate) struct Hold {
    renewal: AbortHandle,
    held: Asked,
}

impl Hold {
    /// Renews the lease at a third of its length until `max_hold` is over. A lease that is over gives its place in the local
    /// queue away, too: a handler that hangs keeps nobody of its own process waiting for longer than others.
    pub(crate) fn new(held: Asked, lease: Duration, max_hold: Duration) -> Self {
        let (store, grant) = (Arc::clone(&held.store), Arc::clone(&held.grant));
        let place = Arc::clone(&held.place);
        let renewal = tokio::spawn(async move {
            renew(&*store, &grant, lease, max_hold).await;
            leave(&place);
        });
        Self { renewal: renewal.abort_handle(), held }
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
    /// The head of the local queue: the next one of this process asks when the lock was released, or its lease is over.
    place: Arc<Mutex<Option<Place>>>,
    armed: bool,
}

impl Asked {
    pub(crate) fn new(store: Arc<dyn LockingStore>, key: StorageKey, token: Token, place: Place) -> Self {
        Self {
            store,
            grant: Arc::new(Grant::new(key, token)),
            place: Arc::new(Mutex::new(Some(place))),
            armed: true,
        }
    }

    /// Nothing is held.
    pub(crate) fn disarm(&mut self) {
        self.armed = false;
        leave(&self.place);
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        if !self.armed {
            return;
        }
        let (store, grant, place) =
            (Arc::clone(&self.store), Arc::clone(&self.grant), Arc::clone(&self.place));
        // Without a runtime there is nobody to do it: the lease runs out by itself.
        if let Ok(runtime) = Handle::try_current() {
            runtime.spawn(async move {
                release(&*store, &grant).await;
                leave(&place);
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

fn leave(place: &Mutex<Option<Place>>) {
    drop(place.lock().unwrap_or_else(PoisonError::into_inner).take());
}

/// Renews until it may no longer, and returns when the lease is over.
async fn renew(store: &dyn LockingStore, grant: &Grant, lease: Duration, max_hold: Duration) {
    let end = Instant::now() + max_hold;
    let mut lease_end = Instant::now() + lease;
    loop {
        sleep(lease / 3).await;
        let now = Instant::now();
        if now + lease > end {
            tracing::warn!(?max_hold, "a lock is held for longer than max_hold; it is no longer renewed");
            return sleep_until(lease_end).await;
        }
        match store.renew(grant, lease).await {
            Ok(Renewed::Extended) => lease_end = Instant::now() + lease,
            Ok(Renewed::Lost) => {
                telemetry::lease_lost();
                return tracing::warn!("a lease ran out under its holder; its write will be refused");
            }
            // There are two more tries before the lease runs out, and the write checks it in any case.
            Err(error) if now < lease_end => tracing::warn!(%error, "a lock could not be renewed"),
            Err(error) => {
                telemetry::lease_lost();
                return tracing::warn!(%error, "a lease ran out: it could not be renewed");
            }
        }
    }
}
