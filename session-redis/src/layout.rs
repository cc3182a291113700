//! What is stored under which key, byte for byte.
//!
//! | key | type | what |
//! |---|---|---|
//! | `p{id}` | string | the record: layout (1 byte, 1), user flag (1 byte), version (16), user (32, if flagged), data |
//! | `p{id}:lock` | string | the holder's token, 32 hexadecimal digits; its ttl is the lease |
//! | `p{id}:q1` | list | the tickets of those who wait, oldest first |
//! | `p{id}:t1` | hash | ticket -> until when its waiter counts as alive, and the channel that wakes it |
//! | `puser:u` | sorted set | the sessions of user `u`, by expiry |
//! | `pwake:n` | channel | where one store instance listens |
//!
//! `p` is the prefix, `{id}` the storage key in hexadecimal, in the braces that keep a session in one slot of
//! a cluster. A record is one string, so that it can only be there as a whole. The meaning of the lock key
//! never changes: a client that knows no more than `SET NX PX` and `DEL` excludes, and is excluded. The
//! queue's keys carry a version.

use bytes::Bytes;
use session_core::{Error, ErrorKind, PrincipalKey, Put, Result, StorageKey, Stored, Version};
use std::time::Duration;

const LAYOUT: u8 = 1;
const VERSION: std::ops::Range<usize> = 2..18;
const USER: std::ops::Range<usize> = 18..50;

const LOCK: &str = ":lock";
const QUEUE: &str = ":q1";
const TICKETS: &str = ":t1";

/// Redis counts milliseconds in 63 bits and adds the present: this is far from the end and still not in our
/// lifetime.
const LONGEST_TTL: Duration = Duration::from_secs(1000 * 365 * 86_400);

/// The keys of one session: all are made for each command, so they share their memory.
pub(crate) struct Keys {
    /// The keys of the lock, the queue and the tickets. Each begins with that of the record.
    text: String,
    record: usize,
}

impl Keys {
    pub(crate) fn new(prefix: &str, key: &StorageKey) -> Self {
        let record = prefix.len() + 66;
        let mut text = String::with_capacity(3 * record + LOCK.len() + QUEUE.len() + TICKETS.len());
        text.push_str(prefix);
        text.push('{');
        push_hex(&mut text, key.as_bytes());
        text.push('}');
        text.push_str(LOCK);
        for suffix in [QUEUE, TICKETS] {
            text.extend_from_within(..record);
            text.push_str(suffix);
        }
        Self { text, record }
    }

    pub(crate) fn record(&self) -> &[u8] {
        &self.text.as_bytes()[..self.record]
    }

    pub(crate) fn lock(&self) -> &[u8] {
        &self.text.as_bytes()[..self.record + LOCK.len()]
    }

    /// The record, its lock, the queue, the tickets.
    pub(crate) fn all(&self) -> [&[u8]; 4] {
        let rest = &self.text.as_bytes()[self.lock().len()..];
        let (queue, tickets) = rest.split_at(self.record + QUEUE.len());
        [self.record(), self.lock(), queue, tickets]
    }
}

pub(crate) fn index_key(prefix: &str, user: &PrincipalKey) -> String {
    let mut key = format!("{prefix}user:");
    push_hex(&mut key, user.as_bytes());
    key
}

pub(crate) fn channel(prefix: &str, instance: &[u8; 16]) -> String {
    let mut channel = format!("{prefix}wake:");
    push_hex(&mut channel, instance);
    channel
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len() * 2);
    push_hex(&mut text, bytes);
    text
}

/// A table instead of `write!`: this is done several times for each command.
fn push_hex(text: &mut String, bytes: &[u8]) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    for byte in bytes {
        text.push(char::from(DIGITS[usize::from(byte >> 4)]));
        text.push(char::from(DIGITS[usize::from(byte & 15)]));
    }
}

