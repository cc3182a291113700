//! Private servers: started by a test on a free port and in a temporary directory, stopped by process id.
//!
//! Nothing of the user's is touched: no configuration file is read, no known port is used, and no process is
//! ever looked up by name. Each server is one file beside this one.
//!
//! ```no_run
//! use session_conformance::servers::{Process, free_port};
//! use std::process::Command;
//!
//! let port = free_port()?;
//! let server = Process::spawn(Command::new("redis-server").args(["--save", "", "--port", &port.to_string()]))?;
//! server.pause()?; // SIGSTOP: it hangs, as a server does on a bad day
//! server.resume()?;
//! drop(server); // SIGKILL, then waited for
//! # Ok::<(), std::io::Error>(())
//! ```

pub mod memcached;
pub mod postgres;
mod proxy;
pub mod redis;

pub use proxy::{Proxy, Traffic};

use async_trait::async_trait;
use rustix::process::{Pid, Signal, kill_process};
use std::{
    fmt::Debug,
    io,
    net::{Ipv4Addr, TcpListener},
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::Duration,
};

/// What a fault scenario does to a server. Implemented beside each private server; a user's own has none.
#[async_trait]
pub trait ServerControl: Debug + Send + Sync {
    /// Kills it without warning and starts it again on the same address and the same data; returns when it
    /// answers. Of servers with replicas the primary is killed; returns when another one has taken its place.
    async fn restart(&self) -> io::Result<()>;

    /// Makes it hang: connections stay open, nothing is answered.
    async fn pause(&self) -> io::Result<()>;

    /// Ends the pause.
    async fn resume(&self) -> io::Result<()>;

    /// Cuts all connections of its clients at once; new ones are accepted.
    async fn cut(&self) -> io::Result<()>;
}

/// A child process that does not outlive its owner, however that ends.
#[derive(Debug)]
pub struct Process {
    child: Child,
    pid: Pid,
    /// Ends it when its own standard input does, which it does with this process: a test that is killed drops
    /// nothing.
    watchdog: Child,
}

/// Waits for the end of its input, then kills the process that it was given, with its children: those of
/// PostgreSQL would end by themselves, but not while they are stopped. What is meant for the owner does not
/// end it first.
const WATCHDOG: &str = r#"trap '' HUP INT TERM; read -r _; kill -9 "$0" $(cat /proc/"$0"/task/*/children)"#;

impl Process {
    /// Starts it, without standard input.
    ///
    /// # Errors
    /// When the program is missing or cannot be started.
    pub fn spawn(command: &mut Command) -> io::Result<Self> {
        let mut child = command.stdin(Stdio::null()).spawn()?;
        let mut watchdog = Command::new("sh");
        watchdog.args(["-c", WATCHDOG, &child.id().to_string()]);
        watchdog.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        match watchdog.spawn() {
            Ok(watchdog) => Ok(Self { pid: Pid::from_child(&child), child, watchdog }),
            Err(error) => {
                end(&mut child);
                Err(error)
            }
        }
    }

    /// Stops it where it is (SIGSTOP).
    ///
    /// # Errors
    /// When it is no longer there.
    pub fn pause(&self) -> io::Result<()> {
        Ok(kill_process(self.pid, Signal::STOP)?)
    }

    /// Lets it go on (SIGCONT).
    ///
    /// # Errors
    /// When it is no longer there.
    pub fn resume(&self) -> io::Result<()> {
        Ok(kill_process(self.pid, Signal::CONT)?)
    }

    /// Its process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Whether it has ended by itself.
    pub fn has_ended(&mut self) -> bool {
        let ended = !matches!(self.child.try_wait(), Ok(None));
        if ended {
            end(&mut self.watchdog); // from now on the process id may be another's
        }
        ended
    }

    /// Ends it without warning (SIGKILL, also when it is stopped) and waits until it is gone.
    pub fn kill(&mut self) {
        end(&mut self.watchdog); // first: later the process id may be another's
        end(&mut self.child);
    }
}

fn end(child: &mut Child) {
    // Both fail only when it is gone already, which is what is wanted.
    drop(child.kill());
    drop(child.wait());
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A port of the loopback interface that nobody listens on. Another process may take it in the meantime: who
/// starts a server on it tries again with another one when it ends at once.
///
/// # Errors
/// When the operating system has none.
pub fn free_port() -> io::Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

/// Where a program is: in `PATH`, or in one of the directories where Debian keeps servers.
#[must_use]
pub fn find_program(name: &str, further: &[PathBuf]) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let usual = ["/usr/sbin", "/usr/local/sbin", "/usr/bin", "/usr/local/bin"].map(PathBuf::from);
    std::env::split_paths(&path)
        .chain(usual)
        .chain(further.iter().cloned())
        .map(|folder| folder.join(name))
        .find(|program| program.is_file())
}

/// Asks `ready` every few milliseconds until it says yes, the process ends or `patience` is over.
///
/// # Errors
/// [`io::ErrorKind::TimedOut`] or [`io::ErrorKind::BrokenPipe`] (it ended), saying which program.
pub async fn until_ready<F>(
    process: &mut Process,
    program: &str,
    patience: Duration,
    mut ready: F,
) -> io::Result<()>
where
    F: AsyncFnMut() -> bool,
{
    let deadline = tokio::time::Instant::now() + patience;
    loop {
        if ready().await {
            return Ok(());
        }
        if process.has_ended() {
            return Err(io::Error::new(
                io::ErrorKind::BrokenPipe,
                format!("{program} ended before it answered"),
            ));
        }
        if tokio::time::Instant::now() >= deadline {
            return Err(io::Error::new(io::ErrorKind::TimedOut, format!("{program} does not answer")));
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        io::{BufRead as _, BufReader},
        time::Instant,
    };

    #[test]
    fn a_process_does_not_outlive_its_owner() {
        let mut process = Process::spawn(Command::new("sleep").arg("20")).expect("a process");
        drop(process.watchdog.stdin.take()); // what the end of this program would do
        let status = process.child.wait().expect("it is ours");
        assert!(!status.success(), "it slept to its end");
    }

    #[test]
    fn neither_does_its_stopped_child() {
        let mut command = Command::new("sh");
        command.args(["-c", "sleep 20 & kill -STOP $!; echo $!; wait"]).stdout(Stdio::piped());
        let mut process = Process::spawn(&mut command).expect("a process");
        let mut child = String::new();
        let out = process.child.stdout.as_mut().expect("it says its child");
        BufReader::new(out).read_line(&mut child).expect("a line");
        let stat = format!("/proc/{}/stat", child.trim());
        drop(process.watchdog.stdin.take());
        process.child.wait().expect("it is ours");
        let deadline = Instant::now() + Duration::from_secs(10);
        // Gone, or dead and not yet fetched by whoever inherits it.
        while std::fs::read_to_string(&stat).is_ok_and(|stat| !stat.contains(") Z ")) {
            assert!(Instant::now() < deadline, "it outlives both");
            std::thread::yield_now();
        }
    }
}
