//! The driver against a real server: each claim of its documentation, in both modes.

mod contract;
mod locks;
mod support;
