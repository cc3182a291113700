//! The clock of the leases.

use rustix::time::{ClockId, clock_gettime};
use session_core::Clock;
use std::time::Duration;

/// The time since the machine was started, sleep included: one clock for all its processes, and nobody can
/// set it.
///
/// Leases are counted by it, and not by the time of day, because a clock that is set back would keep the lock
/// of a hung process for hours, and one that is set forward would take the lock from a living holder. Nothing
/// has to be said about restarts of the machine: they end the processes that held leases, and the flock on a
/// holder's owner file tells.
#[derive(Clone, Copy, Debug, Default)]
pub struct BootClock;

impl Clock for BootClock {
    fn now(&self) -> Duration {
        #[cfg(any(target_os = "linux", target_os = "android"))]
        const SINCE_BOOT: ClockId = ClockId::Boottime;
        // Elsewhere the monotonic clock is the one that all processes share; some of them stop it during
        // sleep.
        #[cfg(not(any(target_os = "linux", target_os = "android")))]
        const SINCE_BOOT: ClockId = ClockId::Monotonic;

        let time = clock_gettime(SINCE_BOOT);
        Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or_default())
    }
}
