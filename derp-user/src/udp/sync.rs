//! What [`SettingsCell`](super::SettingsCell) is made of; `tests/loom.rs` has loom's in their place.

pub(super) use std::sync::atomic::{AtomicU64, Ordering};

pub(super) use parking_lot::Mutex;
