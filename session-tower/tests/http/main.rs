//! A real HTTP client over loopback, two server instances behind one cookie.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "helpers of tests, too, fail by panicking"
)]

mod backends;
mod cookies;
mod faults;
mod lifecycle;
mod outages;
mod plain;
mod processes;
mod races;
mod support;
