//! The parent's side: it starts the workers, lets them meet, stops and kills those that ask for it, and
//! collects what they did.

use super::{FromWorker, Job, ToWorker};
use crate::{
    scenario::{Findings, Hub, Operation, Request},
    trouble::{Trial, Trouble},
};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, waitid};
use serde_json::Value;
use std::{
    ffi::OsString,
    path::PathBuf,
    process::Stdio,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::Duration,
};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    process::{Child, ChildStderr, ChildStdin, ChildStdout, Command},
    sync::mpsc,
    task::JoinSet,
};

/// The most that one worker may say, in bytes: a program that is no worker must not fill the memory.
const MOST_SAID: u64 = 256 << 20;
/// How much of what a worker complains about is kept, in bytes.
const MOST_COMPLAINED: usize = 2 << 10;
/// How long a worker may take to connect.
const CONNECTING: Duration = Duration::from_secs(30);
/// How long a worker may take to end when it is told to.
const ENDING: Duration = Duration::from_secs(2);

/// The program that workers run: one that calls [`serve`](super::serve).
#[derive(Clone, Debug)]
pub struct Program {
    path: PathBuf,
    args: Vec<OsString>,
}

impl Program {
    /// A program with its arguments.
    #[must_use]
    pub fn new(path: impl Into<PathBuf>, args: impl IntoIterator<Item = impl Into<OsString>>) -> Self {
        Self { path: path.into(), args: args.into_iter().map(Into::into).collect() }
    }
}

/// Has workers do the job, one process each, and brings back what they did.
///
/// Dropping the future kills them.
pub(crate) async fn work(program: &Program, job: &Job, hub: Arc<Hub>) -> Trial<Findings<Value>> {
    let (heard, mut hearing) = mpsc::channel(64);
    let mut crew = Crew { tasks: job.tasks, hub, desks: Vec::new() };
    let mut children = Vec::new();
    for process in 0..job.processes {
        let (desk, child) = start(program, process, heard.clone())?;
        crew.desks.push(Arc::new(desk));
        children.push(child);
        crew.tell(process, &ToWorker::Job(Box::new(Job { process, ..job.clone() })))?;
    }
    drop(heard);

    match tokio::time::timeout(CONNECTING, crew.ready(&mut hearing)).await {
        Ok(ready) => ready?,
        Err(_) => return Err(Trouble::unproven(format!("a worker was not ready within {CONNECTING:?}"))),
    }
    for process in 0..job.processes {
        crew.tell(process, &ToWorker::Go)?;
    }
    let operations = crew.collect(&mut hearing).await?;
    let signals = crew.hub.signals();
    drop(crew); // closes their standard input
    for mut child in children {
        if tokio::time::timeout(ENDING, child.wait()).await.is_err() {
            child.start_kill()?; // it has said all that it had to say
        }
    }
    Ok(Findings { operations, signals })
}

/// What came from a worker.
struct Heard {
    process: usize,
    what: What,
}

enum What {
    Said(FromWorker),
    Nonsense(String),
    End,
}

/// One worker, as the parent speaks to it.
struct Desk {
    pid: Pid,
    lines: mpsc::UnboundedSender<Vec<u8>>,
    killed: AtomicBool,
    complaints: Arc<Mutex<String>>,
}

struct Crew {
    tasks: usize,
    hub: Arc<Hub>,
    desks: Vec<Arc<Desk>>,
}

fn start(program: &Program, process: usize, heard: mpsc::Sender<Heard>) -> Trial<(Desk, Child)> {
    let cannot =
        |error: std::io::Error| Trouble::unproven(format!("worker {}: {error}", program.path.display()));
    let mut child = Command::new(&program.path)
        .args(&program.args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(cannot)?;
    let gone = || Trouble::unproven("a worker ended before it began");
    let pid = child.id().and_then(|id| Pid::from_raw(id.try_into().ok()?)).ok_or_else(gone)?;
    let (lines, to_write) = mpsc::unbounded_channel();
    let complaints = Arc::default();
    tokio::spawn(write(child.stdin.take().ok_or_else(gone)?, to_write));
    let noting = tokio::spawn(note(child.stderr.take().ok_or_else(gone)?, Arc::clone(&complaints)));
    let said = child.stdout.take().ok_or_else(gone)?;
    tokio::spawn(async move {
        listen(said, process, &heard).await;
        // What it complained about on the way out belongs to its end.
        drop(tokio::time::timeout(ENDING, noting).await);
        drop(heard.send(Heard { process, what: What::End }).await);
    });
    Ok((Desk { pid, lines, killed: AtomicBool::new(false), complaints }, child))
}

async fn write(mut to: ChildStdin, mut lines: mpsc::UnboundedReceiver<Vec<u8>>) {
    while let Some(line) = lines.recv().await {
        if to.write_all(&line).await.is_err() {
            return; // it has ended; the one who listens to it says so
        }
    }
}

async fn listen(said: ChildStdout, process: usize, heard: &mpsc::Sender<Heard>) {
    let mut lines = BufReader::new(said.take(MOST_SAID)).lines();
    loop {
        let what = match lines.next_line().await {
            Ok(None) => return,
            Err(error) => What::Nonsense(error.to_string()),
            Ok(Some(line)) => match serde_json::from_str(&line) {
                Ok(message) => What::Said(message),
                Err(_) => What::Nonsense(line.chars().take(200).collect()),
            },
        };
        let enough = matches!(what, What::Nonsense(_));
        if heard.send(Heard { process, what }).await.is_err() || enough {
            return;
        }
    }
}

async fn note(complaining: ChildStderr, complaints: Arc<Mutex<String>>) {
    let mut lines = BufReader::new(complaining.take(MOST_SAID)).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        let mut complaints = complaints.lock().unwrap_or_else(PoisonError::into_inner);
        if complaints.len() < MOST_COMPLAINED {
            complaints.extend(line.chars().take(MOST_COMPLAINED).chain(['\n']));
        }
    }
}

