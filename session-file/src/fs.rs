//! Every file call of this crate, behind one trait: what a test makes fail, call by call.
//!
//! No other module of this crate touches the file system. The calls are small on purpose: one system call or
//! two each, so that failing the n-th call of an operation reaches each point between two effects.

use rustix::fs::OFlags;
use std::{
    fmt::Debug,
    fs::{self, DirBuilder, File, OpenOptions, TryLockError},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, FileExt as _, MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

/// The file calls.
pub trait Fs: Debug + Send + Sync + 'static {
    /// Opens for reading: a file, or a directory to lock or to sync. Follows no link and waits for no pipe.
    fn open(&self, path: &Path) -> io::Result<File>;

    /// Opens for writing, emptied, created when it is not there (mode 0600).
    fn create(&self, path: &Path) -> io::Result<File>;

    /// Creates (mode 0600); `AlreadyExists` when it is there.
    fn create_new(&self, path: &Path) -> io::Result<File>;

    /// The size of a regular file; `None` for anything else.
    fn size(&self, file: &File) -> io::Result<Option<u64>>;

    /// Reads exactly so many bytes at this place.
    fn read(&self, file: &File, buffer: &mut [u8], at: u64) -> io::Result<()>;

    /// The whole file if it is a regular one of at most `limit` bytes and all of it is in memory: never waits
    /// for a disk. `None` says only that another way must be tried.
    fn read_cached(&self, path: &Path, limit: usize) -> io::Result<Option<Vec<u8>>>;

    /// Writes all of it, at the file's position.
    fn write(&self, file: &File, bytes: &[u8]) -> io::Result<()>;

    /// Waits until the disk has the file, or the names in the directory.
    fn sync(&self, file: &File) -> io::Result<()>;

    /// Renames, replacing what is there.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Removes a file.
    fn remove_file(&self, path: &Path) -> io::Result<()>;

    /// Creates a directory (mode 0700); `false` when it is there already.
    fn create_dir(&self, path: &Path) -> io::Result<bool>;

    /// Where this is, with no link on the way.
    fn real_path(&self, path: &Path) -> io::Result<PathBuf>;

    /// Removes a directory if it is empty.
    fn remove_dir(&self, path: &Path) -> io::Result<()>;

    /// The names in a directory, in no order; those that are not UTF-8 are nobody's here and left out.
    fn list(&self, path: &Path) -> io::Result<Vec<String>>;

    /// Takes the flock if it is free.
    fn try_lock(&self, file: &File, how: Flock) -> io::Result<bool>;

    /// Gives the flock back. Closing alone would not, while a child that was forked at that moment still has
    /// the descriptor.
    fn unlock(&self, file: &File) -> io::Result<()>;

    /// Whether this is the file of that name, and not one that was replaced or removed since.
    fn is_at(&self, file: &File, path: &Path) -> io::Result<bool>;
}

/// The two kinds of flock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flock {
    /// Beside no other.
    Exclusive,
    /// Beside other shared ones.
    Shared,
}

/// The operating system's.
#[derive(Clone, Copy, Debug, Default)]
pub struct RealFs;

/// A link in the place of a record is foreign, and a pipe there must not hang its reader.
fn cautious() -> OFlags {
    OFlags::NOFOLLOW | OFlags::NONBLOCK
}

impl Fs for RealFs {
    fn open(&self, path: &Path) -> io::Result<File> {
        OpenOptions::new().read(true).custom_flags(cautious().bits().cast_signed()).open(path)
    }

    fn create(&self, path: &Path) -> io::Result<File> {
        OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)
    }

    fn create_new(&self, path: &Path) -> io::Result<File> {
        OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)
    }

    fn size(&self, file: &File) -> io::Result<Option<u64>> {
        file.metadata().map(|metadata| metadata.is_file().then_some(metadata.len()))
    }

    fn read(&self, file: &File, buffer: &mut [u8], at: u64) -> io::Result<()> {
        file.read_exact_at(buffer, at)
    }

    #[cfg(target_os = "linux")]
    fn read_cached(&self, path: &Path, limit: usize) -> io::Result<Option<Vec<u8>>> {
        use rustix::{
            fs::{CWD, FileType, Mode, ResolveFlags, fstat, openat2},
            io::{Errno, ReadWriteFlags, preadv2},
        };
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | cautious();
        // Fails with EAGAIN where the path is not in memory, with ENOSYS or EPERM where the kernel or a
        // sandbox does not know the call: each means "another way", as does whatever else is not a plain
        // ENOENT.
        let file = match openat2(CWD, path, flags, Mode::empty(), ResolveFlags::CACHED) {
            Ok(file) => file,
            Err(Errno::NOENT) => return Err(io::ErrorKind::NotFound.into()),
            Err(_) => return Ok(None),
        };
        let Ok(stat) = fstat(&file) else { return Ok(None) };
        let size = usize::try_from(stat.st_size).unwrap_or(usize::MAX);
        if size > limit || !FileType::from_raw_mode(stat.st_mode).is_file() {
            return Ok(None);
        }
        let mut bytes = vec![0; size];
        let read = preadv2(&file, &mut [io::IoSliceMut::new(&mut bytes)], 0, ReadWriteFlags::NOWAIT);
        Ok((read == Ok(size)).then_some(bytes))
    }

    #[cfg(not(target_os = "linux"))]
    fn read_cached(&self, _: &Path, _: usize) -> io::Result<Option<Vec<u8>>> {
        Ok(None)
    }

    fn write(&self, mut file: &File, bytes: &[u8]) -> io::Result<()> {
        file.write_all(bytes)
    }

    fn sync(&self, file: &File) -> io::Result<()> {
        file.sync_all()
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn create_dir(&self, path: &Path) -> io::Result<bool> {
        match DirBuilder::new().mode(0o700).create(path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
            created => created.map(|()| true),
        }
    }

    fn real_path(&self, path: &Path) -> io::Result<PathBuf> {
        fs::canonicalize(path)
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        fs::remove_dir(path)
    }

    fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        let names = fs::read_dir(path)?.map(|entry| entry.map(|entry| entry.file_name().into_string().ok()));
        names.filter_map(io::Result::transpose).collect()
    }

    fn try_lock(&self, file: &File, how: Flock) -> io::Result<bool> {
        let tried = match how {
            Flock::Exclusive => file.try_lock(),
            Flock::Shared => file.try_lock_shared(),
        };
        match tried {
            Ok(()) => Ok(true),
            Err(TryLockError::WouldBlock) => Ok(false),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }

    fn unlock(&self, file: &File) -> io::Result<()> {
        file.unlock()
    }

    fn is_at(&self, file: &File, path: &Path) -> io::Result<bool> {
        let open = file.metadata()?;
        match fs::symlink_metadata(path) {
            Ok(named) => Ok((open.dev(), open.ino()) == (named.dev(), named.ino())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }
}
