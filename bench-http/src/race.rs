//! Eight requests of one session at once, from two server processes: what is acknowledged, what is there, and
//! how long it takes.

use crate::{
    Result,
    client::Connection,
    server::{Server, TEN},
};
use std::{
    sync::Barrier,
    thread,
    time::{Duration, Instant},
};

const ROUNDS: usize = 50;
const PARALLEL: usize = 8;

pub(crate) fn run(url: &str) -> Result {
    let one_process = url.starts_with("memory");
    let servers =
        if one_process { vec![Server::start(url)?] } else { vec![Server::start(url)?, Server::start(url)?] };
    println!(
        "{ROUNDS} rounds of {PARALLEL} requests at once, 2 ms of work each, {} server processes",
        servers.len()
    );
    println!(
        "{:<20} {:>12} {:>6} {:>9}  of 0.8 s of serial work",
        "route", "acknowledged", "lost", "seconds"
    );
    let mut routes = vec![("/ours", "/work/update"), ("/ours", "/work/retry"), ("/ours", "/work/exclusive")];
    if url.starts_with("redis") {
        routes.push(("/peer", "/work/write"));
    }
    for (app, path) in routes {
        let (acknowledged, value, time) =
            race(&servers, app, &|_| path.to_owned(), "/value", PARALLEL, ROUNDS)?;
        println!(
            "{:<20} {acknowledged:>12} {:>6} {:>9.3}  {:.2}",
            format!("{app}{path}"),
            acknowledged as i64 - value as i64,
            time.as_secs_f64(),
            time.as_secs_f64() / 0.8
        );
    }
    // Ten at once, each with 200 ms of work; of the writers each has a key of its own.
    let (answered, _, time) = race(&servers, "/ours", &|_| "/long/read".to_owned(), "/value", TEN, 1)?;
    println!("ten of /long/read: {answered} answered, {:.3} s", time.as_secs_f64());
    let write = |n: usize| format!("/long/write/{n}");
    let (answered, kept, time) = race(&servers, "/ours", &write, "/long/kept", TEN, 1)?;
    println!("ten of /long/write: {answered} answered, {kept} of ten keys kept, {:.3} s", time.as_secs_f64());
    if (answered, kept) != (TEN as u64, TEN as u64) {
        return Err("not all of the ten keys were kept".into());
    }
    Ok(())
}

/// How many were answered with 200, what `value` says in the end, and how long the rounds took. The path is
/// each client's own.
fn race(
    servers: &[Server],
    app: &str,
    path: &(dyn Fn(usize) -> String + Sync),
    value: &str,
    parallel: usize,
    rounds: usize,
) -> Result<(u64, u64, Duration)> {
    let mut first = Connection::open(&servers[0].address)?;
    let cookie = first.start(app)?;
    let cookie = &cookie;
    let barrier = &Barrier::new(parallel + 1);
    let (acknowledged, time) = thread::scope(|scope| -> Result<(u64, Duration)> {
        let clients: Vec<_> = (0..parallel)
            .map(|n| {
                let address = &servers[n % servers.len()].address;
                let path = format!("{app}{}", path(n));
                scope.spawn(move || -> Result<u64> {
                    let mut connection = Connection::open(address)?;
                    connection.get("/plain", "")?;
                    let mut acknowledged = 0;
                    for _ in 0..rounds {
                        barrier.wait();
                        acknowledged += u64::from(connection.get(&path, cookie)?.status == 200);
                        barrier.wait();
                    }
                    Ok(acknowledged)
                })
            })
            .collect();
        let mut time = Duration::ZERO;
        for _ in 0..rounds {
            barrier.wait();
            let start = Instant::now();
            barrier.wait();
            time += start.elapsed();
        }
        let mut acknowledged = 0;
        for client in clients {
            acknowledged += client.join().map_err(|_| "a client panicked")??;
        }
        Ok((acknowledged, time))
    })?;
    let value = first.get(&format!("{app}{value}"), cookie)?.body.parse()?;
    Ok((acknowledged, value, time))
}
