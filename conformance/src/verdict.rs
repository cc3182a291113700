//! From what was counted to a verdict.
//!
//! ```
//! use session_conformance::{Judgement, Strategy, Verdict};
//!
//! // 400 increments were acknowledged and 311 are missing.
//! let judgement = Judgement::default().acknowledged(400).lost(311, "session 0: found 89 of 400");
//! assert_eq!(judgement.verdict(Strategy::Write, false), Verdict::Fail);
//! assert_eq!(judgement.verdict(Strategy::Blind, true), Verdict::Loses);
//! // A control that convicts nobody proves nothing.
//! assert_eq!(Judgement::default().acknowledged(400).verdict(Strategy::Blind, true), Verdict::Unknown);
//! ```

use crate::Strategy;
use serde::{Deserialize, Serialize};
use std::fmt;

/// How many lines of evidence are kept of a cell.
const EVIDENCE: usize = 6;

/// What a cell of the matrix says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Verdict {
    /// The claim held.
    #[serde(rename = "pass")]
    Pass,
    /// The claim was broken.
    #[serde(rename = "fail")]
    Fail,
    /// A control broke the claim, which is what it is for.
    #[serde(rename = "loses")]
    Loses,
    /// The backend declares that it cannot; what it declares was asserted.
    #[serde(rename = "n/a")]
    NotApplicable,
    /// The run proved nothing.
    #[serde(rename = "unknown")]
    Unknown,
    /// Not run: something that it needs is not here.
    #[serde(rename = "absent")]
    Absent,
}

impl Verdict {
    /// The word in the matrix. The JSON has the same word in lower case.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Fail => "FAIL",
            Self::Loses => "loses",
            Self::NotApplicable => "n/a",
            Self::Unknown => "unknown",
            Self::Absent => "absent",
        }
    }

    /// Which of two verdicts a summary must not hide: the greater one.
    pub(crate) const fn weight(self) -> u8 {
        match self {
            Self::Absent => 0,
            Self::NotApplicable => 1,
            Self::Pass => 2,
            Self::Loses => 3,
            Self::Unknown => 4,
            Self::Fail => 5,
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.word())
    }
}

/// What the judge of a scenario found. Without lost operations and without faults the claim held.
#[derive(Clone, Debug, Default)]
#[must_use]
pub struct Judgement {
    /// Operations that were answered with success.
    pub acknowledged: u64,
    /// Acknowledged operations whose effect is not there.
    pub lost: u64,
    /// Operations that were refused, without effect.
    pub rejected: u64,
    /// Operations of which nobody knows whether they took effect.
    pub unknown: u64,
    broken: bool,
    verdict: Option<Verdict>,
    lines: Vec<String>,
    more: usize,
}

impl Judgement {
    /// The scenario did not run because the backend declares that it cannot; what it declares was asserted.
    pub fn not_applicable(why: impl Into<String>) -> Self {
        Self { verdict: Some(Verdict::NotApplicable), ..Self::default() }.note(why)
    }

    pub(crate) fn counted(acknowledged: u64, rejected: u64, unknown: u64) -> Self {
        Self { acknowledged, rejected, unknown, ..Self::default() }
    }

    /// The run proved nothing.
    pub fn unproven(mut self, why: impl Into<String>) -> Self {
        self.verdict = Some(Verdict::Unknown);
        self.note(why)
    }

    /// That many operations were acknowledged (for a judge that counts by itself).
    pub fn acknowledged(mut self, operations: u64) -> Self {
        self.acknowledged += operations;
        self
    }

    /// That many acknowledged operations have no effect to show; nothing happens for zero.
    pub fn lost(mut self, operations: u64, evidence: impl Into<String>) -> Self {
        if operations == 0 {
            return self;
        }
        self.lost += operations;
        self.fault(evidence)
    }

    /// The claim was broken in another way than by losing an operation.
    pub fn fault(mut self, evidence: impl Into<String>) -> Self {
        self.broken = true;
        self.note(evidence)
    }

    /// The same as [`fault`](Self::fault), unless the condition holds.
    pub fn require(self, condition: bool, evidence: impl FnOnce() -> String) -> Self {
        if condition { self } else { self.fault(evidence()) }
    }

    /// Compares what was found with what was acknowledged: fewer are lost, and more than the unknown ones can
    /// explain were applied twice.
    pub fn compare(self, what: &str, acknowledged: u64, unknown: u64, found: u64) -> Self {
        let evidence = || format!("{what}: found {found} of {acknowledged} acknowledged ({unknown} unknown)");
        if found > acknowledged + unknown {
            return self.fault(format!("{}: applied twice", evidence()));
        }
        self.lost(acknowledged.saturating_sub(found), evidence())
    }

    /// Something to show that decides nothing: a time, a count.
    pub fn note(mut self, line: impl Into<String>) -> Self {
        if self.lines.len() < EVIDENCE {
            self.lines.push(line.into());
        } else {
            self.more += 1;
        }
        self
    }

    /// Whether the claim was broken.
    #[must_use]
    pub const fn is_broken(&self) -> bool {
        self.broken
    }

    pub(crate) const fn is_decided(&self) -> bool {
        self.verdict.is_some()
    }

    /// The verdict on this strategy; `convictor` says whether the scenario names it as the one that must
    /// lose.
    #[must_use]
    pub fn verdict(&self, strategy: Strategy, convictor: bool) -> Verdict {
        match self.verdict {
            _ if self.broken && strategy.is_control() => Verdict::Loses,
            _ if self.broken => Verdict::Fail,
            Some(verdict) => verdict,
            None if convictor => Verdict::Unknown,
            None => Verdict::Pass,
        }
    }

    /// The evidence, one finding a line.
    #[must_use]
    pub fn detail(&self) -> String {
        let mut detail = self.lines.join("\n");
        if self.more > 0 {
            detail.push_str(&format!("\nand {} more", self.more));
        }
        detail
    }
}
