//! The name of a value, and its type.
//!
//! ```
//! use session_core::Key;
//!
//! const CART: Key<Vec<u64>> = Key::new("cart");
//! assert_eq!(CART.name(), "cart");
//! ```

use std::{fmt, marker::PhantomData};

/// A name and the type of what is stored under it. `Copy`, `Send` and `Sync` whatever `T` is.
pub struct Key<T> {
    name: &'static str,
    discard: bool,
    marker: PhantomData<fn() -> T>,
}

impl<T> Key<T> {
    /// A key with this name: 1 to `max_key_name` (128) bytes, checked when it is used.
    #[must_use]
    pub const fn new(name: &'static str) -> Self {
        Self { name, discard: false, marker: PhantomData }
    }

    /// The same key, for which a value that no longer decodes counts as absent, and the next `update`
    /// overwrites it.
    ///
    /// Without this it is a [`Decode`](crate::ErrorKind::Decode) error: during a rolling deploy the other
    /// half of the servers may well be able to read it.
    #[must_use]
    pub const fn discard_undecodable(mut self) -> Self {
        self.discard = true;
        self
    }

    /// The name.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        self.name
    }

    pub(crate) const fn discards(&self) -> bool {
        self.discard
    }
}

impl<T> Clone for Key<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Key<T> {}

impl<T> fmt::Debug for Key<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({:?})", self.name)
    }
}
