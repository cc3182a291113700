//! A TCP proxy that counts, delays and cuts.
//!
//! Round trips are the currency here, and this is the purse: a *trip* is counted whenever bytes go to the
//! server after bytes came from it. A delay holds back the bytes of one direction by half a round trip each,
//! in order.

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::{mpsc, watch},
    task::JoinHandle,
    time::Instant,
};

/// What can wait in one direction of one connection, in pieces of at most 64 KiB.
const IN_FLIGHT: usize = 1024;

/// Stands between clients and one server, until it is dropped.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
    accepting: JoinHandle<()>,
}

#[derive(Debug)]
struct Shared {
    server: SocketAddr,
    one_way: Duration,
    trips: AtomicU64,
    connections: AtomicU64,
    bytes: AtomicU64,
    /// Counts the cuts: a connection ends when it changes.
    cuts: watch::Sender<u64>,
}

/// What went through since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// How often a client sent something after the server had sent something, all connections together.
    pub trips: u64,
    /// Connections that were opened.
    pub connections: u64,
    /// Bytes, both ways.
    pub bytes: u64,
}

impl Proxy {
    /// Listens on a free port of the loopback interface for clients of `server`; `round_trip` is added to
    /// each exchange.
    ///
    /// # Errors
    /// When no port can be had.
    pub async fn start(server: SocketAddr, round_trip: Duration) -> io::Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            server,
            one_way: round_trip / 2,
            trips: AtomicU64::new(0),
            connections: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            cuts: watch::Sender::new(0),
        });
        let accepting = tokio::spawn(accept(listener, Arc::clone(&shared)));
        Ok(Self { address, shared, accepting })
    }

    /// Where clients connect.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What went through so far.
    #[must_use]
    pub fn traffic(&self) -> Traffic {
        Traffic {
            trips: self.shared.trips.load(Relaxed),
            connections: self.shared.connections.load(Relaxed),
            bytes: self.shared.bytes.load(Relaxed),
        }
    }

    /// Ends every connection of the moment, on both sides; what was under way is lost.
    pub fn cut(&self) {
        self.shared.cuts.send_modify(|cuts| *cuts += 1);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
        self.cut();
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    while let Ok((client, _)) = listener.accept().await {
        tokio::spawn(connection(client, Arc::clone(&shared)));
    }
}

async fn connection(client: TcpStream, shared: Arc<Shared>) {
    let mut cuts = shared.cuts.subscribe();
    let Ok(server) = TcpStream::connect(shared.server).await else { return }; // the client sees a closed connection
    if client.set_nodelay(true).is_err() || server.set_nodelay(true).is_err() {
        return;
    }
    shared.connections.fetch_add(1, Relaxed);
    let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
    // Who spoke last: a trip begins when the client speaks after the server did, or first.
    let last_was_server = Arc::new(std::sync::atomic::AtomicBool::new(true));
    let (asks, answers) = (Arc::clone(&last_was_server), last_was_server);
    let (counting, counted) = (Arc::clone(&shared), Arc::clone(&shared));
    let up = direction(from_client, to_server, shared.one_way, move |bytes| {
        counting.bytes.fetch_add(bytes, Relaxed);
        if asks.swap(false, Relaxed) {
            counting.trips.fetch_add(1, Relaxed);
        }
    });
    let down = direction(from_server, to_client, shared.one_way, move |bytes| {
        counted.bytes.fetch_add(bytes, Relaxed);
        answers.store(true, Relaxed);
    });
    tokio::select! {
        () = up => {}
        () = down => {}
        _ = cuts.changed() => {}
    }
}

/// Copies until either end closes. The reading half never waits for the delay, so that pieces overlap as on a
/// real line.
async fn direction(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, delay: Duration, count: impl Fn(u64)) {
    let (send, mut receive) = mpsc::channel::<(Instant, Vec<u8>)>(IN_FLIGHT);
    let reading = async move {
        let mut buffer = vec![0; 64 << 10];
        while let Ok(length @ 1..) = from.read(&mut buffer).await {
            count(length as u64);
            if send.send((Instant::now() + delay, buffer[..length].to_vec())).await.is_err() {
                return;
            }
        }
    };
    let writing = async move {
        while let Some((due, bytes)) = receive.recv().await {
            if !delay.is_zero() {
                sleep_precisely(due).await;
            }
            if to.write_all(&bytes).await.is_err() {
                return;
            }
        }
    };
    tokio::join!(reading, writing);
}

/// tokio's timer has a resolution of a millisecond, which is more than the round trips that are imitated
/// here: the last part is spent yielding.
async fn sleep_precisely(due: Instant) {
    let coarse = Duration::from_millis(2);
    if due.saturating_duration_since(Instant::now()) > coarse {
        tokio::time::sleep_until(due - coarse).await;
    }
    while Instant::now() < due {
        tokio::task::yield_now().await;
    }
}
