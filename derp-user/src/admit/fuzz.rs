//! Lists of nodes out of any bytes.

use std::collections::HashSet;

use super::{control_server, keys};

/// What a control server answers, and what is in a file of keys.
pub(crate) fn answers(text: &[u8]) {
    let _ = control_server::parse(text);
    let _ = control_server::exchanged(text);
    if let Ok(text) = std::str::from_utf8(text) {
        let mut found = HashSet::new();
        let _ = keys::parse(text, &mut found);
        assert!(found.len() <= text.len());
    }
}
