//! Time and randomness that a test controls.

#![allow(dead_code, reason = "each test uses a part of it")]

use session_core::{Clock, Random, Result};
use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::time::Instant;

/// The time of day by tokio's timer, so that it stands still and jumps with it.
#[derive(Debug)]
pub(crate) struct TokioClock(Instant);

impl TokioClock {
    pub(crate) fn start() -> Arc<Self> {
        Arc::new(Self(Instant::now()))
    }
}

impl Clock for TokioClock {
    fn now(&self) -> Duration {
        Duration::from_secs(1_700_000_000) + self.0.elapsed()
    }
}

/// Numbers that look random and come again with the seed (SplitMix64).
#[derive(Debug)]
pub(crate) struct Seeded(AtomicU64);

impl Seeded {
    const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

    /// The seed is mixed: the streams of neighbours would otherwise be the same numbers, shifted by one, and
    /// two processes of a test would draw the same token.
    pub(crate) fn new(seed: u64) -> Arc<Self> {
        Arc::new(Self(AtomicU64::new(Self::mix(seed.wrapping_add(Self::STEP)))))
    }

    pub(crate) fn next(&self) -> u64 {
        Self::mix(self.0.fetch_add(Self::STEP, Relaxed).wrapping_add(Self::STEP))
    }

    fn mix(mut z: u64) -> u64 {
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// One of `0..end`.
    pub(crate) fn below(&self, end: u64) -> u64 {
        self.next() % end
    }

    pub(crate) fn millis(&self, end: u64) -> Duration {
        Duration::from_millis(self.below(end))
    }
}

impl Random for Seeded {
    fn fill(&self, buffer: &mut [u8]) -> Result<()> {
        for chunk in buffer.chunks_mut(8) {
            chunk.copy_from_slice(&self.next().to_le_bytes()[..chunk.len()]);
        }
        Ok(())
    }
}
