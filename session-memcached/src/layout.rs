//! What an item holds: a header of 29 bytes, then the record.
//!
//! | bytes | |
//! |---|---|
//! | 1 | format: a record (`0xd1`) or a lock (`0xa1`) |
//! | 16 | the version of the record, or the token of the lock |
//! | 8 | when it ends: milliseconds since 1970 by the server's clock, big-endian |
//! | 4 | CRC-32 of the session's key and all other bytes, big-endian |
//! | rest | the record; of a lock the tokens of those who wait, 16 bytes each, the first in line first |
//!
//! The checksum covers the key, so that a value which belongs to another session is noticed whatever brought
//! it here: damaged or foreign, never taken for this session's data.
//!
//! Who touches a record by the meta commands moves the server's own expiry and not this one. The server's
//! counts; this one is only read by those who cannot ask for it (the plain protocol).

use bytes::Bytes;
use session_core::StorageKey;

const HEADER: usize = 29;

/// What kind of item.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    Record = 0xd1,
    Lock = 0xa1,
}

/// An item's value, read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Value {
    /// The version or the token.
    pub(crate) stamp: [u8; 16],
    /// Milliseconds since 1970.
    pub(crate) ends: u64,
    /// The record, or the queue.
    pub(crate) data: Bytes,
}

/// What a header adds to a record.
pub(crate) const OVERHEAD: usize = HEADER;

pub(crate) fn encode(kind: Kind, key: &StorageKey, stamp: &[u8; 16], ends: u64, data: &[u8]) -> Vec<u8> {
    let mut value = Vec::with_capacity(HEADER + data.len());
    value.push(kind as u8);
    value.extend_from_slice(stamp);
    value.extend_from_slice(&ends.to_be_bytes());
    let sum = checksum(key, &value, data);
    value.extend_from_slice(&sum.to_be_bytes());
    value.extend_from_slice(data);
    value
}

/// `None`: this is not what [`encode`] made for this kind and this key.
pub(crate) fn decode(kind: Kind, key: &StorageKey, value: &Bytes) -> Option<Value> {
    let (header, data) = value.split_first_chunk::<HEADER>()?;
    let (covered, sum) = header.split_last_chunk::<4>()?;
    let (format, rest) = covered.split_first()?;
    if *format != kind as u8 || checksum(key, covered, data) != u32::from_be_bytes(*sum) {
        return None;
    }
    let (stamp, ends) = rest.split_first_chunk::<16>()?;
    Some(Value {
        stamp: *stamp,
        ends: u64::from_be_bytes(ends.try_into().ok()?),
        data: value.slice(HEADER..),
    })
}

fn checksum(key: &StorageKey, header: &[u8], data: &[u8]) -> u32 {
    let mut sum = crc32fast::Hasher::new();
    sum.update(key.as_bytes());
    sum.update(header);
    sum.update(data);
    sum.finalize()
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: StorageKey = StorageKey::from_bytes([7; 32]);

    #[test]
    fn what_was_encoded_is_decoded() {
        for data in [&b""[..], b"x", b"\r\nEND\r\n", &[0; 4096]] {
            let value: Bytes = encode(Kind::Record, &KEY, &[3; 16], 1 << 40, data).into();
            assert_eq!(value.len(), OVERHEAD + data.len());
            let expected = Value { stamp: [3; 16], ends: 1 << 40, data: Bytes::copy_from_slice(data) };
            assert_eq!(decode(Kind::Record, &KEY, &value), Some(expected));
        }
    }

    #[test]
    fn no_damaged_byte_goes_unnoticed() {
        let good = encode(Kind::Record, &KEY, &[3; 16], 1 << 40, b"some data");
        for index in 0..good.len() {
            for change in [0x01, 0x80, 0xff] {
                let mut bad = good.clone();
                bad[index] ^= change;
                assert_eq!(decode(Kind::Record, &KEY, &bad.into()), None, "byte {index}");
            }
            assert_eq!(
                decode(Kind::Record, &KEY, &Bytes::copy_from_slice(&good[..index])),
                None,
                "cut at {index}"
            );
        }
        let longer: Bytes = [&good[..], b"x"].concat().into();
        assert_eq!(decode(Kind::Record, &KEY, &longer), None);
    }

    #[test]
    fn what_belongs_elsewhere_is_foreign() {
        let value: Bytes = encode(Kind::Record, &KEY, &[3; 16], 1, b"data").into();
        assert_eq!(decode(Kind::Record, &StorageKey::from_bytes([8; 32]), &value), None);
        assert_eq!(decode(Kind::Lock, &KEY, &value), None);
    }
}
