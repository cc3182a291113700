//! What can be set, with its defaults and what is checked of it.

use crate::{
    Clock, Codec, Error, ErrorKind, LockingStore, Random, Result, Sessions, SystemClock, SystemRandom,
    envelope::Limits,
};
use std::{sync::Arc, time::Duration};

/// What to do when a session cannot be locked within `lock_wait`. Never an empty session.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnBusy {
    /// [`ErrorKind::Busy`].
    #[default]
    Fail,
    /// The session as it is, for reading only: writes are refused with [`ErrorKind::ReadOnly`].
    ReadOnly,
}

#[derive(Clone, Debug)]
pub(crate) struct Settings {
    /// `None`: nothing slides, the maximum lifetime is all.
    pub(crate) idle_timeout: Option<Duration>,
    pub(crate) max_lifetime: Duration,
    pub(crate) lock_wait: Duration,
    pub(crate) lease: Duration,
    pub(crate) max_hold: Duration,
    pub(crate) on_busy: OnBusy,
    pub(crate) max_waiters: usize,
    pub(crate) max_replays: u32,
    pub(crate) max_key_name: usize,
    pub(crate) rotation_grace: Duration,
    pub(crate) codec: Codec,
    pub(crate) limits: Limits,
}

/// Settings of [`Sessions`]. Every duration and size has a default; see each method.
#[derive(Debug)]
#[must_use = "`build` makes the sessions"]
pub struct SessionsBuilder {
    store: Arc<dyn LockingStore>,
    settings: Settings,
    clock: Arc<dyn Clock>,
    random: Arc<dyn Random>,
}

impl SessionsBuilder {
    pub(crate) fn new(store: Arc<dyn LockingStore>) -> Self {
        let settings = Settings {
            idle_timeout: Some(Duration::from_mins(30)),
            max_lifetime: Duration::from_hours(12),
            lock_wait: Duration::from_secs(5),
            lease: Duration::from_secs(10),
            max_hold: Duration::from_mins(1),
            on_busy: OnBusy::Fail,
            max_waiters: 64,
            max_replays: 32,
            max_key_name: 128,
            rotation_grace: Duration::ZERO,
            codec: Codec::Json,
            limits: Limits { stored: 1 << 20, inflated: 8 << 20, compress_from: 1 << 10 },
        };
        Self { store, settings, clock: Arc::new(SystemClock), random: Arc::new(SystemRandom) }
    }

    /// How long a session lives without being used (30 minutes). Every commit slides it; reading slides it
    /// when a tenth has passed.
    pub fn idle_timeout(mut self, timeout: Duration) -> Self {
        self.settings.idle_timeout = Some(timeout);
        self
    }

    /// How long a session lives at the most, however it is used (12 hours).
    pub fn max_lifetime(mut self, lifetime: Duration) -> Self {
        self.settings.max_lifetime = lifetime;
        self
    }

    /// Every session lives exactly that long, used or not: no idle timeout, nothing slides.
    pub fn fixed_lifetime(mut self, lifetime: Duration) -> Self {
        self.settings.idle_timeout = None;
        self.settings.max_lifetime = lifetime;
        self
    }

    /// How long to wait for a lock (5 seconds); what happens then is [`on_busy`](Self::on_busy).
    pub fn lock_wait(mut self, wait: Duration) -> Self {
        self.settings.lock_wait = wait;
        self
    }

    /// How long a lock outlives its holder when that dies (10 seconds). A living holder renews it at a third.
    pub fn lease(mut self, lease: Duration) -> Self {
        self.settings.lease = lease;
        self
    }

    /// How long a lock is renewed (1 minute): a handler that hangs does not lock for ever.
    pub fn max_hold(mut self, hold: Duration) -> Self {
        self.settings.max_hold = hold;
        self
    }

    /// What [`Access::Exclusive`](crate::Access::Exclusive) does when the lock does not come free in time
    /// (fail).
    pub fn on_busy(mut self, on_busy: OnBusy) -> Self {
        self.settings.on_busy = on_busy;
        self
    }

