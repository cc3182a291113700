//! A record as it is stored.
//!
//! ```text
//! 0      format, 1
//! 1      flags: bit 0 the body is deflated; the others are 0 (bit 1 is kept for sealing)
//! 2      kind: 0 a session, 1 a tombstone
//! 3      codec of the values: 0 JSON, 1 bincode, 2 MessagePack; 0 in a tombstone
//! 4..8   CRC-32 of bytes 0..4 and 8.. as they stand here
//! 8..    the body; deflated: its length as u32, then a raw deflate stream
//!
//! body of a session      commits, deadline u64 (milliseconds since 1970), number of values u32,
//!                        then each: length of the name u16, name, length of the value u32, value; names ascend
//! body of a tombstone    commits, successor's storage key [32], grace u8: 0, or 1 and until u64, nonce [16], sealed id [32]
//! commits                number u8 (at most 16), then each [8], oldest first
//! ```
//!
//! Numbers are little-endian. Every byte is covered: a damaged one is an error, and nothing is allocated on
//! the word of a length that was not checked.

use crate::{
    Codec, Error, ErrorKind, Random, Result, SessionId, StorageKey, compression, environment::draw,
    record::Record,
};
use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;
use std::{sync::Arc, time::Duration};

const FORMAT: u8 = 1;
const DEFLATED: u8 = 1;
const HEAD: usize = 8;

/// The id of one commit, kept in the record so that a lost reply can be looked up.
pub(crate) type CommitId = [u8; 8];

/// The ids of the last commits, oldest first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Commits(Vec<CommitId>);

impl Commits {
    pub(crate) const KEPT: usize = 16;

    pub(crate) fn contains(&self, id: &CommitId) -> bool {
        self.0.contains(id)
    }

    pub(crate) fn last(&self) -> Option<&CommitId> {
        self.0.last()
    }

    #[must_use]
    pub(crate) fn and(&self, id: CommitId) -> Self {
        let skipped = (self.0.len() + 1).saturating_sub(Self::KEPT);
        Self(self.0.iter().copied().skip(skipped).chain([id]).collect())
    }
}

/// What stands in a store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Envelope {
    Live(Live),
    Tombstone(Tombstone),
}

/// A session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Live {
    pub(crate) commits: Commits,
    /// When it ends whatever is done, since 1970, in whole milliseconds.
    pub(crate) deadline: Duration,
    pub(crate) record: Arc<Record>,
}

/// What a rotation leaves under the old id: who may destroy it destroys the successor, too; who comes within
/// the grace and has the old id learns the new one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Tombstone {
    pub(crate) commits: Commits,
    pub(crate) successor: StorageKey,
    pub(crate) grace: Option<Grace>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Grace {
    pub(crate) until: Duration,
    nonce: [u8; 16],
    sealed: [u8; 32],
}

impl Grace {
    /// Hides the new id from everybody who does not have the old one.
    ///
    /// The pad is HMAC-SHA-256 of a fresh nonce, keyed by the old id, which is 256 random bits: used once, as
    /// long as what it hides. That the result is genuine is checked against the successor's storage key, its
    /// hash.
    pub(crate) fn seal(
        until: Duration,
        old: &SessionId,
        new: &SessionId,
        random: &dyn Random,
    ) -> Result<Self> {
        let nonce = draw(random)?;
        let sealed = xor(new.as_bytes(), &pad(old, &nonce)?);
        Ok(Self { until, nonce, sealed })
    }

    fn open(&self, old: &SessionId) -> Result<SessionId> {
        Ok(SessionId::from_bytes(xor(&self.sealed, &pad(old, &self.nonce)?)))
    }
}

fn pad(old: &SessionId, nonce: &[u8; 16]) -> Result<[u8; 32]> {
    let mac = Hmac::<Sha256>::new_from_slice(old.as_bytes());
    let mac = mac.map_err(|error| Error::new(ErrorKind::Encode, "rotate").with_source(error))?;
    Ok(mac.chain_update(b"session successor\0").chain_update(nonce).finalize().into_bytes().into())
}

fn xor(a: &[u8; 32], b: &[u8; 32]) -> [u8; 32] {
    std::array::from_fn(|i| a[i] ^ b[i])
}

