//! The messages by which relays are asked for, bound and made known, numbers 04 to 09, and pings (udp-relay reference,
//! section 2.2). Integers are big-endian.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use super::DiscoPublic;
use crate::proto::keys::KEY_LENGTH;

/// Most addresses of an endpoint record that are written or read.
pub const MAX_ADDRESSES: usize = 64;

const PING: u8 = 0x01;
const PONG: u8 = 0x02;
const BIND: u8 = 0x04;
const CHALLENGE: u8 = 0x05;
const ANSWER: u8 = 0x06;
const CALL_ME_MAYBE_VIA: u8 = 0x07;
const ALLOCATE_REQUEST: u8 = 0x08;
const ALLOCATE_RESPONSE: u8 = 0x09;
/// The only version there is.
const VERSION: u8 = 0;
/// Bytes of an address and port.
const ADDRESS_LENGTH: usize = 18;
/// Bytes of the number of a ping.
pub const TRANSACTION_LENGTH: usize = 12;

/// A message of or to a relay.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Message {
    /// Ping: whether somebody is there. What may follow the number is not read.
    Ping {
        /// A random number.
        transaction: [u8; TRANSACTION_LENGTH],
    },
    /// Pong: somebody is.
    Pong {
        /// The ping's.
        transaction: [u8; TRANSACTION_LENGTH],
        /// Where the ping came from.
        source: SocketAddr,
    },
    /// BindUDPRelayEndpoint: a client wants to use its endpoint from where this comes from.
    Bind(Handshake),
    /// BindUDPRelayEndpointChallenge: the relay wants to see that the client can be reached there.
    Challenge(Handshake),
    /// BindUDPRelayEndpointAnswer: it can.
    Answer(Handshake),
    /// CallMeMaybeVia: one client tells the other of an endpoint.
    CallMeMaybeVia(EndpointRecord),
    /// AllocateUDPRelayEndpointRequest: a client asks for an endpoint.
    AllocateRequest(AllocateRequest),
    /// AllocateUDPRelayEndpointResponse: it gets one.
    AllocateResponse(AllocateResponse),
}

/// What the three messages of the bind handshake say. They are equally long, so that nothing is amplified.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Handshake {
    /// The endpoint's VNI.
    pub vni: u32,
    /// Another one in each handshake, never 0.
    pub generation: u32,
    /// The other client's key.
    pub remote: DiscoPublic,
    /// What the relay wants to have back; without meaning in a bind message.
    pub challenge: [u8; KEY_LENGTH],
}

/// A request for an endpoint.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct AllocateRequest {
    /// Who are to use it.
    pub clients: [DiscoPublic; 2],
    /// By which the client recognises the response.
    pub generation: u32,
}

/// The response to a request.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct AllocateResponse {
    /// The request's.
    pub generation: u32,
    /// The endpoint.
    pub endpoint: EndpointRecord,
}

/// Everything a client has to know of an endpoint.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct EndpointRecord {
    /// The key that the relay uses in the bind handshake.
    pub server: DiscoPublic,
    /// Who may use it, in order.
    pub clients: [DiscoPublic; 2],
    /// Tells a later endpoint of the same server key from an earlier one.
    pub lamport_id: u64,
    /// Its VNI.
    pub vni: u32,
    /// How long both clients have to bind, in nanoseconds.
    pub bind_lifetime: u64,
    /// How long a client may be silent after that, in nanoseconds.
    pub steady_state_lifetime: u64,
    /// Where the relay may be reached, at least one address, at most [`MAX_ADDRESSES`].
    pub addresses: Vec<SocketAddr>,
}

/// Why bytes are no message of or to a relay.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum MessageError {
    /// They end too early.
    #[error("the message ends too early")]
    Short,
    /// The message is of another type.
    #[error("the message type {0:#04x} is not one of a relay")]
    Type(u8),
    /// The message is of a version to come.
    #[error("the message version {0} is not known")]
    Version(u8),
    /// The addresses are none, too many or not whole.
    #[error("the endpoint has no, too many or incomplete addresses")]
    Addresses,
}

