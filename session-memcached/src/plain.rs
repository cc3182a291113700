//! The plain protocol, spoken by memcache-async.
//!
//! It is used for what it does safely: one request, one reply that is read whole and named. `set`, `append`
//! and `delete` are never used: it sends them `noreply`, so that a refusal looks like success. Cancelling any
//! of its calls leaves a reply on the line: the connection is then closed (see
//! [`connection`](crate::connection)). It buffers no writes and sets no options: the stream it is lent does
//! both. It reads nothing beyond its reply, so it can be made anew for each call.

use crate::{
    connection::Wire,
    fault::Fault,
    item::{Item, Swapped},
};
use memcache_async::ascii;
use std::io::{Error, ErrorKind};

/// A date long past: a value that is written with it is gone at once. (1970-01-31: the shortest number that
/// is a date.)
const PAST: u32 = 30 * 24 * 3600 + 1;

fn on(wire: &mut Wire) -> ascii::Protocol<&mut Wire> {
    ascii::Protocol::new(wire)
}

pub(crate) async fn version(wire: &mut Wire) -> Result<String, Fault> {
    on(wire).version().await.map_err(fault)
}

pub(crate) async fn get(wire: &mut Wire, key: &str) -> Result<Option<Item>, Fault> {
    match on(wire).gets_cas(key).await {
        Ok((value, cas)) => Ok(Some(Item { value: value.into(), cas, left: None })),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(fault(error)),
    }
}

/// Whether it was added.
pub(crate) async fn add(wire: &mut Wire, key: &str, value: &[u8], exptime: u32) -> Result<bool, Fault> {
    match on(wire).add(key, value, exptime).await {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(false),
        Err(error) => Err(fault(error)),
    }
}

pub(crate) async fn swap(
    wire: &mut Wire,
    key: &str,
    value: &[u8],
    exptime: u32,
    cas: u64,
) -> Result<Swapped, Fault> {
    match on(wire).cas(key, value, cas, exptime).await {
        Ok(true) => Ok(Swapped::Done),
        Ok(false) => Ok(Swapped::Changed),
        // The crate knows no missing key: memcached's line comes as the text of an error.
        Err(error) if error.kind() == ErrorKind::NotFound || said(&error, "NOT_FOUND") => {
            Ok(Swapped::Missing)
        }
        Err(error) => Err(fault(error)),
    }
}

/// Compare-and-delete: the plain `delete` compares nothing, but a `cas` can write what has expired already.
pub(crate) async fn remove(wire: &mut Wire, key: &str, cas: u64) -> Result<Swapped, Fault> {
    swap(wire, key, b"", PAST, cas).await
}

fn said(error: &Error, line: &str) -> bool {
    error.kind() == ErrorKind::Other && error.to_string().trim_end() == line
}

/// The crate gives lines that it did not expect as errors of the kind `Other`.
fn fault(error: Error) -> Fault {
    match error.kind() {
        ErrorKind::Other => Fault::from_line(error.to_string().as_bytes()),
        _ => Fault::Io(error),
    }
}
