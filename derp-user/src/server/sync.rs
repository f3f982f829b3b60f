//! What [`Attention`](super::attention::Attention) is made of; `tests/loom.rs` has loom's in their place.

pub(super) use std::sync::atomic::{AtomicBool, Ordering};

pub(super) use atomic_waker::AtomicWaker;
