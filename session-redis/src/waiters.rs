//! Waking those who wait for a lock: one subscription per store, on a connection of its own.
//!
//! Not on the shared connection: Redis counts the replies of a connection that subscribes against the limit
//! for slow subscribers (32 MiB), and cuts it when some large sessions are loaded at once.
//!
//! A message only says when to look; what counts is what the script answers. It may come twice, late or
//! never: a waiter polls all the same. After the subscription was lost and made again, everyone looks at
//! once.

use crate::{layout::unhex, router::Router};
use redis::{PushInfo, PushKind, Value};
use session_core::Token;
use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::{
    sync::{Notify, watch},
    task::AbortHandle,
};

/// How often an idle subscription is asked whether it is still there.
const CHECK: Duration = Duration::from_secs(5);
/// The first and the longest pause before it is made again.
const AGAIN: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(2));

/// Who waits in this store instance, by ticket.
pub(crate) struct Waiters {
    shared: Arc<Shared>,
    router: Router,
    /// The task of the subscription, started by the first who waits.
    task: Mutex<Option<AbortHandle>>,
}

struct Shared {
    channel: String,
    waiting: Mutex<HashMap<Token, Arc<Notify>>>,
    subscribed: watch::Sender<bool>,
}

impl fmt::Debug for Waiters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Waiters").field("subscribed", &*self.shared.subscribed.borrow()).finish()
    }
}

impl Drop for Waiters {
    fn drop(&mut self) {
        if let Some(task) = &*self.task.lock().unwrap_or_else(PoisonError::into_inner) {
            task.abort();
        }
    }
}

/// A place among those who can be woken; given up when it is dropped.
pub(crate) struct Place {
    shared: Arc<Shared>,
    token: Token,
    wake: Arc<Notify>,
}

impl Place {
    /// Returns when there was a message for this ticket since the last time.
    pub(crate) async fn woken(&self) {
        self.wake.notified().await;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut waiting = self.shared.waiting();
        // The same token may have been asked for again meanwhile: that place is not ours.
        if waiting.get(&self.token).is_some_and(|wake| Arc::ptr_eq(wake, &self.wake)) {
            waiting.remove(&self.token);
        }
    }
}

impl Waiters {
    pub(crate) fn new(router: Router, channel: String) -> Self {
        let (waiting, subscribed) = (Mutex::default(), watch::Sender::new(false));
        Self { shared: Arc::new(Shared { channel, waiting, subscribed }), router, task: Mutex::default() }
    }

    pub(crate) fn is_subscribed(&self) -> bool {
        *self.shared.subscribed.borrow()
    }

    /// From now on messages for this ticket are kept for the place.
    pub(crate) fn enter(&self, token: Token) -> Place {
        let wake = Arc::new(Notify::new());
        self.shared.waiting().insert(token, Arc::clone(&wake));
        Place { shared: Arc::clone(&self.shared), token, wake }
    }

    /// Sees to it that there is a subscription, and waits a little for it. Without one, waiters poll.
    pub(crate) async fn subscribe(&self, patience: Duration) {
        self.start();
        let mut subscribed = self.shared.subscribed.subscribe();
        // Too long, or the task ended with its runtime: polling is what is left, and it is enough.
        drop(tokio::time::timeout(patience, subscribed.wait_for(|subscribed| *subscribed)).await);
    }

    fn start(&self) {
        let mut task = self.task.lock().unwrap_or_else(PoisonError::into_inner);
        if task.as_ref().is_none_or(AbortHandle::is_finished) {
            let subscription = subscription(self.router.clone(), Arc::clone(&self.shared));
            *task = Some(tokio::spawn(subscription).abort_handle());
        }
    }
}

impl Shared {
    fn waiting(&self) -> MutexGuard<'_, HashMap<Token, Arc<Notify>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake_all(&self) {
        for wake in self.waiting().values() {
            wake.notify_one();
        }
    }

    /// `h1 ticket`: it was handed the lock. `g1 ticket`: there is nothing left to wait for. Either way: look.
    fn message(&self, push: &PushInfo) {
        if push.kind != PushKind::Message {
            return;
        }
        let Some(Value::BulkString(text)) = push.data.get(1) else { return };
        let ticket = text.strip_prefix(b"h1 ").or_else(|| text.strip_prefix(b"g1 "));
        let Some(token) = ticket.and_then(unhex).map(Token::from_bytes) else {
            return tracing::debug!("a message of an unknown kind"); // of a newer version, perhaps
        };
        if let Some(wake) = self.waiting().get(&token) {
            wake.notify_one(); // kept, should it not wait at this moment
        }
    }
}

/// Subscribes, listens, and begins again, until the store is dropped.
async fn subscription(router: Router, shared: Arc<Shared>) {
    // A task that ends with its runtime must not leave the word that someone listens.
    struct Over(Arc<Shared>);
    impl Drop for Over {
        fn drop(&mut self) {
            self.0.subscribed.send_replace(false);
        }
    }
    let over = Over(Arc::clone(&shared));
    let mut pause = AGAIN.0;
    loop {
        let error = match listen(&router, &shared).await {
            Ok(()) => {
                pause = AGAIN.0;
                None
            }
            Err(error) => Some(error),
        };
        over.0.subscribed.send_replace(false);
        tracing::debug!(error = error.as_ref().map(tracing::field::display), "no subscription; waiters poll");
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(AGAIN.1);
    }
}

/// One connection's life; an error when it did not begin.
async fn listen(router: &Router, shared: &Arc<Shared>) -> redis::RedisResult<()> {
    let listener = Arc::clone(shared);
    let listener = Arc::new(move |push: &PushInfo| listener.message(push));
    let (mut connection, events) = router.dial_for_messages(listener).await?;
    connection.subscribe(&shared.channel).await?;
    shared.subscribed.send_replace(true);
    shared.wake_all(); // what was said before we listened
    while tokio::time::timeout(CHECK, events.ended()).await.is_err() {
        if redis::cmd("PING").query_async::<Value>(&mut connection).await.is_err() {
            break;
        }
    }
    Ok(())
}
