//! This process's memory.

use super::{Running, Started};
use async_trait::async_trait;
use session_conformance::Instance;
use session_core::Result;
use std::{future::Future, pin::Pin, sync::Arc};

const URL: &str = "memory:";

struct Memory(String);

pub(super) fn start(url: Option<String>) -> Pin<Box<dyn Future<Output = Started> + Send>> {
    let memory = Memory(url.unwrap_or_else(|| URL.to_owned()));
    Box::pin(async { Started::Running(Arc::new(memory)) })
}

#[async_trait]
impl Running for Memory {
    fn describe(&self) -> String {
        "this process's memory".to_owned()
    }

    async fn instance(&self) -> Result<Instance> {
        Ok(Instance::new(session_store::connect(&self.0).await?))
    }
}
