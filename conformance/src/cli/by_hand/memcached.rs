//! memcached by hand: a pool as large as the driver's, and lines on a socket.
//!
//! No client library stands between: the one that the driver uses for the plain protocol waits for each
//! reply, and does not know the commands that save a trip.

use super::{LEASE, Pool, SPIN, TTL, failed, hex, option, resolve, stamp, strange};
use async_trait::async_trait;
use session_conformance::bench::{ByHand, Hands};
use session_core::Result;
use std::{net::SocketAddr, sync::Arc};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::TcpStream,
};
use url::Url;

/// As many connections as the driver has.
const POOL: usize = 16;

pub(super) struct Memcached {
    server: Arc<Server>,
    prefix: String,
}

struct Server {
    address: SocketAddr,
    pool: Pool<Wire>,
}

struct Wire(BufReader<TcpStream>);

/// The first line of a reply, and the block that follows it.
struct Reply {
    line: String,
    data: Vec<u8>,
}

struct Prepared {
    server: Arc<Server>,
    names: Vec<Names>,
    stored: Vec<u8>,
    plain: Vec<u8>,
}

struct Names {
    record: String,
    classical: String,
}

impl Memcached {
    pub(super) async fn at(address: &Url) -> Result<Self> {
        let server = Server { address: resolve(address).await?, pool: Pool::new(POOL) };
        Ok(Self { server: Arc::new(server), prefix: option(address, "prefix").unwrap_or_default() })
    }

    /// A command that is answered by one line.
    pub(super) async fn line(&self, command: &str) -> Result<String> {
        let [reply] = self.server.ask(format!("{command}\r\n").into_bytes(), [""]).await?;
        Ok(reply.line.trim_end().to_owned())
    }
}

#[async_trait]
impl ByHand for Memcached {
    async fn prepare(&self, sessions: usize, stored: &[u8], plain: &[u8]) -> Result<Arc<dyn Hands>> {
        let name = || Ok(format!("{}hand-{}", self.prefix, hex(&stamp()?)));
        let mut names = Vec::with_capacity(sessions);
        while names.len() < sessions {
            names.push(Names { record: name()?, classical: name()? });
        }
        let server = Arc::clone(&self.server);
        let prepared = Prepared { server, names, stored: stored.to_vec(), plain: plain.to_vec() };
        for names in &prepared.names {
            for (key, data) in [(&names.record, &prepared.stored), (&names.classical, &prepared.plain)] {
                let request = block(&format!("add {key} 0 {} {}", TTL.as_secs(), data.len()), data);
                prepared.server.ask(request, ["STORED"]).await?;
            }
        }
        Ok(Arc::new(prepared))
    }
}

/// A command with its value.
fn block(command: &str, value: &[u8]) -> Vec<u8> {
    let mut request = Vec::with_capacity(command.len() + value.len() + 4);
    request.extend_from_slice(command.as_bytes());
    request.extend_from_slice(b"\r\n");
    request.extend_from_slice(value);
    request.extend_from_slice(b"\r\n");
    request
}

impl Server {
    async fn open(&self) -> Result<Wire> {
        let stream = TcpStream::connect(self.address).await.map_err(failed)?;
        stream.set_nodelay(true).map_err(failed)?;
        Ok(Wire(BufReader::with_capacity(16 << 10, stream)))
    }

    /// One exchange: commands that leave together, and how the reply to each must begin.
    async fn ask<const N: usize>(&self, request: Vec<u8>, replies: [&str; N]) -> Result<[Reply; N]> {
        let mut lent = self.pool.lend(self.open()).await?;
        let found = lent.connection.exchange(&request, replies).await?;
        lent.keep();
        Ok(found)
    }
}

impl Wire {
    async fn exchange<const N: usize>(&mut self, request: &[u8], replies: [&str; N]) -> Result<[Reply; N]> {
        self.0.get_mut().write_all(request).await.map_err(failed)?;
        let mut found = Vec::with_capacity(N);
        for expected in replies {
            let reply = self.reply().await?;
            if !reply.line.starts_with(expected) {
                return Err(strange(&reply.line));
            }
            found.push(reply);
        }
        found.try_into().map_err(|_| strange("as many replies as were read"))
    }

