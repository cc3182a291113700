//! Sessions in memcached.

mod attempt;
mod config;
mod connection;
mod exchange;
mod fault;
mod hints;
mod item;
mod key;
mod layout;
mod lock;
mod meta;
mod plain;
mod ring;
mod server;
mod store;
mod waiting;

pub use config::{DEFAULT_PORT, MAX_PREFIX, MAX_SERVERS, MemcachedConfig, Node, Protocol};
pub use store::MemcachedStore;
