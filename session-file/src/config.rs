//! The settings of a [`FileStore`](crate::FileStore).
//!
//! ```
//! use session_file::{FileConfig, FileDurability};
//!
//! let by_hand = FileConfig::new("/var/lib/shop/sessions").durability(FileDurability::File);
//! let by_url = FileConfig::from_url("file:///var/lib/shop/sessions?durability=file")?;
//! assert_eq!(by_hand.root(), by_url.root());
//! # Ok::<(), session_core::Error>(())
//! ```

use crate::{
    BootClock,
    format::LARGEST_VALUE,
    fs::{Fs, RealFs},
};
use session_core::{
    Capabilities, Clock, Durability, Error, ErrorKind, Random, Result, SystemClock, SystemRandom,
};
use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use url::Url;

const OPEN: &str = "open";

/// What a write waits for before it is acknowledged.
///
/// The kernel keeps what a killed process has written, so each of them survives the end of every process.
/// They differ when the machine loses power (or its kernel crashes). With the first two, that the user index
/// then still names every session that is left rests on the file system keeping the order of names, which
/// those with a journal do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FileDurability {
    /// For nothing: [`Durability::Restart`]. After a loss of power the writes of the last half minute may be
    /// gone, and a record that was being written may be torn, which is then an error of kind
    /// [`Damaged`](ErrorKind::Damaged).
    #[default]
    None,
    /// Until the disk has the record, not its name: [`Durability::Restart`]. After a loss of power the last
    /// writes may be gone, but no record is torn.
    File,
    /// Until the disk has the record and its name: [`Durability::PowerLoss`], as far as the disk does what it
    /// says. When it does not take a name, the write is an error, and this process shows none of the sessions
    /// in that directory, one in 256, until it does. Other processes cannot know: they may be shown what a
    /// loss of power takes back, as everybody may in the moment before a write is acknowledged.
    FileAndDirectory,
}

/// Where the sessions are, and how they are kept there. All processes that share a directory should agree on
/// it.
#[derive(Clone, Debug)]
pub struct FileConfig {
    pub(crate) root: PathBuf,
    pub(crate) durability: FileDurability,
    pub(crate) max_value: usize,
    pub(crate) busy_timeout: Duration,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) lease_clock: Arc<dyn Clock>,
    pub(crate) random: Arc<dyn Random>,
    pub(crate) fs: Arc<dyn Fs>,
}

impl FileConfig {
    /// Sessions in this directory, which is created (for its owner alone) when the store is opened. Links on
    /// the way are followed then, once.
    #[must_use]
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self {
            root: root.into(),
            durability: FileDurability::None,
            max_value: 16 << 20,
            busy_timeout: Duration::from_secs(5),
            clock: Arc::new(SystemClock),
            lease_clock: Arc::new(BootClock),
            random: Arc::new(SystemRandom),
            fs: Arc::new(RealFs),
        }
    }

    /// Settings from `file:///absolute/path?option=value&…`. The options are `durability` (`none`, `file`,
    /// `file-and-directory`), `max_value` (bytes) and `busy_timeout` (`250ms`, `5s`).
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`], saying what is wrong and what would be right.
    pub fn from_url(url: &str) -> Result<Self> {
        let parsed = Url::parse(url)
            .map_err(|error| invalid("not a URL: expected file:///absolute/path").with_source(error))?;
        // `file:sessions` and `file://sessions` parse, too: as /sessions, and as a host of that name.
        if !url.starts_with("file:///") && !url.starts_with("file://localhost/") {
            return Err(invalid("expected file:///absolute/path"));
        }
        if parsed.fragment().is_some() {
            return Err(invalid("a fragment (#…) means nothing here; write %23 for # in a path"));
        }
        let root = parsed.to_file_path().map_err(|()| invalid("the path of the URL is none of a file"))?;
        let mut config = Self::new(root);
        let mut seen = Vec::new();
        for (name, value) in parsed.query_pairs() {
            if seen.contains(&name) {
                return Err(invalid(format!("option {name} is given twice")));
            }
            config = match &*name {
                "durability" => config.durability(match &*value {
                    "none" => FileDurability::None,
                    "file" => FileDurability::File,
                    "file-and-directory" => FileDurability::FileAndDirectory,
                    _ => return Err(invalid("durability is none, file or file-and-directory")),
                }),
                "max_value" => config.max_value(number(&name, &value)?),
                "busy_timeout" => config.busy_timeout(duration(&name, &value)?),
                _ => {
                    return Err(invalid(format!(
                        "unknown option {name}; known are durability, max_value, busy_timeout"
                    )));
                }
            };
            seen.push(name);
        }
        config.check()?;
        Ok(config)
    }

    /// What a write waits for. [`FileDurability::None`] by default.
    #[must_use]
    pub fn durability(mut self, durability: FileDurability) -> Self {
        self.durability = durability;
        self
    }

    /// The longest record that is written, in bytes: 16 MiB by default, at most 1 GiB. Longer ones that are
    /// there are still read.
    #[must_use]
    pub fn max_value(mut self, bytes: usize) -> Self {
        self.max_value = bytes;
        self
    }

    /// How long a step waits while nothing moves before it fails with [`ErrorKind::Unavailable`]: 5 s by
    /// default, 1 ms to 1 h. Steps take microseconds each (with an fsync: milliseconds), and a long queue of
    /// them is no error. It is reached when a process is stopped in the middle of a step, or when the disk
    /// hangs.
    #[must_use]
    pub fn busy_timeout(mut self, timeout: Duration) -> Self {
        self.busy_timeout = timeout;
        self
    }

    /// What records expire by: the time of day.
    #[must_use]
    pub fn clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.clock = clock;
        self
    }

    /// What leases end by: any clock that all processes of this directory share. [`BootClock`] by default,
    /// which is shared by all of a machine but containers with a time namespace of their own.
    #[must_use]
    pub fn lease_clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.lease_clock = clock;
        self
    }

    /// What versions are drawn from.
    #[must_use]
    pub fn random(mut self, random: Arc<dyn Random>) -> Self {
        self.random = random;
        self
    }

    /// The file calls, for tests that make them fail.
    #[doc(hidden)]
    #[must_use]
    pub fn fs(mut self, fs: Arc<dyn Fs>) -> Self {
        self.fs = fs;
        self
    }

    /// Where the sessions are.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    pub(crate) fn capabilities(&self) -> Capabilities {
        let durability = match self.durability {
            FileDurability::None | FileDurability::File => Durability::Restart,
            FileDurability::FileAndDirectory => Durability::PowerLoss,
        };
        // Expiries are stored to the nanosecond; clocks are not that good, so a millisecond is what is
        // promised.
        let mut capabilities = Capabilities::new(durability);
        capabilities.fencing = true;
        capabilities.max_value = self.max_value;
        capabilities
    }

    pub(crate) fn check(&self) -> Result<()> {
        if self.root.as_os_str().is_empty() {
            return Err(invalid("the directory has no name"));
        }
        if !(1..=LARGEST_VALUE).contains(&self.max_value) {
            return Err(invalid(format!("max_value is {}; it can be 1 to {LARGEST_VALUE}", self.max_value)));
        }
        if !(Duration::from_millis(1)..=Duration::from_hours(1)).contains(&self.busy_timeout) {
            return Err(invalid(format!("busy_timeout is {:?}; it can be 1 ms to 1 h", self.busy_timeout)));
        }
        Ok(())
    }
}

