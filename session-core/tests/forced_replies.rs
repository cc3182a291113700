//! Each way in which a reply can be lost, one at a time: what lands when, what others do in between, and what
//! the request is told in the end.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

#[path = "support/environment.rs"]
mod environment;
#[path = "support/faulty.rs"]
mod faulty;

use environment::{Seeded, TokioClock};
use faulty::{Arrives, Fate, Faulty, Reply};
use session_core::{
    Access, Effect, Error, ErrorKind, Key, MemoryStore, OnBusy, Result, Session, SessionId, Sessions,
};
use std::{
    collections::VecDeque,
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::time::sleep;

const COUNT: Key<u32> = Key::new("count");

/// The next call of a method meets the first fate that is written down for it; without one it goes well.
type Script = Arc<Mutex<VecDeque<(&'static str, Fate)>>>;

struct World {
    sessions: Sessions,
    /// Another process, on a good network.
    others: Sessions,
    store: Faulty,
    script: Script,
    id: SessionId,
}

const REQUEST_LOST: Fate = Fate::new(Arrives::Never, Reply::Lost);
const REPLY_LOST: Fate = Fate::new(Arrives::Now, Reply::Lost);
const HELD: Fate = Fate::new(Arrives::WhenTold, Reply::Lost);
const REFUSED: Fate = Fate::new(Arrives::Never, Reply::Refused);

async fn world() -> World {
    world_of(1).await
}

async fn world_of(seed: u64) -> World {
    let (clock, random) = (TokioClock::start(), Seeded::new(seed));
    let inner = MemoryStore::new(clock.clone(), random.clone());
    let script = Script::default();
    let fates = Arc::clone(&script);
    let mut store = Faulty::new(inner.clone(), move |method| {
        let mut fates = fates.lock().unwrap();
        let place = fates.iter().position(|(of, _)| *of == method);
        place.and_then(|place| fates.remove(place)).map_or(Fate::GOOD, |(_, fate)| fate)
    });
    store.page = 1;
    let build = |builder: session_core::SessionsBuilder| {
        let builder = builder.lock_wait(Duration::from_secs(2)).lease(Duration::from_secs(5));
        let builder = builder.max_hold(Duration::from_secs(10)).clock(clock.clone()).random(random.clone());
        builder.build().unwrap()
    };
    let (sessions, others) = (build(Sessions::builder(store.clone())), build(Sessions::builder(inner)));
    let id = new_session(&others).await;
    World { sessions, others, store, script, id }
}

async fn new_session(sessions: &Sessions) -> SessionId {
    let new = sessions.create();
    new.insert(COUNT, &0).unwrap();
    new.commit().await.unwrap();
    new.id().unwrap()
}

async fn increment(sessions: &Sessions, id: &SessionId) -> Result<()> {
    sessions.update(id, |session| session.update(COUNT, |count| *count += 1)).await
}

async fn exclusive_increment(sessions: &Sessions, id: &SessionId) -> Result<()> {
    sessions.exclusive(id, async |session| session.update(COUNT, |count| *count += 1)).await
}

impl World {
    fn meets(&self, method: &'static str, fate: Fate) {
        self.script.lock().unwrap().push_back((method, fate));
    }

    /// After this fate, as many increments of others.
    fn others_increment(&self, fate: Fate, times: u32) -> Fate {
        let (others, id) = (self.others.clone(), self.id.clone());
        fate.then(move || async move {
            for _ in 0..times {
                increment(&others, &id).await.unwrap();
            }
        })
    }

    /// After this fate, what was held arrives.
    fn held_arrives(&self, fate: Fate) -> Fate {
        let store = self.store.clone();
        fate.then(move || async move { store.deliver().await })
    }

    async fn increment(&self) -> Result<()> {
        increment(&self.sessions, &self.id).await
    }

    async fn rotate(&self) -> Result<SessionId> {
        let session = self.open(Access::Write).await;
        session.rotate()?;
        session.commit().await?;
        Ok(session.id().unwrap())
    }

    async fn open(&self, access: Access) -> Session {
        self.sessions.open(&self.id, access).await.unwrap().unwrap()
    }

    async fn count_of(&self, id: &SessionId) -> Option<u32> {
        self.others.read(id).await.unwrap().map(|left| left.get(COUNT).unwrap().unwrap())
    }

    /// Once everything has arrived. The script was played to its end, else the case is not the one that it is
    /// named for.
    async fn count(&self) -> Option<u32> {
        self.store.deliver().await;
        assert!(self.script.lock().unwrap().is_empty(), "a fate was never met");
        self.count_of(&self.id).await
    }
}

fn is(error: &Error, kind: ErrorKind, effect: Effect) -> bool {
    error.kind() == kind && error.effect() == effect
}

macro_rules! assert_is {
    ($result:expr, $kind:ident, $effect:ident) => {{
        let error = $result.expect_err("it cannot have gone well");
        assert!(is(&error, ErrorKind::$kind, Effect::$effect), "{error:?}");
    }};
}

#[tokio::test(start_paused = true)]
async fn a_reply_lost_is_found_in_the_record() {
    let world = world().await;
    world.meets("replace", REPLY_LOST);
    world.increment().await.unwrap();
    assert_eq!(world.count().await, Some(1));
}

#[tokio::test(start_paused = true)]
async fn a_request_lost_is_sent_again() {
    let world = world().await;
    world.meets("replace", REQUEST_LOST);
    world.increment().await.unwrap();
    assert_eq!(world.count().await, Some(1));
}

#[tokio::test(start_paused = true)]
async fn a_late_first_copy_is_refused_after_the_second() {
    let world = world().await;
    world.meets("replace", HELD);
    world.increment().await.unwrap();
    assert_eq!(world.count_of(&world.id).await, Some(1));
    assert_eq!(world.count().await, Some(1));
}

#[tokio::test(start_paused = true)]
async fn a_late_first_copy_before_the_second_is_recognized_in_the_conflict() {
    let world = world().await;
    world.meets("load", Fate::GOOD); // the request's own
    world.meets("replace", HELD);
    world.meets("load", world.held_arrives(Fate::GOOD)); // it was looked up too early
    world.increment().await.unwrap();
    assert_eq!(world.count().await, Some(1));
}

#[tokio::test(start_paused = true)]
async fn a_late_first_copy_under_others_writes_is_recognized_too() {
    let world = world().await;
    world.meets("load", Fate::GOOD);
    world.meets("replace", HELD);
    let (others, id, store) = (world.others.clone(), world.id.clone(), world.store.clone());
    let arrives_under_others = Fate::GOOD.then(move || async move {
        store.deliver().await;
        increment(&others, &id).await.unwrap();
    });
    world.meets("load", arrives_under_others);
    world.increment().await.unwrap();
    assert_eq!(world.count().await, Some(2));
}

#[tokio::test(start_paused = true)]
async fn others_wrote_on_top_of_it() {
    for others in [1, 15] {
        let world = world().await;
        world.meets("replace", world.others_increment(REPLY_LOST, others));
        world.increment().await.unwrap();
        assert_eq!(world.count().await, Some(others + 1));
    }
}

#[tokio::test(start_paused = true)]
async fn others_wrote_instead_of_it() {
    for others in [1, 15] {
        let world = world().await;
        world.meets("replace", world.others_increment(REQUEST_LOST, others));
        world.increment().await.unwrap();
        assert_eq!(world.count().await, Some(others + 1));
    }
}

#[tokio::test(start_paused = true)]
async fn after_too_many_commits_nobody_knows() {
    for (fate, applied) in [(REPLY_LOST, 1), (REQUEST_LOST, 0)] {
        let world = world().await;
        world.meets("replace", world.others_increment(fate, 17));
        assert_is!(world.increment().await, Unavailable, Unknown);
        assert_eq!(world.count().await, Some(17 + applied));
    }
}

#[tokio::test(start_paused = true)]
async fn what_was_written_and_then_destroyed_is_gone() {
    let world = world().await;
    let (others, id) = (world.others.clone(), world.id.clone());
    let destroyed = REPLY_LOST.then(move || async move { assert!(others.destroy(&id).await.unwrap()) });
    world.meets("replace", destroyed);
    assert_is!(world.increment().await, Gone, None);
    assert_eq!(world.count().await, None);
}

#[tokio::test(start_paused = true)]
async fn a_late_copy_does_not_revive() {
    let world = world().await;
    let (others, id) = (world.others.clone(), world.id.clone());
    world.meets("replace", HELD.then(move || async move { assert!(others.destroy(&id).await.unwrap()) }));
    assert_is!(world.increment().await, Gone, None);
    assert_eq!(world.count().await, None);
}

#[tokio::test(start_paused = true)]
async fn one_that_cannot_be_looked_up_is_unknown() {
    let world = world().await;
    world.meets("load", Fate::GOOD);
    world.meets("replace", REPLY_LOST);
    for _ in 0..5 {
        world.meets("load", REQUEST_LOST);
    }
    assert_is!(world.increment().await, Unavailable, Unknown);
    assert_eq!(world.count().await, Some(1));
}

#[tokio::test(start_paused = true)]
async fn a_second_copy_that_is_refused_says_nothing_of_the_first() {
    let world = world().await;
    world.meets("replace", HELD);
    world.meets("replace", REFUSED);
    assert_is!(world.increment().await, Unavailable, Unknown);
    assert_eq!(world.count_of(&world.id).await, Some(0));
    assert_eq!(world.count().await, Some(1), "the first copy lands after all");
}

#[tokio::test(start_paused = true)]
async fn an_only_copy_that_is_refused_did_nothing() {
    let world = world().await;
    world.meets("replace", REFUSED);
    assert_is!(world.increment().await, Unavailable, None);
    assert_eq!(world.count().await, Some(0));
}

#[tokio::test(start_paused = true)]
async fn busy_with_a_copy_under_way_is_unknown() {
    let world = world().await;
    let holder = world.others.open(&world.id, Access::Exclusive).await.unwrap().unwrap();
    let session = world.open(Access::Write).await;
    session.update(COUNT, |count| *count += 1).unwrap();
    world.meets("replace", HELD);
    assert_is!(session.commit().await, Busy, Unknown);
    holder.discard();
    sleep(Duration::from_millis(1)).await;
    assert_eq!(world.count().await, Some(1), "it lands when the lock is free");
}

#[tokio::test(start_paused = true)]
async fn busy_without_one_did_nothing() {
    let world = world().await;
    let holder = world.others.open(&world.id, Access::Exclusive).await.unwrap().unwrap();
    let session = world.open(Access::Write).await;
    session.update(COUNT, |count| *count += 1).unwrap();
    assert_is!(session.commit().await, Busy, None);
    holder.discard();
    assert_eq!(world.count().await, Some(0));
}

#[tokio::test(start_paused = true)]
async fn a_lock_lost_with_a_copy_under_way_is_unknown() {
    let world = world().await;
    let session = world.open(Access::Exclusive).await;
    session.update(COUNT, |count| *count += 1).unwrap();
    // The holder is stopped for longer than its lease between the two copies.
    world.meets("replace_and_release", HELD);
    world.meets("load", Fate { latency: Duration::from_secs(20), ..Fate::GOOD });
    for _ in 0..10 {
        world.meets("renew", REQUEST_LOST);
    }
    assert_is!(session.commit().await, LockLost, Unknown);
    world.script.lock().unwrap().clear();
    assert_eq!(world.count().await, Some(0));
}

#[tokio::test(start_paused = true)]
async fn an_exclusive_reply_lost_is_found() {
    let world = world().await;
    let session = world.open(Access::Exclusive).await;
    session.update(COUNT, |count| *count += 1).unwrap();
    world.meets("replace_and_release", REPLY_LOST);
    session.commit().await.unwrap();
    assert_eq!(world.count().await, Some(1));
}

#[tokio::test(start_paused = true)]
async fn a_lock_that_was_lost_before_the_write_is_an_error_without_effect() {
    let world = world().await;
    let session = world.open(Access::Exclusive).await;
    session.update(COUNT, |count| *count += 1).unwrap();
    sleep(Duration::from_secs(60)).await; // beyond max_hold
    assert_is!(session.commit().await, LockLost, None);
    assert_eq!(world.count().await, Some(0));
}

#[tokio::test(start_paused = true)]
async fn a_release_without_a_reply_is_not_a_lock_that_was_lost() {
    for fate in [REPLY_LOST, REQUEST_LOST, REFUSED] {
        let world = world().await;
        world.meets("release", fate);
        world.sessions.exclusive(&world.id, async |_| Ok(())).await.unwrap();
        assert_eq!(world.count().await, Some(0));
    }
}

#[tokio::test(start_paused = true)]
async fn an_exclusive_reply_lost_under_the_next_holders_write_is_found() {
    let world = world().await;
    world.meets("replace_and_release", world.others_increment(REPLY_LOST, 3));
    exclusive_increment(&world.sessions, &world.id).await.unwrap();
    assert_eq!(world.count().await, Some(4));
}

#[tokio::test(start_paused = true)]
async fn an_exclusive_copy_that_lands_late_has_released_the_lock_of_the_second() {
    let world = world().await;
    let session = world.open(Access::Exclusive).await;
    session.update(COUNT, |count| *count += 1).unwrap();
    world.meets("replace_and_release", HELD);
    world.meets("load", world.held_arrives(Fate::GOOD));
    session.commit().await.unwrap(); // NotHolder, and yet it is stored
    assert_eq!(world.count().await, Some(1));
}

#[tokio::test(start_paused = true)]
async fn gone_while_waiting_for_the_lock_is_certain() {
    let world = world().await;
    let _holder = world.others.open(&world.id, Access::Exclusive).await.unwrap().unwrap();
    let session = world.open(Access::Write).await;
    session.update(COUNT, |count| *count += 1).unwrap();
    world.meets("replace", HELD);
    let (others, id) = (world.others.clone(), world.id.clone());
    let destroyed = Fate::GOOD.then(move || async move { assert!(others.destroy(&id).await.unwrap()) });
    world.meets("replace", destroyed);
    assert_is!(session.commit().await, Gone, None);
    assert_eq!(world.count().await, None);
}

#[tokio::test(start_paused = true)]
async fn a_lock_whose_reply_was_lost_is_asked_for_again() {
    let world = world().await;
    world.meets("acquire_and_load", REPLY_LOST);
    exclusive_increment(&world.sessions, &world.id).await.unwrap(); // it would be Busy otherwise
    assert_eq!(world.count().await, Some(1));
}

#[tokio::test(start_paused = true)]
async fn a_lock_that_could_not_be_asked_for_changed_nothing() {
    let world = world().await;
    for _ in 0..6 {
        world.meets("acquire_and_load", REQUEST_LOST);
    }
    assert_is!(exclusive_increment(&world.sessions, &world.id).await, Unavailable, None);
    assert_eq!(world.count().await, Some(0));
}

#[tokio::test(start_paused = true)]
async fn a_commit_that_could_not_get_its_lock_did_nothing() {
    let world = world().await;
    let holder = world.others.open(&world.id, Access::Exclusive).await.unwrap().unwrap();
    let session = world.open(Access::Write).await;
    session.update(COUNT, |count| *count += 1).unwrap();
    for _ in 0..6 {
        world.meets("acquire_and_load", REQUEST_LOST);
    }
    assert_is!(session.commit().await, Unavailable, None);
    holder.discard();
    assert_eq!(world.count().await, Some(0));
}

#[tokio::test(start_paused = true)]
async fn a_load_without_a_reply_changed_nothing() {
    let world = world().await;
    for access in [Access::Read, Access::Write] {
        world.meets("load", REQUEST_LOST);
        assert_is!(world.sessions.open(&world.id, access).await.map(drop), Unavailable, None);
    }
    world.meets("load", REQUEST_LOST);
    assert_is!(world.sessions.read(&world.id).await.map(drop), Unavailable, None);
    assert_eq!(world.count().await, Some(0));
}

#[tokio::test(start_paused = true)]
async fn busy_is_for_reading_only_where_that_was_asked_for() {
    let world = world().await;
    let _holder = world.others.open(&world.id, Access::Exclusive).await.unwrap().unwrap();
    let builder = Sessions::builder(world.store.inner.clone()).lock_wait(Duration::from_millis(50));
    let sessions = builder.on_busy(OnBusy::ReadOnly).clock(TokioClock::start()).build().unwrap();
    let session = sessions.open(&world.id, Access::Exclusive).await.unwrap().unwrap();
    assert_eq!(session.access(), Access::Read);
    assert_eq!(session.get(COUNT).unwrap(), Some(0));
    assert_is!(session.insert(COUNT, &1), ReadOnly, None);
}

// New sessions.

#[tokio::test(start_paused = true)]
async fn an_insert_without_a_reply_gives_up_its_id() {
    for fate in [REPLY_LOST, REQUEST_LOST, HELD] {
        let world = world().await;
        world.meets("insert", fate);
        let id = new_session(&world.sessions).await;
        assert!(world.others.destroy(&id).await.unwrap());
        assert_eq!(world.count().await, Some(0)); // a late copy lands after the destroy
        assert_eq!(world.count_of(&id).await, None, "and revives nothing");
    }
}

// Rotation.

#[tokio::test(start_paused = true)]
async fn a_rotation_without_a_reply_is_found() {
    for fate in [REPLY_LOST, REQUEST_LOST, HELD] {
        let world = world().await;
        world.meets("replace", fate);
        let new = world.rotate().await.unwrap();
        assert_eq!(world.count().await, None, "the old id is dead");
        assert_eq!(world.count_of(&new).await, Some(0));
    }
}

#[tokio::test(start_paused = true)]
async fn the_copy_of_a_rotation_stays_while_its_tombstone_may_land() {
    let world = world().await;
    world.meets("replace", HELD);
    world.meets("replace", REFUSED);
    assert_is!(world.rotate().await, Unavailable, Unknown);
    assert_eq!(world.count_of(&world.id).await, Some(0), "not yet");
    assert_eq!(world.count().await, None, "now it has landed");
    assert!(world.others.destroy(&world.id).await.unwrap(), "and it leads to the living copy");
}

#[tokio::test(start_paused = true)]
async fn the_copy_of_a_rotation_goes_when_its_tombstone_was_refused() {
    let world = world().await;
    let session = world.open(Access::Write).await;
    session.set_principal("user").unwrap();
    session.rotate().unwrap();
    world.meets("replace", REFUSED);
    assert_is!(session.commit().await, Unavailable, None);
    assert_eq!(world.count().await, Some(0));
    assert!(world.others.for_principal("user").await.unwrap().is_empty(), "a copy was left");
}

#[tokio::test(start_paused = true)]
async fn a_rotation_whose_copy_could_not_be_stored_did_nothing() {
    let world = world().await;
    for _ in 0..6 {
        world.meets("insert", REQUEST_LOST);
    }
    assert_is!(world.rotate().await, Unavailable, None);
    assert_eq!(world.count().await, Some(0));
}

// Destroy.

#[tokio::test(start_paused = true)]
async fn a_destroy_without_a_reply_is_tried_again() {
    let world = world().await;
    world.meets("delete", REQUEST_LOST);
    assert!(world.sessions.destroy(&world.id).await.unwrap());
    assert_eq!(world.count().await, None);
}

#[tokio::test(start_paused = true)]
async fn a_destroy_that_is_refused_after_a_lost_copy_is_unknown() {
    let world = world().await;
    world.meets("delete", HELD);
    world.meets("delete", REFUSED);
    assert_is!(world.sessions.destroy(&world.id).await, Unavailable, Unknown);
    assert_eq!(world.count_of(&world.id).await, Some(0));
    assert_eq!(world.count().await, None, "the first copy lands after all");
}

/// A logout with the old cookie is cut at each of its deletes: the next one must still find the new session.
#[tokio::test(start_paused = true)]
async fn a_destroy_that_is_cut_on_the_way_can_be_repeated() {
    for (fate, times) in [(Arrives::Never, 6), (Arrives::WhenTold, 6)] {
        for good in 0..2 {
            let world = world().await;
            let new = world.rotate().await.unwrap();
            for _ in 0..good {
                world.meets("delete", Fate::GOOD);
            }
            for _ in 0..times {
                world.meets("delete", Fate::new(fate, Reply::Lost));
            }
            let first = world.sessions.destroy(&world.id).await;
            world.script.lock().unwrap().clear();
            if world.count_of(&new).await.is_some() {
                assert_is!(first, Unavailable, Unknown);
                assert!(world.sessions.destroy(&world.id).await.unwrap(), "there is one");
            }
            assert_eq!(world.count_of(&new).await, None);
        }
    }
}

/// The rotation wins by a moment: the delete removes its tombstone, and then the successor cannot be reached.
#[tokio::test(start_paused = true)]
async fn a_destroy_that_has_removed_a_tombstone_and_is_cut_says_so() {
    let world = world().await;
    let session = world.open(Access::Write).await;
    session.destroy().unwrap();
    let new = world.rotate().await.unwrap();
    world.meets("delete", Fate::GOOD);
    world.meets("delete", REFUSED);
    assert_is!(session.commit().await, Unavailable, Unknown);
    assert_eq!(world.count_of(&new).await, Some(0));
}

#[tokio::test(start_paused = true)]
async fn a_destroy_whose_reply_was_lost_is_known_where_the_record_was_seen() {
    let world = world().await;
    world.meets("delete", REPLY_LOST);
    let destroyed = world.sessions.destroy(&world.id).await;
    assert_eq!(world.count().await, None);
    // A rotation may have come between the look and the delete: the tombstone would be gone with the reply.
    assert_is!(destroyed, Unavailable, Unknown);
}

// The index.

#[tokio::test(start_paused = true)]
async fn revoke_all_follows_a_rotation_that_comes_between_list_and_delete() {
    let world = world().await;
    let session = world.open(Access::Write).await;
    session.set_principal("user").unwrap();
    session.commit().await.unwrap();
    let rotating = world.others.open(&world.id, Access::Write).await.unwrap().unwrap();
    rotating.rotate().unwrap();
    let after = rotating.clone();
    let rotated = Fate::GOOD.then(move || async move { rotating.commit().await.unwrap() });
    world.meets("load", rotated); // of the session that it lists
    assert_eq!(world.sessions.revoke_all("user").await.unwrap(), 1);
    assert_eq!(world.count_of(&after.id().unwrap()).await, None);
    let listed = world.others.for_principal("user").await.unwrap();
    assert!(listed.is_empty(), "{}", listed.len());
}

/// A list comes in pages: what moves from a later one to an earlier one in between must be found all the
/// same.
#[tokio::test(start_paused = true)]
async fn revoke_all_finds_what_rotates_from_page_to_page() {
    let mut moved_back = 0;
    for seed in 0..32 {
        let world = world_of(seed).await;
        let mut ids = vec![world.id.clone(), new_session(&world.others).await];
        for id in &ids {
            world.others.update(id, |session| session.set_principal("user")).await.unwrap();
        }
        ids.sort_by_key(SessionId::storage_key);
        let [listed, not_yet] = ids.try_into().unwrap();
        let rotating = world.others.open(&not_yet, Access::Write).await.unwrap().unwrap();
        rotating.rotate().unwrap();
        let (others, first, rotated) = (world.others.clone(), listed.clone(), rotating.clone());
        let between = Fate::GOOD.then(move || async move {
            rotating.commit().await.unwrap();
            assert!(others.destroy(&first).await.unwrap()); // so that this round has removed nothing
        });
        world.meets("keys_of", between);
        world.sessions.revoke_all("user").await.unwrap();
        let new = rotated.id().unwrap();
        assert_eq!(world.count_of(&new).await, None, "seed {seed}: still logged in");
        moved_back += u32::from(new.storage_key() < listed.storage_key());
    }
    assert!(moved_back > 0, "none moved to an earlier page");
}
