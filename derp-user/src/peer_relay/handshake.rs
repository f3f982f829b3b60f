//! The bind handshake: who is at which address.

use std::net::{IpAddr, SocketAddr};

use derp_common::flow::{
    Side,
    class::{CONTROL_LENGTH, DISCO, GENEVE},
};

use super::{
    EndedBy, Input, PeerRelay, Refusal,
    disco::{Envelope, Handshake, Message, NONCE_LENGTH, seal},
};
use crate::flow::{AdmitError, FlowTable};

/// The second byte of a Geneve header: "control packet", nothing else.
const CONTROL: u8 = 0x80;

/// A control packet that came to the relay's UDP port.
#[derive(Clone, Copy, Debug)]
pub struct Arrival<'a> {
    /// Where it came from.
    pub from: SocketAddr,
    /// Where it arrived; its address may be unspecified when that is not known.
    pub local: SocketAddr,
    /// The UDP payload, from the Geneve header on.
    pub payload: &'a [u8],
}

/// A UDP datagram to be sent.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Datagram {
    /// From which address and port of this host; the address may be unspecified, then any will do.
    pub from: SocketAddr,
    /// Where to.
    pub to: SocketAddr,
    /// The UDP payload.
    pub payload: Vec<u8>,
}

/// What comes of a control packet.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Reaction {
    /// The client is asked to show that it can be reached. What is bound stays as it is.
    Challenge(Datagram),
    /// The client's end is bound; nothing is sent.
    Bound(Bound),
}

/// An end that is bound.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Bound {
    /// The endpoint.
    pub vni: u32,
    /// Whose end it is.
    pub side: Side,
    /// Where.
    pub remote: SocketAddr,
    /// Where it was before, if it was.
    pub before: Option<SocketAddr>,
}

impl PeerRelay {
    /// Takes a control packet.
    ///
    /// No box is opened before the VNI and the sender's key fit and both the source and the client have something
    /// left of their allowances; what a stranger sends takes nothing of these.
    ///
    /// # Errors
    ///
    /// Why nothing came of it.
    pub fn handshake(
        &mut self,
        table: &mut FlowTable,
        arrival: &Arrival<'_>,
        now: u64,
    ) -> Result<Reaction, Refusal> {
        let result = self.answer_handshake(table, arrival, now);
        match &result {
            Ok(Reaction::Challenge(_)) => self.counts.challenged += 1,
            Ok(Reaction::Bound(_)) => self.counts.bound += 1,
            Err(refusal) => self.counts.refuse(Input::Handshake, *refusal),
        }
        result
    }

    fn answer_handshake(
        &mut self,
        table: &mut FlowTable,
        arrival: &Arrival<'_>,
        now: u64,
    ) -> Result<Reaction, Refusal> {
        let from = SocketAddr::new(arrival.from.ip().to_canonical(), arrival.from.port());
        let (vni, packet) = control_packet(arrival.payload).ok_or(Refusal::Malformed)?;
        let envelope = Envelope::parse(packet).ok_or(Refusal::Malformed)?;
        let endpoint = self.endpoints.get_mut(&vni).ok_or(Refusal::UnknownVni)?;
        let side = endpoint.side_of(&envelope.sender).ok_or(Refusal::UnknownSender)?;
        let other = endpoint.client(side.other()).key;
        let client = endpoint.client_mut(side);
        if !self.allowances.take_handshake(from.ip(), &mut client.bucket, &self.limits, now) {
            return Err(Refusal::OverRate);
        }
        let message = envelope.open(client.shared(&self.key)).ok_or(Refusal::Seal)?;
        let (message, is_answer) = match Message::decode(&message) {
            Ok(Message::Bind(bind)) => (bind, false),
            Ok(Message::Answer(answer)) => (answer, true),
            Ok(_) | Err(_) => return Err(Refusal::OtherMessage),
        };
        if message.vni != vni || message.remote != other {
            return Err(Refusal::Mismatch);
        }
        if !is_answer {
            if message.generation == 0 || message.generation == client.completed {
                return Err(Refusal::Generation);
            }
            client.in_progress = message.generation;
            let payload = self.challenge(vni, side, message, from, now)?;
            return Ok(Reaction::Challenge(Datagram { from: arrival.local, to: from, payload }));
        }
        if message.generation == 0 || message.generation != client.in_progress {
            return Err(Refusal::Generation);
        }
        if !self.secrets.accepts(&message, from, now) {
            return Err(Refusal::Challenge);
        }
        self.bind(table, vni, side, from, arrival.local.ip(), now).map(Reaction::Bound)
    }