fn invalid(why: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::Invalid, OPEN).with_context(why)
}

fn duration(name: &str, text: &str) -> Result<Duration> {
    let (digits, unit): (_, fn(u64) -> Duration) = match text.strip_suffix("ms") {
        Some(digits) => (digits, Duration::from_millis),
        None => (text.strip_suffix('s').unwrap_or_default(), Duration::from_secs),
    };
    let wrong = || invalid(format!("{name} is {text:?}; expected a number and ms or s, as in 500ms"));
    digits.parse().map(unit).map_err(|_| wrong())
}

fn number<N: std::str::FromStr>(name: &str, value: &str) -> Result<N> {
    value.parse().map_err(|_| invalid(format!("{name} is {value:?}; expected a whole number")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(url: &str) -> String {
        let error = FileConfig::from_url(url).expect_err(url);
        assert_eq!(error.kind(), ErrorKind::Invalid, "{url}");
        error.context().unwrap_or_default().to_owned()
    }

    #[test]
    fn a_url_says_everything() {
        let config = FileConfig::from_url(
            "file:///srv/my%20shop?durability=file-and-directory&max_value=4096&busy_timeout=250ms",
        )
        .unwrap();
        assert_eq!(config.root(), Path::new("/srv/my shop"));
        assert_eq!(config.durability, FileDurability::FileAndDirectory);
        assert_eq!(config.max_value, 4096);
        assert_eq!(config.busy_timeout, Duration::from_millis(250));
        assert_eq!(config.capabilities().durability, Durability::PowerLoss);
    }

    #[test]
    fn what_a_url_cannot_mean_is_refused_with_the_cure() {
        assert!(refusal("file:///s?speed=9").contains("durability, max_value, busy_timeout"));
        assert!(refusal("file:///s?durability=disk").contains("none, file or file-and-directory"));
        assert!(refusal("file:///s?max_value=1M").contains("whole number"));
        assert!(refusal("file:///s?max_value=0").contains("1 to"));
        assert!(refusal("file:///s?busy_timeout=0s").contains("1 ms to 1 h"));
        for unitless in ["5", "", "s", "5m", "-1s"] {
            let refusal = refusal(&format!("file:///s?busy_timeout={unitless}"));
            assert!(refusal.contains("as in 500ms"), "{refusal}");
        }
        assert!(refusal("file:///s?durability=none&durability=file").contains("twice"));
        assert!(refusal("file:///s#t").contains("%23"));
        for url in ["sessions", "file:sessions", "file://sessions", "file://other/s", "http:///s", ""] {
            assert!(refusal(url).contains("file:///absolute/path"), "{url}");
        }
    }

    #[test]
    fn settings_out_of_range_are_refused() {
        assert!(FileConfig::new("").check().is_err());
        assert!(FileConfig::new("s").max_value(LARGEST_VALUE + 1).check().is_err());
        assert!(FileConfig::new("s").busy_timeout(Duration::from_secs(7200)).check().is_err());
        assert!(FileConfig::new("s").max_value(LARGEST_VALUE).check().is_ok());
    }
}
