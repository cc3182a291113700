//! One session, four processes of four tasks, the lock held for a millisecond each time; and the same for one
//! task alone, who waits for nobody: what is beyond that is the way from hand to hand.

use session_conformance::servers::memcached::MemcachedServer;
use session_core::{Key, SessionId, Sessions};
use session_memcached::{MemcachedConfig, MemcachedStore};
use std::{process::Stdio, time::Duration};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    process::Command,
    time::Instant,
};

/// Processes, and tasks of each.
const CROWDS: [[usize; 2]; 2] = [[1, 1], [4, 4]];
const UPDATES: usize = 100;
const HELD: Duration = Duration::from_millis(1);
const COUNT: Key<u64> = Key::new("count");

pub(crate) async fn bench(quick: bool) {
    for [processes, tasks] in CROWDS {
        println!(
            "\nhand-over, processes: {processes}, tasks of each: {tasks}, 1 ms held, {UPDATES} updates each:"
        );
        for number in 1..=if quick { 1 } else { 3 } {
            run(number, processes, tasks).await;
        }
    }
}

async fn run(number: usize, processes: usize, tasks: usize) {
    let server = MemcachedServer::start().await.unwrap();
    let sessions = sessions(&server.url()).await;
    let session = sessions.create();
    session.insert(COUNT, &0).unwrap();
    session.commit().await.unwrap();
    let id = session.id().unwrap();

    let before = server.stat("cmd_get").await.unwrap() + server.stat("cmd_set").await.unwrap();
    let mut workers = Vec::new();
    for _ in 0..processes {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command
            .args(["handover-worker", &server.url(), &id.expose(), &tasks.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        workers.push(command.spawn().unwrap());
    }
    for worker in &mut workers {
        let mut ready = [0];
        worker.stdout.as_mut().unwrap().read_exact(&mut ready).await.unwrap();
    }
    let start = Instant::now();
    for worker in &mut workers {
        worker.stdin.as_mut().unwrap().write_all(b"!").await.unwrap();
    }
    let mut waits = Vec::new();
    for worker in workers {
        let output = worker.wait_with_output().await.unwrap();
        assert!(output.status.success());
        let text = String::from_utf8(output.stdout).unwrap();
        waits.extend(text.lines().map(|line| Duration::from_micros(line.parse().unwrap())));
    }
    let took = start.elapsed();
    let count = sessions.read(&id).await.unwrap().unwrap().get(COUNT).unwrap().unwrap();
    let updates = processes * tasks * UPDATES;
    assert_eq!((count as usize, waits.len()), (updates, updates));
    let commands = server.stat("cmd_get").await.unwrap() + server.stat("cmd_set").await.unwrap() - before;
    waits.sort_unstable();
    let at = |part: f64| waits[((waits.len() - 1) as f64 * part) as usize].as_secs_f64() * 1e3;
    println!(
        "  run {number}: {:.0} updates/s, wait p50 {:.1} ms, p99 {:.1} ms, longest {:.1} ms, {:.1} commands an update",
        waits.len() as f64 / took.as_secs_f64(),
        at(0.5),
        at(0.99),
        at(1.0),
        commands as f64 / waits.len() as f64,
    );
}

async fn sessions(url: &str) -> Sessions {
    let store = MemcachedStore::connect(&MemcachedConfig::from_url(url).unwrap()).await.unwrap();
    Sessions::builder(store).lock_wait(Duration::from_secs(30)).build().unwrap()
}

/// A worker: ready, go, then its waits in microseconds.
pub(crate) async fn work(url: &str, id: &str, tasks: usize) {
    let (sessions, id) = (sessions(url).await, SessionId::parse(id).unwrap());
    let mut out = tokio::io::stdout();
    out.write_all(b" ").await.unwrap();
    out.flush().await.unwrap();
    tokio::io::stdin().read_exact(&mut [0]).await.unwrap();
    let mut running = tokio::task::JoinSet::new();
    for _ in 0..tasks {
        let sessions = sessions.clone();
        let id = id.clone();
        running.spawn(async move {
            let mut waits = Vec::new();
            for _ in 0..UPDATES {
                let asked = Instant::now();
                let enter = async |session: &session_core::Session| {
                    let waited = asked.elapsed();
                    tokio::time::sleep(HELD).await;
                    session.update(COUNT, |count| *count += 1)?;
                    Ok(waited)
                };
                waits.push(sessions.exclusive(&id, enter).await.unwrap());
            }
            waits
        });
    }
    let mut text = String::new();
    while let Some(waits) = running.join_next().await {
        for wait in waits.unwrap() {
            text.push_str(&format!("{}\n", wait.as_micros()));
        }
    }
    out.write_all(text.as_bytes()).await.unwrap();
    out.flush().await.unwrap();
}
