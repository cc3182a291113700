//! The bytes of a record and of a lock file.
//!
//! A record is a header of 72 bytes and the data. Numbers are big-endian.
//!
//! | at | bytes | what |
//! |---|---|---|
//! | 0 | 4 | `sesn` |
//! | 4 | 1 | format, 1 |
//! | 5 | 1 | 1: the record belongs to a user; 0: to nobody |
//! | 6 | 2 | zero |
//! | 8 | 16 | version |
//! | 24 | 8 | expiry, in nanoseconds since 1970 |
//! | 32 | 32 | whose it is; zeros for nobody |
//! | 64 | 4 | length of the data |
//! | 68 | 4 | CRC-32 of the key, the header before this field, and the data |
//!
//! Magic, format and length are compared, and the rest is under the checksum, which finds every change within
//! 32 bits for certain: so each damaged byte is found, as is each byte that is missing or too many. The key
//! is in the checksum, so a record that was copied to another session's name is damaged there.

use bytes::Bytes;
use session_core::{PrincipalKey, StorageKey, Stored, Token, Version};
use std::time::Duration;

/// What the length field can say and memory can hold; a header that says more is no header.
pub(crate) const LARGEST_VALUE: usize = 1 << 30;

pub(crate) const HEADER: usize = 72;
const MAGIC: &[u8; 4] = b"sesn";
const FORMAT: u8 = 1;

/// What is in a record's file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) version: Version,
    /// Since 1970.
    pub(crate) expires: Duration,
    pub(crate) principal: Option<PrincipalKey>,
    pub(crate) data: Bytes,
}

/// What the header alone says; believed only when the checksum is right.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Header {
    pub(crate) expires: Duration,
    pub(crate) principal: Option<PrincipalKey>,
    pub(crate) length: usize,
}

/// What is wrong with a file.
pub(crate) type Damage = &'static str;

impl Header {
    /// Whether this can be the beginning of a record, and what it says.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, Damage> {
        let header = bytes.first_chunk::<HEADER>().ok_or("shorter than a header")?;
        if !header.starts_with(MAGIC) {
            return Err("not a session");
        }
        if header[4] != FORMAT {
            return Err("an unknown format");
        }
        let length = usize::try_from(u32::from_be_bytes(array(&header[64..68]))).unwrap_or(usize::MAX);
        if length > LARGEST_VALUE {
            return Err("an impossible length");
        }
        let principal = (header[5] == 1).then(|| PrincipalKey::from_bytes(array(&header[32..64])));
        let expires = Duration::from_nanos(u64::from_be_bytes(array(&header[24..32])));
        Ok(Self { expires, principal, length })
    }
}

impl Record {
    /// Whether it is still there at this time.
    pub(crate) fn is_live(&self, now: Duration) -> bool {
        self.expires > now
    }

    pub(crate) fn stored(&self, now: Duration) -> Stored {
        Stored::new(self.version, self.data.clone(), self.expires.saturating_sub(now))
            .principal(self.principal)
    }

    /// The bytes of the file. The data must not be longer than [`LARGEST_VALUE`].
    pub(crate) fn encode(&self, key: &StorageKey) -> Vec<u8> {
        let mut file = Vec::with_capacity(HEADER + self.data.len());
        file.extend_from_slice(MAGIC);
        file.extend_from_slice(&[FORMAT, u8::from(self.principal.is_some()), 0, 0]);
        file.extend_from_slice(&self.version.to_bytes());
        file.extend_from_slice(&nanoseconds(self.expires).to_be_bytes());
        file.extend_from_slice(&self.principal.map_or([0; 32], |principal| *principal.as_bytes()));
        file.extend_from_slice(&u32::try_from(self.data.len()).unwrap_or(u32::MAX).to_be_bytes());
        file.extend_from_slice(&checksum(key, &file, &self.data).to_be_bytes());
        file.extend_from_slice(&self.data);
        file
    }

    /// Reads what [`encode`](Self::encode) wrote for this key, and nothing else.
    pub(crate) fn decode(key: &StorageKey, file: Vec<u8>) -> Result<Self, Damage> {
        let header = Header::parse(&file)?;
        if file.len() - HEADER != header.length {
            return Err("cut off, or longer than it says");
        }
        let crc = u32::from_be_bytes(array(&file[68..HEADER]));
        if crc != checksum(key, &file[..68], &file[HEADER..]) {
            return Err("a wrong checksum");
        }
        // Written by something that knows more than this: not to be misread.
        if file[5] > 1 || file[6..8] != [0; 2] {
            return Err("an unknown format");
        }
        let version = Version::from_bytes(array(&file[8..24]));
        let Header { expires, principal, .. } = header;
        Ok(Self { version, expires, principal, data: Bytes::from(file).slice(HEADER..) })
    }
}

/// In nanoseconds, as far as 64 bits go: until the year 2554, which stands for ever.
fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

fn checksum(key: &StorageKey, header: &[u8], data: &[u8]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(key.as_bytes());
    crc.update(header);
    crc.update(data);
    crc.finalize()
}

/// A part of a fixed length; callers cut it to size.
fn array<const N: usize>(part: &[u8]) -> [u8; N] {
    let mut array = [0; N];
    array.copy_from_slice(part);
    array
}

