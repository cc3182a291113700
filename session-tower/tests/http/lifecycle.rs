//! Login, logout, rotation and requests that come too late.

use crate::{
    backends::{Backend, on_each_backend},
    support::{Client, Gate, LONG, Site},
};
use axum::{Router, routing::get};
use http::StatusCode;
use session_core::Key;
use session_tower::{ExclusiveSession, ReadSession, Rejection, Session, SessionLayer};
use std::{sync::Arc, time::Duration};

const USER: Key<u64> = Key::new("user");
const NOTE: Key<String> = Key::new("note");

on_each_backend!(
    a_late_writer_finds_the_session_gone,
    logout_ends_a_session_that_is_locked,
    a_destroyed_session_takes_its_cookie_with_it,
    rotation_refuses_writers_that_are_under_way,
    within_the_grace_they_go_on_under_the_new_id,
    of_two_rotations_one_wins,
    logout_with_the_old_cookie_ends_the_new_session,
    an_unknown_id_is_not_adopted,
    extractors_share_one_session,
    a_session_is_upgraded_in_the_middle,
);

/// `/write` and `/look` pass the gate between opening and answering.
fn app(gate: &Arc<Gate>) -> impl Fn(SessionLayer) -> Router + use<> {
    let gate = Arc::clone(gate);
    move |layer| {
        let (written, looked, rotated) = (Arc::clone(&gate), Arc::clone(&gate), Arc::clone(&gate));
        let write = move |session: Session| async move {
            session.insert(NOTE, "late")?;
            written.pass().await;
            Ok::<_, Rejection>(())
        };
        let look = move |session: ReadSession| async move {
            looked.pass().await;
            Ok::<_, Rejection>(format!("{:?}", session.get(USER)?))
        };
        let slow_rotation = move |session: Session| async move {
            session.rotate()?;
            rotated.pass().await;
            Ok::<_, Rejection>(())
        };
        Router::new()
            .route("/login", get(login))
            .route("/logout", get(logout))
            .route("/rotate", get(async |session: Session| Ok::<_, Rejection>(session.rotate()?)))
            .route("/slow-rotation", get(slow_rotation))
            .route("/me", get(me))
            .route("/write", get(write))
            .route("/look", get(look))
            .layer(layer)
    }
}

async fn login(session: Session) -> Result<(), Rejection> {
    session.rotate()?;
    session.insert(USER, &7)?;
    Ok(())
}

async fn logout(session: Session) -> Result<(), Rejection> {
    session.destroy()?;
    Ok(())
}

async fn me(session: Option<ReadSession>) -> Result<String, Rejection> {
    Ok(match session {
        Some(session) => format!("{:?}", session.get(USER)?),
        None => "nobody".to_owned(),
    })
}

async fn a_late_writer_finds_the_session_gone<B: Backend>() {
    let gate = Gate::new();
    let site = Site::<B>::start(app(&gate)).await;
    let client = Client::default();
    client.get(&site.a, "/login").await;
    let tab = client.copy();
    let late = tab.get(&site.b, "/write");
    let logout = async {
        gate.reached().await;
        let logout = client.get(&site.a, "/logout").await;
        gate.open();
        logout
    };
    let (late, logout) = tokio::join!(late, logout);
    assert_eq!((late.status, logout.status), (StatusCode::CONFLICT, StatusCode::OK));
    assert_eq!(late.set_cookie(), None);
    assert_eq!(client.cookie(), None);
    assert_eq!(tab.get(&site.a, "/me").await.body, "nobody"); // it is not revived, not even in part
}

