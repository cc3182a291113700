//! The suite that shows which session stores lose updates.

pub mod servers;
