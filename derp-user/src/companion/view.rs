//! The companion as operators see it.

use super::Failure;

/// What the companion does, and why no more.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Status {
    /// Nothing has been asked yet.
    #[default]
    Starting,
    /// Has the kernel forward what comes to this port.
    Accompanying {
        /// The UDP port of tailscaled's relay.
        port: u16,
    },
    /// Nothing: tailscaled is no peer relay.
    NoRelay,
    /// Nothing: tailscaled has chosen the relay's port itself and does not say which it is.
    RandomPort,
    /// Nothing: this port is served by this daemon itself.
    OwnPort {
        /// The port.
        port: u16,
    },
    /// Nothing, because of what went wrong.
    Failed(Failure),
}

/// How far a session of tailscaled is.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Standing {
    /// The kernel forwards it.
    Forwarding,
    /// It is watched whether its ends move.
    Held,
    /// A client is not bound.
    Unbound,
    /// The clients are of different address families.
    CrossFamily,
    /// A client is this host.
    ThisHost,
    /// Another session has its place in the flow table.
    SlotTaken,
    /// A client's address cannot be used, or both clients have the same.
    Unusable,
}

impl Standing {
    /// Every standing, in order.
    pub const ALL: [Self; 7] = [
        Self::Forwarding,
        Self::Held,
        Self::Unbound,
        Self::CrossFamily,
        Self::ThisHost,
        Self::SlotTaken,
        Self::Unusable,
    ];

    /// Returns the metric label.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Forwarding => "forwarding",
            Self::Held => "held",
            Self::Unbound => "unbound",
            Self::CrossFamily => "cross_family",
            Self::ThisHost => "this_host",
            Self::SlotTaken => "slot_taken",
            Self::Unusable => "unusable",
        }
    }
}

/// What the companion knows and has done.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct CompanionView {
    /// What it does.
    pub status: Status,
    /// Sessions of the last answer by [`Standing`].
    pub sessions: [usize; Standing::ALL.len()],
    /// Answers that were understood.
    pub answers: u64,
    /// Questions without a useful answer, by [`Failure`].
    pub failures: [u64; Failure::ALL.len()],
    /// Times that flows which the kernel had were all ended at once.
    pub flushes: u64,
    /// Times that flows were held again because of a control packet.
    pub suspicions: u64,
}
