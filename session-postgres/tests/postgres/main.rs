//! The driver against a real server: each claim of its documentation, in both modes.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod bloat;
mod contract;
mod faults;
mod locks;
mod migrations;
mod mutants;
mod pooler;
mod support;
