//! The driver against private memcached servers: every outcome in both protocols, and what goes wrong.

mod cancel;
mod common;
mod eviction;
mod expiry;
mod faults;
mod limits;
mod locks;
mod outcomes;
mod restart;
mod servers;
