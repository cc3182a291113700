//! What the process takes from outside: the time and randomness, both injected.
//!
//! Nothing in this workspace reads a clock or draws a random byte but through these two traits, so that a
//! test controls both, and a failing source of randomness is an error and not a panic.
//!
//! ```
//! use session_core::{Clock, SystemClock};
//!
//! assert!(SystemClock.now().as_secs() > 1_700_000_000);
//! ```

use crate::{Error, ErrorKind, Result};
use std::{
    fmt::Debug,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// The time of day. Timers (waiting, backing off, renewing) are tokio's, which tests can pause.
pub trait Clock: Debug + Send + Sync + 'static {
    /// The time since 1970-01-01 UTC.
    fn now(&self) -> Duration;
}

/// A source of random bytes that nobody can predict: ids and tokens are made of them.
pub trait Random: Debug + Send + Sync + 'static {
    /// Fills the whole buffer.
    ///
    /// # Errors
    /// [`ErrorKind::Random`]; the buffer must not be used then.
    fn fill(&self, buffer: &mut [u8]) -> Result<()>;
}

/// The clock of the operating system.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    #[expect(clippy::disallowed_methods, reason = "the one place that reads the clock")]
    fn now(&self) -> Duration {
        // A clock set before 1970 is taken for 1970: everything looks young then, nothing expires early.
        SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
    }
}

/// The random source of the operating system.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemRandom;

impl Random for SystemRandom {
    #[expect(clippy::disallowed_methods, reason = "the one place that asks the operating system")]
    fn fill(&self, buffer: &mut [u8]) -> Result<()> {
        getrandom::fill(buffer).map_err(|error| Error::new(ErrorKind::Random, "random").with_source(error))
    }
}

/// Draws an array; what ids, tokens and versions are made with.
pub(crate) fn draw<const N: usize>(random: &dyn Random) -> Result<[u8; N]> {
    let mut bytes = [0; N];
    random.fill(&mut bytes)?;
    Ok(bytes)
}
