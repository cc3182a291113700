//! A store behind a bad network: requests and replies are lost, late, or come twice; and what others do
//! meanwhile can be placed before and after each effect.

#![allow(dead_code, reason = "each test uses a part of it")]

use async_trait::async_trait;
use bytes::Bytes;
use session_core::{
    Acquired, Capabilities, Deleted, Effect, Error, ErrorKind, Grant, Inserted, Loaded, LockingStore,
    MemoryStore, Page, PrincipalKey, Put, Released, Renewed, Replaced, Result, SessionIndex, SessionLock,
    SessionStore, SessionSweeper, StorageKey, Stored, Token, Touched, Version,
};
use std::{
    fmt,
    pin::Pin,
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::time::sleep;

pub(crate) type Boxed<T> = Pin<Box<dyn Future<Output = T> + Send>>;
type Action = Box<dyn FnOnce() -> Boxed<()> + Send>;

/// What becomes of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Arrives {
    Now,
    Never,
    After(Duration),
    /// Now, and once more after that.
    Again(Duration),
    /// When the test says so: [`Faulty::deliver`].
    WhenTold,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reply {
    Given,
    /// Nobody knows what became of the request: an error with unknown effect.
    Lost,
    /// An error that says that nothing happened, and nothing does.
    Refused,
}

/// The fate of one call.
pub(crate) struct Fate {
    pub(crate) latency: Duration,
    pub(crate) arrives: Arrives,
    pub(crate) reply: Reply,
    /// What others do after that, before the caller goes on.
    pub(crate) then: Option<Action>,
}

impl Fate {
    pub(crate) const GOOD: Self = Self::new(Arrives::Now, Reply::Given);

    pub(crate) const fn new(arrives: Arrives, reply: Reply) -> Self {
        Self { latency: Duration::ZERO, arrives, reply, then: None }
    }

    pub(crate) fn then<F: Future<Output = ()> + Send + 'static>(
        mut self,
        action: impl FnOnce() -> F + Send + 'static,
    ) -> Self {
        self.then = Some(Box::new(|| Box::pin(action())));
        self
    }
}

type Fates = dyn FnMut(&'static str) -> Fate + Send;

/// [`MemoryStore`] behind that network.
#[derive(Clone)]
pub(crate) struct Faulty {
    pub(crate) inner: MemoryStore,
    fates: Arc<Mutex<Box<Fates>>>,
    held: Arc<Mutex<Vec<Boxed<()>>>>,
    /// Keys in a page of the index.
    pub(crate) page: usize,
}

impl fmt::Debug for Faulty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Faulty(..)")
    }
}

impl Faulty {
    pub(crate) fn new(inner: MemoryStore, fates: impl FnMut(&'static str) -> Fate + Send + 'static) -> Self {
        Self { inner, fates: Arc::new(Mutex::new(Box::new(fates))), held: Arc::default(), page: 256 }
    }

    /// Lets the requests arrive that wait to be told so.
    pub(crate) async fn deliver(&self) {
        let held = std::mem::take(&mut *self.held.lock().unwrap());
        for request in held {
            request.await;
        }
    }

    async fn call<T: Send + 'static>(
        &self,
        operation: &'static str,
        request: impl Fn() -> Boxed<Result<T>> + Send + Sync + 'static,
    ) -> Result<T> {
        let Fate { latency, arrives, reply, then } = (self.fates.lock().unwrap())(operation);
        sleep(latency).await;
        if reply == Reply::Refused {
            return Err(Error::new(ErrorKind::Unavailable, operation).with_context("refused"));
        }
        let replied = match arrives {
            Arrives::Now => Some(request().await),
            Arrives::Never => None,
            Arrives::After(late) => {
                later(late, request());
                None
            }
            Arrives::Again(late) => {
                let replied = request().await;
                later(late, request());
                Some(replied)
            }
            Arrives::WhenTold => {
                let request = request();
                self.held.lock().unwrap().push(Box::pin(async { drop(request.await) }));
                None
            }
        };
        if let Some(then) = then {
            then().await;
        }
        match replied {
            Some(replied) if reply == Reply::Given => replied,
            _ => Err(Error::new(ErrorKind::Unavailable, operation)
                .with_effect(Effect::Unknown)
                .with_context("no reply")),
        }
    }
}

