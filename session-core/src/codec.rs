//! How values become bytes.

use crate::{Error, ErrorKind, Result};
use bytes::Bytes;
use serde::{Serialize, de::DeserializeOwned};

/// How the values of a session are encoded. A session keeps the codec that it was created with.
///
/// What was seen is compared by its encoded bytes, so encode maps in a fixed order (`BTreeMap`, not
/// `HashMap`): otherwise a conflict may be reported that is none. One that is real is never missed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Codec {
    /// Readable, and the most forgiving: a new field with `#[serde(default)]` reads old sessions.
    #[default]
    Json,
    /// Compact and strict (bincode 2, feature `bincode`). It cannot read back what it wrote of untagged and
    /// internally tagged enums, `serde_json::Value` and `skip_serializing_if`; a new field makes old sessions
    /// undecodable. bincode is no longer maintained (RUSTSEC-2025-0141): choose it for what must be
    /// compatible with it.
    #[cfg(feature = "bincode")]
    Bincode,
    /// MessagePack with field names (feature `msgpack`): smaller than JSON and as forgiving.
    #[cfg(feature = "msgpack")]
    MessagePack,
}

/// What bincode may allocate for one value, whatever a length in it claims.
#[cfg(feature = "bincode")]
const BINCODE: bincode::config::Configuration<
    bincode::config::LittleEndian,
    bincode::config::Varint,
    bincode::config::Limit<{ 64 << 20 }>,
> = bincode::config::standard().with_limit::<{ 64 << 20 }>();

impl Codec {
    /// The codec's number in a stored record.
    pub(crate) const fn id(self) -> u8 {
        match self {
            Self::Json => 0,
            #[cfg(feature = "bincode")]
            Self::Bincode => 1,
            #[cfg(feature = "msgpack")]
            Self::MessagePack => 2,
        }
    }

    /// # Errors
    /// [`ErrorKind::Unsupported`] for a codec that is not compiled in, [`ErrorKind::Damaged`] for one that
    /// never was.
    pub(crate) fn from_id(id: u8) -> Result<Self> {
        match id {
            0 => Ok(Self::Json),
            #[cfg(feature = "bincode")]
            1 => Ok(Self::Bincode),
            #[cfg(feature = "msgpack")]
            2 => Ok(Self::MessagePack),
            #[cfg(not(feature = "bincode"))]
            1 => Err(Error::new(ErrorKind::Unsupported, "load")
                .with_context("written with bincode: enable the feature `bincode`")),
            #[cfg(not(feature = "msgpack"))]
            2 => Err(Error::new(ErrorKind::Unsupported, "load")
                .with_context("written with MessagePack: enable the feature `msgpack`")),
            _ => Err(Error::new(ErrorKind::Damaged, "load").with_context(format!("unknown codec {id}"))),
        }
    }

    pub(crate) fn encode<T: Serialize + ?Sized>(self, name: &'static str, value: &T) -> Result<Bytes> {
        let failed = |error: Box<dyn std::error::Error + Send + Sync>| {
            Error::new(ErrorKind::Encode, "encode").with_context(name).with_source(error)
        };
        let bytes = match self {
            Self::Json => serde_json::to_vec(value).map_err(|error| failed(error.into()))?,
            #[cfg(feature = "bincode")]
            Self::Bincode => {
                bincode::serde::encode_to_vec(value, BINCODE).map_err(|error| failed(error.into()))?
            }
            #[cfg(feature = "msgpack")]
            Self::MessagePack => rmp_serde::to_vec_named(value).map_err(|error| failed(error.into()))?,
        };
        Ok(bytes.into())
    }

    pub(crate) fn decode<T: DeserializeOwned>(self, name: &'static str, bytes: &[u8]) -> Result<T> {
        let failed = |error: Box<dyn std::error::Error + Send + Sync>| {
            Error::new(ErrorKind::Decode, "decode").with_context(name).with_source(error)
        };
        match self {
            Self::Json => serde_json::from_slice(bytes).map_err(|error| failed(error.into())),
            #[cfg(feature = "bincode")]
            Self::Bincode => match bincode::serde::decode_from_slice(bytes, BINCODE) {
                Ok((value, read)) if read == bytes.len() => Ok(value),
                Ok(_) => Err(failed("bytes are left over".into())),
                Err(error) => Err(failed(error.into())),
            },
            #[cfg(feature = "msgpack")]
            Self::MessagePack => rmp_serde::from_slice(bytes).map_err(|error| failed(error.into())),
        }
    }
}
