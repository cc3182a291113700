//! A private PostgreSQL cluster, and what it takes to ask it something without a client library.
//!
//! PostgreSQL refuses to run as root. Then the cluster belongs to the user `postgres` (or `nobody`), and so
//! does its directory.
//!
//! ```no_run
//! use session_conformance::servers::{ServerControl, postgres::PostgresServer};
//!
//! # async fn run() -> std::io::Result<()> {
//! let server = PostgresServer::start().await?;
//! assert_eq!(server.query("SELECT 6 * 7").await?, "42");
//! server.restart().await?; // SIGKILL to the postmaster and all its children
//! assert_eq!(server.query("SELECT 6 * 7").await?, "42");
//! # Ok(()) }
//! ```

use super::{Process, ServerControl, find_program, free_port, until_ready};
use async_trait::async_trait;
use rustix::process::{Pid, Signal, getuid, kill_process};
use std::{
    fs, io,
    net::{Ipv4Addr, SocketAddr},
    os::unix::{fs::chown, process::CommandExt as _},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};
use tempfile::TempDir;
use tokio::time::Instant;

/// How long a server may take until it answers; after a crash it reads its log first.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often another port is tried when somebody else took the first.
const PORTS: usize = 5;
/// The superuser of the cluster.
const SUPERUSER: &str = "postgres";

/// Where a program of the newest PostgreSQL is, if one is installed.
#[must_use]
pub fn program(name: &str) -> Option<PathBuf> {
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let mut folders: Vec<_> = versions
        .filter_map(|entry| {
            Some((entry.file_name().to_str()?.parse::<u32>().ok()?, entry.path().join("bin")))
        })
        .collect();
    folders.sort();
    let folders: Vec<_> = folders.into_iter().rev().map(|(_, folder)| folder).collect();
    folders
        .iter()
        .map(|folder| folder.join(name))
        .find(|program| program.is_file())
        .or_else(|| find_program(name, &[]))
}

fn required(name: &str, package: &str) -> io::Result<PathBuf> {
    program(name).or_else(|| find_program(name, &[])).ok_or_else(|| {
        io::Error::new(io::ErrorKind::NotFound, format!("{name} is not installed: apt-get install {package}"))
    })
}

/// Whom a server runs as when the tests run as root: these servers refuse to be root.
#[derive(Clone, Copy, Debug)]
struct Owner(Option<(u32, u32)>);

impl Owner {
    fn find() -> io::Result<Self> {
        if !getuid().is_root() {
            return Ok(Self(None));
        }
        let users = fs::read_to_string("/etc/passwd")?;
        let find = |name: &str| {
            let line = users.lines().find(|line| line.split(':').next() == Some(name))?;
            let mut ids = line.split(':').skip(2).map(str::parse);
            Some((ids.next()?.ok()?, ids.next()?.ok()?))
        };
        find(SUPERUSER)
            .or_else(|| find("nobody"))
            .map(|ids| Self(Some(ids)))
            .ok_or_else(|| io::Error::other("root needs a user `postgres` or `nobody` to run a server as"))
    }

    /// A directory of its own, readable by the owner alone.
    fn directory(self) -> io::Result<TempDir> {
        let directory = tempfile::Builder::new().prefix("session-postgres-").tempdir()?;
        self.give(directory.path())?;
        Ok(directory)
    }

    fn give(self, path: &Path) -> io::Result<()> {
        self.0.map_or(Ok(()), |(user, group)| chown(path, Some(user), Some(group)))
    }

    /// A command of this user, in a directory that the user can read.
    fn command(self, program: &Path, directory: &Path) -> Command {
        let mut command = Command::new(program);
        command.current_dir(directory).stdout(Stdio::null()).stderr(Stdio::null());
        if let Some((user, group)) = self.0 {
            command.uid(user).gid(group); // as root this also drops the supplementary groups
        }
        command
    }
}

/// One cluster on the loopback interface, in a directory of its own, until it is dropped.
#[derive(Clone, Debug)]
pub struct PostgresServer(Arc<Cluster>);

