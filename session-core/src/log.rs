//! What was done to a session, and seen of it: replayed, in order, on a fresh record when a write was
//! refused.
//!
//! The rules were found by exhausting small histories, and each is needed: whatever was shown to the handler
//! must come out the same, whatever was not shown may not. `clear` is one operation and not a removal of the
//! keys seen. A rerun that fails in any way ends the commit.

use crate::{Error, ErrorKind, Result, record::Record};
use bytes::Bytes;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Runs a change again; `false` when it returned something else than the caller was shown.
pub(crate) type Rerun = Box<dyn Fn(&mut Record) -> Result<bool> + Send>;

pub(crate) enum Op {
    /// A value was shown (or that there is none).
    Seen(String, Option<Bytes>),
    /// It was shown whether there is a value.
    SeenPresence(String, bool),
    /// The number of values was shown.
    SeenLen(usize),
    /// It was shown whether there are values at all.
    SeenEmpty(bool),
    /// All names were shown, and that there is no other.
    SeenNames(Vec<String>),
    Insert(String, Bytes),
    Remove(String),
    Clear,
    /// A closure changed the value of this name.
    Update(&'static str, Rerun),
}

#[derive(Default)]
pub(crate) struct Log(Vec<Op>);

/// The operations of one request, at the most: a loop that forgot to end is an error and not all of the
/// memory.
const MAX_OPERATIONS: usize = 65_536;

impl Log {
    /// # Errors
    /// [`ErrorKind::TooLarge`] beyond the limit; nothing was added.
    pub(crate) fn push(&mut self, op: Op) -> Result<()> {
        if self.0.len() >= MAX_OPERATIONS {
            return Err(Error::new(ErrorKind::TooLarge, "session")
                .with_context(format!("more than {MAX_OPERATIONS} operations in one request")));
        }
        self.0.push(op);
        Ok(())
    }

    /// In order, on a fresh record.
    ///
    /// # Errors
    /// [`ErrorKind::Conflict`] naming the key when something that was shown has changed; whatever a rerun
    /// closure ends with. The record is half changed then, and must not be used.
    pub(crate) fn replay(&self, record: &mut Record) -> Result<()> {
        self.0.iter().try_for_each(|op| op.replay(record))
    }
}

impl Op {
    fn replay(&self, record: &mut Record) -> Result<()> {
        match self {
            Self::Seen(name, shown) => unchanged(record.values.get(name) == shown.as_ref(), name),
            Self::SeenPresence(name, shown) => unchanged(record.values.contains_key(name) == *shown, name),
            Self::SeenLen(shown) => unchanged(record.values.len() == *shown, "len"),
            Self::SeenEmpty(shown) => unchanged(record.values.is_empty() == *shown, "is_empty"),
            Self::SeenNames(shown) => unchanged(record.values.keys().eq(shown), "names"),
            Self::Insert(name, bytes) => {
                record.values.insert(name.clone(), bytes.clone());
                Ok(())
            }
            Self::Remove(name) => {
                record.values.remove(name);
                Ok(())
            }
            Self::Clear => {
                record.values.clear();
                Ok(())
            }
            Self::Update(name, rerun) => match catch_unwind(AssertUnwindSafe(|| rerun(record))) {
                Ok(same) => unchanged(same?, name),
                Err(_) => Err(Error::new(ErrorKind::Panicked, "commit").with_context(*name)),
            },
        }
    }
}

fn unchanged(same: bool, what: &str) -> Result<()> {
    if same { Ok(()) } else { Err(Error::new(ErrorKind::Conflict, "commit").with_context(what.to_owned())) }
}
