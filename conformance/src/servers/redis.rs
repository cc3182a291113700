//! A private redis-server, and what it takes to talk to it without a client library.
//!
//! ```no_run
//! use session_conformance::servers::redis::RedisServer;
//!
//! # async fn run() -> std::io::Result<()> {
//! let server = RedisServer::start().await?;
//! server.command(["SET", "greeting", "hello"]).await?;
//! assert_eq!(server.command(["GET", "greeting"]).await?.text(), Some("hello"));
//! # Ok(()) }
//! ```

mod cluster;
mod sentinel;

pub use cluster::RedisCluster;
pub use sentinel::RedisSentinels;

use super::{Process, ServerControl, find_program, free_port};
use async_trait::async_trait;
use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::TcpStream,
};

/// How long a server may take until it answers.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long it may take to answer one command.
const ANSWER: Duration = Duration::from_secs(5);
/// How often another port is tried when somebody else took the first.
const PORTS: usize = 5;
/// The configuration file of each, in its directory.
const CONFIGURATION: &str = "redis.conf";

/// Where redis-server is installed, if it is.
#[must_use]
pub fn program() -> Option<PathBuf> {
    find_program("redis-server", &[])
}

/// One redis-server on the loopback interface, in a directory of its own, until it is dropped.
#[derive(Debug)]
pub struct RedisServer {
    program: PathBuf,
    port: u16,
    arguments: Vec<String>,
    directory: TempDir,
    process: Mutex<Process>,
}

impl RedisServer {
    /// A server that keeps nothing over a restart.
    ///
    /// # Errors
    /// [`io::ErrorKind::NotFound`] when redis-server is not installed, otherwise when it does not start.
    pub async fn start() -> io::Result<Self> {
        Self::with(&["--appendonly", "no"]).await
    }

    /// A server that keeps what it acknowledged when its process is killed (append-only file, handed to the
    /// operating system before the reply). Not `everysec`: while a flush is under way, that one holds writes
    /// back which it has acknowledged.
    ///
    /// # Errors
    /// As for [`start`](Self::start).
    pub async fn durable() -> io::Result<Self> {
        Self::with(&["--appendonly", "yes", "--appendfsync", "no"]).await
    }

    /// A server with further arguments.
    ///
    /// # Errors
    /// As for [`start`](Self::start).
    pub async fn with(arguments: &[&str]) -> io::Result<Self> {
        let mut all = vec!["--save", ""];
        all.extend(arguments);
        Self::configured("", &all).await
    }

    /// A server that reads this configuration and may write to it, as a sentinel does.
    async fn configured(configuration: &str, arguments: &[&str]) -> io::Result<Self> {
        let arguments: Vec<_> = arguments.iter().map(ToString::to_string).collect();
        let mut last = None;
        for _ in 0..PORTS {
            let port = free_port()?;
            match Self::on(port, configuration, arguments.clone()).await {
                Ok(server) => return Ok(server),
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => last = Some(error), // somebody took the port
                Err(error) => return Err(error),
            }
        }
        Err(last.unwrap_or_else(|| io::ErrorKind::AddrInUse.into()))
    }

    async fn on(port: u16, configuration: &str, arguments: Vec<String>) -> io::Result<Self> {
        let program = program()
            .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "redis-server is not installed"))?;
        let directory = tempfile::Builder::new().prefix("session-redis-").tempdir()?;
        std::fs::write(directory.path().join(CONFIGURATION), configuration)?;
        let process = spawn(&program, port, &arguments, directory.path())?;
        let server = Self { program, port, arguments, directory, process: Mutex::new(process) };
        server.until_ready().await?;
        Ok(server)
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.port).into()
    }

    /// The same as a URL.
    #[must_use]
    pub fn url(&self) -> String {
        format!("redis://{}", self.address())
    }

    /// Where its log and its data are.
    #[must_use]
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Runs one command on a connection of its own.
    ///
    /// # Errors
    /// When the server does not answer, or answers with an error.
    pub async fn command<A: AsRef<[u8]>>(&self, command: impl IntoIterator<Item = A>) -> io::Result<Reply> {
        Connection::open(self.address()).await?.command(command).await
    }

    /// Kills it without warning; [`ServerControl::restart`] starts it again.
    pub fn kill(&self) {
        self.process().kill();
    }

    /// Whether its process runs.
    #[must_use]
    pub fn is_running(&self) -> bool {
        !self.process().has_ended()
    }

    fn process(&self) -> MutexGuard<'_, Process> {
        // Nothing below leaves a process half replaced.
        self.process.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// It answers, and with our process id: somebody else's server may have taken the port a moment before.
    async fn until_ready(&self) -> io::Result<()> {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            if self.is_ours().await {
                return Ok(());
            }
            if self.process().has_ended() {
                let log = std::fs::read_to_string(self.directory().join("log")).unwrap_or_default();
                let last = log.lines().last().unwrap_or("no log").to_owned();
                return Err(io::Error::new(io::ErrorKind::BrokenPipe, format!("redis-server ended: {last}")));
            }
            if tokio::time::Instant::now() >= deadline {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "redis-server does not answer"));
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    async fn is_ours(&self) -> bool {
        let Ok(info) = self.command(["INFO", "server"]).await else { return false };
        let ours = format!("process_id:{}", self.process().id());
        // It answers INFO also while it still loads its data, and PING only afterwards.
        info.text().is_some_and(|info| info.lines().any(|line| line == ours))
            && self.command(["PING"]).await.is_ok()
    }
}

