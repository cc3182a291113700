//! A disk of one's own below the file store: a directory whose calls can be made to fail, and of which it is
//! known what was synced.

use session_conformance::disk::{Disk, Fault, Loss};
use session_core::{Error, LockingStore, Result};
use session_store::file::{
    FileConfig, FileDurability, FileStore,
    fs::{Flock, Fs, RealFs},
};
use std::{
    collections::{BTreeMap, HashMap},
    fs::{self, File},
    io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use tempfile::TempDir;

const NO_SPACE: i32 = 28;
const IO: i32 = 5;

/// One for each setting of durability, from the least to the most.
pub(crate) fn disks() -> Vec<Arc<dyn Disk>> {
    [FileDurability::None, FileDurability::File, FileDurability::FileAndDirectory]
        .map(|durability| Arc::new(FileDisk { durability, platter: Mutex::new(None) }) as Arc<dyn Disk>)
        .into()
}

#[derive(Debug)]
struct FileDisk {
    durability: FileDurability,
    /// Made when it is first used: most cells never do.
    platter: Mutex<Option<Platter>>,
}

#[derive(Debug)]
struct Platter {
    directory: TempDir,
    layer: Arc<Layer>,
}

impl Platter {
    fn new() -> io::Result<Self> {
        let directory = TempDir::with_prefix("session-conformance-disk-")?;
        Ok(Self { directory, layer: Arc::default() })
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Disk for FileDisk {
    fn name(&self) -> String {
        format!("{:?}", self.durability)
    }

    fn open(&self) -> Result<Arc<dyn LockingStore>> {
        let mut platter = lock(&self.platter);
        if platter.is_none() {
            *platter = Some(Platter::new().map_err(|error| Error::unavailable("open", error))?);
        }
        let Some(Platter { directory, layer }) = &*platter else {
            return Err(Error::unavailable("open", "no disk"));
        };
        let config = FileConfig::new(directory.path()).durability(self.durability).fs(Arc::clone(layer) as _);
        Ok(Arc::new(FileStore::open(config)?))
    }

    fn fail(&self, nth: usize, fault: Fault) {
        if let Some(platter) = &*lock(&self.platter) {
            let mut state = lock(&platter.layer.0);
            state.failing = Some((state.calls + nth, fault));
        }
    }

    fn heal(&self) -> bool {
        let platter = lock(&self.platter);
        let Some(platter) = &*platter else { return false };
        let mut state = lock(&platter.layer.0);
        state.failing.take().is_some_and(|(at, _)| state.calls >= at)
    }

    fn lose_power(&self, loss: Loss) -> io::Result<()> {
        let mut platter = lock(&self.platter);
        let Some(before) = platter.take() else { return Ok(()) };
        let after = Platter::new()?;
        lock(&before.layer.0).copy(before.directory.path(), after.directory.path(), loss)?;
        lock(&after.layer.0).settle(after.directory.path())?;
        *platter = Some(after);
        Ok(())
    }
}

/// The file calls, some of which fail. Nothing is synced in earnest: it is remembered instead.
#[derive(Debug, Default)]
struct Layer(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    calls: usize,
    failing: Option<(usize, Fault)>,
    /// Where the files and directories are that were opened, by inode.
    paths: HashMap<u64, PathBuf>,
    /// The files, by inode. A number can be given again, to another file.
    files: HashMap<u64, Content>,
    /// The names that the disk has, by directory.
    synced: HashMap<PathBuf, BTreeMap<String, Kept>>,
}

/// What the disk has of a file.
type Content = Arc<Mutex<Vec<u8>>>;

#[derive(Clone, Debug)]
enum Kept {
    Directory,
    File(Content),
}

impl State {
    fn call(&mut self) -> io::Result<()> {
        self.calls += 1;
        match self.failing {
            Some((at, Fault::Full)) if self.calls == at => Err(io::Error::from_raw_os_error(NO_SPACE)),
            Some((at, Fault::Once)) if self.calls == at => Err(io::Error::from_raw_os_error(IO)),
            Some((at, Fault::ForGood)) if self.calls >= at => Err(io::Error::from_raw_os_error(IO)),
            _ => Ok(()),
        }
    }

    fn opened(&mut self, file: &File, path: &Path, new: bool) -> io::Result<()> {
        let inode = file.metadata()?.ino();
        self.paths.insert(inode, path.to_owned());
        if new {
            self.files.insert(inode, Content::default());
        }
        Ok(())
    }

    fn names(&mut self, directory: &Path) -> io::Result<BTreeMap<String, Kept>> {
        let mut names = BTreeMap::new();
        for entry in fs::read_dir(directory)? {
            let entry = entry?;
            let kept = if entry.file_type()?.is_dir() {
                Kept::Directory
            } else {
                Kept::File(Arc::clone(self.files.entry(entry.metadata()?.ino()).or_default()))
            };
            names.insert(entry.file_name().to_string_lossy().into_owned(), kept);
        }
        Ok(names)
    }

    fn sync(&mut self, file: &File) -> io::Result<()> {
        let metadata = file.metadata()?;
        let Some(path) = self.paths.get(&metadata.ino()).cloned() else {
            return Err(io::Error::other("a file that was not opened here"));
        };
        if metadata.is_dir() {
            let names = self.names(&path)?;
            self.synced.insert(path, names);
        } else {
            *lock(self.files.entry(metadata.ino()).or_default()) = fs::read(path)?;
        }
        Ok(())
    }

    /// What is left of a directory, to another place.
    fn copy(&mut self, from: &Path, to: &Path, loss: Loss) -> io::Result<()> {
        let names = match loss {
            Loss::Unsynced => self.synced.get(from).cloned().unwrap_or_default(),
            Loss::UnsyncedData => self.names(from)?,
        };
        for (name, kept) in names {
            let (from, to) = (from.join(&name), to.join(&name));
            match kept {
                Kept::Directory => {
                    RealFs.create_dir(&to)?;
                    if from.is_dir() || loss == Loss::Unsynced {
                        self.copy(&from, &to, loss)?;
                    }
                }
                Kept::File(content) => RealFs.write(&RealFs.create_new(&to)?, &lock(&content))?,
            }
        }
        Ok(())
    }

    /// Everything in a directory is on the disk.
    fn settle(&mut self, directory: &Path) -> io::Result<()> {
        let names = self.names(directory)?;
        for (name, kept) in &names {
            let path = directory.join(name);
            match kept {
                Kept::Directory => self.settle(&path)?,
                Kept::File(content) => *lock(content) = fs::read(path)?,
            }
        }
        self.synced.insert(directory.to_owned(), names);
        Ok(())
    }
}

impl Layer {
    /// Counts a call, which may fail.
    fn call(&self) -> io::Result<()> {
        lock(&self.0).call()
    }

    /// The same, with nobody in between.
    fn locked(&self) -> io::Result<MutexGuard<'_, State>> {
        let mut state = lock(&self.0);
        state.call()?;
        Ok(state)
    }
}

impl Fs for Layer {
    fn open(&self, path: &Path) -> io::Result<File> {
        let mut state = self.locked()?;
        let file = RealFs.open(path)?;
        state.opened(&file, path, false)?;
        Ok(file)
    }

    fn create(&self, path: &Path) -> io::Result<File> {
        let mut state = self.locked()?;
        let new = !path.exists();
        let file = RealFs.create(path)?;
        state.opened(&file, path, new)?;
        Ok(file)
    }

    fn create_new(&self, path: &Path) -> io::Result<File> {
        let mut state = self.locked()?;
        let file = RealFs.create_new(path)?;
        state.opened(&file, path, true)?;
        Ok(file)
    }

    fn size(&self, file: &File) -> io::Result<Option<u64>> {
        self.call()?;
        RealFs.size(file)
    }

    fn read(&self, file: &File, buffer: &mut [u8], at: u64) -> io::Result<()> {
        self.call()?;
        RealFs.read(file, buffer, at)
    }

    fn read_cached(&self, path: &Path, limit: usize) -> io::Result<Option<Vec<u8>>> {
        self.call()?;
        RealFs.read_cached(path, limit)
    }

    /// Two calls: the second can fail when half of it is written.
    fn write(&self, file: &File, bytes: &[u8]) -> io::Result<()> {
        let (first, second) = bytes.split_at(bytes.len() / 2);
        self.call()?;
        RealFs.write(file, first)?;
        self.call()?;
        RealFs.write(file, second)
    }

    fn sync(&self, file: &File) -> io::Result<()> {
        self.locked()?.sync(file)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.locked()?;
        RealFs.rename(from, to)?;
        let inode = fs::symlink_metadata(to)?.ino();
        state.paths.insert(inode, to.to_owned());
        Ok(())
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.call()?;
        RealFs.remove_file(path)
    }

    fn create_dir(&self, path: &Path) -> io::Result<bool> {
        let mut state = self.locked()?;
        let created = RealFs.create_dir(path)?;
        if created {
            state.synced.remove(path);
        }
        Ok(created)
    }

    /// There are no links here: what was synced is known by the paths as they are given.
    fn real_path(&self, path: &Path) -> io::Result<PathBuf> {
        self.call()?;
        Ok(path.to_owned())
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        self.call()?;
        RealFs.remove_dir(path)
    }

    fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        self.call()?;
        RealFs.list(path)
    }

    fn try_lock(&self, file: &File, how: Flock) -> io::Result<bool> {
        self.call()?;
        RealFs.try_lock(file, how)
    }

    fn unlock(&self, file: &File) -> io::Result<()> {
        self.call()?;
        RealFs.unlock(file)
    }

    fn is_at(&self, file: &File, path: &Path) -> io::Result<bool> {
        self.call()?;
        RealFs.is_at(file, path)
    }
}
