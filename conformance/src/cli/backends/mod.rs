//! The backends that the command can judge: one list, and one file for each that has to be started.
//!
//! To add one: a file beside this with its [`Start`] (a private server when no URL is given: see
//! [`session_conformance::servers`]) and its [`Running`], and its line in [`ALL`]. Drivers are reached by
//! [`session_store::connect`] alone, here and in the workers, so that both see the same.

mod disk;
mod file;
mod memcached;
mod memory;
mod postgres;
mod redis;

use async_trait::async_trait;
use session_conformance::{Instance, scenario::Need};
use session_core::{Error, ErrorKind, Random as _, Result, SystemRandom};
use std::{future::Future, io, net::SocketAddr, pin::Pin, sync::Arc, thread};

/// A backend by name.
#[derive(Debug)]
pub(crate) struct Backend {
    pub(crate) name: &'static str,
    /// It lives in the memory of one process.
    pub(crate) private: bool,
    pub(crate) start: Start,
}

/// Makes a backend ready: on its own, or at the URL that was given.
pub(crate) type Start = fn(Option<String>) -> Pin<Box<dyn Future<Output = Started> + Send>>;

/// What became of it.
pub(crate) enum Started {
    Running(Arc<dyn Running>),
    /// It is not here; this is how to get it.
    Absent(String),
    /// The URL cannot be used, and why.
    Refused(String),
}

/// A backend that is ready. Dropped, everything that was made for it is gone.
#[async_trait]
pub(crate) trait Running: Send + Sync {
    /// Version and place, for the report.
    fn describe(&self) -> String;

    /// A store of its own for one cell: nothing of the others is seen in it, and nothing of it stays.
    async fn instance(&self) -> Result<Instance>;

    /// What it has instances of their own for.
    fn specials(&self) -> &'static [Need] {
        &[]
    }

    /// One of those.
    async fn special(&self, need: Need) -> Result<Instance> {
        Err(Error::new(ErrorKind::Unsupported, "special").with_context(format!("{need:?}")))
    }

    /// Where its server itself listens, when clients are sent through something else.
    fn direct(&self) -> Option<SocketAddr> {
        None
    }
}

impl Started {
    /// Ready, when a first store could be made. A URL that cannot be used is wrong usage, not an absent
    /// server.
    async fn when_it_answers(running: impl Running + 'static) -> Self {
        match running.instance().await {
            Ok(_) => Self::Running(Arc::new(running)),
            Err(error) if error.kind() == ErrorKind::Invalid => Self::Refused(error.to_string()),
            Err(error) => Self::Absent(error.to_string()),
        }
    }
}

/// Takes away what a cell left on a server that is not ours, when it is dropped.
pub(crate) struct Cleaner(Option<Pin<Box<dyn Future<Output = Result<()>> + Send>>>);

impl Cleaner {
    fn new(clean: impl Future<Output = Result<()>> + Send + 'static) -> Self {
        Self(Some(Box::pin(clean)))
    }
}

impl Drop for Cleaner {
    fn drop(&mut self) {
        let Some(clean) = self.0.take() else { return };
        // In a runtime of its own, and waited for: the next cell, or the end of the program, comes after it.
        let cleaning = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(clean).map_err(io::Error::other)
        });
        match cleaning.join() {
            Ok(Ok(())) => {}
            Ok(Err(error)) => eprintln!("something of this run is left on the server: {error}"),
            Err(_) => eprintln!("something of this run is left on the server"),
        }
    }
}

/// What no other run on the same server is called: in containers, all have the same process id.
fn namespace() -> Result<String> {
    let mut bytes = [0; 8];
    SystemRandom.fill(&mut bytes)?;
    Ok(format!("{:016x}", u64::from_be_bytes(bytes)))
}

/// Where a server is, for the report: without its user's name and password, and without options, of which some
/// are secrets, too.
fn place(url: &str) -> String {
    let place = url.split('?').next().unwrap_or_default();
    place.rsplit('@').next().unwrap_or_default().to_owned()
}

/// All of them, in the order of the matrix.
pub(crate) const ALL: &[Backend] = &[
    Backend { name: "memory", private: true, start: memory::start },
    Backend { name: "file", private: false, start: file::start },
    Backend { name: "redis", private: false, start: redis::start },
    Backend { name: "postgres", private: false, start: postgres::start },
    Backend { name: "memcached", private: false, start: memcached::start },
];

/// A backend by its name.
pub(crate) fn find(name: &str) -> Result<&'static Backend, String> {
    ALL.iter().find(|backend| backend.name == name).ok_or_else(|| {
        let names: Vec<_> = ALL.iter().map(|backend| backend.name).collect();
        format!("there is no such backend; these are: {}", names.join(", "))
    })
}

/// `NAME` or `NAME=URL`.
pub(crate) fn parse(text: &str) -> Result<(&'static Backend, Option<String>), String> {
    match text.split_once('=') {
        None => Ok((find(text)?, None)),
        Some((_, "")) => Err("the URL is missing after `=`".to_owned()),
        Some((name, url)) => Ok((find(name)?, Some(url.to_owned()))),
    }
}

#[cfg(test)]
mod tests {
    use super::{namespace, place};

    #[test]
    fn no_secret_is_told() {
        for (url, told) in [
            ("redis://app:secret@host:6379/0", "host:6379/0"),
            ("redis://host/?prefix=a&password=secret", "redis://host/"),
            ("postgres:///db?host=/run/pg&user=app&password=s@cret", "postgres:///db"),
        ] {
            assert_eq!(place(url), told);
        }
    }

    #[test]
    fn no_two_runs_have_one_namespace() {
        assert_ne!(namespace().ok(), namespace().ok());
    }
}
