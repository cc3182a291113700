//! SIGINT and SIGTERM break a run off: what it has started goes with it, and the exit code says which of them
//! it was.

use super::{
    backends::{Backend, Started},
    usage,
};
use std::{future::ready, io};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Both signals, from now on: before anything is started that one of them would leave behind.
pub(super) struct BrokenOff {
    interrupt: Signal,
    terminate: Signal,
}

impl BrokenOff {
    pub(super) fn listen() -> io::Result<Self> {
        Ok(Self { interrupt: signal(SignalKind::interrupt())?, terminate: signal(SignalKind::terminate())? })
    }

    /// Waits for one of them: the exit code, by convention 128 and the signal's number.
    pub(super) async fn code(&mut self) -> i32 {
        let kind = tokio::select! {
            _ = self.interrupt.recv() => SignalKind::interrupt(),
            _ = self.terminate.recv() => SignalKind::terminate(),
        };
        128 + kind.as_raw_value()
    }

    /// Whether one of them has come.
    async fn now(&mut self) -> Option<i32> {
        tokio::select! {
            biased;
            code = self.code() => Some(code),
            () = ready(()) => None,
        }
    }

    /// Starts the backends, each to its end: `initdb`, dropped half-way, would go on writing into the
    /// directory that is removed.
    pub(super) async fn start(
        &mut self,
        backends: Vec<(&'static Backend, Option<String>)>,
    ) -> Result<Vec<(&'static Backend, Started)>, i32> {
        let mut started = Vec::new();
        for (backend, url) in backends {
            match (backend.start)(url).await {
                Started::Refused(why) => {
                    drop(started); // nothing is dropped when the program ends there
                    usage(&format!("--backend {}: {why}", backend.name));
                }
                other => started.push((backend, other)),
            }
            if let Some(code) = self.now().await {
                return Err(code);
            }
        }
        Ok(started)
    }
}
