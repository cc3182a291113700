//! Sessions as the scenarios see them: open, read, change, commit, destroy, rotate.
//!
//! Narrow on purpose: implemented once for the product and once for the controls, and small enough to be
//! implemented for a foreign system over HTTP, which is then judged by the same scenarios.
//!
//! ```
//! use session_conformance::system::{Change, Settings, Systems, values};
//! use session_conformance::Strategy;
//! use session_core::MemoryStore;
//! use std::sync::Arc;
//!
//! # async fn run() -> Result<(), Box<dyn std::error::Error>> {
//! let systems = Systems::new(Arc::new(MemoryStore::default()), Settings::DEFAULT)?;
//! let blind = systems.of(Strategy::Blind);
//! let id = blind.create(&values([("visits", 1.into())])).await?;
//! let mut session = blind.request(&id).await?;
//! session.change("visits", Change::Add(1)).await?;
//! session.commit().await?;
//! assert_eq!(blind.number(&id, "visits").await?, 2);
//! # Ok(()) }
//! # tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(run())?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod control;
mod product;

use crate::{
    Strategy,
    trouble::{Trial, Trouble},
};
use async_trait::async_trait;
use control::Control;
use product::Product;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use session_core::{Access, Error, ErrorKind, LockingStore, OnBusy, Result, SessionId, Sessions, StorageKey};
use std::{collections::BTreeMap, fmt::Debug, sync::Arc, time::Duration};

/// What a session holds.
pub type Values = BTreeMap<String, Value>;

/// The bearer token of a session, as text: plans carry it from process to process.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Id(String);

impl Id {
    /// The id that a system gave out.
    #[must_use]
    pub const fn new(text: String) -> Self {
        Self(text)
    }

    /// As text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// As the product reads it; `None` for the id of a foreign system.
    #[must_use]
    pub fn session_id(&self) -> Option<SessionId> {
        SessionId::parse(&self.0)
    }

    /// The name under which the driver knows it.
    ///
    /// # Errors
    /// When it is not an id of this workspace.
    pub fn key(&self) -> Trial<StorageKey> {
        let id = self.session_id().ok_or_else(|| Trouble::unproven("not a session id"))?;
        Ok(id.storage_key())
    }
}

/// A system of sessions, used by one strategy.
#[async_trait]
pub trait System: Debug + Send + Sync {
    /// Makes and stores a session with these values.
    ///
    /// # Errors
    /// As the system's store.
    async fn create(&self, values: &Values) -> Result<Id>;

    /// Opens a session for a request: locked, where the strategy locks. `None` when there is none.
    ///
    /// # Errors
    /// As the system's store; `Busy` when a lock cannot be had.
    async fn open(&self, id: &Id) -> Result<Option<Box<dyn OpenSession>>>;

    /// What is stored, without opening it.
    ///
    /// # Errors
    /// As the system's store.
    async fn read(&self, id: &Id) -> Result<Option<Values>>;

    /// Ends a session. Whether there was one.
    ///
    /// # Errors
    /// As the system's store.
    async fn destroy(&self, id: &Id) -> Result<bool>;

    /// Ends all sessions of a user. How many.
    ///
    /// # Errors
    /// As the system's store; `Unsupported` where there is no index of users.
    async fn revoke_all(&self, user: &str) -> Result<usize>;
}

impl dyn System + '_ {
    /// Opens a session that must be there.
    ///
    /// # Errors
    /// `Gone` when it is not; as [`System::open`].
    pub async fn request(&self, id: &Id) -> Result<Box<dyn OpenSession>> {
        self.open(id).await?.ok_or_else(|| Error::new(ErrorKind::Gone, "open"))
    }

    /// One number as it is stored; zero when it is not there.
    ///
    /// # Errors
    /// As [`System::read`].
    pub async fn number(&self, id: &Id, name: &str) -> Result<u64> {
        let values = self.read(id).await?.unwrap_or_default();
        Ok(values.get(name).and_then(Value::as_u64).unwrap_or_default())
    }
}

/// Values from names and whatever JSON can be made of.
#[must_use]
pub fn values<const N: usize>(values: [(&str, Value); N]) -> Values {
    values.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

/// A change of one value that needs no answer, and so can be made again on fresh data.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Change {
    /// Adds to a number; absent is zero.
    Add(i64),
    /// Appends to a list; absent is empty.
    Append(Value),
    /// Puts a value, whatever was there.
    Insert(Value),
    /// Removes a value.
    Remove,
}

