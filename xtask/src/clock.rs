//! libfaketime, by which a test has the clock of a relay jump.

use anyhow::Result;

use crate::apt::{self, Program};

const LIBRARY: &str = if cfg!(target_arch = "aarch64") {
    "/usr/lib/aarch64-linux-gnu/faketime/libfaketimeMT.so.1"
} else {
    "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1"
};
const PROGRAMS: [Program; 1] = [(LIBRARY, &["libfaketime"])];

/// Installs it if it is missing, or says what to type.
pub(crate) fn ensure_programs() -> Result<()> {
    apt::ensure_programs(&PROGRAMS, "the test of a clock that jumps needs")
}