#[async_trait]
impl ServerControl for RedisServer {
    async fn restart(&self) -> io::Result<()> {
        {
            let mut process = self.process();
            process.kill();
            *process = spawn(&self.program, self.port, &self.arguments, self.directory.path())?;
        }
        self.until_ready().await
    }

    async fn pause(&self) -> io::Result<()> {
        self.process().pause()
    }

    async fn resume(&self) -> io::Result<()> {
        self.process().resume()
    }

    async fn cut(&self) -> io::Result<()> {
        let mut own = Connection::open(self.address()).await?;
        for kind in ["normal", "pubsub"] {
            own.command(["CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes"]).await?;
        }
        Ok(())
    }
}

fn spawn(program: &Path, port: u16, arguments: &[String], directory: &Path) -> io::Result<Process> {
    let mut command = Command::new(program);
    command
        .arg(CONFIGURATION)
        .args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--protected-mode", "yes"])
        .args(["--daemonize", "no", "--logfile", "log", "--loglevel", "notice"])
        .arg("--dir")
        .arg(directory)
        .args(arguments)
        .current_dir(directory)
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    Process::spawn(&mut command)
}

/// What Redis answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// A simple or a bulk string.
    Bytes(Vec<u8>),
    /// A number.
    Number(i64),
    /// A list.
    List(Vec<Reply>),
    /// Nothing.
    Nil,
}

impl Reply {
    /// The string, when it is one and is UTF-8.
    #[must_use]
    pub fn text(&self) -> Option<&str> {
        if let Self::Bytes(bytes) = self { std::str::from_utf8(bytes).ok() } else { None }
    }

    /// The number, when it is one.
    #[must_use]
    pub fn number(&self) -> Option<i64> {
        if let Self::Number(number) = self { Some(*number) } else { None }
    }

    /// The parts, none when it is no list.
    #[must_use]
    pub fn list(&self) -> &[Self] {
        if let Self::List(list) = self { list } else { &[] }
    }
}

/// A connection that speaks RESP2: one command, one reply.
#[derive(Debug)]
pub struct Connection(BufReader<TcpStream>);

impl Connection {
    /// Connects.
    ///
    /// # Errors
    /// When nobody listens there.
    pub async fn open(address: SocketAddr) -> io::Result<Self> {
        let stream = tokio::time::timeout(ANSWER, TcpStream::connect(address)).await??;
        stream.set_nodelay(true)?;
        Ok(Self(BufReader::new(stream)))
    }

    /// Sends one command and reads its reply.
    ///
    /// # Errors
    /// When the server does not answer in time, or answers with an error.
    pub async fn command<A: AsRef<[u8]>>(
        &mut self,
        command: impl IntoIterator<Item = A>,
    ) -> io::Result<Reply> {
        let mut parts = Vec::new();
        let mut count = 0;
        for part in command {
            let part = part.as_ref();
            parts.extend_from_slice(format!("${}\r\n", part.len()).as_bytes());
            parts.extend_from_slice(part);
            parts.extend_from_slice(b"\r\n");
            count += 1;
        }
        let mut message = format!("*{count}\r\n").into_bytes();
        message.append(&mut parts);
        tokio::time::timeout(ANSWER, async {
            self.0.get_mut().write_all(&message).await?;
            self.reply().await
        })
        .await?
    }

    async fn reply(&mut self) -> io::Result<Reply> {
        let mut line = String::new();
        if self.0.read_line(&mut line).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let line = line.trim_end();
        let (kind, rest) = line.split_at_checked(1).ok_or(io::ErrorKind::InvalidData)?;
        let number = || rest.parse::<i64>().map_err(|_| io::Error::from(io::ErrorKind::InvalidData));
        match kind {
            "+" => Ok(Reply::Bytes(rest.as_bytes().to_vec())),
            "-" => Err(io::Error::other(rest.to_owned())),
            ":" => Ok(Reply::Number(number()?)),
            "$" | "*" if number()? < 0 => Ok(Reply::Nil),
            "$" => {
                let length = usize::try_from(number()?).map_err(|_| io::ErrorKind::InvalidData)?;
                let mut bytes = vec![0; length + 2];
                self.0.read_exact(&mut bytes).await?;
                bytes.truncate(length);
                Ok(Reply::Bytes(bytes))
            }
            "*" => {
                let mut list = Vec::new();
                for _ in 0..number()? {
                    list.push(Box::pin(self.reply()).await?);
                }
                Ok(Reply::List(list))
            }
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    }
}
