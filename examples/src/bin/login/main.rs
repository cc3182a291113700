//! Login as it should be: a new id at every change of privilege, a CSRF token in every form, flash messages,
//! an idle timeout and a cap, a list of the user's sessions, logout here and everywhere.
//!
//! ```sh
//! cargo run -p examples --bin login      # then open http://127.0.0.1:3000; the password is "demo"
//! ```
//!
//! Any backend that keeps an index of users will do: all but memcached, where the list and "log out
//! everywhere" are `Unsupported`.

use axum::{
    Form, Router,
    extract::{FromRequestParts, RawQuery},
    http::{StatusCode, request::Parts},
    response::{Html, IntoResponse, Redirect, Response},
    routing::{get, post},
};
use serde::Deserialize;
use session_store::{
    Key, Sessions,
    http::{
        CookieConfig, ReadSession, Rejection, RetryLayer, Session, SessionHandle, SessionLayer, csrf, flash,
    },
};
use std::time::Duration;

const USER: Key<String> = Key::new("user");
const FAILED: Key<u32> = Key::new("failed");

/// Of one session, which shows that parallel guesses give no more tries. It stops nobody who takes a new
/// session for each guess: a real login counts by user and by address.
const MOST_FAILED: u32 = 5;

/// Whoever is logged in. It shares the handler's session: no further round trip.
struct User(String);

impl<S: Send + Sync> FromRequestParts<S> for User {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Response> {
        let session =
            ReadSession::from_request_parts(parts, state).await.map_err(IntoResponse::into_response)?;
        match session.get(USER).map_err(|error| Rejection(error).into_response())? {
            Some(user) => Ok(Self(user)),
            None => Err(Redirect::to("/").into_response()),
        }
    }
}

/// What every form sends.
#[derive(Deserialize)]
struct Token {
    csrf: String,
}

#[derive(Deserialize)]
struct Login {
    csrf: String,
    user: String,
    password: String,
}

async fn home(
    session: Session,
    handle: SessionHandle,
    RawQuery(query): RawQuery,
) -> Result<Html<String>, Rejection> {
    let mut messages: String = flash::take(&session)?
        .iter()
        .map(|message| format!("<p class={:?} role=status>{}</p>", message.level, escape(&message.text)))
        .collect();
    let token = csrf::token(&session)?;
    let form = |action: &str, inside: &str| {
        format!(
            "<form method=post action={action}><input type=hidden name=csrf value={token}>{inside}</form>"
        )
    };
    Ok(match session.get(USER)? {
        Some(user) => {
            let sessions = handle.sessions().for_principal(&user).await?.len();
            let out = form("/logout", "<button>Log out</button>");
            let everywhere = form("/logout-everywhere", "<button class=second>Log out everywhere</button>");
            let title = format!("Hello, {}", escape(&user));
            page(&title, &format!("{messages}<p>Sessions of yours: {sessions}.</p>{out}{everywhere}"))
        }
        None => {
            if query.as_deref() == Some("bye") {
                messages += "<p class=Success role=status>You are logged out.</p>";
            }
            let fields = "<label>Name <input name=user required maxlength=64 autocomplete=username></label>
                <label>Password (it is \"demo\")
                <input name=password type=password required autocomplete=current-password></label>
                <button>Log in</button>";
            page("Login", &(messages + &form("/login", fields)))
        }
    })
}

/// Both are HTML already. The title goes in last: a user's name is in it, and may read "{body}".
fn page(title: &str, body: &str) -> Html<String> {
    Html(include_str!("page.html").replace("{body}", body).replace("{title}", title))
}

async fn login(session: Session, Form(login): Form<Login>) -> Result<Response, Rejection> {
    if !csrf::verify(&session, &login.csrf)? {
        return Ok(forged());
    }
    if session.get(FAILED)?.unwrap_or(0) >= MOST_FAILED {
        return Ok(refused(StatusCode::TOO_MANY_REQUESTS, "Too many wrong passwords in this session."));
    }
    if login.user.is_empty() || login.user.len() > 64 || login.password != "demo" {
        session.update(FAILED, |failed| *failed += 1)?; // none is free: of parallel ones, one is told and the others conflict
        flash::push(&session, flash::Level::Error, "That is not the password.")?;
        return Ok(Redirect::to("/").into_response());
    }
    session.rotate()?; // whoever knew the old id has nothing any more
    csrf::renew(&session)?;
    session.remove(FAILED)?;
    session.insert(USER, &login.user)?;
    session.set_principal(&login.user)?;
    flash::push(&session, flash::Level::Success, "You are logged in.")?;
    Ok(Redirect::to("/").into_response())
}

async fn logout(session: Session, Form(token): Form<Token>) -> Result<Response, Rejection> {
    if !csrf::verify(&session, &token.csrf)? {
        return Ok(forged());
    }
    session.destroy()?; // and the browser is told to remove its cookie
    Ok(Redirect::to("/?bye").into_response()) // no session is left that could hold a flash message
}

async fn logout_everywhere(
    User(user): User,
    session: Session,
    handle: SessionHandle,
    Form(token): Form<Token>,
) -> Result<Response, Rejection> {
    if !csrf::verify(&session, &token.csrf)? {
        return Ok(forged());
    }
    handle.sessions().revoke_all(&user).await?; // this one, too
    session.destroy()?;
    Ok(Redirect::to("/?bye").into_response())
}

fn forged() -> Response {
    refused(StatusCode::FORBIDDEN, "This form is from another page, or its session is over.")
}

fn refused(status: StatusCode, why: &str) -> Response {
    let body = format!("<p class=Error role=alert>{why}</p><a href=/>Back to the start</a>");
    (status, page("Not done", &body)).into_response()
}

fn escape(text: &str) -> String {
    text.chars().fold(String::new(), |mut escaped, char| {
        match char {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            char => escaped.push(char),
        }
        escaped
    })
}

#[tokio::main]
async fn main() -> examples::Result {
    let sessions = Sessions::builder(examples::store().await?)
        .idle_timeout(Duration::from_mins(1))
        .max_lifetime(Duration::from_mins(10))
        .build()?;
    // Over plain http://127.0.0.1 not every browser takes a `Secure` cookie; with TLS leave the default.
    let layer = SessionLayer::new(sessions).cookie(CookieConfig::insecure("id"))?;
    let app = Router::new()
        .route("/", get(home).layer(RetryLayer::default())) // two tabs that load it at once draw one token
        .route("/login", post(login))
        .route("/logout", post(logout))
        .route("/logout-everywhere", post(logout_everywhere))
        .layer(layer);
    examples::serve(app).await
}
