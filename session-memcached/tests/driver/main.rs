//! The driver against private memcached servers: every outcome in both protocols, and what goes wrong.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that fails says so")]

mod cancel;
mod common;
mod eviction;
mod expiry;
mod faults;
mod limits;
mod locks;
mod mutants;
mod outcomes;
mod refusals;
mod restart;
mod servers;
mod window;
