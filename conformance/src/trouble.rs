//! Why a scenario could not be carried to its end.

use serde::{Deserialize, Serialize};
use session_core::{Effect, Error, ErrorKind};
use std::{error::Error as _, fmt, io};

/// The result of a step of a scenario.
pub type Trial<T = ()> = Result<T, Trouble>;

/// Why a scenario could not be carried to its end.
///
/// Operations under test never end in one: their failures are recorded and judged. See
/// [`Task::attempt`](crate::scenario::Task::attempt).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Trouble {
    /// The backend did what it must not, hanging included: the claim is broken.
    Wrong(String),
    /// The run proves nothing: a worker died, a server went away, the suite itself made a mistake.
    Unproven(String),
}

impl Trouble {
    /// The backend did what it must not.
    pub fn wrong(why: impl Into<String>) -> Self {
        Self::Wrong(why.into())
    }

    /// The run proves nothing.
    pub fn unproven(why: impl Into<String>) -> Self {
        Self::Unproven(why.into())
    }

    /// The same, saying where.
    #[must_use]
    pub fn context(self, place: impl fmt::Display) -> Self {
        match self {
            Self::Wrong(why) => Self::Wrong(format!("{place}: {why}")),
            Self::Unproven(why) => Self::Unproven(format!("{place}: {why}")),
        }
    }
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Self::Wrong(why) | Self::Unproven(why)) = self;
        f.write_str(why)
    }
}

impl std::error::Error for Trouble {}

impl From<Error> for Trouble {
    /// Where a scenario uses `?` on the store, the step was to succeed. A store that cannot be reached proves
    /// nothing; any other error is the backend's.
    fn from(error: Error) -> Self {
        let mut why = error.to_string();
        let mut source = error.source();
        while let Some(cause) = source {
            why.push_str(&format!(": {cause}"));
            source = cause.source();
        }
        if error.kind() == ErrorKind::Unavailable { Self::Unproven(why) } else { Self::Wrong(why) }
    }
}

impl From<io::Error> for Trouble {
    fn from(error: io::Error) -> Self {
        Self::Unproven(error.to_string())
    }
}

impl From<serde_json::Error> for Trouble {
    fn from(error: serde_json::Error) -> Self {
        Self::Unproven(format!("not the JSON that the suite expects: {error}"))
    }
}

/// What became of one operation under test.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// It was acknowledged.
    Ok,
    /// It was refused and had no effect. With the name of the error's kind, and what it said.
    Failed(String, String),
    /// The reply was lost: it may have happened.
    Unknown(String),
}

impl Outcome {
    /// The outcome of a call.
    pub fn of<T>(result: &Result<T, Error>) -> Self {
        match result {
            Ok(_) => Self::Ok,
            Err(error) if error.effect() == Effect::Unknown => Self::Unknown(error.to_string()),
            Err(error) => Self::Failed(format!("{:?}", error.kind()), error.to_string()),
        }
    }

    /// Whether it was acknowledged.
    #[must_use]
    pub const fn is_ok(&self) -> bool {
        matches!(self, Self::Ok)
    }

    /// Whether it may have happened all the same.
    #[must_use]
    pub const fn is_unknown(&self) -> bool {
        matches!(self, Self::Unknown(_))
    }

    /// Whether it was refused with an error of this kind.
    #[must_use]
    pub fn failed_with(&self, kind: ErrorKind) -> bool {
        matches!(self, Self::Failed(name, _) if *name == format!("{kind:?}"))
    }
}
