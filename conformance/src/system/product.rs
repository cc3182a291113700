//! The product, as the scenarios see sessions.

use super::{Change, Id, OpenSession, Settings, System, Values};
use async_trait::async_trait;
use serde_json::Value;
use session_core::{Access, Key, LockingStore, Result, Session, Sessions};
use std::{
    collections::HashSet,
    sync::{Arc, LazyLock, Mutex, PoisonError},
};

pub(super) fn build(store: &Arc<dyn LockingStore>, settings: &Settings) -> Result<Sessions> {
    Sessions::builder(Arc::clone(store))
        .lease(settings.lease)
        .lock_wait(settings.lock_wait)
        .max_hold(settings.max_hold)
        .max_waiters(settings.max_waiters)
        .on_busy(settings.on_busy)
        .idle_timeout(settings.idle_timeout)
        .max_lifetime(settings.max_lifetime)
        .rotation_grace(settings.rotation_grace)
        .build()
}

/// Sessions with one kind of access.
#[derive(Debug)]
pub(super) struct Product {
    sessions: Sessions,
    access: Access,
}

impl Product {
    pub(super) const fn new(sessions: Sessions, access: Access) -> Self {
        Self { sessions, access }
    }
}

#[async_trait]
impl System for Product {
    async fn create(&self, values: &Values) -> Result<Id> {
        let session = self.sessions.create();
        for (name, value) in values {
            session.insert(key(name), value)?;
        }
        session.commit().await?;
        Ok(session.id().map(|id| Id::new(id.expose())).unwrap_or_else(|| Id::new(String::new())))
    }

    async fn open(&self, id: &Id) -> Result<Option<Box<dyn OpenSession>>> {
        let Some(id) = id.session_id() else { return Ok(None) };
        let session = self.sessions.open(&id, self.access).await?;
        Ok(session.map(|session| Box::new(Request(session)) as Box<dyn OpenSession>))
    }

    async fn read(&self, id: &Id) -> Result<Option<Values>> {
        let Some(id) = id.session_id() else { return Ok(None) };
        let Some(snapshot) = self.sessions.read(&id).await? else { return Ok(None) };
        let mut values = Values::new();
        for name in snapshot.names() {
            if let Some(value) = snapshot.get(key(&name))? {
                values.insert(name, value);
            }
        }
        Ok(Some(values))
    }

    async fn destroy(&self, id: &Id) -> Result<bool> {
        match id.session_id() {
            Some(id) => self.sessions.destroy(&id).await,
            None => Ok(false),
        }
    }

    async fn revoke_all(&self, user: &str) -> Result<usize> {
        self.sessions.revoke_all(user).await
    }
}

#[derive(Debug)]
struct Request(Session);

#[async_trait]
impl OpenSession for Request {
    async fn get(&mut self, name: &str) -> Result<Option<Value>> {
        self.0.get(key(name))
    }

    async fn change(&mut self, name: &str, change: Change) -> Result<()> {
        match change {
            Change::Insert(value) => self.0.insert(key(name), &value),
            Change::Remove => self.0.remove(key(name)),
            // Replayed on fresh data when another request was first.
            Change::Add(_) | Change::Append(_) => {
                self.0.update_with(key(name), move |value: &mut Option<Value>| change.apply(value))
            }
        }
    }

    async fn take(&mut self, name: &str) -> Result<Option<Value>> {
        self.0.take(key(name))
    }

    async fn set_principal(&mut self, user: &str) -> Result<()> {
        self.0.set_principal(user)
    }

    async fn rotate(&mut self) -> Result<()> {
        self.0.rotate()
    }

    async fn destroy(&mut self) -> Result<()> {
        self.0.destroy()
    }

    async fn commit(self: Box<Self>) -> Result<Option<Id>> {
        self.0.commit().await?;
        Ok(self.0.id().map(|id| Id::new(id.expose())))
    }
}

impl Drop for Request {
    /// A request that ended without a commit stores nothing, and says so.
    fn drop(&mut self) {
        self.0.discard();
    }
}

/// The product's keys are constants; a scenario's are made up as it runs. Each name is kept once for the life
/// of the process.
fn key(name: &str) -> Key<Value> {
    static NAMES: LazyLock<Mutex<HashSet<&'static str>>> = LazyLock::new(Mutex::default);
    let mut names = NAMES.lock().unwrap_or_else(PoisonError::into_inner);
    let name = match names.get(name) {
        Some(name) => *name,
        None => {
            let name: &'static str = Box::leak(name.into());
            names.insert(name);
            name
        }
    };
    Key::new(name)
}
