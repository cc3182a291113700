//! The protocols of the commit, exhausted on small models: a few clients, and up to two of each fault (a lost
//! reply, a delayed copy, a lease that runs out, a crash, a destroy at the wrong time).
//!
//! Each model does what the code does, store call by store call. Each rule can be taken away, and then
//! something goes wrong: the shortest way to it is printed.

#![allow(clippy::panic, reason = "a test fails by panicking")]

#[path = "../support/bfs.rs"]
mod bfs;
mod commits;
mod inserts;
mod leases;
mod revocation;
mod rotation;
