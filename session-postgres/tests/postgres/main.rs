//! The driver against a real server: each claim of its documentation, in both modes.

mod bloat;
mod contract;
mod faults;
mod locks;
mod migrations;
mod pooler;
mod support;
