//! Where everything is.
//!
//! ```text
//! root/
//!   format                  which layout this is
//!   records/3f/3f9a…        a record, named by its key: 256 directories, by the first byte
//!   records/3f/3f9a….lock   who holds its lock; there only while someone does, or did and died
//!   records/3f/3f9a….tmp    a record or a lock that is being written; left behind only by a crash
//!   users/b2/7/b27c….3f9a…  the user whose key begins with b2 has a session whose key ends with 7: an empty file
//!   owners/51d0…            an open store; its process holds a flock on it
//! ```
//!
//! 100,000 sessions are 400 to a directory. A user's sessions are spread over 16 directories by their keys,
//! so that one account that has all the sessions there are does not make one big directory, and users over
//! 256.
//!
//! The directories of `records` are made with their first session and stay: each is also what is flocked for
//! a step on one of its sessions. 256 locks are enough for steps of microseconds, they leave no litter as a
//! lock file per session would, and a lock that nobody removes cannot be removed under someone who waits for
//! it. (If somebody else does, the comparison of inodes finds out.)

use crate::format::OwnerId;
use session_core::{PrincipalKey, StorageKey};
use std::{
    fmt::Write as _,
    path::{Path, PathBuf},
};

/// What the file `format` holds. Another number: another layout, which this code must not touch.
pub(crate) const FORMAT: &[u8] = b"session-file 1\n";

/// The number of directories of records.
pub(crate) const SHARDS: usize = 256;

const LOCK: &str = ".lock";
const TEMP: &str = ".tmp";

/// The paths of a store.
#[derive(Clone, Debug)]
pub(crate) struct Layout {
    root: PathBuf,
}

/// What a name in a directory of records stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Entry {
    Record(StorageKey),
    Lock(StorageKey),
    Temp(StorageKey),
}

impl Layout {
    pub(crate) fn new(root: &Path) -> Self {
        Self { root: root.to_owned() }
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    pub(crate) fn format(&self) -> PathBuf {
        self.root.join("format")
    }

    pub(crate) fn records(&self) -> PathBuf {
        self.root.join("records")
    }

    pub(crate) fn shard(&self, number: usize) -> PathBuf {
        self.records().join(format!("{number:02x}"))
    }

    pub(crate) fn record(&self, key: &StorageKey) -> PathBuf {
        self.shard(shard_of(key)).join(key.to_string())
    }

    pub(crate) fn lock(&self, key: &StorageKey) -> PathBuf {
        self.shard(shard_of(key)).join(format!("{key}{LOCK}"))
    }

    pub(crate) fn temp(&self, key: &StorageKey) -> PathBuf {
        self.shard(shard_of(key)).join(format!("{key}{TEMP}"))
    }

    pub(crate) fn users(&self) -> PathBuf {
        self.root.join("users")
    }

    /// The directory of the users whose keys begin with this byte.
    pub(crate) fn users_of(&self, byte: usize) -> PathBuf {
        self.users().join(format!("{byte:02x}"))
    }

    /// Where this user's sessions whose keys end with this digit are.
    pub(crate) fn user(&self, principal: &PrincipalKey, digit: u8) -> PathBuf {
        self.users_of(usize::from(principal.as_bytes()[0])).join(format!("{digit:x}"))
    }

    /// The directory and the name of an entry of the index.
    pub(crate) fn user_entry(&self, principal: &PrincipalKey, key: &StorageKey) -> (PathBuf, PathBuf) {
        let directory = self.user(principal, last_digit(key));
        let entry = directory.join(format!("{principal}.{key}"));
        (directory, entry)
    }

    pub(crate) fn owners(&self) -> PathBuf {
        self.root.join("owners")
    }

    pub(crate) fn owner(&self, id: OwnerId) -> PathBuf {
        let mut name = String::with_capacity(32);
        for byte in id.0 {
            // Writing to a string cannot fail.
            let _infallible = write!(name, "{byte:02x}");
        }
        self.owners().join(name)
    }
}

/// Keys are hashes: their first byte is as good as any other.
pub(crate) fn shard_of(key: &StorageKey) -> usize {
    usize::from(key.as_bytes()[0])
}

/// Not of the first byte: the digits of the index are independent of the shards.
pub(crate) fn last_digit(key: &StorageKey) -> u8 {
    key.as_bytes()[31] & 0xf
}

/// What this name in this directory of records stands for; `None` for what is foreign.
pub(crate) fn entry(shard: usize, name: &str) -> Option<Entry> {
    let (digits, kind): (_, fn(StorageKey) -> Entry) = if let Some(digits) = name.strip_suffix(LOCK) {
        (digits, Entry::Lock)
    } else if let Some(digits) = name.strip_suffix(TEMP) {
        (digits, Entry::Temp)
    } else {
        (name, Entry::Record)
    };
    let key = StorageKey::from_bytes(hex(digits)?);
    (shard_of(&key) == shard).then(|| kind(key))
}

/// Whose session this entry of the index names; `None` for what is foreign.
pub(crate) fn user_entry(name: &str) -> Option<(PrincipalKey, StorageKey)> {
    let (principal, key) = name.split_once('.')?;
    Some((PrincipalKey::from_bytes(hex(principal)?), StorageKey::from_bytes(hex(key)?)))
}

/// Whether a directory of this name is one of a user's 16.
pub(crate) fn is_digit(name: &str) -> bool {
    matches!(name.as_bytes(), [b'0'..=b'9' | b'a'..=b'f'])
}

/// The owner whose file has this name; `None` for what is foreign.
pub(crate) fn owner(name: &str) -> Option<OwnerId> {
    hex(name).map(OwnerId)
}

/// Exactly so many bytes, in lowercase: what `Display` of the keys writes.
fn hex<const N: usize>(digits: &str) -> Option<[u8; N]> {
    let digits = digits.as_bytes();
    if digits.len() != 2 * N {
        return None;
    }
    let value = |digit: u8| match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    };
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = value(pair[0])? << 4 | value(pair[1])?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_say_what_they_stand_for() {
        let layout = Layout::new(Path::new("/s"));
        let (key, user) = (StorageKey::from_bytes([0x3f; 32]), PrincipalKey::of("ann"));
        let name = |path: &Path| path.file_name().unwrap().to_str().unwrap().to_owned();
        assert_eq!(entry(0x3f, &name(&layout.record(&key))), Some(Entry::Record(key)));
        assert_eq!(entry(0x3f, &name(&layout.lock(&key))), Some(Entry::Lock(key)));
        assert_eq!(entry(0x3f, &name(&layout.temp(&key))), Some(Entry::Temp(key)));
        assert_eq!(user_entry(&name(&layout.user_entry(&user, &key).1)), Some((user, key)));
        assert_eq!(owner(&name(&layout.owner(OwnerId([9; 16])))), Some(OwnerId([9; 16])));
        assert!(layout.record(&key).starts_with("/s/records/3f"));
    }

    #[test]
    fn foreign_names_are_nobodys() {
        let key = StorageKey::from_bytes([0x3f; 32]).to_string();
        assert_eq!(entry(0x40, &key), None, "in another's directory");
        for name in
            ["", ".lock", "README", "lost+found", &key[1..], &key.to_uppercase(), &format!("{key}.bak")]
        {
            assert_eq!(entry(0x3f, name), None, "{name}");
            assert_eq!(user_entry(name), None, "{name}");
            assert_eq!(owner(name), None, "{name}");
        }
    }
}
