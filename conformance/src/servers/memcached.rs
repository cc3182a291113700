//! A private memcached, and what it takes to talk to it without a client library.
//!
//! ```no_run
//! use session_conformance::servers::memcached::MemcachedServer;
//!
//! # async fn run() -> std::io::Result<()> {
//! let server = MemcachedServer::start().await?;
//! assert_eq!(server.command("set greeting 0 60 5\r\nhello").await?, "STORED");
//! assert_eq!(server.command("get greeting").await?, "VALUE greeting 0 5\nhello\nEND");
//! # Ok(()) }
//! ```

use super::{Process, Proxy, ServerControl, Traffic, find_program, free_port};
use async_trait::async_trait;
use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    net::TcpStream,
};

/// How long a server may take until it answers.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long it may take to answer one command.
const ANSWER: Duration = Duration::from_secs(5);
/// How often another port is tried when somebody else took the first.
const PORTS: usize = 5;
/// Whom it runs as when the tests run as root, which it refuses to be.
const USER: &str = "nobody";

/// Where memcached is installed, if it is.
#[must_use]
pub fn program() -> Option<PathBuf> {
    find_program("memcached", &[])
}

/// One memcached on the loopback interface, until it is dropped.
#[derive(Debug)]
pub struct MemcachedServer {
    program: PathBuf,
    port: u16,
    arguments: Vec<String>,
    process: Mutex<Process>,
    proxy: Option<Proxy>,
}

impl MemcachedServer {
    /// A server with its defaults: 64 MiB, items up to 1 MiB.
    ///
    /// # Errors
    /// [`io::ErrorKind::NotFound`] when memcached is not installed, otherwise when it does not start.
    pub async fn start() -> io::Result<Self> {
        Self::with(&[]).await
    }

    /// A server with further arguments, as `["-m", "8"]` for one that must evict or `["-I", "512k"]` for
    /// small items. (Not smaller: 1.6.18 damages its own memory with `-I 256k`, and crashes with `-I 64k`.)
    ///
    /// # Errors
    /// As for [`start`](Self::start).
    pub async fn with(arguments: &[&str]) -> io::Result<Self> {
        let arguments: Vec<_> = arguments.iter().map(ToString::to_string).collect();
        let mut last = None;
        for _ in 0..PORTS {
            match Self::on(free_port()?, arguments.clone()).await {
                Ok(server) => return Ok(server),
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => last = Some(error), // somebody took the port
                Err(error) => return Err(error),
            }
        }
        Err(last.unwrap_or_else(|| io::ErrorKind::AddrInUse.into()))
    }

    /// The same server behind a [`Proxy`], which adds `round_trip`, counts, and can
    /// [`cut`](ServerControl::cut): a memcached cannot be asked to close its clients' connections.
    ///
    /// # Errors
    /// When no port can be had.
    pub async fn behind_proxy(mut self, round_trip: Duration) -> io::Result<Self> {
        self.proxy = Some(Proxy::start(self.direct_address(), round_trip).await?);
        Ok(self)
    }

    async fn on(port: u16, arguments: Vec<String>) -> io::Result<Self> {
        let program =
            program().ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "memcached is not installed"))?;
        let process = spawn(&program, port, &arguments)?;
        let server = Self { program, port, arguments, process: Mutex::new(process), proxy: None };
        server.until_ready().await?;
        Ok(server)
    }

    /// Where clients connect: the proxy, when there is one.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.proxy.as_ref().map_or_else(|| self.direct_address(), Proxy::address)
    }

    /// Where the server itself listens.
    #[must_use]
    pub fn direct_address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.port).into()
    }

    /// [`address`](Self::address) as a URL.
    #[must_use]
    pub fn url(&self) -> String {
        format!("memcached://{}", self.address())
    }

    /// What went through the proxy; zeros without one.
    #[must_use]
    pub fn traffic(&self) -> Traffic {
        self.proxy.as_ref().map(Proxy::traffic).unwrap_or_default()
    }

    /// Runs one command on a connection of its own, past the proxy. Its reply, lines separated by `\n`; an
    /// error of the server is a reply, too.
    ///
    /// # Errors
    /// When the server does not answer in time.
    pub async fn command(&self, command: &str) -> io::Result<String> {
        tokio::time::timeout(ANSWER, async {
            let mut stream = BufReader::new(TcpStream::connect(self.direct_address()).await?);
            // The no-op after it marks the end of its reply, whatever that looks like.
            stream.get_mut().write_all(format!("{command}\r\nmn\r\n").as_bytes()).await?;
            let mut reply = Vec::new();
            loop {
                let mut line = Vec::new();
                if stream.read_until(b'\n', &mut line).await? == 0 {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                if line == b"MN\r\n" {
                    return Ok(reply.join("\n"));
                }
                reply.push(String::from_utf8_lossy(line.trim_ascii_end()).into_owned());
            }
        })
        .await?
    }

    /// One number of the server's `stats`.
    ///
    /// # Errors
    /// As for [`command`](Self::command), and when there is no such number.
    pub async fn stat(&self, name: &str) -> io::Result<u64> {
        let stats = self.command("stats").await?;
        let value =
            stats.lines().find_map(|line| line.strip_prefix("STAT ")?.strip_prefix(name)?.strip_prefix(' '));
        value
            .and_then(|value| value.parse().ok())
            .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, format!("no number {name} in stats")))
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
            if self.stat("pid").await.is_ok_and(|pid| pid == u64::from(self.process().id())) {
                return Ok(());
            }
            if self.process().has_ended() {
                return Err(io::Error::new(io::ErrorKind::BrokenPipe, "memcached ended before it answered"));
            }
            if tokio::time::Instant::now() >= deadline {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "memcached does not answer"));
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

