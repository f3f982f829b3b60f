//! The committed counts, and what a change to them means.

use std::{fmt, fs, path::Path};

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

use super::Counts;

/// Compilers shuffle this much without anybody's doing, and the relay's own count varies by 1 %.
const TOLERANCE: f64 = 0.05;

/// Counts, and what they were counted with.
#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Baseline {
    pub(super) counted_with: String,
    pub(super) per_packet: Counts,
}

/// How a case's count stands to the baseline's.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Verdict {
    /// Within the tolerance.
    Same {
        before: f64,
        now: f64,
    },
    Less {
        before: f64,
        now: f64,
    },
    More {
        before: f64,
        now: f64,
    },
    /// The baseline does not have it.
    New {
        now: f64,
    },
    /// It is not counted any more.
    Gone {
        before: f64,
    },
}

impl Baseline {
    /// Reads the file.
    pub(super) fn read(file: &Path) -> Result<Self> {
        let text = fs::read_to_string(file)
            .with_context(|| format!("reading the baseline {}", file.display()))?;
        serde_json::from_str(&text).with_context(|| format!("reading {}", file.display()))
    }

    /// Writes the file.
    pub(super) fn write(&self, file: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self).context("writing JSON")?;
        fs::write(file, text + "\n").with_context(|| format!("writing {}", file.display()))
    }

    /// Compares every case of either side.
    pub(super) fn compare(&self, now: &Counts) -> Vec<(String, Verdict)> {
        let mut verdicts: Vec<_> = now
            .iter()
            .map(|(case, &now)| {
                let before = self.per_packet.get(case).copied();
                let verdict =
                    before.map_or(Verdict::New { now }, |before| Verdict::of(before, now));
                (case.clone(), verdict)
            })
            .collect();
        let gone = self.per_packet.iter().filter(|(case, _)| !now.contains_key(*case));
        verdicts.extend(gone.map(|(case, &before)| (case.clone(), Verdict::Gone { before })));
        verdicts
    }
}

impl Verdict {
    fn of(before: f64, now: f64) -> Self {
        if now > before * (1.0 + TOLERANCE) {
            Self::More { before, now }
        } else if now < before * (1.0 - TOLERANCE) {
            Self::Less { before, now }
        } else {
            Self::Same { before, now }
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (before, now, word) = match *self {
            Self::Same { before, now } => (before, now, ""),
            Self::Less { before, now } => (before, now, "  fewer"),
            Self::More { before, now } => (before, now, "  MORE"),
            Self::New { now } => return write!(f, "{:>10}{now:>10.1}  not in the baseline", ""),
            Self::Gone { before } => return write!(f, "{before:>10.1}  no longer counted"),
        };
        write!(f, "{before:>10.1}{now:>10.1}{:>+8.1}%{word}", (now / before - 1.0) * 100.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(cases: &[(&str, f64)]) -> Counts {
        cases.iter().map(|&(case, count)| (case.to_owned(), count)).collect()
    }

    #[test]
    fn changes_beyond_the_tolerance_are_told() {
        let before = Baseline {
            counted_with: String::new(),
            per_packet: counts(&[("a", 100.0), ("b", 100.0), ("c", 100.0), ("gone", 1.0)]),
        };
        let now = counts(&[("a", 104.9), ("b", 105.1), ("c", 94.9), ("new", 2.0)]);
        let verdicts = before.compare(&now);
        let expected = [
            ("a", Verdict::Same { before: 100.0, now: 104.9 }),
            ("b", Verdict::More { before: 100.0, now: 105.1 }),
            ("c", Verdict::Less { before: 100.0, now: 94.9 }),
            ("new", Verdict::New { now: 2.0 }),
            ("gone", Verdict::Gone { before: 1.0 }),
        ];
        assert_eq!(verdicts, expected.map(|(case, verdict)| (case.to_owned(), verdict)));
        assert_eq!(verdicts[1].1.to_string(), "     100.0     105.1    +5.1%  MORE");
    }
}
