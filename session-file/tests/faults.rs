//! Each file call of each verb fails in turn: the old record or the new one is there, never a mixture; what
//! the error says about its effect is true; no lock and no session is lost; and a sweep leaves nothing.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that fails panics")]

mod support;

use session_core::{
    Acquired, Effect, ErrorKind, Key, PrincipalKey, SessionIndex as _, SessionLock as _, SessionStore as _,
    SessionSweeper as _, Sessions, StorageKey,
};
use session_file::{FileConfig, FileDurability, FileStore};
use std::{
    collections::BTreeSet,
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
};
use support::{hooked::Hooked, verbs::*, *};

/// Fails one call (or all) from the n-th on, once it is armed.
struct Faults {
    fs: Arc<Hooked>,
    at: Arc<AtomicUsize>,
}

const NEVER: usize = usize::MAX;

impl Faults {
    fn new(code: i32, for_ever: bool) -> Self {
        let at = Arc::new(AtomicUsize::new(NEVER));
        let armed = Arc::clone(&at);
        let fs = Hooked::new(move |call| {
            let at = armed.load(SeqCst);
            let hit = call.number == at || for_ever && call.number > at;
            if hit { Err(io::Error::from_raw_os_error(code)) } else { Ok(()) }
        });
        Self { fs, at }
    }

    fn arm(&self, nth: usize) {
        self.at.store(self.fs.calls() + nth, SeqCst);
    }

    /// Whether the call that was to fail was made.
    fn disarm(&self) -> bool {
        self.fs.calls() >= self.at.swap(NEVER, SeqCst)
    }
}

async fn sessions_of(store: &FileStore, user: &PrincipalKey) -> BTreeSet<StorageKey> {
    store.keys_of(user, None, 100).await.unwrap().keys.into_iter().collect()
}

const NO_SPACE: i32 = 28;
const IO: i32 = 5;

