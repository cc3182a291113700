//! How a request uses a session: the columns of the matrix.

use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};

/// How a request uses a session.
///
/// The first two are controls: what handlers of other systems do. They exist in this suite alone, and they
/// must lose where a scenario names them as its convictor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Strategy {
    /// Control: load, change, overwrite whatever is there.
    Blind,
    /// Control: lock, load, change, overwrite whatever is there.
    LockOnly,
    /// The product's default: no lock, versioned, replayed.
    Write,
    /// The product's lock: lock and version.
    Exclusive,
    /// No session at all: the scenario speaks to the driver.
    Driver,
}

impl Strategy {
    /// All of them, as the matrix orders them.
    pub const ALL: &[Self] = &[Self::Blind, Self::LockOnly, Self::Write, Self::Exclusive, Self::Driver];
    /// Those that use sessions.
    pub const SESSIONS: &[Self] = &[Self::Blind, Self::LockOnly, Self::Write, Self::Exclusive];
    /// Those that the product offers.
    pub const PRODUCT: &[Self] = &[Self::Write, Self::Exclusive];
    /// The driver alone.
    pub const DRIVER: &[Self] = &[Self::Driver];

    /// Its name in the command line and in every report.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Blind => "blind",
            Self::LockOnly => "lock-only",
            Self::Write => "write",
            Self::Exclusive => "exclusive",
            Self::Driver => "driver",
        }
    }

    /// Whether it is there to lose.
    #[must_use]
    pub const fn is_control(self) -> bool {
        matches!(self, Self::Blind | Self::LockOnly)
    }
}

impl fmt::Display for Strategy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Strategy {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let names = || Self::ALL.iter().map(|strategy| strategy.name()).collect::<Vec<_>>().join(", ");
        Self::ALL
            .iter()
            .copied()
            .find(|strategy| strategy.name() == name)
            .ok_or_else(|| format!("there is no such strategy; these are: {}", names()))
    }
}
