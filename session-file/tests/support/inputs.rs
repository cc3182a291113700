//! What is done with one input of arbitrary bytes in the place of a record's file: by the tests, and by the
//! fuzzer.

use session_core::{ErrorKind, Inserted, Put, SessionStore as _, StorageKey};
use session_file::{FileConfig, FileStore};
use std::{fs, path::PathBuf, time::Duration};
use tempfile::TempDir;
use tokio::runtime::{Builder, Runtime};

const DATA: &[u8] = b"what was stored";
const KEY: StorageKey = StorageKey::from_bytes([0xab; 32]);

/// A store with one record, and its file as it was written.
struct World {
    runtime: Runtime,
    store: FileStore,
    path: PathBuf,
    good: Vec<u8>,
    _directory: TempDir,
}

impl World {
    fn new() -> Self {
        let directory = TempDir::new().expect("a directory");
        let runtime = Builder::new_current_thread().enable_time().build().expect("a runtime");
        let store = FileStore::open(FileConfig::new(directory.path())).expect("a store");
        let put = Put::new(DATA.into(), Duration::from_hours(1000));
        let inserted = runtime.block_on(store.insert(&KEY, &put)).expect("stored");
        assert!(matches!(inserted, Inserted::Created(_)));
        let name = KEY.to_string();
        let path = directory.path().join("records").join(&name[..2]).join(&name);
        let good = fs::read(&path).expect("its file");
        Self { runtime, store, path, good, _directory: directory }
    }

    /// Whatever is not what was stored is an error of its own kind, and stays.
    fn read(&self, bytes: &[u8]) {
        fs::write(&self.path, bytes).expect("written");
        match self.runtime.block_on(self.store.load(&KEY)) {
            Ok(Some(stored)) => {
                assert!(bytes == self.good && stored.data == DATA, "{bytes:?} was taken for a record")
            }
            Ok(None) => panic!("{bytes:?} was taken for none"),
            Err(error) => assert_eq!(error.kind(), ErrorKind::Damaged, "{error:?}"),
        }
        assert_eq!(fs::read(&self.path).expect("still there"), bytes);
    }
}

/// The bytes as they come, after a good header, and as changes of a good file: pairs of a place and what is
/// put there.
pub(crate) fn record_file(input: &[u8]) {
    thread_local! {
        static WORLD: World = World::new();
    }
    WORLD.with(|world| {
        world.read(input);
        let header = world.good.len() - DATA.len();
        world.read(&[&world.good[..header], input].concat());
        let mut changed = world.good.clone();
        for change in input.chunks_exact(2) {
            let at = usize::from(change[0]) % changed.len();
            changed[at] = change[1];
        }
        world.read(&changed);
        world.read(&world.good);
    });
}
