//! What a session holds: encoded values by name, in a fixed order.

use crate::{Codec, Error, ErrorKind, Key, Result};
use bytes::Bytes;
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;

/// Values stay encoded until they are read, so that opening a big session costs bytes alone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) codec: Codec,
    pub(crate) values: BTreeMap<String, Bytes>,
}

impl Record {
    pub(crate) fn new(codec: Codec) -> Self {
        Self { codec, values: BTreeMap::new() }
    }

    /// # Errors
    /// [`ErrorKind::Decode`] naming the key, unless the key discards what does not decode.
    pub(crate) fn get<T: DeserializeOwned>(&self, key: Key<T>) -> Result<Option<T>> {
        let Some(bytes) = self.values.get(key.name()) else { return Ok(None) };
        match self.codec.decode(key.name(), bytes) {
            Err(error) if error.kind() == ErrorKind::Decode && key.discards() => Ok(None),
            decoded => decoded.map(Some),
        }
    }

    pub(crate) fn names(&self) -> Vec<String> {
        self.values.keys().cloned().collect()
    }
}

/// # Errors
/// [`ErrorKind::Invalid`] for an empty name, [`ErrorKind::TooLarge`] for a long one.
pub(crate) fn check_name(name: &'static str, longest: usize, operation: &'static str) -> Result<()> {
    if name.is_empty() {
        return Err(Error::new(ErrorKind::Invalid, operation).with_context("the key's name is empty"));
    }
    if name.len() > longest {
        return Err(Error::new(ErrorKind::TooLarge, operation)
            .with_context(format!("a key's name of {} bytes, at most {longest}", name.len())));
    }
    Ok(())
}