async fn logout_ends_a_session_that_is_locked<B: Backend>() {
    let gate = Gate::new();
    let held = Arc::clone(&gate);
    let hold = move |session: ExclusiveSession| async move {
        session.insert(NOTE, "late")?;
        held.pass().await;
        Ok::<_, Rejection>(())
    };
    let app = app(&gate);
    let site =
        Site::<B>::start(move |layer| app(layer.clone()).route("/hold", get(hold.clone()).layer(layer)))
            .await;
    let client = Client::default();
    client.get(&site.a, "/login").await;
    let tab = client.copy();
    let holder = tab.get(&site.b, "/hold");
    let logout = async {
        gate.reached().await;
        let logout = client.get(&site.a, "/logout").await;
        gate.open();
        logout
    };
    let (holder, logout) = tokio::join!(holder, logout);
    assert_eq!((holder.status, logout.status), (StatusCode::CONFLICT, StatusCode::OK));
    assert_eq!(tab.get(&site.a, "/me").await.body, "nobody");
}

async fn a_destroyed_session_takes_its_cookie_with_it<B: Backend>() {
    let site = Site::<B>::start(app(&Gate::new())).await;
    let client = Client::default();
    client.get(&site.a, "/login").await;
    let removed = client.get(&site.b, "/logout").await;
    assert!(
        removed
            .set_cookie()
            .unwrap()
            .starts_with("__Host-id=; Path=/; Secure; HttpOnly; SameSite=Lax; Max-Age=0")
    );
    // A second logout has nothing to end, and nothing to say.
    assert_eq!(client.get(&site.b, "/logout").await.set_cookie(), None);
}

async fn rotation_refuses_writers_that_are_under_way<B: Backend>() {
    let gate = Gate::new();
    let site = Site::<B>::start(app(&gate)).await;
    let client = Client::default();
    client.get(&site.a, "/login").await;
    let old = client.copy();
    let rotate = async {
        gate.reached().await;
        gate.reached().await;
        let rotated = client.get(&site.a, "/rotate").await;
        gate.open();
        gate.open();
        rotated
    };
    let (writer, reader) = (old.get(&site.b, "/write"), old.get(&site.b, "/look"));
    let (writer, reader, rotated) = tokio::join!(writer, reader, rotate);
    assert_eq!((writer.status, writer.set_cookie()), (StatusCode::CONFLICT, None));
    assert_eq!((reader.status, reader.body.as_str()), (StatusCode::OK, "Some(7)"));
    assert_eq!(reader.set_cookie(), None);
    assert!(rotated.set_cookie().is_some());
    assert_ne!(client.cookie(), old.cookie());
    assert_eq!(client.get(&site.b, "/me").await.body, "Some(7)");
    let late = old.get(&site.b, "/me").await; // without a session, and without a cookie that would replace the new one
    assert_eq!((late.body.as_str(), late.set_cookie()), ("nobody", None));
}

async fn within_the_grace_they_go_on_under_the_new_id<B: Backend>() {
    let gate = Gate::new();
    let site = Site::<B>::with(|settings| settings.rotation_grace(LONG), app(&gate)).await;
    let client = Client::default();
    client.get(&site.a, "/login").await;
    let old = client.copy();
    let rotate = async {
        gate.reached().await;
        client.get(&site.a, "/rotate").await;
        gate.open();
    };
    let (writer, ()) = tokio::join!(old.get(&site.b, "/write"), rotate);
    assert_eq!(writer.status, StatusCode::OK);
    assert_eq!(old.cookie(), client.cookie());
    assert_eq!(site.stored_value(&client, NOTE).await.as_deref(), Some("late"));
    assert_eq!(site.stored_value(&client, USER).await, Some(7));
}

async fn of_two_rotations_one_wins<B: Backend>() {
    let gate = Gate::new();
    let site = Site::<B>::start(app(&gate)).await;
    let client = Client::default();
    client.get(&site.a, "/login").await;
    let tab = client.copy();
    let both_inside = async {
        gate.reached().await;
        gate.reached().await;
        gate.open();
        gate.open();
    };
    let (one, two) = (client.get(&site.a, "/slow-rotation"), tab.get(&site.b, "/slow-rotation"));
    let (one, two, ()) = tokio::join!(one, two, both_inside);
    let mut statuses = [one.status, two.status];
    statuses.sort();
    assert_eq!(statuses, [StatusCode::OK, StatusCode::CONFLICT]);
    assert!(one.set_cookie().is_some() != two.set_cookie().is_some());
    let winner = if one.status == StatusCode::OK { &client } else { &tab };
    assert_eq!(winner.get(&site.b, "/me").await.body, "Some(7)");
}

