//! Why a message is not sent on.

/// Why a message of a handshake was dropped. The sender is never told.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Refusal {
    /// It is no message of a handshake.
    Malformed,
    /// Its source is this relay, or no single host's address.
    UnusableSource,
    /// The source sends too many.
    SourceOverRate,
    /// Strangers together send more than are looked at.
    StrangersOverRate,
    /// The peer it is for is sent too many.
    TargetOverRate,
    /// An initiation for none of the peers.
    UnknownKey,
    /// Its sender and the peer it is for are no pair.
    NotAllowed,
    /// Nobody who may talk to the peer can be at its source: they are pinned to other addresses.
    Pinned,
    /// An initiation that was seen before.
    Replayed,
    /// Its index is in use between the same ends, so that data could not be told apart. The sender soon takes another.
    IndexCollision,
    /// There are as many unanswered initiations as there may be.
    TooManyPending,
    /// A response or a cookie reply to nothing that was sent to its source.
    Unasked,
    /// A second response to one initiation.
    Answered,
    /// All flows of the relay are in use.
    Full,
    /// The addresses cannot be the ends of a flow.
    UnusableAddress,
}

impl Refusal {
    /// Every refusal, in order.
    pub const ALL: [Self; 15] = [
        Self::Malformed,
        Self::UnusableSource,
        Self::SourceOverRate,
        Self::StrangersOverRate,
        Self::TargetOverRate,
        Self::UnknownKey,
        Self::NotAllowed,
        Self::Pinned,
        Self::Replayed,
        Self::IndexCollision,
        Self::TooManyPending,
        Self::Unasked,
        Self::Answered,
        Self::Full,
        Self::UnusableAddress,
    ];

    /// Returns the metric label and log word.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::UnusableSource => "unusable_source",
            Self::SourceOverRate => "source_over_rate",
            Self::StrangersOverRate => "strangers_over_rate",
            Self::TargetOverRate => "target_over_rate",
            Self::UnknownKey => "unknown_key",
            Self::NotAllowed => "not_allowed",
            Self::Pinned => "pinned",
            Self::Replayed => "replayed",
            Self::IndexCollision => "index_collision",
            Self::TooManyPending => "too_many_pending",
            Self::Unasked => "unasked",
            Self::Answered => "answered",
            Self::Full => "full",
            Self::UnusableAddress => "unusable_address",
        }
    }
}

/// How often what has happened, since the start.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Counts {
    /// Initiations sent on.
    pub initiations: u64,
    /// Initiations for a peer that could be nowhere.
    pub held: u64,
    /// Copies of initiations, beyond the first, for a peer that may be in several places.
    pub copies: u64,
    /// Responses sent on, each of which makes a flow.
    pub responses: u64,
    /// Cookie replies sent on.
    pub cookie_replies: u64,
    /// Peers found to be at another address than before.
    pub roamed: u64,
    refused: [u64; Refusal::ALL.len()],
}

impl Counts {
    /// Returns how often this was a reason for dropping a message.
    #[must_use]
    pub fn refused(&self, refusal: Refusal) -> u64 {
        self.refused.get(refusal as usize).copied().unwrap_or(0)
    }

    pub(super) fn refuse(&mut self, refusal: Refusal) {
        if let Some(count) = self.refused.get_mut(refusal as usize) {
            *count += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_refusal_has_its_own_counter_and_label() {
        let mut labels = std::collections::BTreeSet::new();
        let mut counts = Counts::default();
        for (index, refusal) in Refusal::ALL.into_iter().enumerate() {
            assert_eq!(refusal as usize, index);
            assert!(labels.insert(refusal.label()));
            counts.refuse(refusal);
            assert_eq!(counts.refused(refusal), 1);
        }
    }
}
