//! Files: a temporary directory, or one of the user's, in which each cell gets a new directory of its own.

use super::{Running, Started};
use async_trait::async_trait;
use session_conformance::Instance;
use session_core::{Error, Result};
use std::{future::Future, path::PathBuf, pin::Pin, sync::Arc};
use tempfile::TempDir;

struct Files {
    /// Where the directories of the cells are made.
    root: PathBuf,
    /// The parameters of the URL, with their question mark.
    options: String,
}

pub(super) fn start(url: Option<String>) -> Pin<Box<dyn Future<Output = Started> + Send>> {
    Box::pin(async move {
        let files = match url {
            None => Files { root: std::env::temp_dir(), options: String::new() },
            Some(url) => {
                let (path, options) =
                    url.split_once('?').map_or((url.as_str(), None), |(path, rest)| (path, Some(rest)));
                let root = path.strip_prefix("file://").or(path.strip_prefix("file:")).unwrap_or(path).into();
                Files { root, options: options.map(|options| format!("?{options}")).unwrap_or_default() }
            }
        };
        match files.instance().await {
            Ok(_) => Started::Running(Arc::new(files)),
            Err(error) => Started::Absent(error.to_string()),
        }
    })
}

#[async_trait]
impl Running for Files {
    fn describe(&self) -> String {
        format!("in {}", self.root.display())
    }

    async fn instance(&self) -> Result<Instance> {
        let dir = TempDir::with_prefix_in("session-conformance-", &self.root)
            .map_err(|error| Error::backend("connect", error))?;
        let url = format!("file://{}{}", dir.path().display(), self.options);
        Ok(Instance::new(session_store::connect(&url).await?).guard(dir).address(url))
    }
}