impl Message {
    /// Returns the message as it goes into a box.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(256);
        match self {
            Self::Ping { transaction } => {
                bytes.extend([PING, VERSION]);
                bytes.extend(transaction);
            }
            Self::Pong { transaction, source } => {
                bytes.extend([PONG, VERSION]);
                bytes.extend(transaction);
                bytes.extend(address_bytes(*source));
            }
            Self::Bind(handshake) => handshake.encode(BIND, &mut bytes),
            Self::Challenge(handshake) => handshake.encode(CHALLENGE, &mut bytes),
            Self::Answer(handshake) => handshake.encode(ANSWER, &mut bytes),
            Self::CallMeMaybeVia(endpoint) => {
                bytes.extend([CALL_ME_MAYBE_VIA, VERSION]);
                endpoint.encode(&mut bytes);
            }
            Self::AllocateRequest(request) => {
                bytes.extend([ALLOCATE_REQUEST, VERSION]);
                request.clients.iter().for_each(|client| bytes.extend(client.as_bytes()));
                bytes.extend(request.generation.to_be_bytes());
            }
            Self::AllocateResponse(response) => {
                bytes.extend([ALLOCATE_RESPONSE, VERSION]);
                bytes.extend(response.generation.to_be_bytes());
                response.endpoint.encode(&mut bytes);
            }
        }
        bytes
    }

    /// Reads what was in a box. As in the reference, the version of handshakes and pings is not looked at, and bytes
    /// after the end are ignored.
    ///
    /// # Errors
    ///
    /// What is wrong with the bytes.
    pub fn decode(bytes: &[u8]) -> Result<Self, MessageError> {
        let (&[kind, version], body) = bytes.split_first_chunk().ok_or(MessageError::Short)?;
        let mut body = Reader(body);
        match kind {
            PING => Ok(Self::Ping { transaction: body.take()? }),
            PONG => Ok(Self::Pong { transaction: body.take()?, source: body.address()? }),
            BIND => body.handshake().map(Self::Bind),
            CHALLENGE => body.handshake().map(Self::Challenge),
            ANSWER => body.handshake().map(Self::Answer),
            CALL_ME_MAYBE_VIA | ALLOCATE_REQUEST | ALLOCATE_RESPONSE if version != VERSION => {
                Err(MessageError::Version(version))
            }
            CALL_ME_MAYBE_VIA => body.endpoint().map(Self::CallMeMaybeVia),
            ALLOCATE_REQUEST => {
                let clients = [body.key()?, body.key()?];
                let generation = u32::from_be_bytes(body.take()?);
                Ok(Self::AllocateRequest(AllocateRequest { clients, generation }))
            }
            ALLOCATE_RESPONSE => {
                let generation = u32::from_be_bytes(body.take()?);
                let endpoint = body.endpoint()?;
                Ok(Self::AllocateResponse(AllocateResponse { generation, endpoint }))
            }
            other => Err(MessageError::Type(other)),
        }
    }
}

impl Handshake {
    fn encode(&self, kind: u8, bytes: &mut Vec<u8>) {
        bytes.extend([kind, VERSION]);
        bytes.extend(self.vni.to_be_bytes());
        bytes.extend(self.generation.to_be_bytes());
        bytes.extend(self.remote.as_bytes());
        bytes.extend(self.challenge);
    }
}

impl EndpointRecord {
    fn encode(&self, bytes: &mut Vec<u8>) {
        bytes.extend(self.server.as_bytes());
        self.clients.iter().for_each(|client| bytes.extend(client.as_bytes()));
        bytes.extend(self.lamport_id.to_be_bytes());
        bytes.extend(self.vni.to_be_bytes());
        bytes.extend(self.bind_lifetime.to_be_bytes());
        bytes.extend(self.steady_state_lifetime.to_be_bytes());
        for address in self.addresses.iter().take(MAX_ADDRESSES) {
            bytes.extend(address_bytes(*address));
        }
    }
}

/// Returns an address as it stands in messages: 16 bytes of IPv6, IPv4 mapped into it, and the port.
pub(crate) fn address_bytes(address: SocketAddr) -> [u8; ADDRESS_LENGTH] {
    let ip = match address.ip() {
        IpAddr::V4(ip) => ip.to_ipv6_mapped(),
        IpAddr::V6(ip) => ip,
    };
    let mut bytes = [0; ADDRESS_LENGTH];
    let (ip_bytes, port_bytes) = bytes.split_at_mut(16);
    ip_bytes.copy_from_slice(&ip.octets());
    port_bytes.copy_from_slice(&address.port().to_be_bytes());
    bytes
}

