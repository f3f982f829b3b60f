//! What [`Attention`](super::attention::Attention) and [`Rates`](super::Rates) are made of; `tests/loom.rs` has loom's in
//! their place.

pub(super) use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

pub(super) use atomic_waker::AtomicWaker;
pub(super) use parking_lot::Mutex;
