//! The meta protocol, and requests of several commands in one piece.
//!
//! Records and locks are written by the classic `add` and `cas` here, too, and not by `ms`: when memcached
//! refuses an `ms` (too long, no memory), in whatever mode and whatever it compares, it drops the item that
//! was there. The meta commands read (`mg`, with the time left), touch and delete (`md`, with a comparison).

use crate::{
    connection::Wire,
    fault::Fault,
    item::{Item, Swapped},
};
use std::{
    fmt,
    io::{self, Write as _},
};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _};

/// The longest line that a server has reason to send.
const LINE: u64 = 4096;
/// How many lines of statistics are read at most.
const STATISTICS: usize = 4096;

/// What a server says of itself beside its version.
#[derive(Debug, Default)]
pub(crate) struct Introduction {
    pub(crate) meta: bool,
    pub(crate) time: Option<u64>,
    pub(crate) item_size_max: Option<usize>,
    pub(crate) cas_enabled: Option<bool>,
}

/// Asks whether it speaks the meta protocol, its clock and its settings, in one round trip.
pub(crate) async fn introduce(wire: &mut Wire) -> Result<Introduction, Fault> {
    send(wire, b"mn\r\nstats\r\nstats settings\r\n").await?;
    let mut answers = Introduction { meta: line(wire).await? == b"MN", ..Introduction::default() };
    for _ in ["stats", "stats settings"] {
        for _ in 0..STATISTICS {
            let line = line(wire).await?;
            if line == b"END" {
                break;
            }
            let text = std::str::from_utf8(&line).ok().and_then(|line| line.strip_prefix("STAT "));
            let Some((name, value)) = text.and_then(|text| text.split_once(' ')) else {
                return Err(Fault::from_line(&line));
            };
            match name {
                "time" => answers.time = value.parse().ok(),
                "item_size_max" => answers.item_size_max = value.parse().ok(),
                "cas_enabled" => answers.cas_enabled = Some(value == "yes"),
                _ => {}
            }
        }
    }
    Ok(answers)
}

/// Commands that leave together; their replies are read in the same order.
#[derive(Debug)]
pub(crate) struct Request(Vec<u8>);

impl Default for Request {
    fn default() -> Self {
        Self(Vec::with_capacity(512)) // three commands, without what they write
    }
}

impl Request {
    /// Answered by [`item`].
    pub(crate) fn get(self, key: &str, opaque: u64) -> Self {
        self.line(format_args!("mg {key} v c t O{opaque}"))
    }

    /// Answered by [`exists`].
    pub(crate) fn probe(self, key: &str, opaque: u64) -> Self {
        self.line(format_args!("mg {key} O{opaque}"))
    }

    /// Answered by [`added`].
    pub(crate) fn add(self, key: &str, value: &[u8], exptime: u32) -> Self {
        self.line(format_args!("add {key} 0 {exptime} {}", value.len())).block(value)
    }

    /// Answered by [`swapped`].
    pub(crate) fn swap(self, key: &str, value: &[u8], exptime: u32, cas: u64) -> Self {
        self.line(format_args!("cas {key} 0 {exptime} {} {cas}", value.len())).block(value)
    }

    /// Answered by [`changed`].
    pub(crate) fn remove(self, key: &str, cas: u64, opaque: u64) -> Self {
        self.line(format_args!("md {key} C{cas} O{opaque}"))
    }

    /// Gives the item a new number, if there is one, and changes nothing else: appends nothing. Answered by
    /// [`added`].
    pub(crate) fn renumber(self, key: &str) -> Self {
        self.line(format_args!("append {key} 0 0 0")).block(b"")
    }

    /// Moves the expiry of the item with this number, which gets a new number. ("Marks it stale", which means
    /// nothing here: of the commands that move an expiry without the value, it alone compares.) Answered by
    /// [`changed`].
    pub(crate) fn touch(self, key: &str, exptime: u32, cas: u64, opaque: u64) -> Self {
        self.line(format_args!("md {key} I C{cas} T{exptime} O{opaque}"))
    }

    pub(crate) async fn send(&self, wire: &mut Wire) -> Result<(), Fault> {
        send(wire, &self.0).await
    }

    fn line(mut self, line: fmt::Arguments<'_>) -> Self {
        let Ok(()) = self.0.write_fmt(line) else { return self }; // a vector takes everything
        self.block(b"")
    }

    fn block(mut self, value: &[u8]) -> Self {
        self.0.extend_from_slice(value);
        self.0.extend_from_slice(b"\r\n");
        self
    }
}

async fn send(wire: &mut Wire, request: &[u8]) -> Result<(), Fault> {
    wire.write_all(request).await?;
    Ok(wire.flush().await?)
}

/// The reply to [`Request::get`]: the item, of at most `limit` bytes.
pub(crate) async fn item(wire: &mut Wire, limit: usize, opaque: u64) -> Result<Option<Item>, Fault> {
    let head = line(wire).await?;
    if is_miss(&head, opaque) {
        return Ok(None);
    }
    let (length, cas, left) = item_head(&head, opaque).ok_or_else(|| Fault::from_line(&head))?;
    if length > limit {
        return Err(Fault::Garbled(format!("an item of {length} bytes")));
    }
    let mut value = vec![0; length + 2];
    wire.read_exact(&mut value).await?;
    if !value.ends_with(b"\r\n") {
        return Err(Fault::Garbled("an item without an end".to_owned()));
    }
    value.truncate(length);
    Ok(Some(Item { value: value.into(), cas, left: Some(left) }))
}

