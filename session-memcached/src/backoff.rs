//! How long to pause before asking for a lock again.

use session_core::{Random, Result};
use std::time::Duration;

/// The first pause at most; tokio's timers count milliseconds.
const FIRST: Duration = Duration::from_millis(1);
/// The longest pause at most.
const LONGEST: Duration = Duration::from_millis(4);

/// Pauses that grow, each drawn between a half and the whole of its length, so that waiters do not march in step.
#[derive(Debug)]
pub(crate) struct Backoff(Duration);

impl Default for Backoff {
    fn default() -> Self {
        Self(FIRST)
    }
}

impl Backoff {
    pub(crate) fn next(&mut self, random: &dyn Random) -> Result<Duration> {
        let mut draw = [0; 2];
        random.fill(&mut draw)?;
        let half = self.0 / 2;
        let pause = half + half * u32::from(u16::from_be_bytes(draw)) / u32::from(u16::MAX);
        self.0 = (self.0 * 2).min(LONGEST);
        Ok(pause)
    }
}
