//! The relay's state, and what becomes of a message.

use std::net::{IpAddr, SocketAddr};

use super::{
    Counts, Directory, Limits, Message, PeerId, Refusal, directory::Peer, limits::Allowances,
    pending::PendingTable, sessions::Sessions, view::Tallies, whereabouts::Atlas,
};
use crate::flow::{FlowTable, check_address};

/// Places that an initiation is sent to at most, where it is not known which is the right one.
pub const MOST_PLACES: usize = 4;

/// A message that has arrived.
#[derive(Clone, Copy, Debug)]
pub struct Arrival<'a> {
    /// Who sent it.
    pub from: SocketAddr,
    /// Where it arrived.
    pub local: SocketAddr,
    /// The UDP payload.
    pub payload: &'a [u8],
}

/// Where a message is to be sent on to, as it is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Destination {
    /// The address and port of this host that it is to leave from; the unspecified address where routing is to choose.
    pub from: SocketAddr,
    /// To whom.
    pub to: SocketAddr,
}

/// What became of a message that was not refused.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Relayed {
    /// An initiation, which goes to wherever the peer may be; to nobody as long as that is nowhere.
    Initiation {
        /// For whom it is.
        target: PeerId,
        /// Where it goes.
        to: Vec<Destination>,
    },
    /// A response, with which a flow begins.
    Response {
        /// The initiator and the responder.
        peers: [PeerId; 2],
        /// Where it goes.
        to: Destination,
    },
    /// A cookie reply.
    CookieReply {
        /// Where it goes.
        to: Destination,
    },
}

impl Relayed {
    /// Returns where the message goes.
    #[must_use]
    pub fn destinations(&self) -> &[Destination] {
        match self {
            Self::Initiation { to, .. } => to,
            Self::Response { to, .. } | Self::CookieReply { to } => std::slice::from_ref(to),
        }
    }
}

/// A relay for WireGuard.
pub struct WireGuardRelay {
    pub(super) directory: Directory,
    pub(super) port: u16,
    pub(super) limits: Limits,
    pub(super) allowances: Allowances,
    pub(super) pending: PendingTable,
    pub(super) sessions: Sessions,
    pub(super) atlas: Atlas,
    pub(super) counts: Counts,
    /// By peer.
    pub(super) tallies: Vec<Tallies>,
    /// Whether what is to outlive the process has changed since it was last looked at.
    pub(super) has_changed: bool,
}

impl WireGuardRelay {
    /// Makes a relay on a UDP port of every address of this host. Where the peers are it has yet to learn.
    #[must_use]
    pub fn new(directory: Directory, port: u16, limits: Limits) -> Self {
        let mut allowances = Allowances::default();
        allowances.follow(&directory);
        let atlas = Atlas::new(&directory);
        let tallies = vec![Tallies::default(); directory.len()];
        Self {
            directory,
            port,
            limits,
            allowances,
            pending: PendingTable::default(),
            sessions: Sessions::default(),
            atlas,
            counts: Counts::default(),
            tallies,
            has_changed: false,
        }
    }

    /// Returns what has happened so far.
    #[must_use]
    pub const fn counts(&self) -> &Counts {
        &self.counts
    }

    /// Returns a peer's label and the short form of its key, for the log.
    #[must_use]
    pub fn describe(&self, peer: PeerId) -> String {
        self.directory.peer(peer).map_or_else(String::new, |Peer { label, key, .. }| {
            let short = key.short();
            if *label == short { short } else { format!("{label} ({short})") }
        })
    }

    /// Tells whether there is something new to be kept over a restart, once.
    pub const fn take_changed(&mut self) -> bool {
        std::mem::replace(&mut self.has_changed, false)
    }

    /// Notes that there still is, as it could not be kept.
    pub const fn note_changed(&mut self) {
        self.has_changed = true;
    }

    /// Takes a message of a handshake. What it changes in the flow table is applied before the message is sent on.
    ///
    /// Data is not for here: it is forwarded by the flow table alone, and moves nothing.
    ///
    /// # Errors
    ///
    /// Why the message is dropped.
    pub fn receive(
        &mut self,
        table: &mut FlowTable,
        arrival: &Arrival<'_>,
        now: u64,
    ) -> Result<Relayed, Refusal> {
        let from = SocketAddr::new(arrival.from.ip().to_canonical(), arrival.from.port());
        let local = arrival.local.ip().to_canonical();
        let result = self.relay(table, from, local, arrival.payload, now);
        match &result {
            Ok(Relayed::Initiation { to, .. }) => {
                let places = to.len() as u64;
                self.counts.initiations += u64::from(places > 0);
                self.counts.held += u64::from(places == 0);
                self.counts.copies += places.saturating_sub(1);
            }
            Ok(Relayed::Response { .. }) => self.counts.responses += 1,
            Ok(Relayed::CookieReply { .. }) => self.counts.cookie_replies += 1,
            Err(refusal) => self.counts.refuse(*refusal),
        }
        result
    }

    fn relay(
        &mut self,
        table: &mut FlowTable,
        from: SocketAddr,
        local: IpAddr,
        payload: &[u8],
        now: u64,
    ) -> Result<Relayed, Refusal> {
        let message = Message::parse(payload).ok_or(Refusal::Malformed)?;
        let is_us = from.port() == self.port && table.is_this_host(from.ip());
        if is_us || check_address(from).is_err() {
            return Err(Refusal::UnusableSource);
        }
        if !self.allowances.take_message(from.ip(), &self.limits, now) {
            return Err(Refusal::SourceOverRate);
        }
        self.pending.expire(now);
        match message {
            Message::Initiation { sender, mac1 } => {
                self.initiation(from, local, sender, &mac1, now)
            }
            Message::Response { sender, receiver, mac1 } => {
                self.response(table, from, local, [sender, receiver], &mac1, now)
            }
            Message::CookieReply { receiver } => self.cookie_reply(from, receiver, now),
        }
    }
}
