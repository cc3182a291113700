//! The cost of a request over one without a session: one client, keep-alive, all routes in turn, so that what
//! disturbs one disturbs all.

use crate::{Result, client::Connection, server::Server};
use std::time::{Duration, Instant};

const ROUNDS: usize = 6_000;
const WARM_UP: usize = 500;

pub(crate) fn run(url: &str) -> Result {
    let server = Server::start(url)?;
    let mut connection = Connection::open(&server.address)?;
    let mut routes = vec!["/plain", "/ours/read", "/ours/write", "/ours/exclusive"];
    let ours = connection.start("/ours")?;
    let mut cookies = ours;
    if url.starts_with("redis") {
        routes.extend(["/peer/read", "/peer/write"]);
        let peer = connection.start("/peer")?;
        cookies = format!("{cookies}; {peer}");
    }
    let mut times = vec![Vec::with_capacity(ROUNDS); routes.len()];
    for round in 0..ROUNDS + WARM_UP {
        for turn in 0..routes.len() {
            let route = (round + turn) % routes.len(); // nobody always follows the same one
            let start = Instant::now();
            let reply = connection.get(routes[route], &cookies)?;
            let time = start.elapsed();
            if reply.status != 200 {
                return Err(format!("{}: {}", routes[route], reply.status).into());
            }
            if round >= WARM_UP {
                times[route].push(time);
            }
        }
    }
    let medians: Vec<Duration> = times
        .iter_mut()
        .map(|times| {
            times.sort_unstable();
            times[times.len() / 2]
        })
        .collect();
    let cost = |route: usize| medians[route].saturating_sub(medians[0]);
    let peer = routes.iter().position(|route| *route == "/peer/write").map(cost);
    println!("{:<16} {:>10} {:>10}  of the peer's write", "route", "p50", "cost");
    for (n, route) in routes.iter().enumerate() {
        let ratio = peer
            .map_or_else(String::new, |peer| format!("{:.2}", cost(n).as_secs_f64() / peer.as_secs_f64()));
        println!("{route:<16} {:>10.1?} {:>10.1?}  {ratio}", medians[n], cost(n));
    }
    Ok(())
}
