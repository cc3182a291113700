//! The suite that shows which session stores lose updates.
//!
//! It takes a store and answers, scenario by scenario, whether data is lost. As a command it prints the
//! matrix for every backend of this workspace; as a library it judges a store of your own:
//!
//! ```
//! use session_conformance::{Instance, Suite};
//! use session_core::MemoryStore; // yours
//! use std::sync::Arc;
//!
//! # async fn run() {
//! Suite::new(|| async { Ok(Instance::new(Arc::new(MemoryStore::default()))) })
//! #   .private().scenarios(["concurrency/increments_*"])
//!     .run()
//!     .await
//!     .assert_passed();
//! # }
//! # tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap().block_on(run());
//! ```
//!
//! With a program of workers ([`Suite::workers`], [`worker::serve`]) each scenario also runs in several
//! processes, and with a [`ServerControl`](servers::ServerControl) the faults of a server are tried. What
//! cannot be tried is `absent` in the report, never `pass`. `examples/dir_store/` is a whole store of a
//! third party with its suite.
//!
//! How it works, from the outside in: [`Suite`] crosses [scenarios] with [strategies](Strategy) and numbers
//! of processes; each cell gets a fresh [`Instance`], is set up, worked on by tasks here or in
//! [workers](worker), and judged from what was recorded and what can be read at the end. Scenarios about
//! sessions see them through [`system::System`], so that they can judge the product, the controls, and a
//! foreign system alike.

#[cfg(feature = "bench")]
pub mod bench;
pub mod cancellation;
mod cell;
pub mod disk;
pub mod history;
mod instance;
pub mod mutants;
mod report;
pub mod scenario;
pub mod scenarios;
pub mod servers;
mod strategy;
mod suite;
pub mod system;
pub mod trouble;
mod verdict;
pub mod worker;
pub mod wrapper;

pub use instance::Instance;
pub use report::{Cell, Header, Report, RunSettings};
pub use strategy::Strategy;
pub use suite::{Progress, Suite};
pub use trouble::{Outcome, Trial, Trouble};
pub use verdict::{Judgement, Verdict};