impl Tombstone {
    /// The new id, for who has the old one and comes in time.
    ///
    /// # Errors
    /// [`ErrorKind::Damaged`] when what is sealed is not the successor's id.
    pub(crate) fn follow(&self, old: &SessionId, now: Duration) -> Result<Option<SessionId>> {
        let Some(grace) = self.grace.as_ref().filter(|grace| grace.until > now) else { return Ok(None) };
        let new = grace.open(old)?;
        if new.storage_key() == self.successor {
            Ok(Some(new))
        } else {
            Err(Error::damaged("a foreign tombstone"))
        }
    }
}

/// What may be written and read.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Of the envelope, as stored.
    pub(crate) stored: usize,
    /// Of the body, inflated.
    pub(crate) inflated: usize,
    /// Bodies from this length on are deflated.
    pub(crate) compress_from: usize,
}

impl Envelope {
    pub(crate) fn commits(&self) -> &Commits {
        match self {
            Self::Live(live) => &live.commits,
            Self::Tombstone(tombstone) => &tombstone.commits,
        }
    }

    /// # Errors
    /// [`ErrorKind::TooLarge`] naming the limit; nothing was sent.
    pub(crate) async fn encode(&self, limits: Limits) -> Result<Bytes> {
        let (kind, codec) = match self {
            Self::Live(live) => (0, live.record.codec.id()),
            Self::Tombstone(_) => (1, 0),
        };
        let mut head = [FORMAT, 0, kind, codec];
        let mut whole = BytesMut::with_capacity(HEAD + self.body_len());
        whole.put_bytes(0, HEAD);
        self.put_body(&mut whole)?;
        let size = whole.len() - HEAD;
        within(size, limits.inflated, "bytes of session data (max_inflated)")?;
        if size >= limits.compress_from {
            let body = whole.split_off(HEAD).freeze();
            let deflated = compression::deflate(&body).await?;
            head[1] = if deflated.is_some() { DEFLATED } else { 0 };
            whole.put_slice(&deflated.unwrap_or(body));
        }
        within(whole.len(), limits.stored, "bytes as stored (max_stored)")?;
        let sum = checksum(&head, &whole[HEAD..]);
        whole[..4].copy_from_slice(&head);
        whole[4..HEAD].copy_from_slice(&sum.to_le_bytes());
        Ok(whole.freeze())
    }

    /// What [`put_body`](Self::put_body) needs room for.
    fn body_len(&self) -> usize {
        let rest = match self {
            Self::Live(live) => {
                live.record.values.iter().fold(12, |sum, (name, value)| sum + 6 + name.len() + value.len())
            }
            Self::Tombstone(tombstone) => 33 + tombstone.grace.as_ref().map_or(0, |_| 8 + 16 + 32),
        };
        1 + size_of::<CommitId>() * self.commits().0.len() + rest
    }

    fn put_body(&self, body: &mut BytesMut) -> Result<()> {
        let commits = self.commits();
        body.put_u8(u8::try_from(commits.0.len()).map_err(|_| Error::too_large("commits"))?);
        commits.0.iter().for_each(|id| body.put_slice(id));
        match self {
            Self::Live(live) => {
                body.put_u64_le(millis(live.deadline));
                body.put_u32_le(
                    u32::try_from(live.record.values.len()).map_err(|_| Error::too_large("values"))?,
                );
                for (name, value) in &live.record.values {
                    body.put_u16_le(u16::try_from(name.len()).map_err(|_| Error::too_large("a key's name"))?);
                    body.put_slice(name.as_bytes());
                    body.put_u32_le(u32::try_from(value.len()).map_err(|_| Error::too_large("a value"))?);
                    body.put_slice(value);
                }
            }
            Self::Tombstone(tombstone) => {
                body.put_slice(tombstone.successor.as_bytes());
                match &tombstone.grace {
                    None => body.put_u8(0),
                    Some(grace) => {
                        body.put_u8(1);
                        body.put_u64_le(millis(grace.until));
                        body.put_slice(&grace.nonce);
                        body.put_slice(&grace.sealed);
                    }
                }
            }
        }
        Ok(())
    }