#[derive(Debug)]
struct Cluster {
    owner: Owner,
    port: u16,
    settings: Vec<String>,
    directory: TempDir,
    process: Mutex<Process>,
}

impl PostgresServer {
    /// A cluster that does not wait for the disk: what it acknowledged survives its own death, not that of
    /// the machine.
    ///
    /// # Errors
    /// [`io::ErrorKind::NotFound`] when PostgreSQL is not installed, otherwise when it does not start.
    pub async fn start() -> io::Result<Self> {
        Self::with(&["fsync=off", "full_page_writes=off"]).await
    }

    /// The cluster of this process: started by the first who asks, stopped when the last one lets go of it.
    /// Tests use it side by side, each in a schema of its own; those that hurt the server start their own.
    ///
    /// # Errors
    /// As for [`start`](Self::start).
    pub async fn shared() -> io::Result<Self> {
        static SHARED: tokio::sync::Mutex<Weak<Cluster>> = tokio::sync::Mutex::const_new(Weak::new());
        let mut shared = SHARED.lock().await;
        if let Some(cluster) = shared.upgrade() {
            return Ok(Self(cluster));
        }
        let server = Self::start().await?;
        *shared = Arc::downgrade(&server.0);
        Ok(server)
    }

    /// A cluster with PostgreSQL's own defaults: each commit waits for the disk.
    ///
    /// # Errors
    /// As for [`start`](Self::start).
    pub async fn durable() -> io::Result<Self> {
        Self::with(&[]).await
    }

    /// A cluster with further settings, each as `name=value`.
    ///
    /// # Errors
    /// As for [`start`](Self::start).
    pub async fn with(settings: &[&str]) -> io::Result<Self> {
        let (initdb, owner) = (required("initdb", "postgresql")?, Owner::find()?);
        let directory = owner.directory()?;
        let mut command = owner.command(&initdb, directory.path());
        command.args([
            "--auth=trust",
            "--encoding=UTF8",
            "--no-locale",
            "--no-sync",
            "--username",
            SUPERUSER,
        ]);
        command.arg("--pgdata").arg(directory.path().join("data"));
        let made = blocking(move || command.stdin(Stdio::null()).output()).await?;
        if !made.status.success() {
            return Err(io::Error::other(format!("initdb ended with {}", made.status)));
        }
        let mut settings: Vec<_> = settings.iter().map(ToString::to_string).collect();
        settings.extend(
            [
                "max_connections=300",
                "shared_preload_libraries=pg_stat_statements",
                "listen_addresses=127.0.0.1",
            ]
            .map(String::from),
        );
        settings.push(format!("unix_socket_directories={}", directory.path().display()));
        let mut directory = Some(directory);
        let mut last = None;
        for _ in 0..PORTS {
            let port = free_port()?;
            let Some(at) = directory.take() else { break };
            match start(owner, at.path(), port, &settings).await {
                Ok(process) => {
                    let process = Mutex::new(process);
                    return Ok(Self(Arc::new(Cluster { owner, port, settings, directory: at, process })));
                }
                Err(error) => (directory, last) = (Some(at), Some(error)),
            }
        }
        Err(last.unwrap_or_else(|| io::ErrorKind::AddrInUse.into()))
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.0.port).into()
    }

    /// How a client connects as the superuser; append options as `?name=value`.
    #[must_use]
    pub fn url(&self) -> String {
        self.url_at(self.address())
    }

    /// The same through a proxy or a pooler.
    #[must_use]
    pub fn url_at(&self, address: SocketAddr) -> String {
        format!("postgres://{SUPERUSER}@{address}/postgres")
    }

    /// The process id of the postmaster.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.process().id()
    }

    /// Runs SQL as the superuser on a connection of its own, each statement by itself. The answer is what
    /// psql prints without decoration: rows by line, columns by `|`.
    ///
    /// # Errors
    /// With what the server said.
    pub async fn query(&self, sql: &str) -> io::Result<String> {
        let mut command = Command::new(required("psql", "postgresql-client")?);
        command.args(["--no-psqlrc", "--quiet", "--tuples-only", "--no-align", "--set=ON_ERROR_STOP=1"]);
        command.args(["--dbname", &self.url(), "--command", sql]).stdin(Stdio::null());
        let output = blocking(move || command.output()).await?;
        if !output.status.success() {
            return Err(io::Error::other(String::from_utf8_lossy(&output.stderr).trim().to_owned()));
        }
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }

    fn process(&self) -> MutexGuard<'_, Process> {
        // A process handle has no state that a panic could leave half changed.
        self.0.process.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The postmaster first: stopped, it starts no further child while the others are dealt with.
    fn signal_all(&self, signal: Signal) -> io::Result<Vec<u32>> {
        let postmaster = self.id();
        let children = children_of(postmaster)?;
        for pid in std::iter::once(&postmaster).chain(&children) {
            send(*pid, signal)?;
        }
        Ok(children)
    }
}