async fn each_call_fails(durability: FileDurability, code: i32, for_ever: bool) {
    for verb in VERBS {
        let mut hits = 0;
        for nth in 1.. {
            let fixture = Fixture::new();
            let faults = Faults::new(code, for_ever);
            let config = fixture.config().durability(durability);
            let faulty = FileStore::open(config.clone().fs(faults.fs.clone())).unwrap();
            let (sound, key) = (FileStore::open(config).unwrap(), key());
            let version = verb.prepare(&sound, &key).await;
            verb.lock(&faulty, &key).await;

            faults.arm(nth);
            let result = verb.run(&faulty, &key, version).await;
            if !faults.disarm() {
                result.unwrap();
                break;
            }
            hits += 1;
            let context = format!("{verb:?}, call {nth}, {durability:?}: {result:?}");
            let happened = verb.happened(&sound, &key, version).await;
            match &result {
                Ok(()) => assert_ne!(happened, Some(false), "{context}"),
                Err(error) if error.effect() == Effect::None => assert_ne!(happened, Some(true), "{context}"),
                Err(_) => {}
            }
            if let Err(error) = &result {
                let kinds = if code == NO_SPACE { ErrorKind::Unavailable } else { ErrorKind::Backend };
                assert_eq!(error.kind(), kinds, "{context}");
                assert!(error.context().is_some(), "it says where: {context}");
            }
            // The index names whoever has it.
            if let Some(stored) = sound.load(&key).await.unwrap() {
                let user = stored.principal.unwrap();
                assert!(sessions_of(&sound, &user).await.contains(&key), "{context}");
            }
            // An error keeps the lock: the same can be tried again (or was done, and released it).
            if verb.needs_grant() && result.is_err() {
                let acquired = sound.acquire(&key, TOKEN, MINUTE, NO_WAIT).await.unwrap();
                assert!(matches!(acquired, Acquired::Granted(_)), "{context}");
            }
            if result.is_err() && happened == Some(false) {
                verb.run(&sound, &key, version).await.unwrap_or_else(|error| panic!("{context}: {error}"));
            }
            // And in the end nothing is left.
            drop(faulty);
            fixture.clock.advance(MINUTE * 3);
            fixture.lease_clock.advance(MINUTE * 3);
            let _swept = sound.sweep(10).await.unwrap();
            assert_eq!(fixture.session_files(), NONE, "{context}");
            drop(sound);
            assert_eq!(files_in(&fixture.root().join("owners")), NONE, "{context}");
        }
        assert!(hits >= 7, "{verb:?} makes more than {hits} calls");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_loses_nothing() {
    each_call_fails(FileDurability::None, NO_SPACE, false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_input_output_error_loses_nothing() {
    each_call_fails(FileDurability::None, IO, false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_goes_away_loses_nothing() {
    each_call_fails(FileDurability::None, IO, true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_fsync_that_fails_loses_nothing() {
    each_call_fails(FileDurability::FileAndDirectory, IO, false).await;
}

/// A rename that says it failed and did not: not "nothing happened".
#[tokio::test]
async fn an_error_after_the_fact_says_that_the_effect_is_unknown() {
    let fixture = Fixture::new();
    let (sound, key) = (fixture.open(), key());
    let version = insert(&sound, &key, &put(OLD)).await;
    let (record, gone) = (fixture.record_path(&key), AtomicUsize::new(0));
    let fs = Hooked::new(move |call| {
        if call.is("rename", &record) {
            std::fs::rename(record.with_extension("tmp"), &record)?;
            return Err(io::Error::from_raw_os_error(IO));
        }
        if call.is("remove_file", &record) && gone.fetch_add(1, SeqCst) == 0 {
            std::fs::remove_file(&record)?;
            return Err(io::Error::from_raw_os_error(IO));
        }
        Ok(())
    });
    let faulty = FileStore::open(fixture.config().fs(fs)).unwrap();
    let error = faulty.replace(&key, version, &put(NEW)).await.unwrap_err();
    assert_eq!((error.kind(), error.effect()), (ErrorKind::Backend, Effect::Unknown));
    assert_eq!(sound.load(&key).await.unwrap().unwrap().data, NEW);
    let error = faulty.delete(&key).await.unwrap_err();
    assert_eq!((error.kind(), error.effect()), (ErrorKind::Backend, Effect::Unknown));
    assert!(sound.load(&key).await.unwrap().is_none());
}

#[tokio::test]
async fn a_failing_source_of_randomness_is_an_error() {
    #[derive(Debug)]
    struct Empty;
    impl session_core::Random for Empty {
        fn fill(&self, _: &mut [u8]) -> session_core::Result<()> {
            Err(session_core::Error::new(ErrorKind::Random, "random"))
        }
    }
    let fixture = Fixture::new();
    let error = FileStore::open(fixture.config().random(Arc::new(Empty))).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Random);
}

/// A directory that the disk does not take, though all see its new names: no commit is acknowledged because
/// it is seen there, and no destroy because nothing is.
#[tokio::test]
async fn what_the_disk_did_not_take_is_not_acknowledged() {
    const COUNT: Key<u32> = Key::new("count");
    for late in [false, true] {
        let fixture = Fixture::new();
        let (failing, synced) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let fs = Hooked::new({
            let (failing, synced) = (Arc::clone(&failing), Arc::clone(&synced));
            let fails = move || failing.fetch_update(SeqCst, SeqCst, |left| left.checked_sub(1)).is_ok();
            move |call| match (call.name, call.path) {
                ("rename", Some(record)) if late && fails() => {
                    std::fs::rename(record.with_extension("tmp"), record)?;
                    Err(io::Error::from_raw_os_error(IO))
                }
                ("sync names", _) if fails() => Err(io::Error::from_raw_os_error(IO)),
                ("sync names", _) => {
                    synced.fetch_add(1, SeqCst);
                    Ok(())
                }
                _ => Ok(()),
            }
        });
        let config = fixture.config().durability(FileDurability::FileAndDirectory).fs(fs);
        let sessions = Sessions::builder(FileStore::open(config).unwrap()).build().unwrap();
        let session = sessions.create();
        session.insert(COUNT, &1).unwrap();
        session.commit().await.unwrap();
        let id = session.id().unwrap();
        let set = async |count: u32| sessions.update(&id, move |session| session.insert(COUNT, &count)).await;

        // Once: the look-up makes up for it.
        synced.store(0, SeqCst);
        failing.store(1, SeqCst);
        set(2).await.unwrap();
        assert_eq!(synced.load(SeqCst), 1);

        // For good, as far as this request can tell.
        failing.store(usize::MAX, SeqCst);
        let error = set(3).await.unwrap_err();
        assert_eq!((error.kind(), error.effect()), (ErrorKind::Backend, Effect::Unknown));
        assert_eq!(sessions.read(&id).await.unwrap_err().kind(), ErrorKind::Backend);
        failing.store(0, SeqCst);
        assert_eq!(sessions.read(&id).await.unwrap().unwrap().get(COUNT).unwrap(), Some(3));

        failing.store(usize::MAX, SeqCst);
        assert_eq!(sessions.destroy(&id).await.unwrap_err().effect(), Effect::Unknown);
        assert_eq!(sessions.destroy(&id).await.unwrap_err().kind(), ErrorKind::Backend);
        failing.store(0, SeqCst);
        assert!(!sessions.destroy(&id).await.unwrap());
    }
}

/// The name of the root is on the disk before anything in it is: where a link leads, and though the first try
/// failed.
#[tokio::test]
async fn a_root_whose_name_is_not_on_the_disk_is_not_opened() {
    let fixture = Fixture::new();
    let real = fixture.directory.path().join("real");
    let (link, root) = (fixture.directory.path().join("link"), real.join("sessions"));
    std::fs::create_dir(&real).unwrap();
    std::os::unix::fs::symlink(&real, &link).unwrap();
    let (opened, synced) = (AtomicBool::new(false), Arc::new(AtomicUsize::new(0)));
    let tries = Arc::clone(&synced);
    let fs = Hooked::new(move |call| {
        let of_above = call.name == "sync names" && opened.load(SeqCst);
        opened.store(call.is("open", &real), SeqCst);
        // Each time: after the directory was made, before there is anything in it.
        if of_above && root.read_dir()?.next().is_none() && tries.fetch_add(1, SeqCst) == 0 {
            return Err(io::Error::from_raw_os_error(IO));
        }
        Ok(())
    });
    let config = FileConfig::new(link.join("sessions")).durability(FileDurability::FileAndDirectory).fs(fs);
    assert_eq!(FileStore::open(config.clone()).unwrap_err().kind(), ErrorKind::Backend);
    drop(FileStore::open(config).unwrap());
    assert_eq!(synced.load(SeqCst), 2);
}

#[tokio::test]
async fn opening_fails_cleanly_at_each_call() {
    for nth in 1.. {
        let fixture = Fixture::new();
        let faults = Faults::new(IO, false);
        faults.arm(nth);
        let opened = FileStore::open(
            fixture.config().durability(FileDurability::FileAndDirectory).fs(faults.fs.clone()),
        );
        if !faults.disarm() {
            opened.unwrap();
            assert!(nth > 15, "only {nth} calls");
            break;
        }
        if let Err(error) = opened {
            assert_eq!((error.kind(), error.effect()), (ErrorKind::Backend, Effect::None), "call {nth}");
        }
        // Whatever was made so far is no obstacle.
        let store = fixture.open();
        let key = key();
        insert(&store, &key, &put("x")).await;
        assert_eq!(store.load(&key).await.unwrap().unwrap().data, "x");
    }
}
