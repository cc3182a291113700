//! The driver against private Redis servers: every outcome, and everything that can go wrong on the way.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that fails says so")]

#[cfg(feature = "cluster")]
mod cluster;
mod common;
mod contract;
mod faults;
mod model;
mod orphans;
mod queue;
#[cfg(feature = "sentinel")]
mod sentinel;
#[cfg(feature = "tls")]
mod tls;
mod trips;