#[async_trait]
impl ServerControl for PostgresServer {
    async fn restart(&self) -> io::Result<()> {
        self.signal_all(Signal::STOP)?;
        let children = self.signal_all(Signal::KILL)?;
        self.process().kill();
        // The successor refuses to start while one of them still has the shared memory.
        while children.iter().any(|pid| is_alive(*pid)) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let cluster = &self.0;
        let process = start(cluster.owner, cluster.directory.path(), cluster.port, &cluster.settings).await?;
        *self.process() = process;
        Ok(())
    }

    async fn pause(&self) -> io::Result<()> {
        self.signal_all(Signal::STOP)?;
        // Again for those that were born between the list and the stop of their parent.
        self.signal_all(Signal::STOP).map(drop)
    }

    async fn resume(&self) -> io::Result<()> {
        self.signal_all(Signal::CONT).map(drop)
    }

    async fn cut(&self) -> io::Result<()> {
        let others = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
            WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()";
        self.query(others).await.map(drop)
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let process = self.process.get_mut().unwrap_or_else(PoisonError::into_inner);
        // The children of a killed postmaster end by themselves, but may still write into the directory that
        // is removed next.
        let children = children_of(process.id()).unwrap_or_default();
        drop(send(process.id(), Signal::STOP));
        process.kill();
        for pid in children {
            drop(send(pid, Signal::KILL));
        }
    }
}

