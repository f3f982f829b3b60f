//! The browser that tests talk to the relay with, and the cryptography for its page.

use std::path::Path;

use anyhow::Result;

use crate::apt;

/// A file and the Debian package that brings it.
const FILES: [(&str, &str); 2] = [
    ("/usr/bin/chromium", "chromium"),
    ("/usr/share/nodejs/tweetnacl/nacl-fast.js", "node-tweetnacl"),
];

/// Installs what is missing, or says what to type.
pub(crate) fn ensure_programs() -> Result<()> {
    let missing: Vec<_> = FILES
        .iter()
        .filter(|(file, _)| !Path::new(file).exists())
        .map(|&(_, package)| package)
        .collect();
    apt::ensure(&missing, "the test with a real browser needs")
}
