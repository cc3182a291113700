//! What a session costs over HTTP, against tower-sessions with its Redis store.
//!
//! ```sh
//! cargo run --release -- cost redis://127.0.0.1:6379    # per request, one keep-alive client, everything interleaved
//! cargo run --release -- race redis://127.0.0.1:6379    # eight at once, from two server processes
//! ```
//!
//! Another backend's URL works, too; the peer is left out then.

mod client;
mod cost;
mod race;
mod server;

pub(crate) type Result<T = (), E = Box<dyn std::error::Error + Send + Sync>> = std::result::Result<T, E>;

fn main() -> Result {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["cost", url] => cost::run(url),
        ["race", url] => race::run(url),
        ["serve", url] => server::run(url),
        _ => Err("cost URL, or race URL".into()),
    }
}
