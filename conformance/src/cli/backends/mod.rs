//! The backends that the command can judge: one list, and one file for each that has to be started.
//!
//! To add one: a file beside this with its [`Start`] (a private server when no URL is given: see
//! [`session_conformance::servers`]) and its [`Running`], and its line in [`ALL`]. Drivers are reached by
//! [`session_store::connect`] alone, here and in the workers, so that both see the same.

mod file;
mod memory;
mod server;

use async_trait::async_trait;
use session_conformance::Instance;
use session_core::{ErrorKind, Result};
use std::{future::Future, pin::Pin, sync::Arc};

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
}

impl Started {
    /// Ready, when a first store could be made. A URL that cannot be used is wrong usage, not an absent server.
    async fn when_it_answers(running: impl Running + 'static) -> Self {
        match running.instance().await {
            Ok(_) => Self::Running(Arc::new(running)),
            Err(error) if error.kind() == ErrorKind::Invalid => Self::Refused(error.to_string()),
            Err(error) => Self::Absent(error.to_string()),
        }
    }
}

/// All of them, in the order of the matrix.
pub(crate) const ALL: &[Backend] = &[
    Backend { name: "memory", private: true, start: memory::start },
    Backend { name: "file", private: false, start: file::start },
    Backend { name: "redis", private: false, start: |_| server::not_built("redis-server", "redis-server") },
    Backend { name: "postgres", private: false, start: |_| server::not_built("postgres", "postgresql") },
    Backend { name: "memcached", private: false, start: |_| server::not_built("memcached", "memcached") },
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
