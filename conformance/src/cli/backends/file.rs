//! Files: a temporary directory, or one of the user's, in which each cell gets a new directory of its own.

use super::{Running, Started, disk};
use async_trait::async_trait;
use session_conformance::Instance;
use session_core::{Error, ErrorKind, Result};
use std::{future::Future, path::PathBuf, pin::Pin};
use tempfile::TempDir;
use url::Url;

struct Files {
    /// Where the directories of the cells are made.
    root: PathBuf,
    /// The user's URL: its options are every cell's.
    url: Option<Url>,
}

pub(super) fn start(url: Option<String>) -> Pin<Box<dyn Future<Output = Started> + Send>> {
    Box::pin(async {
        match Files::at(url) {
            Ok(files) => Started::when_it_answers(files).await,
            Err(error) => Started::Refused(error.to_string()),
        }
    })
}

impl Files {
    fn at(url: Option<String>) -> Result<Self> {
        let Some(url) = url else { return Ok(Self { root: std::env::temp_dir(), url: None }) };
        let invalid =
            || Error::new(ErrorKind::Invalid, "connect").with_context("expected file:///absolute/path");
        let url = Url::parse(&url).map_err(|error| invalid().with_source(error))?;
        let root = url.to_file_path().map_err(|()| invalid())?;
        Ok(Self { root, url: Some(url) })
    }
}

#[async_trait]
impl Running for Files {
    fn describe(&self) -> String {
        format!("in {}", self.root.display())
    }

    async fn instance(&self) -> Result<Instance> {
        let dir = TempDir::with_prefix_in("session-conformance-", &self.root).map_err(|error| {
            Error::unavailable("connect", error).with_context(self.root.display().to_string())
        })?;
        let mut url =
            Url::from_file_path(dir.path()).map_err(|()| Error::new(ErrorKind::Invalid, "connect"))?;
        url.set_query(self.url.as_ref().and_then(Url::query));
        // How fast the disk is has no part in any claim.
        if !url.query_pairs().any(|(option, _)| option == "busy_timeout") {
            url.query_pairs_mut().append_pair("busy_timeout", "30s");
        }
        Ok(Instance::new(session_store::connect(url.as_str()).await?)
            .guard(dir)
            .address(url)
            .disks(disk::disks()))
    }
}
