//! Drops of packets on their way to keys that an operator wants to know about are logged, word for
//! word as derper does (reference section 3.17).

use std::{collections::HashSet, time::Instant};

use crate::{
    metrics::DropReason,
    proto::{
        frame::HEADER_LENGTH,
        keys::{KEY_LENGTH, NodePublic},
    },
    quiet::Quiet,
};

/// The keys, and how much has been said lately.
#[derive(Debug)]
pub struct VerboseDrops {
    keys: HashSet<NodePublic>,
    quiet: Quiet,
}

impl VerboseDrops {
    /// Wants to know about packets for these keys.
    pub fn new(keys: impl IntoIterator<Item = NodePublic>) -> Self {
        Self { keys: keys.into_iter().collect(), quiet: Quiet::default() }
    }

    /// Whether packets for this key are to be told of.
    pub(super) fn want(&self, destination: &NodePublic) -> bool {
        self.keys.contains(destination)
    }

    /// Logs that a RecvPacket frame for `destination`, one of the keys, was dropped.
    pub(super) fn note(&self, frame: &[u8], destination: &NodePublic, reason: DropReason) {
        let source = frame.get(HEADER_LENGTH..).and_then(<[u8]>::first_chunk::<KEY_LENGTH>);
        let Some(&source) = source else { return };
        if let Some(suffix) = self.quiet.suffix(Instant::now()) {
            tracing::info!(
                "drop ({}) {} -> {}{suffix}",
                NodePublic::from_bytes(source).short(),
                reason.label(),
                destination.short()
            );
        }
    }
}