/// Names an owner file, and with it an open store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct OwnerId(pub(crate) [u8; 16]);

/// Who holds the lock of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Lease {
    pub(crate) token: Token,
    pub(crate) owner: OwnerId,
    /// By the lease clock.
    pub(crate) until: Duration,
}

/// Who has waited so long that the next turn is kept for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Turn {
    pub(crate) token: Token,
    /// By the lease clock.
    pub(crate) until: Duration,
}

/// What is in a lock file. Nobody and nobody: there is no such file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Lock {
    pub(crate) holder: Option<Lease>,
    pub(crate) next: Option<Turn>,
}

impl Lock {
    pub(crate) const LEN: usize = 76;
    const MAGIC: &[u8; 8] = b"sesl\x01\0\0\0";

    /// Magic, the holder (token, owner, until), the next (token, until), CRC-32. Until is zero for nobody.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut file = Vec::with_capacity(Self::LEN);
        file.extend_from_slice(Self::MAGIC);
        let holder = self.holder.map_or(([0; 16], [0; 16], 0), |lease| {
            (*lease.token.as_bytes(), lease.owner.0, nanoseconds(lease.until))
        });
        file.extend_from_slice(&holder.0);
        file.extend_from_slice(&holder.1);
        file.extend_from_slice(&holder.2.to_be_bytes());
        let next = self.next.map_or(([0; 16], 0), |turn| (*turn.token.as_bytes(), nanoseconds(turn.until)));
        file.extend_from_slice(&next.0);
        file.extend_from_slice(&next.1.to_be_bytes());
        file.extend_from_slice(&crc32fast::hash(&file).to_be_bytes());
        file
    }

    /// Reads what [`encode`](Self::encode) wrote; `None` for anything else.
    pub(crate) fn decode(file: &[u8]) -> Option<Self> {
        let (body, crc) = file.split_last_chunk::<4>()?;
        if file.len() != Self::LEN
            || !body.starts_with(Self::MAGIC)
            || u32::from_be_bytes(*crc) != crc32fast::hash(body)
        {
            return None;
        }
        let until = |part| Some(u64::from_be_bytes(array(part))).filter(|nanos| *nanos > 0);
        Some(Self {
            holder: until(&body[40..48]).map(|nanos| Lease {
                token: Token::from_bytes(array(&body[8..24])),
                owner: OwnerId(array(&body[24..40])),
                until: Duration::from_nanos(nanos),
            }),
            next: until(&body[64..72]).map(|nanos| Turn {
                token: Token::from_bytes(array(&body[48..64])),
                until: Duration::from_nanos(nanos),
            }),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: StorageKey = StorageKey::from_bytes([7; 32]);

    fn record(principal: Option<PrincipalKey>, data: &'static [u8]) -> Record {
        Record {
            version: Version::from_bytes([1; 16]),
            expires: Duration::new(2_000_000_000, 123_456_789),
            principal,
            data: Bytes::from_static(data),
        }
    }

    #[test]
    fn what_was_written_is_read() {
        for record in [record(None, b""), record(Some(PrincipalKey::of("ann")), b"cart \0 \xff")] {
            assert_eq!(Record::decode(&KEY, record.encode(&KEY)), Ok(record));
        }
        let eternal = Record { expires: Duration::MAX, ..record(None, b"x") };
        let read = Record::decode(&KEY, eternal.encode(&KEY)).unwrap();
        assert!(read.is_live(Duration::from_secs(17_000_000_000)));
    }

    #[test]
    fn every_change_of_every_byte_is_found() {
        let good = record(Some(PrincipalKey::of("ann")), b"some data").encode(&KEY);
        for at in 0..good.len() {
            for flip in 1..=u8::MAX {
                let mut bad = good.clone();
                bad[at] ^= flip;
                assert!(Record::decode(&KEY, bad).is_err(), "byte {at} ^ {flip}");
            }
        }
        for length in 0..good.len() {
            assert!(Record::decode(&KEY, good[..length].to_vec()).is_err(), "cut at {length}");
        }
        for extra in [&b"\0"[..], b"x", &good] {
            assert!(Record::decode(&KEY, [&good, extra].concat()).is_err(), "{} more", extra.len());
        }
        assert!(Record::decode(&StorageKey::from_bytes([8; 32]), good).is_err(), "another's record");
    }

    #[test]
    fn a_lock_is_read_whole_or_not_at_all() {
        let token = Token::from_bytes([3; 16]);
        let holder = Lease { token, owner: OwnerId([4; 16]), until: Duration::from_nanos(5) };
        let next = Turn { token, until: Duration::from_secs(6) };
        for lock in [
            Lock::default(),
            Lock { holder: Some(holder), next: None },
            Lock { holder: None, next: Some(next) },
            Lock { holder: Some(holder), next: Some(next) },
        ] {
            let good = lock.encode();
            assert_eq!(Lock::decode(&good), Some(lock));
            for at in 0..good.len() {
                let mut bad = good.clone();
                bad[at] ^= 0x10;
                assert_eq!(Lock::decode(&bad), None, "byte {at}");
                assert_eq!(Lock::decode(&good[..at]), None, "cut at {at}");
            }
        }
    }
}
