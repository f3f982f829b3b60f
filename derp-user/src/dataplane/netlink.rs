//! Questions to the kernel over netlink, each answered before the call returns.
//!
//! The kernel handles a request while it is being sent, so nothing here waits. Notices, which come unasked,
//! are [`Watcher`](super::Watcher)'s, on a socket of their own: when they overflow it, no answer is lost.

use std::io;

use rtnetlink::{
    packet_core::{
        NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkBuffer, NetlinkMessage, NetlinkPayload,
    },
    packet_route::RouteNetlinkMessage,
    sys::{
        Socket, SocketAddr,
        protocols::{NETLINK_GENERIC, NETLINK_ROUTE},
    },
};

/// Most messages in one answer; a host has fewer links and addresses.
const MOST_MESSAGES: usize = 1 << 17;
/// A dump during which something changed is asked for again this often.
const ATTEMPTS: usize = 5;

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_DUMP_INTR: u16 = 0x10;

/// A netlink socket in the network namespace of the thread that opened it.
pub(super) struct Netlink {
    socket: Socket,
    sequence: u32,
}

/// One message of an answer.
pub(super) struct Reply {
    bytes: Vec<u8>,
    flags: u16,
}

impl Reply {
    /// Returns what follows the netlink header.
    pub(super) fn payload(&self) -> &[u8] {
        self.bytes.get(HEADER..).unwrap_or_default()
    }
}

/// Bytes of a netlink header.
const HEADER: usize = 16;

impl Netlink {
    /// Opens a socket for links, addresses, routes and neighbours.
    ///
    /// # Errors
    ///
    /// What the kernel says.
    pub(super) fn route() -> io::Result<Self> {
        Self::open(NETLINK_ROUTE)
    }

    /// Opens a socket for generic netlink.
    ///
    /// # Errors
    ///
    /// What the kernel says.
    pub(super) fn generic() -> io::Result<Self> {
        Self::open(NETLINK_GENERIC)
    }

    fn open(protocol: isize) -> io::Result<Self> {
        let mut socket = Socket::new(protocol)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        socket.set_non_blocking(true)?;
        Ok(Self { socket, sequence: 0 })
    }

    /// Asks for one thing, or for something to be done.
    ///
    /// # Errors
    ///
    /// What the kernel says.
    pub(super) fn ask(
        &mut self,
        message: RouteNetlinkMessage,
        flags: u16,
    ) -> io::Result<Vec<RouteNetlinkMessage>> {
        let replies = self.exchange(serialize(message, flags | NLM_F_ACK | NLM_F_REQUEST))?;
        Ok(parse(&replies))
    }

    /// Asks for all there are.
    ///
    /// # Errors
    ///
    /// What the kernel says.
    pub(super) fn dump(
        &mut self,
        message: RouteNetlinkMessage,
    ) -> io::Result<Vec<RouteNetlinkMessage>> {
        let request = serialize(message, NLM_F_DUMP | NLM_F_REQUEST);
        let mut replies = self.exchange(request.clone())?;
        for _ in 1..ATTEMPTS {
            if replies.iter().all(|reply| reply.flags & NLM_F_DUMP_INTR == 0) {
                break;
            }
            replies = self.exchange(request.clone())?;
        }
        Ok(parse(&replies))
    }

    /// Sends a request as it is, except for its sequence number, and returns the answer.
    ///
    /// # Errors
    ///
    /// What the kernel says.
    pub(super) fn exchange(&mut self, mut request: Vec<u8>) -> io::Result<Vec<Reply>> {
        self.sequence = self.sequence.wrapping_add(1);
        let place = request.get_mut(8..12).ok_or(io::ErrorKind::InvalidInput)?;
        place.copy_from_slice(&self.sequence.to_ne_bytes());
        self.socket.send(&request, 0)?;
        let mut replies = Vec::new();
        loop {
            let (datagram, _) = self.socket.recv_from_full()?;
            let mut rest = datagram.as_slice();
            while !rest.is_empty() {
                let message = NetlinkBuffer::new_checked(rest).map_err(io::Error::other)?;
                let length = usize::try_from(message.length()).unwrap_or(usize::MAX);
                let (bytes, after) = rest.split_at(length.min(rest.len()));
                // Messages begin at multiples of four bytes.
                rest = after.get(length.next_multiple_of(4) - length..).unwrap_or_default();
                if message.sequence_number() != self.sequence {
                    continue;
                }
                match message.message_type() {
                    NLMSG_ERROR | NLMSG_DONE => {
                        return match code(bytes) {
                            0 => Ok(replies),
                            code => Err(io::Error::from_raw_os_error(code.saturating_neg())),
                        };
                    }
                    _ => replies.push(Reply { bytes: bytes.to_vec(), flags: message.flags() }),
                }
                if replies.len() > MOST_MESSAGES {
                    return Err(io::Error::other("the kernel's answer has no end"));
                }
            }
        }
    }
}

/// Returns the error number, which is negative, of an acknowledgement or the end of a dump.
fn code(message: &[u8]) -> i32 {
    let code = message.get(HEADER..HEADER + 4).and_then(|bytes| bytes.try_into().ok());
    code.map_or(0, i32::from_ne_bytes)
}

fn serialize(message: RouteNetlinkMessage, flags: u16) -> Vec<u8> {
    let mut message = NetlinkMessage::from(message);
    message.header.flags = flags;
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    bytes
}

fn parse(replies: &[Reply]) -> Vec<RouteNetlinkMessage> {
    let mut messages = Vec::with_capacity(replies.len());
    for reply in replies {
        match NetlinkMessage::<RouteNetlinkMessage>::deserialize(&reply.bytes) {
            Ok(message) => {
                if let NetlinkPayload::InnerMessage(inner) = message.payload {
                    messages.push(inner);
                }
            }
            // Something newer than the parser is no reason to miss the rest.
            Err(error) => tracing::debug!(%error, "netlink: message skipped"),
        }
    }
    messages
}

#[cfg(test)]
mod tests {
    use rtnetlink::packet_route::link::LinkMessage;

    use super::*;

    #[test]
    fn links_can_be_dumped_and_one_asked_for() {
        let mut netlink = Netlink::route().expect("socket");
        let all = netlink.dump(RouteNetlinkMessage::GetLink(LinkMessage::default()));
        assert!(!all.expect("links").is_empty());
        let mut loopback = LinkMessage::default();
        loopback.header.index = 1;
        let one = netlink.ask(RouteNetlinkMessage::GetLink(loopback), 0).expect("loopback");
        assert_eq!(one.len(), 1);
    }

    #[test]
    fn an_error_has_its_number() {
        let mut netlink = Netlink::route().expect("socket");
        let mut nothing = LinkMessage::default();
        nothing.header.index = 0x7fff_fff0;
        let error = netlink.ask(RouteNetlinkMessage::GetLink(nothing), 0).expect_err("no link");
        assert_eq!(error.raw_os_error(), Some(libc::ENODEV));
    }
}
