//! Why the relay does not answer, and how often what has happened.

use super::EndedBy;

/// Why a request or a message of the handshake came to nothing. The sender is never told.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Refusal {
    /// It is no disco message, or not of the length or protocol that it must have.
    Malformed,
    /// The box was not sealed with the keys it should be.
    Seal,
    /// It is a message that is not for a relay, or not sent this way.
    OtherMessage,
    /// No endpoint has its VNI.
    UnknownVni,
    /// Its sender is neither client of the endpoint.
    UnknownSender,
    /// What is sealed names another VNI or another client than the endpoint's.
    Mismatch,
    /// Its generation is 0, or that of a handshake that is over or was never begun.
    Generation,
    /// The answer is not to a challenge that was sent to this address lately.
    Challenge,
    /// The address cannot be used for this end of the endpoint.
    Address,
    /// The node may not use this relay.
    NotPermitted,
    /// The node is not, or no longer, one of the tailnet that this relay has joined.
    UnknownNode,
    /// The node's key has expired.
    ExpiredNode,
    /// The tailnet's policy does not grant the node this relay.
    NotGranted,
    /// The disco key is not the one that the node is known to have.
    OtherKey,
    /// The request does not list the key of its sender.
    NotListed,
    /// The request is for a key that no client can have, or twice for the same one.
    UnusableClients,
    /// Where this relay can be reached is not known.
    NoAddress,
    /// The sender, or everybody together, asks too often.
    OverRate,
    /// The node has as many endpoints as one may have.
    NodeFull,
    /// There are as many endpoints as there may be.
    Full,
}

impl Refusal {
    /// Every refusal, in order.
    pub const ALL: [Self; 20] = [
        Self::Malformed,
        Self::Seal,
        Self::OtherMessage,
        Self::UnknownVni,
        Self::UnknownSender,
        Self::Mismatch,
        Self::Generation,
        Self::Challenge,
        Self::Address,
        Self::NotPermitted,
        Self::UnknownNode,
        Self::ExpiredNode,
        Self::NotGranted,
        Self::OtherKey,
        Self::NotListed,
        Self::UnusableClients,
        Self::NoAddress,
        Self::OverRate,
        Self::NodeFull,
        Self::Full,
    ];

    /// Returns the metric label and log word.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::Seal => "seal",
            Self::OtherMessage => "other_message",
            Self::UnknownVni => "unknown_vni",
            Self::UnknownSender => "unknown_sender",
            Self::Mismatch => "mismatch",
            Self::Generation => "generation",
            Self::Challenge => "challenge",
            Self::Address => "address",
            Self::NotPermitted => "not_permitted",
            Self::UnknownNode => "unknown_node",
            Self::ExpiredNode => "expired_node",
            Self::NotGranted => "not_granted",
            Self::OtherKey => "other_key",
            Self::NotListed => "not_listed",
            Self::UnusableClients => "unusable_clients",
            Self::NoAddress => "no_address",
            Self::OverRate => "over_rate",
            Self::NodeFull => "node_full",
            Self::Full => "full",
        }
    }
}

/// What the relay may refuse.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Input {
    /// A request, which comes by DERP.
    Request,
    /// A message of the bind handshake, which comes by UDP.
    Handshake,
}

impl Input {
    /// Both kinds, in order.
    pub const ALL: [Self; 2] = [Self::Request, Self::Handshake];
}

/// How often what has happened, since the start.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Counts {
    /// Requests answered with a new endpoint.
    pub allocated: u64,
    /// Requests answered with an endpoint that was there.
    pub repeated: u64,
    /// Challenges sent.
    pub challenged: u64,
    /// Ends bound, also where they were already.
    pub bound: u64,
    /// Endpoints that have ended.
    pub ended: u64,
    /// Pings answered.
    pub pinged: u64,
    ended_by: [u64; EndedBy::ALL.len()],
    refused: [[u64; Refusal::ALL.len()]; Input::ALL.len()],
}

impl Counts {
    /// Returns how often this was a reason for not answering.
    #[must_use]
    pub fn refused(&self, refusal: Refusal) -> u64 {
        Input::ALL.map(|input| self.refused_of(input, refusal)).iter().sum()
    }

    /// Returns how often this was a reason for not answering this kind of input.
    #[must_use]
    pub fn refused_of(&self, input: Input, refusal: Refusal) -> u64 {
        let counts = self.refused.get(input as usize);
        counts.and_then(|counts| counts.get(refusal as usize)).copied().unwrap_or(0)
    }

    /// Returns how many endpoints have ended for this reason.
    #[must_use]
    pub fn ended_by(&self, by: EndedBy) -> u64 {
        self.ended_by.get(by as usize).copied().unwrap_or(0)
    }

    pub(super) fn refuse(&mut self, input: Input, refusal: Refusal) {
        let counts = self.refused.get_mut(input as usize);
        if let Some(count) = counts.and_then(|counts| counts.get_mut(refusal as usize)) {
            *count += 1;
        }
    }

    pub(super) fn end(&mut self, by: EndedBy) {
        self.ended += 1;
        if let Some(count) = self.ended_by.get_mut(by as usize) {
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
            counts.refuse(Input::Request, refusal);
            counts.refuse(Input::Handshake, refusal);
            assert_eq!(counts.refused(refusal), 2);
            assert_eq!(counts.refused_of(Input::Handshake, refusal), 1);
        }
    }
}
