//! A real HTTP client over loopback, two server instances behind one cookie.

mod cookies;
mod faults;
mod lifecycle;
mod plain;
mod races;
mod support;
