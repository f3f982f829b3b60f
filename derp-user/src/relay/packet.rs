//! How relayed packets are told apart, and why they get lost.

use crate::proto::{
    disco::looks_like_disco,
    frame::{FrameType, HEADER_LENGTH},
    keys::KEY_LENGTH,
};

/// Which of its receiver's two queues a relayed packet belongs to.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum PacketKind {
    /// Starts like a Tailscale discovery message.
    Disco,
    /// Anything else: the clients' encrypted traffic.
    Other,
}

impl PacketKind {
    /// Every kind, in label order.
    pub const ALL: [Self; 2] = [Self::Disco, Self::Other];

    /// Classifies a relayed packet.
    pub fn of(packet: &[u8]) -> Self {
        if looks_like_disco(packet) { Self::Disco } else { Self::Other }
    }

    /// Value of the metric label `kind`.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Disco => "disco",
            Self::Other => "other",
        }
    }

    /// Position in [`Self::ALL`].
    pub const fn index(self) -> usize {
        self as usize
    }
}

/// Why a packet was not delivered.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum DropReason {
    /// Nobody here or in the mesh has the destination key.
    UnknownDestination,
    /// A mesh peer forwarded it, but the destination is not connected here.
    UnknownDestinationOnForward,
    /// The destination disconnected before the packet could be written.
    GoneDisconnected,
    /// The oldest packet of a full queue made room for a newer one.
    QueueHead,
    /// The queue stayed full, so the new packet itself was dropped.
    QueueTail,
    /// Writing to the destination's socket failed.
    WriteError,
    /// The destination has several connections and none is active.
    DuplicateClient,
}

impl DropReason {
    /// Every reason, in label order.
    pub const ALL: [Self; 7] = [
        Self::UnknownDestination,
        Self::UnknownDestinationOnForward,
        Self::GoneDisconnected,
        Self::QueueHead,
        Self::QueueTail,
        Self::WriteError,
        Self::DuplicateClient,
    ];

    /// Value of the metric label `reason`, as derper spells it.
    pub const fn label(self) -> &'static str {
        match self {
            Self::UnknownDestination => "unknown_dest",
            Self::UnknownDestinationOnForward => "unknown_dest_on_fwd",
            Self::GoneDisconnected => "gone_disconnected",
            Self::QueueHead => "queue_head",
            Self::QueueTail => "queue_tail",
            Self::WriteError => "write_error",
            Self::DuplicateClient => "dup_client",
        }
    }

    /// Position in [`Self::ALL`].
    pub const fn index(self) -> usize {
        self as usize
    }
}

/// Whether a whole frame of a relayed packet is one for a mesh peer.
pub fn is_forwarded(frame: &[u8]) -> bool {
    frame.first() == Some(&(FrameType::ForwardPacket as u8))
}

/// Splits a whole RecvPacket or ForwardPacket frame into the kind of its packet and the packet.
pub fn packet_of(frame: &[u8]) -> (PacketKind, &[u8]) {
    let keys = if is_forwarded(frame) { 2 * KEY_LENGTH } else { KEY_LENGTH };
    let packet = frame.get(HEADER_LENGTH + keys..).unwrap_or_default();
    (PacketKind::of(packet), packet)
}