async fn start(owner: Owner, directory: &Path, port: u16, settings: &[String]) -> io::Result<Process> {
    let mut command = owner.command(&required("postgres", "postgresql")?, directory);
    command.arg("-D").arg(directory.join("data")).arg("-p").arg(port.to_string());
    for setting in settings {
        command.args(["-c", setting]);
    }
    let mut process = Process::spawn(&mut command)?;
    let pg_isready = required("pg_isready", "postgresql-client")?;
    // Asked from a blocking thread, not by `until_ready`: the future of its borrowing closure is not known to
    // be `Send`.
    let deadline = Instant::now() + PATIENCE;
    loop {
        let mut probe = Command::new(&pg_isready);
        // By its socket, which is surely ours: the port may be another's by now.
        probe.arg("-h").arg(directory).args(["-q", "-U", SUPERUSER, "-p", &port.to_string()]);
        if blocking(move || probe.stdin(Stdio::null()).status()).await?.success() {
            return Ok(process);
        }
        if process.has_ended() {
            return Err(io::Error::new(io::ErrorKind::BrokenPipe, "postgres ended before it answered"));
        }
        if Instant::now() >= deadline {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "postgres does not answer"));
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// pgbouncer in front of a cluster, in transaction mode: each transaction may go over another connection of
/// the server.
#[derive(Debug)]
pub struct PgBouncer {
    port: u16,
    _directory: TempDir,
    _process: Process,
}

impl PgBouncer {
    /// Starts one. `ignored` are the startup parameters that it swallows, as its `ignore_startup_parameters`;
    /// it refuses clients with others that it does not know.
    ///
    /// # Errors
    /// [`io::ErrorKind::NotFound`] when pgbouncer is not installed, otherwise when it does not start.
    pub async fn start(server: &PostgresServer, ignored: &[&str]) -> io::Result<Self> {
        let (program, owner) = (required("pgbouncer", "pgbouncer")?, Owner::find()?);
        let (directory, port) = (owner.directory()?, free_port()?);
        let path = |name: &str| directory.path().join(name);
        fs::write(path("users"), format!("\"{SUPERUSER}\" \"\"\n"))?;
        let settings = [
            "[databases]".to_owned(),
            format!("* = host=127.0.0.1 port={}", server.address().port()),
            "[pgbouncer]".to_owned(),
            "listen_addr = 127.0.0.1".to_owned(),
            format!("listen_port = {port}"),
            "unix_socket_dir =".to_owned(),
            "auth_type = trust".to_owned(),
            format!("auth_file = {}", path("users").display()),
            "pool_mode = transaction".to_owned(),
            "max_client_conn = 500".to_owned(),
            "default_pool_size = 10".to_owned(),
            format!("ignore_startup_parameters = {}", ignored.join(",")),
        ];
        fs::write(path("settings"), settings.join("\n"))?;
        for name in ["users", "settings"] {
            owner.give(&path(name))?;
        }
        let mut process =
            Process::spawn(owner.command(&program, directory.path()).arg("-q").arg(path("settings")))?;
        until_ready(&mut process, "pgbouncer", PATIENCE, async || {
            tokio::net::TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.is_ok()
        })
        .await?;
        Ok(Self { port, _directory: directory, _process: process })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.port).into()
    }
}

/// Short work that blocks, away from the threads that poll.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}

/// Each backend is a group of its own, so that the kernel's list of children is all there is to find them by.
fn children_of(pid: u32) -> io::Result<Vec<u32>> {
    let mut children = Vec::new();
    for entry in fs::read_dir("/proc")?.flatten() {
        let Some(child) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        if stat(child).is_some_and(|(_, parent)| parent == pid) {
            children.push(child);
        }
    }
    Ok(children)
}

fn is_alive(pid: u32) -> bool {
    stat(pid).is_some_and(|(state, _)| state != "Z")
}

/// The state of a process and its parent, while it is there.
fn stat(pid: u32) -> Option<(String, u32)> {
    let stat = fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("stat")).ok()?;
    // The name of the program, in parentheses, may hold anything; what follows does not.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    Some((fields.next()?.to_owned(), fields.next()?.parse().ok()?))
}

fn send(pid: u32, signal: Signal) -> io::Result<()> {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(io::ErrorKind::InvalidInput)?;
    match kill_process(pid, signal) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()), // a backend that has ended meanwhile
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_cluster_survives_its_own_death() {
        let server = match PostgresServer::start().await {
            Ok(server) => server,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                eprintln!("absent: {error}");
                assert!(!std::env::var("SESSION_REQUIRE").is_ok_and(|names| names.contains("postgres")));
                return;
            }
            Err(error) => panic!("{error}"),
        };
        server.query("CREATE TABLE t AS SELECT 7 AS n").await.unwrap();
        let before = server.id();
        server.restart().await.unwrap();
        assert_ne!(server.id(), before);
        assert_eq!(server.query("SELECT n FROM t").await.unwrap(), "7");
        server.cut().await.unwrap();

        server.pause().await.unwrap();
        let hanging = tokio::spawn({
            let server = server.clone();
            async move { server.query("SELECT 1").await }
        });
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert!(!hanging.is_finished());
        server.resume().await.unwrap();
        assert_eq!(hanging.await.unwrap().unwrap(), "1");

        let bouncer = PgBouncer::start(&server, &[]).await.unwrap();
        assert_ne!(bouncer.address(), server.address());
        let (postmaster, directory) = (server.id(), server.0.directory.path().to_owned());
        drop(server);
        assert!(!is_alive(postmaster) && !directory.exists());
    }
}
