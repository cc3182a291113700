//! HTTP sessions that never lose an update: a tower layer, axum extractors, cookies.
//!
//! ```
//! # #[cfg(feature = "axum")] mod example {
//! use axum::{Router, routing::post};
//! use session_core::{Key, MemoryStore, Sessions};
//! use session_tower::{Rejection, Session, SessionLayer};
//!
//! const CART: Key<Vec<String>> = Key::new("cart");
//!
//! async fn add(session: Session) -> Result<&'static str, Rejection> {
//!     session.update(CART, |cart| cart.push("book".to_owned()))?;
//!     Ok("added") // it is stored before this is sent
//! }
//!
//! # async fn run() -> Result<(), Box<dyn std::error::Error>> {
//! let sessions = Sessions::builder(MemoryStore::default()).build()?;
//! let app = Router::new().route("/add", post(add)).layer(SessionLayer::new(sessions));
//! axum::serve(tokio::net::TcpListener::bind("127.0.0.1:0").await?, app).await?;
//! # Ok(()) }
//! # }
//! ```
//!
//! Who depends on `session-store` has all of this already, as `session_store::http`, with its feature `axum`
//! (for axum 0.8; with its feature `http` for any other tower service). Read `session_store` where
//! `session_core` stands here, and `session_store::http` for `session_tower`: they are the same types.
//!
//! - [`extract`]: what handlers hold: [`Session`], [`ReadSession`], [`ExclusiveSession`]; without extractors, [`SessionHandle`]. What can be
//!   done with one (`get`, `insert`, `update`, `take`, `rotate`, `destroy` …) is at
//!   [`session_core::Session`].
//! - [`SessionLayer`]: when it commits, and what it says when it cannot ([`response`]).
//! - [`cookie`]: the cookie. [`retry`]: running a handler again. [`csrf`] and [`flash`]: what parallel requests break first.
//! - [`migrating`] from tower-sessions.
//!
//! # What to know
//!
//! - A request without a cookie has no session until it puts something in; two of these at once get a session
//!   each, and the client keeps the last cookie. That is no lost update: neither was a session that anyone
//!   knew.
//! - After a rotation ([`rotate`](session_core::Session::rotate)) without a grace, requests that are under
//!   way with the old cookie are told [`Gone`](session_core::ErrorKind::Gone) (409) when they write, and
//!   later ones have no session. If they put something in, they get a new one, and the client may keep that
//!   one's cookie: give background requests a `ReadSession`, or, where no privilege changes, a
//!   [`rotation_grace`](session_core::SessionsBuilder::rotation_grace).
//! - A cookie that names no session is left where it is. Removing it could remove the one that another
//!   response has just set.
//! - The streaming body of a response comes after the commit: it can read the session, and no longer change
//!   it.
//!
//! # Without TLS: development
//!
//! The cookie is `Secure`, and its name `__Host-id` demands that. Over plain http some browsers take such a
//! cookie from `localhost` (Chrome does), some do not (Safari), and none does from another host, such as your
//! machine seen by your phone. It is dropped without a word: every request begins with an empty session. So
//! turn `Secure` off where you develop, and only there:
//!
//! ```
//! use session_tower::{CookieConfig, SessionLayer};
//! # let sessions = session_core::Sessions::builder(session_core::MemoryStore::default()).build()?;
//!
//! let cookie = if cfg!(debug_assertions) {
//!     CookieConfig::insecure("id") // no `Secure`, hence another name
//! } else {
//!     CookieConfig::default()
//! };
//! let layer = SessionLayer::new(sessions).cookie(cookie)?;
//! # let _: SessionLayer = layer;
//! # Ok::<(), session_core::Error>(())
//! ```
//!
//! A build with `--release` cannot be told to do without, then. Behind a proxy that ends TLS leave the
//! default: it is the browser that looks at `Secure`, not this layer.
//!
//! # Features
//!
//! `axum`, on by default: the extractors, and [`Rejection`] as a response. Without it the layer works on any
//! tower service.

pub mod cookie;
pub mod csrf;
mod detach;
pub mod extract;
pub mod flash;
mod layer;
#[doc = include_str!("migrating.md")]
pub mod migrating {}
pub mod response;
pub mod retry;
mod slot;

pub use cookie::{CookieConfig, SameSite};
pub use extract::{ExclusiveSession, ReadSession, Session};
pub use layer::{ResponseFuture, SessionLayer, SessionService, WhenDown};
pub use response::{Failure, Rejection};
pub use retry::{RetryLayer, RetryService};
pub use slot::SessionHandle;
