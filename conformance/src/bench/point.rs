//! Where to measure.

use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};

/// Who meets whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Contention {
    /// Each task has a session of its own.
    Uncontended,
    /// All tasks are on one session; each pauses for up to 10 ms between two operations.
    Contended,
    /// Tasks choose among many; the second is asked for half as often as the first, the third a third as
    /// often (Zipf).
    Zipf,
}

impl Contention {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Uncontended, Self::Contended, Self::Zipf];

    const fn name(self) -> &'static str {
        match self {
            Self::Uncontended => "uncontended",
            Self::Contended => "contended",
            Self::Zipf => "zipf",
        }
    }
}

impl fmt::Display for Contention {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Contention {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let known = Self::ALL.into_iter().find(|contention| contention.name() == name);
        known.ok_or_else(|| "uncontended, contended or zipf".to_owned())
    }
}

/// A load.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Point {
    /// Tasks at once.
    pub tasks: usize,
    /// Bytes in a session.
    pub size: usize,
    /// Whether sessions are compressed (from 1 KiB on, as is the default).
    pub compression: bool,
    /// Who meets whom.
    pub contention: Contention,
}

impl Default for Point {
    /// One task, 1 KiB, nothing else.
    fn default() -> Self {
        Self { tasks: 1, size: 1 << 10, compression: false, contention: Contention::Uncontended }
    }
}

impl Point {
    /// The points of a quick look: the default one, and from there along each axis.
    #[must_use]
    pub fn quick() -> Vec<Self> {
        let mut points = Self::cross(&[1 << 10], &[false, true], &[1], &[Contention::Uncontended]);
        points.extend(Self::cross(&[16 << 10, 256 << 10], &[false, true], &[1], &[Contention::Uncontended]));
        points.extend(Self::cross(&[1 << 10], &[false], &[8, 64], &Contention::ALL));
        points
    }

    /// Every combination. One task meets nobody: there only the first contention is taken.
    #[must_use]
    pub fn cross(
        sizes: &[usize],
        compression: &[bool],
        tasks: &[usize],
        contention: &[Contention],
    ) -> Vec<Self> {
        let mut points = Vec::new();
        for &size in sizes {
            for &compression in compression {
                for &tasks in tasks {
                    for &contention in &contention[..if tasks == 1 { 1 } else { contention.len() }] {
                        points.push(Self { tasks, size, compression, contention });
                    }
                }
            }
        }
        points
    }

    /// Over how many sessions the tasks are spread. Many of the large ones would fill a memcached.
    pub(super) fn sessions(self) -> usize {
        match self.contention {
            Contention::Uncontended => self.tasks,
            Contention::Contended => 1,
            Contention::Zipf => (16 << 20) / self.size.clamp(16 << 10, 1 << 20),
        }
    }
}

/// The load in a few words: `64 tasks, contended, 256 KiB compressed`.
impl fmt::Display for Point {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tasks = match self.tasks {
            1 => "1 task".to_owned(),
            tasks => format!("{tasks} tasks, {}", self.contention),
        };
        let compressed = if self.compression { " compressed" } else { "" };
        f.pad(&format!("{tasks}, {}{compressed}", Size(self.size)))
    }
}

/// Bytes for people.
pub(crate) struct Size(pub(crate) usize);

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            bytes if bytes >= 1 << 20 && bytes % (1 << 20) == 0 => write!(f, "{} MiB", bytes >> 20),
            bytes if bytes >= 1 << 10 && bytes % (1 << 10) == 0 => write!(f, "{} KiB", bytes >> 10),
            bytes => write!(f, "{bytes} B"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quick_look_has_no_point_twice() {
        let points = Point::quick();
        let distinct: std::collections::HashSet<_> = points.iter().collect();
        assert_eq!(distinct.len(), points.len());
        assert_eq!(points.first(), Some(&Point::default()));
    }

    #[test]
    fn one_task_meets_nobody() {
        assert_eq!(Point::cross(&[1024], &[false], &[1, 8], &Contention::ALL).len(), 1 + 3);
    }

    #[test]
    fn a_point_reads_well() {
        let point =
            Point { tasks: 64, size: 256 << 10, compression: true, contention: Contention::Contended };
        assert_eq!(point.to_string(), "64 tasks, contended, 256 KiB compressed");
        assert_eq!(Point::default().to_string(), "1 task, 1 KiB");
    }
}
