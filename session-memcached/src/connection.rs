//! One connection to one server, as the pool makes and checks it.
//!
//! A connection is *clean* when every reply that was asked for has been read whole. It is marked unclean
//! before anything is sent, and clean again after the last byte; whoever is cancelled, times out or fails in
//! between leaves it unclean, and an unclean connection is closed. So no reply ever waits on a connection for
//! the next one who uses it.

use crate::{
    config::{Node, Protocol},
    fault::Fault,
    hints::Ticks,
    meta, plain,
};
use deadpool::managed::{self, RecycleError, RecycleResult};
use std::{io, sync::Arc, time::Duration};
use tokio::{
    io::{BufReader, BufWriter},
    net::TcpStream,
    time::Instant,
};

/// Buffered both ways: small requests leave in one piece.
pub(crate) type Wire = BufReader<BufWriter<TcpStream>>;

/// A request of this many bytes leaves in one piece.
const BUFFER: usize = 16 << 10;
/// From here on the meta commands are used unasked: the oldest version that they were tested with.
const META_SINCE: (u32, u32, u32) = (1, 6, 18);
/// Above 30 days memcached takes a number of seconds for a date.
pub(crate) const RELATIVE: u32 = 30 * 24 * 3600;

/// Makes connections to one server.
#[derive(Debug)]
pub(crate) struct Connector {
    pub(crate) node: Node,
    pub(crate) protocol: Protocol,
    pub(crate) ticks: Arc<Ticks>,
}

/// See the [module](self).
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) wire: Wire,
    pub(crate) facts: Facts,
    /// A moment after the server accepted it.
    pub(crate) opened: u64,
    pub(crate) clean: bool,
    /// Numbers the meta requests: a reply says which one it answers.
    pub(crate) opaque: u64,
}

/// What a server said of itself.
#[derive(Clone, Debug)]
pub(crate) struct Facts {
    /// Whether the meta commands are used.
    pub(crate) meta: bool,
    /// The longest item, with its key and the server's own header.
    pub(crate) max_item: usize,
    pub(crate) clock: ServerClock,
}

/// The server's clock, which counts whole seconds, as seen from here.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ServerClock {
    /// Seconds since 1970, as it said.
    pub(crate) said: u64,
    /// After it said so.
    pub(crate) at: Instant,
}

/// How many seconds shorter than its number an item's life may be: the server's second that it begins in has
/// begun already; and the server's clock is set by a timer that is a little late each time, so that every few
/// minutes it leaves a second out.
pub(crate) const SHORT: u64 = 2;

impl ServerClock {
    /// Milliseconds since 1970, up to a second behind.
    pub(crate) fn now(&self) -> u64 {
        let elapsed = u64::try_from(self.at.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.said.saturating_mul(1000).saturating_add(elapsed)
    }

    /// When an item ends that lives for `ttl` from now, in milliseconds since 1970.
    pub(crate) fn end_of(&self, ttl: Duration) -> u64 {
        self.now().saturating_add(u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX))
    }

    /// `ttl` as memcached wants it: rounded up, and as much more as the server's seconds may be [`SHORT`] of.
    /// What the protocol has no date for (after 2038) does not expire: never early.
    pub(crate) fn exptime(&self, ttl: Duration) -> u32 {
        const NEVER: u32 = 0;
        let seconds = ttl.as_secs().saturating_add(u64::from(ttl.subsec_nanos() > 0)).saturating_add(SHORT);
        if let Ok(seconds) = u32::try_from(seconds)
            && seconds <= RELATIVE
        {
            return seconds;
        }
        // The second it is in now has begun at most one after what `now` knows of.
        let date = (self.now() / 1000 + 1).saturating_add(seconds);
        i32::try_from(date).map_or(NEVER, i32::unsigned_abs)
    }
}

/// Why there is no connection.
#[derive(Debug)]
pub(crate) enum ConnectError {
    Fault(Fault),
    /// The server lacks something; this says what, and the cure.
    Unsupported(String),
}

impl<F: Into<Fault>> From<F> for ConnectError {
    fn from(fault: F) -> Self {
        Self::Fault(fault.into())
    }
}

impl managed::Manager for Connector {
    type Type = Connection;
    type Error = ConnectError;