    /// How many may wait for the lock of one session in this process (64); one more is refused at once.
    pub fn max_waiters(mut self, waiters: usize) -> Self {
        self.settings.max_waiters = waiters;
        self
    }

    /// How often one commit is replayed on fresh data (32) before it is a conflict. To wait for the lock of
    /// an exclusive request is no replay; a commit that is refused for the lock's sake more often than this
    /// (and more than once) is [`ErrorKind::Busy`].
    pub fn max_replays(mut self, replays: u32) -> Self {
        self.settings.max_replays = replays;
        self
    }

    /// The longest name of a key, in bytes (128).
    pub fn max_key_name(mut self, bytes: usize) -> Self {
        self.settings.max_key_name = bytes;
        self
    }

    /// How long a rotated session is still found under its old id (zero).
    ///
    /// Zero is what a login needs: whoever planted the old id must not follow. A few seconds help a regular
    /// rotation past requests that are under way.
    pub fn rotation_grace(mut self, grace: Duration) -> Self {
        self.settings.rotation_grace = grace;
        self
    }

    /// How values are encoded (JSON).
    pub fn codec(mut self, codec: Codec) -> Self {
        self.settings.codec = codec;
        self
    }

    /// From which size on session data is compressed, in bytes (1 KiB). It is kept as it is when that is not
    /// smaller.
    pub fn compress_from(mut self, bytes: usize) -> Self {
        self.settings.limits.compress_from = bytes;
        self
    }

    /// The longest session as stored, in bytes (1 MiB). The store may have a lower limit.
    pub fn max_stored(mut self, bytes: usize) -> Self {
        self.settings.limits.stored = bytes;
        self
    }

    /// The longest session when inflated, in bytes (8 MiB): neither written nor read beyond it.
    pub fn max_inflated(mut self, bytes: usize) -> Self {
        self.settings.limits.inflated = bytes;
        self
    }

    /// Where the time of day comes from (the operating system).
    pub fn clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.clock = clock;
        self
    }

    /// Where ids and tokens come from (the operating system).
    pub fn random(mut self, random: Arc<dyn Random>) -> Self {
        self.random = random;
        self
    }

    /// Checks the settings.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] naming the first setting that cannot be used.
    pub fn build(mut self) -> Result<Sessions> {
        let settings = &mut self.settings;
        let longest = Duration::from_hours(24 * 366 * 10);
        let not_zero = [
            ("idle_timeout", settings.idle_timeout.unwrap_or(settings.max_lifetime)),
            ("max_lifetime", settings.max_lifetime),
            ("lease", settings.lease),
            ("max_hold", settings.max_hold),
        ];
        for (name, duration) in not_zero {
            invalid_if(duration < Duration::from_millis(10), name, "is less than 10 milliseconds")?;
        }
        let durations = [("lock_wait", settings.lock_wait), ("rotation_grace", settings.rotation_grace)];
        for (name, duration) in not_zero.into_iter().chain(durations) {
            invalid_if(duration > longest, name, "is more than ten years")?;
        }
        invalid_if(settings.max_hold < settings.lease, "max_hold", "is less than the lease")?;
        invalid_if(settings.limits.stored < 128, "max_stored", "is less than 128 bytes")?;
        invalid_if(settings.limits.inflated < 128, "max_inflated", "is less than 128 bytes")?;
        invalid_if(settings.limits.inflated > 1 << 30, "max_inflated", "is more than 1 GiB")?;
        invalid_if(settings.max_key_name == 0, "max_key_name", "is zero")?;
        invalid_if(
            settings.max_key_name > usize::from(u16::MAX),
            "max_key_name",
            "is more than 65,535 bytes",
        )?;
        settings.limits.stored = settings.limits.stored.min(self.store.capabilities().max_value);
        Ok(Sessions::new(self.store, self.settings, self.clock, self.random))
    }
}

fn invalid_if(wrong: bool, setting: &'static str, why: &str) -> Result<()> {
    if wrong {
        Err(Error::new(ErrorKind::Invalid, "build").with_context(format!("{setting} {why}")))
    } else {
        Ok(())
    }
}