#[async_trait]
impl ServerControl for MemcachedServer {
    /// It comes back empty: memcached keeps nothing.
    async fn restart(&self) -> io::Result<()> {
        {
            let mut process = self.process();
            process.kill();
            *process = spawn(&self.program, self.port, &self.arguments)?;
        }
        self.until_ready().await
    }

    async fn pause(&self) -> io::Result<()> {
        let id = {
            let process = self.process();
            process.pause()?;
            process.id()
        };
        // The signal stops each thread when it next looks: until then one may still answer.
        let deadline = tokio::time::Instant::now() + PATIENCE;
        while !is_stopped(id) {
            if tokio::time::Instant::now() >= deadline {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "memcached does not stop"));
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        Ok(())
    }

    async fn resume(&self) -> io::Result<()> {
        self.process().resume()
    }

    async fn cut(&self) -> io::Result<()> {
        let without =
            || io::Error::new(io::ErrorKind::Unsupported, "only a memcached behind a proxy can be cut");
        self.proxy.as_ref().ok_or_else(without)?.cut();
        Ok(())
    }
}

/// Whether all threads of a process are stopped, where `/proc` tells; else that is taken for granted.
fn is_stopped(id: u32) -> bool {
    let Ok(threads) = std::fs::read_dir(format!("/proc/{id}/task")) else { return true };
    threads.flatten().all(|thread| {
        let stat = std::fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
        // The name before it is in parentheses and can hold anything.
        stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with('T'))
    })
}

fn spawn(program: &Path, port: u16, arguments: &[String]) -> io::Result<Process> {
    let mut command = Command::new(program);
    command.args(["-l", "127.0.0.1", "-p", &port.to_string(), "-U", "0", "-t", "2"]);
    if rustix::process::geteuid().is_root() {
        command.args(["-u", USER]);
    }
    // It says nothing on standard error but why it does not start: that is for whoever reads the test's
    // output.
    Process::spawn(command.args(arguments).stdout(Stdio::null()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn it_answers_restarts_empty_and_hangs_on_demand() -> io::Result<()> {
        if program().is_none() {
            let required = std::env::var("SESSION_REQUIRE").unwrap_or_default();
            assert!(!required.contains("memcached"), "memcached is required and not installed");
            eprintln!("ABSENT: memcached is not installed (apt-get install memcached)");
            return Ok(());
        }
        let server = MemcachedServer::with(&["-I", "512k"]).await?.behind_proxy(Duration::ZERO).await?;
        assert_eq!(server.command("set k 0 0 5\r\nhello").await?, "STORED");
        let settings = server.command("stats settings").await?;
        assert!(settings.lines().any(|line| line == "STAT item_size_max 524288"), "{settings}");
        server.restart().await?;
        assert_eq!(server.command("get k").await?, "END");

        let client = TcpStream::connect(server.address()).await?;
        let version = async |stream: &mut BufReader<TcpStream>| {
            stream.get_mut().write_all(b"version\r\n").await?;
            let mut line = String::new();
            stream.read_line(&mut line).await.map(|_| line)
        };
        let mut client = BufReader::new(client);
        assert!(version(&mut client).await?.starts_with("VERSION"));
        server.pause().await?;
        tokio::time::timeout(Duration::from_millis(50), version(&mut client)).await.expect_err("it hangs");
        server.resume().await?;
        let mut line = String::new();
        client.read_line(&mut line).await?;
        assert!(line.starts_with("VERSION"), "the late answer: {line}");

        server.cut().await?;
        line.clear();
        assert_eq!(client.read_line(&mut line).await.unwrap_or(0), 0, "cut, but it said {line}");
        assert!(server.is_running());
        Ok(())
    }
}
