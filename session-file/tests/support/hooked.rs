//! File calls that a test can stop at, fail, or die in.

use session_file::fs::{Flock, Fs, RealFs};
use std::{
    fmt,
    fs::File,
    io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
};

/// What happens before a call: nothing, or instead of it an error.
pub type Hook = Arc<dyn Fn(&Call<'_>) -> io::Result<()> + Send + Sync>;

/// One file call that is about to be made.
#[derive(Debug)]
pub struct Call<'a> {
    /// Counted from 1.
    pub number: usize,
    pub name: &'static str,
    /// Where the call names one.
    pub path: Option<&'a Path>,
}

impl Call<'_> {
    pub fn is(&self, name: &str, path: &Path) -> bool {
        self.name == name && self.path == Some(path)
    }
}

/// The real calls, with a hook before each.
pub struct Hooked {
    hook: Hook,
    calls: AtomicUsize,
}

impl fmt::Debug for Hooked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hooked").field("calls", &self.calls).finish_non_exhaustive()
    }
}

impl Hooked {
    pub fn new(hook: impl Fn(&Call<'_>) -> io::Result<()> + Send + Sync + 'static) -> Arc<Self> {
        Arc::new(Self { hook: Arc::new(hook), calls: AtomicUsize::new(0) })
    }

    /// How many calls there were.
    pub fn calls(&self) -> usize {
        self.calls.load(SeqCst)
    }

    fn before(&self, name: &'static str, path: Option<&Path>) -> io::Result<()> {
        let number = self.calls.fetch_add(1, SeqCst) + 1;
        (self.hook)(&Call { number, name, path })
    }
}

impl Fs for Hooked {
    fn open(&self, path: &Path) -> io::Result<File> {
        self.before("open", Some(path))?;
        RealFs.open(path)
    }

    fn create(&self, path: &Path) -> io::Result<File> {
        self.before("create", Some(path))?;
        RealFs.create(path)
    }

    fn create_new(&self, path: &Path) -> io::Result<File> {
        self.before("create_new", Some(path))?;
        RealFs.create_new(path)
    }

    fn size(&self, file: &File) -> io::Result<Option<u64>> {
        self.before("size", None)?;
        RealFs.size(file)
    }

    fn read(&self, file: &File, buffer: &mut [u8], at: u64) -> io::Result<()> {
        self.before("read", None)?;
        RealFs.read(file, buffer, at)
    }

    fn read_cached(&self, path: &Path, limit: usize) -> io::Result<Option<Vec<u8>>> {
        self.before("read_cached", Some(path))?;
        RealFs.read_cached(path, limit)
    }

    /// Fails, or dies, with half of it written.
    fn write(&self, file: &File, bytes: &[u8]) -> io::Result<()> {
        let (first, second) = bytes.split_at(bytes.len() / 2);
        self.before("write", None)?;
        RealFs.write(file, first)?;
        self.before("write the rest", None)?;
        RealFs.write(file, second)
    }

    fn sync(&self, file: &File) -> io::Result<()> {
        let of_names = file.metadata()?.is_dir();
        self.before(if of_names { "sync names" } else { "sync" }, None)?;
        RealFs.sync(file)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.before("rename", Some(to))?;
        RealFs.rename(from, to)
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.before("remove_file", Some(path))?;
        RealFs.remove_file(path)
    }

    fn create_dir(&self, path: &Path) -> io::Result<bool> {
        self.before("create_dir", Some(path))?;
        RealFs.create_dir(path)
    }

    fn real_path(&self, path: &Path) -> io::Result<PathBuf> {
        self.before("real_path", Some(path))?;
        RealFs.real_path(path)
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        self.before("remove_dir", Some(path))?;
        RealFs.remove_dir(path)
    }

    fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        self.before("list", Some(path))?;
        RealFs.list(path)
    }

    fn try_lock(&self, file: &File, how: Flock) -> io::Result<bool> {
        self.before("try_lock", None)?;
        RealFs.try_lock(file, how)
    }

    fn unlock(&self, file: &File) -> io::Result<()> {
        self.before("unlock", None)?;
        RealFs.unlock(file)
    }

    fn is_at(&self, file: &File, path: &Path) -> io::Result<bool> {
        self.before("is_at", Some(path))?;
        RealFs.is_at(file, path)
    }
}
