//! The body of an envelope, deflated: its length as u32, little-endian, then a raw deflate stream.

use crate::{Error, ErrorKind, Result};
use bytes::Bytes;
use flate2::{Compress, Compression, FlushCompress, Status, bufread::DeflateDecoder};
use std::{cell::RefCell, io::Read as _};

/// What is longer is deflated and inflated off the async threads.
const HEAVY: usize = 64 << 10;

/// What is longer is deflated fast, and not well.
const SMALL: usize = 16 << 10;

/// Of the length in front of the stream.
const CLAIM: usize = 4;

/// The body deflated; `None` when that is not smaller.
pub(crate) async fn deflate(body: &Bytes) -> Result<Option<Bytes>> {
    // A new compressor is 300 KB of fresh pages, which cost more than what it is needed for here: each thread
    // keeps two.
    thread_local!(static IDLE: RefCell<[Option<Compress>; 2]> = const { RefCell::new([None, None]) });
    let body = body.clone();
    off_thread(body.len(), move || {
        let (level, nth) =
            if body.len() <= SMALL { (Compression::new(6), 0) } else { (Compression::fast(), 1) };
        let kept = IDLE.with_borrow_mut(|idle| idle[nth].take());
        let mut compressor = kept.unwrap_or_else(|| Compress::new(level, false));
        let deflated = run(&mut compressor, &body);
        if body.len() <= HEAVY {
            compressor.reset();
            IDLE.with_borrow_mut(|idle| idle[nth] = Some(compressor));
        }
        deflated
    })
    .await
}

fn run(compressor: &mut Compress, body: &[u8]) -> Result<Option<Bytes>> {
    let length = u32::try_from(body.len()).map_err(|_| Error::too_large("session data"))?;
    // Room for what is worth keeping, and no more: who does not come to an end in it is not smaller.
    let mut deflated = Vec::with_capacity(body.len());
    deflated.extend_from_slice(&length.to_le_bytes());
    match compressor.compress_vec(body, &mut deflated, FlushCompress::Finish) {
        Ok(Status::StreamEnd) => Ok((deflated.len() < body.len()).then(|| deflated.into())),
        Ok(Status::Ok | Status::BufError) => Ok(None),
        Err(error) => Err(Error::new(ErrorKind::Encode, "commit").with_source(error)),
    }
}

/// How long the body says that it will be.
pub(crate) fn claimed_length(deflated: &[u8]) -> Result<usize> {
    let Some((length, _)) = deflated.split_first_chunk::<CLAIM>() else {
        return Err(Error::damaged("it ends too early"));
    };
    usize::try_from(u32::from_le_bytes(*length)).map_err(|_| Error::damaged("longer than the memory"))
}

/// Exactly `length` bytes, and never more memory than that, whatever the stream holds.
pub(crate) async fn inflate(deflated: Bytes, length: usize) -> Result<Bytes> {
    off_thread(length, move || {
        let stream = &deflated[CLAIM..];
        let mut decoder = DeflateDecoder::new(stream);
        let mut body = Vec::new();
        // Grows with what really comes out: a claim alone allocates nothing.
        let limit = u64::try_from(length).unwrap_or(u64::MAX).saturating_add(1);
        let read = (&mut decoder).take(limit).read_to_end(&mut body);
        match read {
            Ok(read) if read == length && decoder.total_in() == stream.len() as u64 => Ok(body.into()),
            Ok(_) => Err(Error::damaged("it inflates to another length")),
            Err(error) => Err(Error::damaged("it does not inflate").with_source(error)),
        }
    })
    .await
}

/// Runs what takes long for its size where it stops nobody.
async fn off_thread<T: Send + 'static>(
    size: usize,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    if size <= HEAVY {
        return work();
    }
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => Err(Error::new(ErrorKind::Unavailable, "compression").with_source(error)),
    }
}