fn later<T: Send + 'static>(late: Duration, request: Boxed<Result<T>>) {
    tokio::spawn(async move {
        sleep(late).await;
        drop(request.await);
    });
}

/// One method of the wrapper: its arguments are owned, so that a copy of the request can outlive the caller.
macro_rules! forward {
    ($self:ident . $method:ident ( $($name:ident $(= $value:expr)?),* )) => {{
        let store = $self.inner.clone();
        $($(let $name = $value;)?)*
        $self
            .call(stringify!($method), move || {
                let store = store.clone();
                $(let $name = $name.clone();)*
                Box::pin(async move { store.$method($($name.arg()),*).await })
            })
            .await
    }};
}

/// How an owned argument is passed on.
trait Arg<'a> {
    type As;
    fn arg(&'a self) -> Self::As;
}

macro_rules! args {
    (by reference: $($type:ty),*; by value: $($value:ty),*) => {
        $(impl<'a> Arg<'a> for $type { type As = &'a $type; fn arg(&'a self) -> &'a $type { self } })*
        $(impl<'a> Arg<'a> for $value { type As = $value; fn arg(&'a self) -> $value { *self } })*
    };
}

args!(by reference: StorageKey, PrincipalKey, Put; by value: Version, Token, Duration, usize);

impl Arg<'_> for Option<Bytes> {
    type As = Self;
    fn arg(&self) -> Self {
        self.clone()
    }
}

impl<'a> Arg<'a> for Arc<Grant> {
    type As = &'a Grant;
    fn arg(&'a self) -> &'a Grant {
        self
    }
}

fn owned(grant: &Grant) -> Arc<Grant> {
    Arc::new(Grant::new(*grant.key(), *grant.token()))
}

#[async_trait]
impl SessionStore for Faulty {
    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    fn index(&self) -> Option<&dyn SessionIndex> {
        Some(self)
    }

    fn sweeper(&self) -> Option<&dyn SessionSweeper> {
        self.inner.sweeper()
    }

    async fn load(&self, key: &StorageKey) -> Result<Option<Stored>> {
        forward!(self.load(key = *key))
    }

    async fn insert(&self, key: &StorageKey, put: &Put) -> Result<Inserted> {
        forward!(self.insert(key = *key, put = put.clone()))
    }

    async fn replace(&self, key: &StorageKey, expected: Version, put: &Put) -> Result<Replaced> {
        forward!(self.replace(key = *key, expected, put = put.clone()))
    }

    async fn touch(&self, key: &StorageKey, expected: Version, ttl: Duration) -> Result<Touched> {
        forward!(self.touch(key = *key, expected, ttl))
    }

    async fn delete(&self, key: &StorageKey) -> Result<Deleted> {
        forward!(self.delete(key = *key))
    }
}

#[async_trait]
impl SessionIndex for Faulty {
    async fn keys_of(&self, principal: &PrincipalKey, after: Option<Bytes>, limit: usize) -> Result<Page> {
        forward!(self.keys_of(principal = *principal, after = after.clone(), limit = limit.min(self.page)))
    }
}

#[async_trait]
impl SessionLock for Faulty {
    async fn acquire(
        &self,
        key: &StorageKey,
        token: Token,
        lease: Duration,
        wait: Duration,
    ) -> Result<Acquired> {
        forward!(self.acquire(key = *key, token, lease, wait))
    }

    async fn renew(&self, grant: &Grant, lease: Duration) -> Result<Renewed> {
        forward!(self.renew(grant = owned(grant), lease))
    }

    async fn release(&self, grant: &Grant) -> Result<Released> {
        forward!(self.release(grant = owned(grant)))
    }
}

#[async_trait]
impl LockingStore for Faulty {
    async fn acquire_and_load(
        &self,
        key: &StorageKey,
        token: Token,
        lease: Duration,
        wait: Duration,
    ) -> Result<Loaded> {
        forward!(self.acquire_and_load(key = *key, token, lease, wait))
    }

    async fn replace_and_release(&self, grant: &Grant, expected: Version, put: &Put) -> Result<Replaced> {
        forward!(self.replace_and_release(grant = owned(grant), expected, put = put.clone()))
    }

    async fn delete_and_release(&self, grant: &Grant) -> Result<Deleted> {
        forward!(self.delete_and_release(grant = owned(grant)))
    }
}
