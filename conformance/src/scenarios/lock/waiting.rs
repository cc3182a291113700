//! Waiting in vain.

use super::{LATE, breaches};
use crate::{
    Judgement, Strategy,
    scenario::{Findings, Lab, Script, Task},
    system::{Change, Id, Settings, Systems, values},
    trouble::{Trial, Trouble},
};
use serde::{Deserialize, Serialize};
use session_core::{
    Access, Acquired, Effect, ErrorKind, Grant, Key, Loaded, OnBusy, Session, SessionId, SystemRandom, Token,
    Version,
};
use std::{future::Future, sync::Arc, time::Duration};
use tokio::time::{Instant, timeout};

pub(super) const WAIT: Duration = Duration::from_millis(250);

/// Of the holder, who never comes back.
const LEASE: Duration = Duration::from_secs(60);

const KEPT: Key<u64> = Key::new("kept");

/// The parent holds the lock; everybody waits for it in vain, in the queue of its process and at the store.
pub(super) struct WaitLimitIsKeptAndTyped;

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Plan {
    id: Id,
    /// The holder's.
    token: [u8; 16],
    version: [u8; 16],
}

type Note = Vec<String>;

/// How a wait is to end: within which time, and with what.
async fn wait<T>(
    task: &Task<Note>,
    what: &str,
    at_least: Duration,
    at_most: Duration,
    waiting: impl Future<Output = T> + Send,
    wrong: impl FnOnce(T) -> Option<String>,
) {
    let (begun, start) = (task.begin(0), Instant::now());
    let ended = timeout(at_most + LATE, waiting).await;
    let waited = start.elapsed();
    let wrong = match ended {
        Err(_) => Some(format!("not ended after {:?}", at_most + LATE)),
        Ok(_) if waited < at_least => Some(format!("given up after {waited:?}")),
        Ok(ended) => wrong(ended),
    };
    let wrong = wrong.map(|wrong| format!("{what} for at most {at_most:?}: {wrong}"));
    begun.end(wrong.into_iter().collect(), &Ok(()));
}

impl WaitLimitIsKeptAndTyped {
    /// The driver may say that it is held before the time is over, where it cannot be woken.
    async fn drivers(task: &Task<Note>, plan: &Plan, limit: Duration) -> Trial {
        let (store, key) = (task.store(), plan.id.key()?);
        let acquiring = store.acquire(&key, task.token()?, LEASE, limit);
        let acquired = wait(task, "acquire", Duration::ZERO, limit, acquiring, |acquired| match acquired {
            Ok(Acquired::Held(_)) => None,
            other => Some(format!("{other:?}")),
        });
        let loading = store.acquire_and_load(&key, task.token()?, LEASE, limit);
        let loaded = wait(task, "acquire_and_load", Duration::ZERO, limit, loading, |loaded| match loaded {
            Ok(Loaded::Held(_)) => None,
            Ok(Loaded::Missing) => Some("Missing, though it is only locked".to_owned()),
            other => Some(format!("{other:?}")),
        });
        tokio::join!(acquired, loaded);
        Ok(())
    }

    async fn exclusive(task: &Task<Note>, plan: &Plan) -> Trial {
        let system = task.system();
        let failing = wait(task, "open", WAIT, WAIT, system.open(&plan.id), |opened| match opened {
            Err(error) if error.kind() == ErrorKind::Busy && error.effect() == Effect::None => None,
            Err(error) => Some(error.to_string()),
            Ok(None) => Some("there is no such session, it said, though it is only locked".to_owned()),
            Ok(Some(_)) => Some("it is open, though another holds the lock".to_owned()),
        });
        let settings = Settings { on_busy: OnBusy::ReadOnly, ..Settings::DEFAULT.lock_wait(WAIT) };
        let systems = Systems::new(Arc::clone(task.store()), settings)?;
        let id = session_id(&plan.id)?;
        let opening = systems.sessions().open(&id, Access::Exclusive);
        let reading = wait(task, "open, or for reading only,", WAIT, WAIT, opening, |opened| match opened {
            Ok(Some(session)) => read_only(&session),
            Ok(None) => Some("there is no such session, it said, though it is only locked".to_owned()),
            Err(error) => Some(error.to_string()),
        });
        tokio::join!(failing, reading);
        Ok(())
    }

    /// A commit that meets another's lease waits as long. Without fencing it meets none.
    async fn write(task: &Task<Note>, plan: &Plan) -> Trial {
        let (system, fencing) = (task.system(), task.store().capabilities().fencing);
        let writing = async {
            let mut request = system.request(&plan.id).await?;
            request.change("count", Change::Add(1)).await?;
            request.commit().await
        };
        let at_least = if fencing { WAIT } else { Duration::ZERO };
        wait(task, "commit", at_least, WAIT, writing, |written| match written {
            Err(error) if fencing && error.kind() == ErrorKind::Busy && error.effect() == Effect::None => {
                None
            }
            Ok(_) if !fencing => None,
            Err(error) => Some(error.to_string()),
            Ok(_) => Some("it was stored, though another holds the lock".to_owned()),
        })
        .await;
        Ok(())
    }
}

/// What is wrong with a session that could not be locked and is open for reading only.
fn read_only(session: &Session) -> Option<String> {
    let kept = session.get(KEPT);
    let written = session.insert(KEPT, &2);
    session.discard();
    match (session.access(), kept, written) {
        (Access::Read, Ok(Some(1)), Err(error)) if error.kind() == ErrorKind::ReadOnly => None,
        (access, kept, written) => {
            Some(format!("open for {access:?}, in it {kept:?} and not 1, and a write: {written:?}"))
        }
    }
}

fn session_id(id: &Id) -> Trial<SessionId> {
    id.session_id().ok_or_else(|| Trouble::unproven("not a session id"))
}

impl Script for WaitLimitIsKeptAndTyped {
    type Plan = Plan;
    type Note = Note;

    async fn setup(lab: &Lab) -> Trial<Plan> {
        let id = lab.system().create(&values([("kept", 1.into()), ("count", 0.into())])).await?;
        let token = Token::random(&SystemRandom)?;
        match lab.store().acquire_and_load(&id.key()?, token, LEASE, Duration::ZERO).await? {
            Loaded::Granted(_, stored) => {
                Ok(Plan { id, token: *token.as_bytes(), version: stored.version.to_bytes() })
            }
            other => Err(Trouble::wrong(format!("the lock of a new session: {other:?}"))),
        }
    }

    async fn work(task: &Task<Note>, plan: &Plan) -> Trial {
        match task.strategy() {
            Strategy::Driver => {
                Self::drivers(task, plan, Duration::ZERO).await?;
                Self::drivers(task, plan, WAIT).await
            }
            Strategy::Exclusive => Self::exclusive(task, plan).await,
            _ => Self::write(task, plan).await,
        }
    }

    async fn judge(lab: &Lab, plan: &Plan, found: &Findings<Note>) -> Trial<Judgement> {
        let judgement = breaches(lab, found)?;
        let key = plan.id.key()?;
        let _freed_or_lost = lab.store().release(&Grant::new(key, Token::from_bytes(plan.token))).await?;
        let untouched = lab.capabilities().fencing || lab.strategy() != Strategy::Write;
        let now = lab.store().load(&key).await?.map(|stored| stored.version);
        Ok(judgement.require(!untouched || now == Some(Version::from_bytes(plan.version)), || {
            "the session was written, though another held its lock and nobody was told so".to_owned()
        }))
    }
}
