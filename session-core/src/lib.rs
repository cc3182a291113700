//! Session storage that never loses an update: the driver contracts and the portable part.

mod environment;
mod error;
mod id;
mod lock;
pub mod memory;
mod pair;
mod store;

pub use environment::{Clock, Random, SystemClock, SystemRandom};
pub use error::{Effect, Error, ErrorKind, Result};
pub use id::{PrincipalKey, SessionId, StorageKey, Token, Version};
pub use lock::{Acquired, Grant, Held, Loaded, LockingStore, Released, Renewed, SessionLock};
pub use memory::{MemoryLock, MemoryStore};
pub use pair::Pair;
pub use store::{
    Capabilities, Deleted, Durability, Inserted, Page, Put, Replaced, SessionIndex, SessionStore,
    SessionSweeper, Stored, Swept, Touched,
};