impl Change {
    /// Applies it to a value, where the system has no words of its own for it. A value of another type is
    /// replaced.
    pub fn apply(&self, value: &mut Option<Value>) {
        match self {
            Self::Add(number) => {
                let before = value.as_ref().and_then(Value::as_i64).unwrap_or_default();
                *value = Some((before + number).into());
            }
            Self::Append(item) => match value {
                Some(Value::Array(items)) => items.push(item.clone()),
                _ => *value = Some(Value::Array(vec![item.clone()])),
            },
            Self::Insert(new) => *value = Some(new.clone()),
            Self::Remove => *value = None,
        }
    }
}

/// A session within one request. Dropping it discards what was done.
#[async_trait]
pub trait OpenSession: Debug + Send + Sync {
    /// A value; from now on a commit that cannot keep it true is refused (by a product).
    ///
    /// # Errors
    /// As the system.
    async fn get(&mut self, name: &str) -> Result<Option<Value>>;

    /// Changes a value.
    ///
    /// # Errors
    /// As the system.
    async fn change(&mut self, name: &str, change: Change) -> Result<()>;

    /// Removes a value and returns it.
    ///
    /// # Errors
    /// As the system.
    async fn take(&mut self, name: &str) -> Result<Option<Value>>;

    /// Says whose session it is.
    ///
    /// # Errors
    /// As the system.
    async fn set_principal(&mut self, user: &str) -> Result<()>;

    /// Gives it a new id at its commit.
    ///
    /// # Errors
    /// As the system.
    async fn rotate(&mut self) -> Result<()>;

    /// Ends it at its commit.
    ///
    /// # Errors
    /// As the system.
    async fn destroy(&mut self) -> Result<()>;

    /// Stores what was done. The id from now on; `None` when it was destroyed.
    ///
    /// # Errors
    /// As the system: `Conflict`, `Gone`, `LockLost` and the like when nothing was stored.
    async fn commit(self: Box<Self>) -> Result<Option<Id>>;
}

/// How sessions are set up for a scenario; the product's own defaults where it does not matter.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Settings {
    /// How long a lock lives without being renewed (the controls never renew).
    pub lease: Duration,
    /// How long a request waits for a lock.
    pub lock_wait: Duration,
    /// How long a lock is renewed at most.
    pub max_hold: Duration,
    /// How many may wait for one session in one process.
    pub max_waiters: usize,
    /// What a request gets that waited in vain.
    pub on_busy: OnBusy,
    /// How long a session lives unused.
    pub idle_timeout: Duration,
    /// How long it lives at all.
    pub max_lifetime: Duration,
    /// How long a rotated id still opens its successor.
    pub rotation_grace: Duration,
}

impl Settings {
    /// Waits that outlast a slow store with many tasks, so that contention alone refuses nobody.
    pub const DEFAULT: Self = Self {
        lease: Duration::from_secs(10),
        lock_wait: Duration::from_secs(30),
        max_hold: Duration::from_secs(60),
        max_waiters: 10_000,
        on_busy: OnBusy::Fail,
        idle_timeout: Duration::from_mins(30),
        max_lifetime: Duration::from_hours(12),
        rotation_grace: Duration::ZERO,
    };

    /// Another lease.
    #[must_use]
    pub const fn lease(mut self, lease: Duration) -> Self {
        self.lease = lease;
        self
    }

    /// Another patience.
    #[must_use]
    pub const fn lock_wait(mut self, wait: Duration) -> Self {
        self.lock_wait = wait;
        self
    }
}

/// All strategies on one store, in one process: they share what requests of a process share.
#[derive(Clone, Debug)]
pub struct Systems {
    store: Arc<dyn LockingStore>,
    settings: Settings,
    sessions: Sessions,
}

impl Systems {
    /// Sets them up.
    ///
    /// # Errors
    /// When the settings are refused.
    pub fn new(store: Arc<dyn LockingStore>, settings: Settings) -> Result<Self> {
        let sessions = product::build(&store, &settings)?;
        Ok(Self { store, settings, sessions })
    }

    /// The store below.
    #[must_use]
    pub fn store(&self) -> &Arc<dyn LockingStore> {
        &self.store
    }

    /// How they were set up.
    #[must_use]
    pub const fn settings(&self) -> Settings {
        self.settings
    }

    /// The product.
    #[must_use]
    pub const fn sessions(&self) -> &Sessions {
        &self.sessions
    }

    /// Sessions used by this strategy; for scenarios about drivers, which use none, those of `write`.
    #[must_use]
    pub fn of(&self, strategy: Strategy) -> Arc<dyn System> {
        let control = |locks| Arc::new(Control::new(Arc::clone(&self.store), self.settings, locks));
        let product = |access| Arc::new(Product::new(self.sessions.clone(), access));
        match strategy {
            Strategy::Blind => control(false),
            Strategy::LockOnly => control(true),
            Strategy::Exclusive => product(Access::Exclusive),
            Strategy::Write | Strategy::Driver => product(Access::Write),
        }
    }
}