impl Crew {
    fn tell(&self, process: usize, message: &ToWorker) -> Trial {
        self.desks[process].tell(message)
    }

    /// Waits until every worker has said that it is ready.
    async fn ready(&self, hearing: &mut mpsc::Receiver<Heard>) -> Trial {
        let mut ready = 0;
        while ready < self.desks.len() {
            match self.next(hearing).await? {
                (_, Some(FromWorker::Ready)) => ready += 1,
                (process, _) => return Err(self.strange(process, "spoke before it was ready")),
            }
        }
        Ok(())
    }

    /// Answers and collects until every task has ended, or was killed.
    async fn collect(&self, hearing: &mut mpsc::Receiver<Heard>) -> Trial<Vec<Operation<Value>>> {
        let mut open: Vec<usize> = (0..self.desks.len() * self.tasks).collect();
        let mut operations = Vec::new();
        let mut answering = JoinSet::new();
        while !open.is_empty() {
            while answering.try_join_next().is_some() {} // those that have been answered
            match self.next(hearing).await? {
                (process, None) => open.retain(|rank| rank / self.tasks != process),
                (process, Some(FromWorker::Ask { id, request })) => {
                    let (hub, desks) = (Arc::clone(&self.hub), self.desks.clone());
                    let tasks = self.tasks;
                    answering.spawn(async move {
                        let reply = answer(&hub, &desks, tasks, request).await;
                        // Who was killed meanwhile hears nothing.
                        drop(desks[process].tell(&ToWorker::Answer { id, reply }));
                    });
                }
                (process, Some(FromWorker::Done { rank, result })) => {
                    if rank / self.tasks != process || !open.contains(&rank) {
                        return Err(self.strange(process, "spoke for a task that is not its own"));
                    }
                    open.retain(|other| *other != rank);
                    operations.extend(result?);
                }
                (process, Some(_)) => return Err(self.strange(process, "said what it should not say here")),
            }
        }
        Ok(operations)
    }

    /// What is said next, and by whom; nothing, when a killed worker is gone.
    async fn next(&self, hearing: &mut mpsc::Receiver<Heard>) -> Trial<(usize, Option<FromWorker>)> {
        let Some(Heard { process, what }) = hearing.recv().await else {
            return Err(Trouble::unproven("all workers are gone"));
        };
        match what {
            What::Said(FromWorker::Failed(trouble)) => Err(trouble.context(format!("worker {process}"))),
            What::Said(message) => Ok((process, Some(message))),
            What::Nonsense(line) => Err(self.strange(process, &format!("said what no worker says: {line}"))),
            What::End if self.desks[process].killed.load(SeqCst) => Ok((process, None)),
            What::End => Err(self.strange(process, "ended before it was done")),
        }
    }

    fn strange(&self, process: usize, what: &str) -> Trouble {
        let complaints = self.desks[process].complaints.lock().unwrap_or_else(PoisonError::into_inner);
        let complaints = complaints.trim();
        let separator = if complaints.is_empty() { "" } else { "; it complained: " };
        Trouble::unproven(format!("worker {process} {what}{separator}{complaints}"))
    }
}

impl Desk {
    fn tell(&self, message: &ToWorker) -> Trial {
        let mut line = serde_json::to_vec(message)?;
        line.push(b'\n');
        self.lines.send(line).map_err(|_| Trouble::unproven("a worker has closed its standard input"))
    }

    fn signal(&self, signal: Signal) -> Trial {
        kill_process(self.pid, signal).map_err(|error| Trouble::unproven(format!("a worker: {error}")))
    }

    /// Waits until the operating system says that it stands still, or is gone. Its exit status is left for
    /// whoever reaps it.
    async fn until(&self, state: WaitIdOptions) -> Trial {
        loop {
            let options = state | WaitIdOptions::NOWAIT | WaitIdOptions::NOHANG;
            match waitid(WaitId::Pid(self.pid), options) {
                Ok(None) => tokio::time::sleep(Duration::from_millis(1)).await,
                Ok(Some(_)) => return Ok(()),
                Err(error) => return Err(Trouble::unproven(format!("a worker: {error}"))),
            }
        }
    }
}

async fn answer(hub: &Hub, desks: &[Arc<Desk>], tasks: usize, request: Request) -> Trial<Value> {
    let desk = |rank: usize| {
        desks.get(rank / tasks).ok_or_else(|| Trouble::unproven(format!("there is no task {rank}")))
    };
    match request {
        Request::PauseUntil { rank, signal } => {
            pause(hub, desk(rank)?, rank).await?;
            hub.wait(&signal).await?;
            desk(rank)?.signal(Signal::CONT)?;
        }
        Request::PauseFor { rank, millis } => {
            pause(hub, desk(rank)?, rank).await?;
            tokio::time::sleep(Duration::from_millis(millis)).await;
            desk(rank)?.signal(Signal::CONT)?;
        }
        Request::Kill { rank } => {
            let desk = desk(rank)?;
            desk.killed.store(true, SeqCst);
            desk.signal(Signal::KILL)?;
            desk.until(WaitIdOptions::EXITED).await?;
            hub.killed(tasks);
            hub.signal(format!("killed/{rank}"), Value::Bool(true));
        }
        other => return hub.answer(other).await,
    }
    Ok(Value::Null)
}

async fn pause(hub: &Hub, desk: &Desk, rank: usize) -> Trial {
    desk.signal(Signal::STOP)?;
    desk.until(WaitIdOptions::STOPPED).await?;
    hub.signal(format!("paused/{rank}"), Value::Bool(true));
    Ok(())
}