pub(crate) fn unhex<const N: usize>(text: &[u8]) -> Option<[u8; N]> {
    let digit = |digit: u8| char::from(digit).to_digit(16).map(|digit| digit as u8);
    let mut bytes = [0; N];
    if text.len() != 2 * N {
        return None;
    }
    for (byte, pair) in bytes.iter_mut().zip(text.chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(bytes)
}

/// Milliseconds, rounded up so that nothing ends early, at least one: Redis refuses zero.
pub(crate) fn milliseconds(duration: Duration) -> String {
    duration.min(LONGEST_TTL).as_nanos().div_ceil(1_000_000).max(1).to_string()
}

/// The bytes of a record.
pub(crate) fn encode(version: Version, put: &Put) -> Vec<u8> {
    let mut record = Vec::with_capacity(USER.end + put.data.len());
    record.push(LAYOUT);
    record.push(put.principal.is_some().into());
    record.extend_from_slice(&version.to_bytes());
    if let Some(user) = &put.principal {
        record.extend_from_slice(user.as_bytes());
    }
    record.extend_from_slice(&put.data);
    record
}

/// The record of these bytes; the data is not copied. `ttl` as PTTL answers it.
pub(crate) fn decode(record: Vec<u8>, ttl: i64, operation: &'static str) -> Result<Stored> {
    let damaged = |what: &'static str| Error::new(ErrorKind::Damaged, operation).with_context(what);
    let record = Bytes::from(record);
    if record.first() != Some(&LAYOUT) {
        return Err(damaged("a record of an unknown layout"));
    }
    let version: [u8; 16] = part(&record, VERSION).ok_or_else(|| damaged("a record that was cut off"))?;
    let (user, data) = match record[1] {
        0 => (None, VERSION.end),
        1 => (Some(part(&record, USER).ok_or_else(|| damaged("a record that was cut off"))?), USER.end),
        _ => return Err(damaged("a record with an unknown flag")),
    };
    // -1: somebody took the expiry away. It lives; the next write gives it one again.
    let ttl = u64::try_from(ttl).map_or(LONGEST_TTL, Duration::from_millis);
    Ok(Stored::new(Version::from_bytes(version), record.slice(data..), ttl)
        .principal(user.map(PrincipalKey::from_bytes)))
}

fn part<const N: usize>(record: &[u8], range: std::ops::Range<usize>) -> Option<[u8; N]> {
    record.get(range)?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(data: &'static [u8]) -> Put {
        Put::new(Bytes::from_static(data), Duration::from_secs(1))
    }

    #[test]
    fn a_record_comes_back() {
        let version = Version::from_bytes([7; 16]);
        for user in [None, Some(PrincipalKey::of("alice"))] {
            for data in [&b""[..], b"\0\r\n", b"hello"] {
                let stored = decode(encode(version, &put(data).principal(user)), 1500, "test").unwrap();
                assert_eq!((stored.version, &stored.data[..], stored.principal), (version, data, user));
                assert_eq!(stored.ttl, Duration::from_millis(1500));
            }
        }
    }

    #[test]
    fn what_is_no_record_is_damaged() {
        let good =
            encode(Version::from_bytes([7; 16]), &put(b"x").principal(Some(PrincipalKey::of("alice"))));
        let mut all: Vec<Vec<u8>> = (0..USER.end).map(|length| good[..length].to_vec()).collect();
        all.push([&[9], &good[1..]].concat());
        all.push([&[LAYOUT, 2], &good[2..]].concat());
        for bytes in all {
            assert_eq!(decode(bytes, 1, "test").unwrap_err().kind(), ErrorKind::Damaged);
        }
    }

    #[test]
    fn keys_share_a_tag_and_tell_sessions_apart() {
        let keys = Keys::new("p:", &StorageKey::from_bytes([0xab; 32]));
        let tag = format!("{{{}}}", "ab".repeat(32));
        let with = |suffix: &str| format!("p:{tag}{suffix}").into_bytes();
        assert_eq!(keys.all(), [with(""), with(":lock"), with(":q1"), with(":t1")]);
        assert_eq!((keys.record(), keys.lock()), (&with("")[..], &with(":lock")[..]));
        assert_eq!(unhex(hex(&[0, 15, 255]).as_bytes()), Some([0, 15, 255]));
        assert_eq!((unhex::<1>(b"zz"), unhex::<1>(b"0")), (None, None));
    }

    #[test]
    fn durations_round_up_and_stay_in_bounds() {
        assert_eq!(milliseconds(Duration::ZERO), "1");
        assert_eq!(milliseconds(Duration::from_nanos(1_000_001)), "2");
        assert_eq!(milliseconds(Duration::from_secs(400 * 86_400)), "34560000000");
        assert_eq!(milliseconds(Duration::MAX), "31536000000000");
    }
}