/// `VA <length> c<cas> t<left> O<opaque>`, and flags that say nothing here.
fn item_head(head: &[u8], opaque: u64) -> Option<(usize, u64, i64)> {
    let mut words = std::str::from_utf8(head).ok()?.split(' ');
    let (mut cas, mut left, mut answers) = (None, None, None);
    let length = (words.next() == Some("VA")).then(|| words.next())??.parse().ok()?;
    for word in words {
        match word.split_at_checked(1)? {
            ("c", number) => cas = number.parse().ok(),
            ("t", number) => left = number.parse().ok(),
            ("O", number) => answers = number.parse().ok(),
            _ => {}
        }
    }
    (answers == Some(opaque)).then_some(())?;
    Some((length, cas?, left?))
}

/// The reply to [`Request::probe`].
pub(crate) async fn exists(wire: &mut Wire, opaque: u64) -> Result<bool, Fault> {
    let line = line(wire).await?;
    match code(&line, opaque) {
        Some("HD") => Ok(true),
        _ if is_miss(&line, opaque) => Ok(false),
        _ => Err(Fault::from_line(&line)),
    }
}

/// The reply to [`Request::remove`] and [`Request::touch`].
pub(crate) async fn changed(wire: &mut Wire, opaque: u64) -> Result<Swapped, Fault> {
    let line = line(wire).await?;
    match code(&line, opaque) {
        Some("HD") => Ok(Swapped::Done),
        Some("EX") => Ok(Swapped::Changed),
        Some("NF") => Ok(Swapped::Missing),
        _ => Err(Fault::from_line(&line)),
    }
}

/// The reply to [`Request::swap`].
pub(crate) async fn swapped(wire: &mut Wire) -> Result<Swapped, Fault> {
    match line(wire).await?.as_slice() {
        b"STORED" => Ok(Swapped::Done),
        b"EXISTS" => Ok(Swapped::Changed),
        b"NOT_FOUND" => Ok(Swapped::Missing),
        other => Err(Fault::from_line(other)),
    }
}

/// The reply to [`Request::add`]: whether it was added; to [`Request::renumber`]: whether there is such an
/// item.
pub(crate) async fn added(wire: &mut Wire) -> Result<bool, Fault> {
    match line(wire).await?.as_slice() {
        b"STORED" => Ok(true),
        b"NOT_STORED" => Ok(false),
        other => Err(Fault::from_line(other)),
    }
}

/// Whether this is the reply of `mg` for what is not there. Not every such reply repeats the flags.
fn is_miss(line: &[u8], opaque: u64) -> bool {
    line.starts_with(b"EN") && (line == b"EN" || code(line, opaque) == Some("EN"))
}

/// The code of a reply without a value, if it answers this request.
fn code(line: &[u8], opaque: u64) -> Option<&str> {
    let mut words = std::str::from_utf8(line).ok()?.split(' ');
    let code = words.next()?;
    words
        .any(|word| word.strip_prefix('O').is_some_and(|number| number.parse() == Ok(opaque)))
        .then_some(code)
}

/// A line without its end.
async fn line(wire: &mut Wire) -> Result<Vec<u8>, Fault> {
    let mut line = Vec::with_capacity(64);
    wire.take(LINE).read_until(b'\n', &mut line).await?;
    match line.strip_suffix(b"\r\n") {
        Some(whole) => {
            line.truncate(whole.len());
            Ok(line)
        }
        None if line.len() as u64 == LINE => Err(Fault::Garbled("a line without an end".to_owned())),
        None => Err(Fault::Io(io::ErrorKind::UnexpectedEof.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reply_to_another_request_is_no_reply() {
        assert_eq!(item_head(b"VA 5 c12 t99 O7", 7), Some((5, 12, 99)));
        assert_eq!(item_head(b"VA 0 c1 t-1 O7 X W", 7), Some((0, 1, -1)));
        for bad in [
            "VA 5 c12 t99 O8",
            "VA 5 c12 t99",
            "VA 5 t99 O7",
            "VA 5 c12 O7",
            "VA x c12 t99 O7",
            "HD c12 t99 O7",
            "VA",
            "",
        ] {
            assert_eq!(item_head(bad.as_bytes(), 7), None, "{bad}");
        }
        assert_eq!(code(b"HD O7", 7), Some("HD"));
        for bad in ["HD O8", "HD", "", "STORED"] {
            assert_eq!(code(bad.as_bytes(), 7), None, "{bad}");
        }
        assert!(is_miss(b"EN", 7) && is_miss(b"EN O7", 7));
        assert!(!is_miss(b"EN O8", 7) && !is_miss(b"END", 7) && !is_miss(b"HD O7", 7));
    }

    #[test]
    fn commands_are_what_the_protocol_wants() {
        let request = Request::default()
            .get("k", 1)
            .probe("k", 2)
            .add("k", b"v\r\n", 60)
            .swap("k", b"", 0, 9)
            .remove("k", 8, 3)
            .touch("k", 60, 7, 4)
            .renumber("k");
        let expected = "mg k v c t O1\r\nmg k O2\r\nadd k 0 60 3\r\nv\r\n\r\ncas k 0 0 0 9\r\n\r\nmd k C8 O3\r\nmd k I C7 T60 O4\r\nappend k 0 0 0\r\n\r\n";
        assert_eq!(String::from_utf8(request.0).unwrap(), expected);
    }
}