    async fn create(&self) -> Result<Connection, ConnectError> {
        let stream = TcpStream::connect((self.node.host.as_str(), self.node.port)).await?;
        stream.set_nodelay(true)?;
        let mut wire = BufReader::with_capacity(BUFFER, BufWriter::with_capacity(BUFFER, stream));
        let facts = self.ask(&mut wire).await?;
        Ok(Connection { wire, facts, opened: self.ticks.next(), clean: true, opaque: 0 })
    }

    async fn recycle(
        &self,
        connection: &mut Connection,
        _: &managed::Metrics,
    ) -> RecycleResult<ConnectError> {
        if connection.is_quiet() { Ok(()) } else { Err(RecycleError::message("closed or not quiet")) }
    }
}

impl Connector {
    async fn ask(&self, wire: &mut Wire) -> Result<Facts, ConnectError> {
        let version = plain::version(wire).await?;
        let answers = meta::introduce(wire).await?;
        if answers.cas_enabled == Some(false) {
            let cure = "memcached runs without cas numbers (-C): start it without that option";
            return Err(ConnectError::Unsupported(cure.to_owned()));
        }
        let meta = match self.protocol {
            Protocol::Plain => false,
            Protocol::Auto => answers.meta && parse_version(&version) >= Some(META_SINCE),
            Protocol::Meta if answers.meta => true,
            Protocol::Meta => {
                let cure = "does not speak the meta protocol: update it, or set protocol to auto or plain";
                return Err(ConnectError::Unsupported(format!("memcached {version} {cure}")));
            }
        };
        let (Some(max_item), Some(said)) = (answers.item_size_max, answers.time) else {
            let cure =
                "does not answer `stats` and `stats settings` as memcached does: connect to memcached itself";
            return Err(ConnectError::Unsupported(format!("the server (version {version}) {cure}")));
        };
        Ok(Facts { meta, max_item, clock: ServerClock { said, at: Instant::now() } })
    }
}

impl Connection {
    /// Whether nothing is to be read and the other end has not closed, as far as this end was told.
    fn is_quiet(&self) -> bool {
        let stream = self.wire.get_ref().get_ref();
        let silent = |error: &io::Error| error.kind() == io::ErrorKind::WouldBlock;
        self.clean && self.wire.buffer().is_empty() && stream.try_read(&mut [0]).as_ref().is_err_and(silent)
    }

    pub(crate) fn next_opaque(&mut self) -> u64 {
        self.opaque = self.opaque.wrapping_add(1);
        self.opaque
    }
}

fn parse_version(text: &str) -> Option<(u32, u32, u32)> {
    let mut parts = text.split('.').map(|part| {
        let digits = part.find(|c: char| !c.is_ascii_digit()).unwrap_or(part.len());
        part[..digits].parse().ok()
    });
    Some((parts.next()??, parts.next()??, parts.next()??))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn ttls_are_rounded_up_and_long_ones_become_dates() {
        let clock = ServerClock { said: 1_800_000_000, at: Instant::now() };
        let day = 24 * 3600;
        for (ttl, expected) in [
            (Duration::ZERO, 2),
            (Duration::from_millis(1), 3),
            (Duration::from_secs(1), 3),
            (Duration::from_millis(1001), 4),
            (Duration::from_secs(30 * day - 2), 30 * 86400),
            (Duration::from_secs(30 * day - 1), 1_800_000_001 + 30 * 86400 + 1),
            (Duration::from_secs(400 * day), 1_800_000_001 + 400 * 86400 + 2),
            (Duration::from_secs(20 * 365 * day), 0),
            (Duration::MAX, 0),
        ] {
            assert_eq!(clock.exptime(ttl), expected, "{ttl:?}");
        }
        tokio::time::advance(Duration::from_millis(2500)).await;
        assert_eq!(clock.now(), 1_800_000_002_500);
        assert_eq!(clock.exptime(Duration::from_secs(31 * day)), 1_800_000_003 + 31 * 86400 + 2);
        assert_eq!(clock.end_of(Duration::MAX), u64::MAX);
    }

    #[test]
    fn versions_are_compared_by_their_numbers() {
        assert_eq!(parse_version("1.6.18"), Some((1, 6, 18)));
        assert_eq!(parse_version("1.6.24-dirty"), Some((1, 6, 24)));
        assert!(parse_version("1.6.9") < Some(META_SINCE));
        assert!(parse_version("1.10.0") > Some(META_SINCE));
        for none in ["", "unknown", "1.6", "1..2"] {
            assert_eq!(parse_version(none), None);
        }
    }
}
