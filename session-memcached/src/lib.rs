//! Sessions in memcached.
mod backoff;
pub mod config;
mod connection;
mod exchange;
mod fault;
mod hints;
mod item;
mod key;
mod layout;
pub mod lock;
mod meta;
mod plain;
mod ring;
mod server;
pub mod store;

pub use config::{MemcachedConfig, Node, Protocol};
pub use store::MemcachedStore;
