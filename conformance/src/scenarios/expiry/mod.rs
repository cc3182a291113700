//! When sessions end, and when they do not.
//!
//! Time is judged by the clock that all processes share, from when a call began to when it ended: somewhere
//! between the two the store took its decision. Only what is certain convicts, so a machine that stands still
//! convicts nobody.

mod lifetimes;
mod long_ttl;
mod on_time;
mod sweep;
mod touch;

use crate::{
    Strategy,
    scenario::{Convictor, Need, Scenario},
};
use std::time::Duration;

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario::new::<on_time::ExpiresOnTime>(
        "expiry/expires_on_time",
        "there until its ttl, gone by ttl + 2 resolutions; an expired record is never loaded, replaced or touched",
        Convictor::Mutant("expires_never"),
    )
    .strategies(Strategy::DRIVER),
    Scenario::new::<touch::TouchKeepsDataAndVersion>(
        "expiry/touch_keeps_data_and_version",
        "a touch moves the expiry alone, of the version that it names, whoever writes meanwhile",
        Convictor::Mutant("touch_rewrites"),
    )
    .strategies(Strategy::DRIVER)
    .cap(400)
    .overlap(10),
    Scenario::new::<lifetimes::IdleSlidesCapDoesNot>(
        "expiry/idle_slides_cap_does_not",
        "a session in use outlives its idle timeout, one left alone does not, and none its maximum lifetime",
        Convictor::BLIND,
    )
    .strategies(&[Strategy::Blind, Strategy::Write, Strategy::Exclusive]),
    Scenario::new::<long_ttl::LongTtlIsKept>(
        "expiry/long_ttl_is_kept",
        "31 and 400 days mean what they say (by the server's own remaining ttl)",
        Convictor::Mutant("long_ttls_are_dates"),
    )
    .strategies(Strategy::DRIVER),
    Scenario::new::<sweep::SweepSparesTheLiving>(
        "expiry/sweep_spares_the_living",
        "sweeping while sessions are written and touched removes only the expired",
        Convictor::Mutant("sweeps_without_looking_again"),
    )
    .strategies(Strategy::DRIVER)
    .needs(&[Need::Sweeper]),
];

/// What the clock of a backend, which may be set, and the one that judges may differ by while a scenario
/// runs.
const SKEW: Duration = Duration::from_millis(5);

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}
