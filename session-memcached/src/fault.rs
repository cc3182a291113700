//! What can go wrong in one exchange with a server, before it has become an error of an operation.

use std::{fmt, io};

/// See the [module](self).
pub(crate) enum Fault {
    /// The line broke.
    Io(io::Error),
    /// The server refused, with this line: nothing was done.
    Refused(String),
    /// The same of one command of a request, another one of which was done.
    RefusedInPart(String),
    /// This is no reply to what was asked.
    Garbled(String),
}

impl Fault {
    /// What a line means that is none of the expected ones.
    pub(crate) fn from_line(line: &[u8]) -> Self {
        let text = String::from_utf8_lossy(line).trim_end().to_owned();
        let refusals = ["ERROR", "CLIENT_ERROR", "SERVER_ERROR"];
        if text.split(' ').next().is_some_and(|word| refusals.contains(&word)) {
            Self::Refused(text)
        } else {
            Self::Garbled(text)
        }
    }

    /// The fault of a command that came together with another one, which was done or not.
    pub(crate) fn beside(self, done: bool) -> Self {
        match self {
            Self::Refused(line) if done => Self::RefusedInPart(line),
            fault => fault,
        }
    }
}

impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io(error) => error.fmt(f),
            Self::Refused(line) | Self::RefusedInPart(line) => write!(f, "the server refused: {line}"),
            // What it says could be a record: it is for nobody's log.
            Self::Garbled(line) => write!(f, "the server said something else ({} bytes)", line.len()),
        }
    }
}

/// As `Display`: errors are logged with it.
impl fmt::Debug for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::error::Error for Fault {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        if let Self::Io(error) = self { Some(error) } else { None }
    }
}
