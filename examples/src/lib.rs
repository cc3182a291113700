//! What the examples have in common.

use axum::Router;
use session_store::Store;
use std::error::Error;

/// What a newcomer copies must compile.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
pub struct Readme;

/// What an example ends with.
pub type Result<T = (), E = Box<dyn Error + Send + Sync>> = std::result::Result<T, E>;

/// The first argument; memory without one.
#[must_use]
pub fn url() -> String {
    std::env::args().nth(1).unwrap_or_else(|| "memory:".to_owned())
}

/// The store that the URL names.
///
/// # Errors
/// The store's.
pub async fn store() -> Result<Store> {
    Ok(session_store::connect(&url()).await?)
}

/// Serves on the port that `PORT` names (3000; 0 for any), for this machine alone.
///
/// # Errors
/// When the port is taken.
pub async fn serve(app: Router) -> Result {
    let port = std::env::var("PORT").unwrap_or_else(|_| "3000".to_owned());
    let listener = tokio::net::TcpListener::bind(format!("127.0.0.1:{port}")).await?;
    println!("open http://{}", listener.local_addr()?);
    axum::serve(listener, app).await?;
    Ok(())
}