    /// # Errors
    /// [`ErrorKind::Damaged`] for whatever this module did not write, [`ErrorKind::TooLarge`] for what would
    /// inflate beyond the limit, [`ErrorKind::Unsupported`] for a codec that is not compiled in.
    pub(crate) async fn decode(stored: Bytes, limits: Limits) -> Result<Self> {
        let (Some((head, rest)), true) = (stored.split_first_chunk::<4>(), stored.len() >= HEAD) else {
            return Err(Error::damaged("shorter than its head"));
        };
        let [format, flags, kind, codec] = *head;
        if format != FORMAT {
            return Err(Error::damaged(format!("unknown format {format}")));
        }
        let mut sum = &rest[..4];
        let body = stored.slice(HEAD..);
        if sum.get_u32_le() != checksum(head, &body) {
            return Err(Error::damaged("the checksum differs"));
        }
        let body = match flags {
            0 => {
                within(body.len(), limits.inflated, "bytes of session data (max_inflated)").map(|()| body)?
            }
            DEFLATED => {
                let length = compression::claimed_length(&body)?;
                within(length, limits.inflated, "bytes when inflated (max_inflated)")?;
                compression::inflate(body, length).await?
            }
            _ => return Err(Error::damaged(format!("unknown flags {flags:#x}"))),
        };
        let mut reader = Reader(body);
        let envelope = match (kind, codec) {
            (0, codec) => Self::Live(reader.live(Codec::from_id(codec)?)?),
            (1, 0) => Self::Tombstone(reader.tombstone()?),
            _ => return Err(Error::damaged(format!("unknown kind {kind}"))),
        };
        if reader.0.is_empty() { Ok(envelope) } else { Err(Error::damaged("bytes are left over")) }
    }
}

/// Takes a body apart; every length is checked against what is there.
struct Reader(Bytes);

impl Reader {
    fn take(&mut self, length: usize) -> Result<Bytes> {
        if length > self.0.len() {
            return Err(Error::damaged("it ends too early"));
        }
        Ok(self.0.split_to(length))
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let bytes = *self.0.first_chunk().ok_or_else(|| Error::damaged("it ends too early"))?;
        self.0.advance(N);
        Ok(bytes)
    }

    fn commits(&mut self) -> Result<Commits> {
        let [number] = self.array()?;
        if usize::from(number) > Commits::KEPT {
            return Err(Error::damaged("too many commits"));
        }
        let mut commits = Vec::with_capacity(number.into());
        for _ in 0..number {
            commits.push(self.array()?);
        }
        Ok(Commits(commits))
    }

    fn live(&mut self, codec: Codec) -> Result<Live> {
        let commits = self.commits()?;
        let deadline = Duration::from_millis(u64::from_le_bytes(self.array()?));
        let number = u32::from_le_bytes(self.array()?);
        let mut record = Record::new(codec);
        for _ in 0..number {
            let length = u16::from_le_bytes(self.array()?);
            let name = self.take(length.into())?;
            let name = std::str::from_utf8(&name).map_err(|_| Error::damaged("a name is not UTF-8"))?;
            if record.values.last_key_value().is_some_and(|(last, _)| last.as_str() >= name) {
                return Err(Error::damaged("names do not ascend"));
            }
            let length = u32::from_le_bytes(self.array()?);
            let length =
                usize::try_from(length).map_err(|_| Error::damaged("a value is longer than the memory"))?;
            record.values.insert(name.to_owned(), self.take(length)?);
        }
        Ok(Live { commits, deadline, record: Arc::new(record) })
    }

    fn tombstone(&mut self) -> Result<Tombstone> {
        let commits = self.commits()?;
        let successor = StorageKey::from_bytes(self.array()?);
        let grace = match self.array()? {
            [0] => None,
            [1] => Some(Grace {
                until: Duration::from_millis(u64::from_le_bytes(self.array()?)),
                nonce: self.array()?,
                sealed: self.array()?,
            }),
            _ => return Err(Error::damaged("unknown grace")),
        };
        Ok(Tombstone { commits, successor, grace })
    }
}

fn checksum(head: &[u8; 4], body: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(head);
    hasher.update(body);
    hasher.finalize()
}

/// Whole milliseconds, rounded down.
fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

fn within(size: usize, limit: usize, what: &str) -> Result<()> {
    if size <= limit {
        return Ok(());
    }
    Err(Error::new(ErrorKind::TooLarge, "session").with_context(format!("{size} {what}, at most {limit}")))
}
