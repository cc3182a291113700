//! Work that is done to its end, whoever stops waiting for it.

use std::{
    pin::Pin,
    task::{Context, Poll},
};
use tokio::runtime::Handle;

type Work<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// Runs where it is awaited; dropped before its end, it goes on in a task of its own. So a client that
/// disconnects does not cut a commit in two, and nobody pays for a task but those whose client did.
pub(crate) struct ToTheEnd<T: Send + 'static>(Option<Work<T>>);

pub(crate) fn to_the_end<T: Send + 'static>(work: impl Future<Output = T> + Send + 'static) -> ToTheEnd<T> {
    ToTheEnd(Some(Box::pin(work)))
}

impl<T: Send + 'static> Future for ToTheEnd<T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<T> {
        // Taken out while it runs: after a panic it must not go on.
        let Some(mut work) = self.0.take() else { return Poll::Pending };
        let polled = work.as_mut().poll(context);
        if polled.is_pending() {
            self.0 = Some(work);
        }
        polled
    }
}

impl<T: Send + 'static> Drop for ToTheEnd<T> {
    fn drop(&mut self) {
        let Some(work) = self.0.take() else { return };
        // Without a runtime the process is about to end, and what is dropped here is applied as a whole or
        // not at all.
        if let Ok(runtime) = Handle::try_current() {
            runtime.spawn(async move { drop(work.await) });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::sync::oneshot;

    async fn once<T: Send + 'static>(work: &mut ToTheEnd<T>) -> Poll<T> {
        std::future::poll_fn(|context| Poll::Ready(Pin::new(&mut *work).poll(context))).await
    }

    #[tokio::test]
    async fn dropped_in_the_middle_it_goes_on() {
        let (open, gate) = oneshot::channel::<()>();
        let (done, told) = oneshot::channel();
        let mut work = to_the_end(async move {
            gate.await.unwrap();
            done.send(()).unwrap();
        });
        assert!(once(&mut work).await.is_pending());
        drop(work);
        open.send(()).unwrap();
        told.await.unwrap();
    }

    #[tokio::test]
    async fn at_its_end_nothing_is_left() {
        let (alive, told) = oneshot::channel::<()>();
        let mut work = to_the_end(async move { alive });
        let Poll::Ready(alive) = once(&mut work).await else { panic!("it does not wait") };
        drop((work, alive));
        assert!(told.await.is_err());
    }
}
