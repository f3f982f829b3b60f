//! Prometheus, which a test has read the metrics.

use anyhow::Result;

use crate::apt::{self, Program};

/// The package brings `promtool` too.
const PROGRAMS: [Program; 1] = [("/usr/bin/prometheus", &["prometheus"])];

/// Installs it if it is missing, or says what to type. Does not start its service.
pub(crate) fn ensure_programs() -> Result<()> {
    apt::ensure_programs(&PROGRAMS, "tests of the metrics need")
}