    /// Takes a packet from one client to the other that came before the flow tables knew where both are: clients send the
    /// first one right behind the last message of their handshake, and no other one for half a minute. Returns how it goes
    /// on, if it is known by now.
    #[must_use]
    pub fn early(&self, arrival: &Arrival<'_>) -> Option<Datagram> {
        let from = SocketAddr::new(arrival.from.ip().to_canonical(), arrival.from.port());
        let &[_, flags, _, _, a, b, c, _] = arrival.payload.first_chunk::<GENEVE>()?;
        let endpoint = self.endpoints.get(&u32::from_be_bytes([0, a, b, c]))?;
        let is_sender = |side: &Side| endpoint.client(*side).remote == Some(from);
        let side = Side::ALL.into_iter().find(is_sender).filter(|_| flags & CONTROL == 0)?;
        let other = endpoint.client(side.other());
        let from = SocketAddr::new(other.local, self.port);
        Some(Datagram { from, to: other.remote?, payload: arrival.payload.to_vec() })
    }

    /// Makes the challenge to a bind message from `to`.
    fn challenge(
        &mut self,
        vni: u32,
        side: Side,
        bind: Handshake,
        to: SocketAddr,
        now: u64,
    ) -> Result<Vec<u8>, Refusal> {
        let challenge = self.secrets.challenge(&bind, to, &mut self.random, now);
        let message = Message::Challenge(Handshake { challenge, ..bind });
        let nonce: [u8; NONCE_LENGTH] = self.random.bytes();
        let endpoint = self.endpoints.get_mut(&vni).ok_or(Refusal::UnknownVni)?;
        let shared = endpoint.client_mut(side).shared(&self.key);
        let mut payload = Vec::with_capacity(CONTROL_LENGTH);
        payload.extend([0, CONTROL]);
        payload.extend(DISCO.to_be_bytes());
        payload.extend((vni << 8).to_be_bytes());
        seal(&mut payload, &self.public, shared, &nonce, &message);
        Ok(payload)
    }

    /// Binds a client's end to the address it has proved to be at.
    fn bind(
        &mut self,
        table: &mut FlowTable,
        vni: u32,
        side: Side,
        remote: SocketAddr,
        local: IpAddr,
        now: u64,
    ) -> Result<Bound, Refusal> {
        let endpoint = self.endpoints.get_mut(&vni).ok_or(Refusal::UnknownVni)?;
        match table.rebind(endpoint.flow, side, remote, now) {
            Ok(()) => {}
            Err(AdmitError::NoSuchFlow) => {
                self.forget(vni, EndedBy::Removal);
                return Err(Refusal::UnknownVni);
            }
            Err(_) => return Err(Refusal::Address),
        }
        // Packets to this client leave from the address that it sends to; anything else its NAT would drop.
        table.set_local(endpoint.flow, side, local);
        let client = endpoint.client_mut(side);
        client.completed = std::mem::take(&mut client.in_progress);
        client.bound_at = now;
        client.local = local;
        let before = client.remote.replace(remote);
        Ok(Bound { vni, side, remote, before })
    }
}

/// Returns the VNI and the disco packet of a control packet, if this looks like one.
fn control_packet(payload: &[u8]) -> Option<(u32, &[u8])> {
    if payload.len() != CONTROL_LENGTH {
        return None;
    }
    let (header, packet) = payload.split_first_chunk::<GENEVE>()?;
    let &[version, flags, protocol_high, protocol_low, a, b, c, reserved] = header;
    let is_usual = version == 0 && flags == CONTROL && reserved == 0;
    let is_disco = u16::from_be_bytes([protocol_high, protocol_low]) == DISCO;
    (is_usual && is_disco).then_some((u32::from_be_bytes([0, a, b, c]), packet))
}
