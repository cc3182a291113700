//! A lock that is held: renewed while it is, released when it is not, whatever happens to its holder.

use crate::{
    Grant, LockingStore, Released, StorageKey, Token,
    queue::Place,
    renewal::{Renewal, Renewals, Renewing},
};
use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::runtime::Handle;

/// What is released by [`Hold::release`], or in the background when it is dropped.
#[derive(Debug)]
pub(crate) struct Hold {
    renewing: Option<Renewing>,
    held: Asked,
}

impl Hold {
    /// Renews the lease at a third of its length until `max_hold` is over. A lease that is over gives its
    /// place in the local queue away, too: a handler that hangs keeps nobody of its own process waiting for
    /// longer than others.
    pub(crate) fn new(held: Asked, lease: Duration, max_hold: Duration, renewals: &Arc<Renewals>) -> Self {
        let (store, grant) = (Arc::clone(&held.store), Arc::clone(&held.grant));
        let place = Arc::clone(&held.place);
        let renewal = Renewal::new(store, grant, (lease, max_hold), move || leave(&place));
        Self { renewing: renewals.enter(renewal), held }
    }

    pub(crate) fn grant(&self) -> &Grant {
        &self.held.grant
    }

    /// Frees the lock before it returns; in the background when this future is dropped. What the store said:
    /// [`Released::Lost`] when the lease had run out; `None` when it did not answer.
    pub(crate) async fn release(mut self) -> Option<Released> {
        self.renewing = None;
        let released = release(&*self.held.store, &self.held.grant).await;
        self.held.disarm();
        released
    }

    /// The store has released it already, or it is lost: nothing is left to do.
    pub(crate) fn forget(mut self) {
        self.held.disarm();
    }
}

/// A lock that was asked for and may have been granted, whatever became of the reply.
#[derive(Debug)]
pub(crate) struct Asked {
    store: Arc<dyn LockingStore>,
    grant: Arc<Grant>,
    /// The head of the local queue: the next one of this process asks when the lock was released, or its
    /// lease is over.
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

/// `None`: the store does not answer, and lets the lease run out.
async fn release(store: &dyn LockingStore, grant: &Grant) -> Option<Released> {
    match store.release(grant).await {
        Ok(released) => Some(released),
        Err(error) => {
            tracing::warn!(%error, "a lock could not be released; it ends with its lease");
            None
        }
    }
}

fn leave(place: &Mutex<Option<Place>>) {
    drop(place.lock().unwrap_or_else(PoisonError::into_inner).take());
}
