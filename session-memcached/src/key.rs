//! What a session's two items are called.

use session_core::StorageKey;

/// The record and its lock. Letters, digits and what a prefix may hold: no key can inject a command, none is
/// too long.
#[derive(Debug)]
pub(crate) struct Keys {
    /// The key of the lock, which begins with that of the record.
    text: String,
    record: usize,
}

const LOCK: &str = ":lock";

impl Keys {
    /// What both have beside the prefix, at most.
    pub(crate) const LENGTH: usize = 64 + LOCK.len();

    pub(crate) fn new(prefix: &str, key: &StorageKey) -> Self {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let mut text = String::with_capacity(prefix.len() + Self::LENGTH);
        text.push_str(prefix);
        for byte in key.as_bytes() {
            for digit in [byte >> 4, byte & 15] {
                text.push(char::from(DIGITS[usize::from(digit)]));
            }
        }
        let record = text.len();
        text.push_str(LOCK);
        Self { text, record }
    }

    /// The prefix and 64 hexadecimal digits.
    pub(crate) fn data(&self) -> &str {
        &self.text[..self.record]
    }

    /// The same and `:lock`.
    pub(crate) fn lock(&self) -> &str {
        &self.text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::MAX_PREFIX;

    #[test]
    fn keys_are_the_hexadecimal_key_and_short_enough() {
        let key = StorageKey::from_bytes(std::array::from_fn(|n| u8::try_from(n * 7).unwrap()));
        let keys = Keys::new("a:", &key);
        assert_eq!(keys.data(), format!("a:{key}"));
        assert_eq!(keys.lock(), format!("a:{key}:lock"));
        assert!(Keys::new(&"p".repeat(MAX_PREFIX), &key).lock().len() <= 250);
    }
}
