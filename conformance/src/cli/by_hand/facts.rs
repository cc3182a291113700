//! What a server says of itself: its version, and what it takes.

use super::{failed, memcached, option, postgres, redis};
use session_core::Result;
use std::{fs, io, os::unix::fs::MetadataExt as _, path::Path};
use url::Url;

/// The version, as the server reports it; `None` where there is no server, or more than one.
pub(in crate::cli) async fn version(backend: &str, address: &Url) -> Result<Option<String>> {
    Ok(match (backend, address.scheme()) {
        ("redis", "redis") => {
            let info = redis::Redis::connect(address).await?.info("server").await?;
            field(&info, "redis_version:").map(|version| format!("Redis {version}"))
        }
        ("postgres", _) => {
            let version = postgres::Postgres::connect(address).await?.ask("SHOW server_version").await?;
            Some(format!("PostgreSQL {version}"))
        }
        ("memcached", _) => {
            let line = memcached::Memcached::at(address).await?.line("version").await?;
            line.strip_prefix("VERSION ").map(|version| format!("memcached {version}"))
        }
        _ => None,
    })
}

/// Bytes of memory (Redis) or disk (files, PostgreSQL with its indexes).
pub(in crate::cli) async fn weight(backend: &str, address: &Url) -> Result<Option<u64>> {
    match (backend, address.scheme()) {
        ("redis", "redis") => {
            let info = redis::Redis::connect(address).await?.info("memory").await?;
            Ok(field(&info, "used_memory:").and_then(|bytes| bytes.parse().ok()))
        }
        ("postgres", _) => {
            let schema = option(address, "schema").unwrap_or_else(|| "public".to_owned());
            let sql = format!(
                "SELECT coalesce(sum(pg_total_relation_size(c.oid)), 0)::text FROM pg_class c \
                 JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = '{schema}' AND c.relkind = 'r'"
            );
            Ok(postgres::Postgres::connect(address).await?.ask(&sql).await?.parse().ok())
        }
        ("file", _) => {
            let Ok(root) = address.to_file_path() else { return Ok(None) };
            let weighing = tokio::task::spawn_blocking(move || blocks(&root));
            weighing.await.map_err(failed)?.map(Some).map_err(failed)
        }
        _ => Ok(None),
    }
}

fn field<'a>(info: &'a str, name: &str) -> Option<&'a str> {
    info.lines().find_map(|line| line.strip_prefix(name)).map(str::trim)
}

/// What a directory takes of the disk, whole blocks.
fn blocks(directory: &Path) -> io::Result<u64> {
    const BLOCK: u64 = 512; // what `st_blocks` counts, whatever the file system's are
    let mut sum = 0;
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        sum += if entry.file_type()?.is_dir() { blocks(&entry.path())? } else { 0 };
        sum += entry.metadata()?.blocks() * BLOCK;
    }
    Ok(sum)
}