    async fn reply(&mut self) -> Result<Reply> {
        let mut line = String::with_capacity(64);
        self.0.read_line(&mut line).await.map_err(failed)?;
        let mut words = line.split_ascii_whitespace();
        let length = match words.next() {
            Some("VA") => words.next(),
            Some("VALUE") => words.nth(2),
            _ => None,
        };
        let mut data = Vec::new();
        if let Some(length) = length {
            let length: usize = length.parse().map_err(failed)?;
            data.resize(length + 2, 0);
            self.0.read_exact(&mut data).await.map_err(failed)?;
            data.truncate(length);
        }
        if line.starts_with("VALUE") {
            let mut end = String::new();
            self.0.read_line(&mut end).await.map_err(failed)?;
        }
        Ok(Reply { line, data })
    }
}

impl Reply {
    /// The number of the item, as `mg` or `gets` says it.
    fn cas(&self) -> Result<&str> {
        let mut words = self.line.split_ascii_whitespace();
        let cas = if self.line.starts_with("VALUE") {
            words.last()
        } else {
            words.find_map(|word| word.strip_prefix('c'))
        };
        cas.ok_or_else(|| strange(&self.line))
    }
}

impl Prepared {
    fn cas(key: &str, data: &[u8], cas: &str) -> Vec<u8> {
        block(&format!("cas {key} 0 {} {} {cas}", TTL.as_secs(), data.len()), data)
    }
}

#[async_trait]
impl Hands for Prepared {
    async fn read(&self, session: usize) -> Result<()> {
        let key = &self.names[session].record;
        let [found] = self.server.ask(format!("mg {key} v c t\r\n").into_bytes(), ["VA"]).await?;
        if found.data.is_empty() { Err(strange("an empty record")) } else { Ok(()) }
    }

    async fn write(&self, session: usize) -> Result<()> {
        let key = &self.names[session].record;
        let [found] = self.server.ask(format!("mg {key} v c t\r\n").into_bytes(), ["VA"]).await?;
        self.server.ask(Self::cas(key, &self.stored, found.cas()?), ["STORED"]).await.map(drop)
    }

    async fn exclusive(&self, session: usize) -> Result<()> {
        let key = &self.names[session].record;
        let token = hex(&stamp()?);
        let mut request =
            block(&format!("add {key}:lock 0 {} {}", LEASE.as_secs(), token.len()), token.as_bytes());
        request.extend_from_slice(format!("mg {key}:lock v c t\r\nmg {key} v c t\r\n").as_bytes());
        let [_, lock, found] = self.server.ask(request, ["STORED", "VA", "VA"]).await?;
        let mut request = Self::cas(key, &self.stored, found.cas()?);
        request.extend_from_slice(format!("md {key}:lock C{}\r\n", lock.cas()?).as_bytes());
        self.server.ask(request, ["STORED", "HD"]).await.map(drop)
    }

    /// As php-memcached does it, but that it looks at its lock more often: four trips.
    async fn classical(&self, session: usize) -> Result<()> {
        let key = &self.names[session].classical;
        let token = hex(&stamp()?);
        let lock = block(&format!("add {key}:lock 0 {} {}", LEASE.as_secs(), token.len()), token.as_bytes());
        loop {
            let [reply] = self.server.ask(lock.clone(), [""]).await?;
            if reply.line.starts_with("STORED") {
                break;
            }
            tokio::time::sleep(SPIN).await;
        }
        let [found] = self.server.ask(format!("gets {key}\r\n").into_bytes(), ["VALUE"]).await?;
        self.server.ask(Self::cas(key, &self.plain, found.cas()?), ["STORED"]).await?;
        self.server.ask(format!("delete {key}:lock\r\n").into_bytes(), ["DELETED"]).await.map(drop)
    }
}