/// What is left of a body.
struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], MessageError> {
        let (head, rest) = self.0.split_first_chunk().ok_or(MessageError::Short)?;
        self.0 = rest;
        Ok(*head)
    }

    fn key(&mut self) -> Result<DiscoPublic, MessageError> {
        self.take().map(DiscoPublic::from_bytes)
    }

    fn handshake(&mut self) -> Result<Handshake, MessageError> {
        Ok(Handshake {
            vni: u32::from_be_bytes(self.take()?),
            generation: u32::from_be_bytes(self.take()?),
            remote: self.key()?,
            challenge: self.take()?,
        })
    }

    fn endpoint(&mut self) -> Result<EndpointRecord, MessageError> {
        Ok(EndpointRecord {
            server: self.key()?,
            clients: [self.key()?, self.key()?],
            lamport_id: u64::from_be_bytes(self.take()?),
            vni: u32::from_be_bytes(self.take()?),
            bind_lifetime: u64::from_be_bytes(self.take()?),
            steady_state_lifetime: u64::from_be_bytes(self.take()?),
            addresses: self.addresses()?,
        })
    }

    fn addresses(&mut self) -> Result<Vec<SocketAddr>, MessageError> {
        let (addresses, rest) = self.0.as_chunks::<ADDRESS_LENGTH>();
        if !(1..=MAX_ADDRESSES).contains(&addresses.len()) || !rest.is_empty() {
            return Err(MessageError::Addresses);
        }
        addresses.iter().map(|bytes| Reader(bytes).address()).collect()
    }

    fn address(&mut self) -> Result<SocketAddr, MessageError> {
        let ip = Ipv6Addr::from(self.take::<16>()?).to_canonical();
        Ok(SocketAddr::new(ip, u16::from_be_bytes(self.take()?)))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key() -> impl Strategy<Value = DiscoPublic> {
        any::<[u8; 32]>().prop_map(DiscoPublic::from_bytes)
    }

    fn handshake() -> impl Strategy<Value = Handshake> {
        (any::<u32>(), any::<u32>(), key(), any::<[u8; 32]>()).prop_map(
            |(vni, generation, remote, challenge)| Handshake { vni, generation, remote, challenge },
        )
    }

    fn address() -> impl Strategy<Value = SocketAddr> {
        (any::<IpAddr>(), any::<u16>())
            .prop_map(|(ip, port)| SocketAddr::new(ip.to_canonical(), port))
    }

    prop_compose! {
        fn endpoint()(
            server in key(),
            clients in [key(), key()],
            (lamport_id, vni) in any::<(u64, u32)>(),
            (bind_lifetime, steady_state_lifetime) in any::<(u64, u64)>(),
            addresses in prop::collection::vec(address(), 1..=MAX_ADDRESSES),
        ) -> EndpointRecord {
            EndpointRecord {
                server, clients, lamport_id, vni, bind_lifetime, steady_state_lifetime, addresses,
            }
        }
    }

    fn message() -> impl Strategy<Value = Message> {
        prop_oneof![
            any::<[u8; 12]>().prop_map(|transaction| Message::Ping { transaction }),
            (any::<[u8; 12]>(), address())
                .prop_map(|(transaction, source)| Message::Pong { transaction, source }),
            handshake().prop_map(Message::Bind),
            handshake().prop_map(Message::Challenge),
            handshake().prop_map(Message::Answer),
            endpoint().prop_map(Message::CallMeMaybeVia),
            ([key(), key()], any::<u32>()).prop_map(|(clients, generation)| {
                Message::AllocateRequest(AllocateRequest { clients, generation })
            }),
            (any::<u32>(), endpoint()).prop_map(|(generation, endpoint)| {
                Message::AllocateResponse(AllocateResponse { generation, endpoint })
            }),
        ]
    }

    proptest! {
        #[test]
        fn messages_round_trip(message in message()) {
            prop_assert_eq!(Message::decode(&message.encode()), Ok(message));
        }

        #[test]
        fn a_message_cut_short_is_refused(message in message(), cut in 1usize..40) {
            let bytes = message.encode();
            let cut = &bytes[..bytes.len().saturating_sub(cut)];
            match Message::decode(cut) {
                Err(MessageError::Short | MessageError::Addresses) => {}
                // Only whole addresses can be missing.
                Ok(read) => prop_assert_eq!(read.encode(), cut),
                Err(other) => prop_assert!(false, "{}", other),
            }
        }

        #[test]
        fn any_bytes_are_read_without_harm(
            kind in 0u8..11,
            version in 0u8..2,
            body in prop::collection::vec(any::<u8>(), 0..400),
        ) {
            let bytes = [&[kind, version], &body[..]].concat();
            if let Ok(message) = Message::decode(&bytes) {
                prop_assert!(bytes[2..].starts_with(&message.encode()[2..]));
            }
        }
    }

    #[test]
    fn what_comes_after_a_message_is_ignored_and_other_messages_are_named() {
        let remote = DiscoPublic::from_bytes([1; 32]);
        let bind = Handshake { vni: 1, generation: 2, remote, challenge: [3; 32] };
        let mut bytes = Message::Bind(bind).encode();
        bytes.push(9);
        bytes[1] = 7;
        assert_eq!(Message::decode(&bytes), Ok(Message::Bind(bind)));
        assert_eq!(Message::decode(&[3, 0, 5]), Err(MessageError::Type(3)));
        assert_eq!(Message::decode(&[8, 1]), Err(MessageError::Version(1)));
        assert_eq!(Message::decode(&[8]), Err(MessageError::Short));
    }

    #[test]
    fn an_endpoint_has_at_least_one_address_and_not_too_many() {
        let endpoint = |count: usize| EndpointRecord {
            server: DiscoPublic::from_bytes([1; 32]),
            clients: [DiscoPublic::from_bytes([2; 32]), DiscoPublic::from_bytes([3; 32])],
            lamport_id: 1,
            vni: 2,
            bind_lifetime: 3,
            steady_state_lifetime: 4,
            addresses: vec!["192.0.2.1:5".parse().unwrap(); count],
        };
        let decoded = |count| Message::decode(&Message::CallMeMaybeVia(endpoint(count)).encode());
        assert_eq!(decoded(0), Err(MessageError::Addresses));
        assert!(decoded(1).is_ok());
        let mut bytes = Message::CallMeMaybeVia(endpoint(MAX_ADDRESSES + 1)).encode();
        assert!(Message::decode(&bytes).is_ok(), "the rest is left out");
        bytes.extend(address_bytes("192.0.2.1:6".parse().unwrap()));
        assert_eq!(Message::decode(&bytes), Err(MessageError::Addresses));
    }
}
