//! What a locked and a versioned update cost, against the classical four trips and against the same commands
//! by hand; and how many updates several processes get done on one session.
//!
//! `cargo bench -p session-redis` starts its own servers, takes about a minute and a half, and fails when a
//! figure is over its limit. Ways are interleaved, update by update or second by second, so that whatever
//! else the machine does hits all alike.

#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used, reason = "a bench that cannot run says so")]

#[path = "redis/handoff.rs"]
mod handoff;
#[path = "redis/latency.rs"]
mod latency;

use std::process::ExitCode;

fn main() -> ExitCode {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.expect("a runtime");
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [worker, way, address, key, seconds] = &arguments[..]
        && worker == handoff::WORKER
    {
        runtime.block_on(handoff::work(way, address, key, seconds));
        return ExitCode::SUCCESS;
    }
    if session_conformance::servers::redis::program().is_none() {
        eprintln!("redis-server is not installed (apt-get install redis-server)");
        return ExitCode::FAILURE;
    }
    let wanted = |name| !arguments.iter().any(|argument| !argument.starts_with('-') && argument != name);
    let mut limits = Limits::default();
    if wanted("latency") {
        runtime.block_on(latency::run(&mut limits));
    }
    if wanted("handoff") {
        runtime.block_on(handoff::run(&mut limits));
    }
    limits.verdict()
}

/// What was promised, and whether it was kept.
#[derive(Default)]
pub(crate) struct Limits {
    broken: usize,
}

impl Limits {
    fn at_most(&mut self, what: &str, value: f64, limit: f64) {
        self.check(what, value, "at most", limit, value <= limit);
    }

    fn at_least(&mut self, what: &str, value: f64, limit: f64) {
        self.check(what, value, "at least", limit, value >= limit);
    }

    fn check(&mut self, what: &str, value: f64, word: &str, limit: f64, kept: bool) {
        self.broken += usize::from(!kept);
        println!("{} {what}: {value:.2} ({word} {limit})", if kept { "ok  " } else { "OVER" });
    }

    fn verdict(self) -> ExitCode {
        if self.broken == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }
}

/// The value below which a share of the sorted values is.
fn quantile(sorted: &[f64], share: f64) -> f64 {
    sorted[((sorted.len() - 1) as f64 * share) as usize]
}