async fn logout_with_the_old_cookie_ends_the_new_session<B: Backend>() {
    let site = Site::<B>::start(app(&Gate::new())).await;
    let client = Client::default();
    client.get(&site.a, "/login").await;
    let old = client.copy();
    client.get(&site.a, "/rotate").await;
    let logout = old.get(&site.b, "/logout").await;
    assert!(logout.set_cookie().unwrap().contains("Max-Age=0"));
    assert_eq!(client.get(&site.a, "/me").await.body, "nobody");
}

async fn an_unknown_id_is_not_adopted<B: Backend>() {
    let site = Site::<B>::start(app(&Gate::new())).await;
    let planted = format!("__Host-id={}", "A".repeat(43));
    let client = Client::with_cookie(planted.clone());
    assert_eq!(client.get(&site.a, "/me").await.set_cookie(), None);
    client.get(&site.a, "/login").await;
    assert_ne!(client.cookie().unwrap(), planted);
    assert_eq!(client.get(&site.b, "/me").await.body, "Some(7)");
    assert_eq!(Client::with_cookie(planted).get(&site.b, "/me").await.body, "nobody");
}

async fn extractors_share_one_session<B: Backend>() {
    let all = async |there: Option<ReadSession>, read: ReadSession, session: Session| {
        assert_eq!(there.unwrap().id(), session.id());
        session.insert(NOTE, "shared")?;
        assert_eq!(read.get(NOTE)?.as_deref(), Some("shared"));
        Ok::<_, Rejection>(())
    };
    let app = app(&Gate::new());
    let site = Site::<B>::start(move |layer| app(layer.clone()).route("/all", get(all).layer(layer))).await;
    let client = Client::default();
    client.get(&site.a, "/login").await;
    site.faults.calls();
    assert_eq!(client.get(&site.a, "/all").await.status, StatusCode::OK);
    assert_eq!(site.faults.calls(), ["load", "replace"]);
}

async fn a_session_is_upgraded_in_the_middle<B: Backend>() {
    // What was shown before the lock must still be so under it.
    let gate = Gate::new();
    let between = Arc::clone(&gate);
    let pay = move |read: ReadSession, handle: session_tower::SessionHandle| async move {
        let seen = read.get(NOTE)?;
        between.pass().await;
        let session = handle.exclusive().await?;
        session.insert(NOTE, &format!("{seen:?}, paid"))?;
        Ok::<_, Rejection>(())
    };
    let note = async |session: Session| Ok::<_, Rejection>(session.insert(NOTE, "changed")?);
    let app = app(&gate);
    let site = Site::<B>::with(
        |settings| settings.lock_wait(Duration::from_secs(10)),
        move |layer| {
            app(layer.clone())
                .route("/pay", get(pay.clone()).layer(layer.clone()))
                .route("/note", get(note).layer(layer))
        },
    )
    .await;
    let client = Client::default();
    client.get(&site.a, "/login").await;
    for (changed, status, stored) in
        [(false, StatusCode::OK, "None, paid"), (true, StatusCode::CONFLICT, "changed")]
    {
        let pay = client.get(&site.a, "/pay");
        let change = async {
            gate.reached().await;
            if changed {
                client.get(&site.b, "/note").await;
            }
            gate.open();
        };
        let (pay, ()) = tokio::join!(pay, change);
        assert_eq!(pay.status, status);
        assert_eq!(site.stored_value(&client, NOTE).await.as_deref(), Some(stored));
    }
}
