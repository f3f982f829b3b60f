//! One UDP socket.

use std::{
    io::{self, IoSlice, IoSliceMut},
    net::{IpAddr, SocketAddr},
    os::fd::{AsFd, AsRawFd as _, BorrowedFd},
    sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed},
};

use nix::{
    cmsg_space,
    errno::Errno,
    sys::socket::{
        ControlMessage, ControlMessageOwned, MsgFlags, MultiHeaders, RecvMsg, SockaddrStorage,
        recvmmsg, sendmsg, setsockopt, sockopt,
    },
};
use socket2::{Domain, Protocol, Type};

use super::{Arrival, Inbox, Route};

/// Room for a burst while the thread is busy elsewhere, each way. What Tailscale's relay asks for.
const BUFFER: usize = 7 << 20;

/// Whether the kernel may merge what is received and we may merge what is sent.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Merging {
    /// Each datagram comes by itself. Generic XDP runs after the merging and can do nothing with merged
    /// datagrams; where it serves a port, its socket must not ask for them.
    Off,
    /// Datagrams of one sender come together when the kernel finds them together (UDP GRO).
    On,
}

/// A bound UDP socket, non-blocking, that knows which local address each datagram came to.
pub struct Socket {
    inner: socket2::Socket,
    local: SocketAddr,
    /// Cleared when the way out cannot segment.
    segments: AtomicBool,
    /// Datagrams that found the receive buffer full, as the kernel counts them, wrapping: those it has told of, and those that
    /// [`Socket::take_overruns`] has.
    overruns: AtomicU32,
    overruns_taken: AtomicU32,
}

impl Socket {
    /// Binds `address`; an IPv6 socket serves IPv6 only.
    ///
    /// # Errors
    ///
    /// What the kernel says.
    pub fn bind(address: SocketAddr, merging: Merging) -> io::Result<Self> {
        Self::bind_shared(address, merging, None)
    }

    /// Binds the address of `first` once more; the kernel then spreads senders over both. `first` itself
    /// was bound alone, so that a port another process has is still an error.
    ///
    /// # Errors
    ///
    /// What the kernel says.
    pub fn bind_beside(first: &Self, merging: Merging) -> io::Result<Self> {
        first.inner.set_reuse_port(true)?;
        Self::bind_shared(first.local, merging, Some(first))
    }

    fn bind_shared(
        address: SocketAddr,
        merging: Merging,
        beside: Option<&Self>,
    ) -> io::Result<Self> {
        let domain = Domain::for_address(address);
        let socket = socket2::Socket::new(domain, Type::DGRAM, Some(Protocol::UDP))?;
        if address.is_ipv6() {
            socket.set_only_v6(true)?;
        }
        if beside.is_some() {
            socket.set_reuse_port(true)?;
        }
        socket.set_nonblocking(true)?;
        match address {
            SocketAddr::V4(_) => {
                setsockopt(&socket, sockopt::Ipv4PacketInfo, &true)?;
                setsockopt(&socket, sockopt::IpRecvTos, &true)?;
                setsockopt(&socket, sockopt::Ipv4RecvTtl, &true)?;
            }
            SocketAddr::V6(_) => {
                setsockopt(&socket, sockopt::Ipv6RecvPacketInfo, &true)?;
                setsockopt(&socket, sockopt::Ipv6RecvTClass, &true)?;
                setsockopt(&socket, sockopt::Ipv6RecvHopLimit, &true)?;
            }
        }
        // A kernel that cannot merge does without, and a smaller buffer than wished for will do.
        let _ = setsockopt(&socket, sockopt::UdpGroSegment, &(merging == Merging::On));
        let _ = setsockopt(&socket, sockopt::RxqOvfl, &1);
        if setsockopt(&socket, sockopt::RcvBufForce, &BUFFER).is_err() {
            let _ = socket.set_recv_buffer_size(BUFFER);
        }
        if setsockopt(&socket, sockopt::SndBufForce, &BUFFER).is_err() {
            let _ = socket.set_send_buffer_size(BUFFER);
        }
        socket.bind(&address.into())?;
        let local = socket.local_addr()?.as_socket().ok_or(io::ErrorKind::Unsupported)?;
        Ok(Self {
            inner: socket,
            local,
            segments: AtomicBool::new(true),
            overruns: AtomicU32::new(0),
            overruns_taken: AtomicU32::new(0),
        })
    }

    /// Returns what the socket is bound to.
    #[must_use]
    pub fn local_address(&self) -> SocketAddr {
        self.local
    }

    /// Receives at most `most` buffers of what is there, and returns how many.
    ///
    /// # Errors
    ///
    /// `WouldBlock` when there is nothing; else what the kernel says.
    pub fn receive(&self, inbox: &mut Inbox, most: usize) -> io::Result<usize> {
        let mut arrivals = std::mem::take(&mut inbox.arrivals);
        arrivals.clear();
        let received = self.receive_into(inbox, most, &mut arrivals);
        inbox.arrivals = arrivals;
        received.map_err(io::Error::from)?;
        Ok(inbox.arrivals.len())
    }

    fn receive_into(
        &self,
        inbox: &mut Inbox,
        most: usize,
        arrivals: &mut Vec<Arrival>,
    ) -> nix::Result<()> {
        // Made anew each time: the kernel writes its own lengths over those of the headers.
        let space = cmsg_space!(libc::in6_pktinfo, libc::c_int, libc::c_int, libc::c_int, u32);
        let mut headers = MultiHeaders::<SockaddrStorage>::preallocate(most, Some(space));
        let mut slices: Vec<_> =
            inbox.buffers().take(most).map(|buffer| [IoSliceMut::new(buffer)]).collect();
        let flags = MsgFlags::MSG_DONTWAIT;
        let descriptor = self.inner.as_raw_fd();
        let messages = recvmmsg(descriptor, &mut headers, slices.iter_mut(), flags, None)?;
        arrivals.extend(messages.map(|message| self.arrival(&message)));
        Ok(())
    }

    fn arrival(&self, message: &RecvMsg<'_, '_, SockaddrStorage>) -> Arrival {
        let mut arrival = Arrival {
            from: message.address.as_ref().and_then(socket_address).unwrap_or(unknown(self.local)),
            to: None,
            interface: 0,
            hop_limit: None,
            traffic_class: 0,
            stride: message.bytes,
            length: message.bytes,
            truncated: message.flags.contains(MsgFlags::MSG_TRUNC),
        };
        // An error means that the space was too small, which it is not.
        for control in message.cmsgs().into_iter().flatten() {
            if let ControlMessageOwned::RxqOvfl(overruns) = control {
                self.overruns.store(overruns, Relaxed);
            }
            note(&mut arrival, &control);
        }
        if arrival.to.is_none() && !self.local.ip().is_unspecified() {
            arrival.to = Some(self.local.ip());
        }
        arrival
    }

    /// Returns how many buffers, each a datagram or several merged ones, have found the receive buffer full since this was
    /// last asked, as far as what was received later tells. For the one thread that receives.
    pub fn take_overruns(&self) -> u32 {
        let overruns = self.overruns.load(Relaxed);
        overruns.wrapping_sub(self.overruns_taken.swap(overruns, Relaxed))
    }

    /// Sends one datagram, or several of `segment` bytes each but the last, which may be shorter.
    ///
    /// # Errors
    ///
    /// What the kernel says. None concerns the socket as a whole.
    pub fn send(
        &self,
        route: &Route,
        slices: &[IoSlice<'_>],
        segment: Option<u16>,
    ) -> nix::Result<()> {
        let destination = SockaddrStorage::from(route.destination);
        let hop_limit = route.hop_limit.map(libc::c_int::from);
        let class4 = route.traffic_class;
        let class6 = i32::from(route.traffic_class);
        let mut info4 = None;
        let mut info6 = None;
        let mut controls = Controls::new();
        match route.source {
            Some(IpAddr::V4(v4)) => {
                let address = libc::in_addr { s_addr: u32::from_ne_bytes(v4.octets()) };
                let any = libc::in_addr { s_addr: 0 };
                let info =
                    libc::in_pktinfo { ipi_ifindex: 0, ipi_spec_dst: address, ipi_addr: any };
                controls.push(ControlMessage::Ipv4PacketInfo(info4.insert(info)));
            }
            Some(IpAddr::V6(v6)) => {
                let address = libc::in6_addr { s6_addr: v6.octets() };
                let info = libc::in6_pktinfo { ipi6_addr: address, ipi6_ifindex: 0 };
                controls.push(ControlMessage::Ipv6PacketInfo(info6.insert(info)));
            }
            None => {}
        }
        let is_ipv4 = route.destination.is_ipv4();
        if let Some(hop_limit) = &hop_limit {
            controls.push(if is_ipv4 {
                ControlMessage::Ipv4Ttl(hop_limit)
            } else {
                ControlMessage::Ipv6HopLimit(hop_limit)
            });
        }
        if route.traffic_class != 0 {
            controls.push(if is_ipv4 {
                ControlMessage::Ipv4Tos(&class4)
            } else {
                ControlMessage::Ipv6TClass(&class6)
            });
        }
        if let Some(segment) = &segment {
            controls.push(ControlMessage::UdpGsoSegments(segment));
        }
        let descriptor = self.inner.as_raw_fd();
        let flags = MsgFlags::MSG_DONTWAIT;
        loop {
            match sendmsg(descriptor, slices, controls.as_slice(), flags, Some(&destination)) {
                Err(Errno::EINTR) => {}
                other => return other.map(drop),
            }
        }
    }

    /// Tells whether several datagrams may be given to [`Socket::send`] at once.
    #[must_use]
    pub fn segments(&self) -> bool {
        self.segments.load(Relaxed)
    }

    /// Notes that the way out cannot segment.
    pub(super) fn stop_segmenting(&self) {
        self.segments.store(false, Relaxed);
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inner.as_fd()
    }
}

/// The few control messages of one send; [`sendmsg`] takes them as a slice.
struct Controls<'a> {
    messages: [ControlMessage<'a>; 4],
    count: usize,
}

impl<'a> Controls<'a> {
    fn new() -> Self {
        Self { messages: [ControlMessage::UdpGsoSegments(&0); 4], count: 0 }
    }

    fn push(&mut self, message: ControlMessage<'a>) {
        if let Some(place) = self.messages.get_mut(self.count) {
            *place = message;
            self.count += 1;
        }
    }

    fn as_slice(&self) -> &[ControlMessage<'a>] {
        self.messages.get(..self.count).unwrap_or_default()
    }
}

/// The sender of a datagram that has none, which the kernel does not deliver; nothing is sent to it.
fn unknown(local: SocketAddr) -> SocketAddr {
    let unspecified = match local {
        SocketAddr::V4(_) => IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED),
        SocketAddr::V6(_) => IpAddr::V6(std::net::Ipv6Addr::UNSPECIFIED),
    };
    SocketAddr::new(unspecified, 0)
}

fn socket_address(storage: &SockaddrStorage) -> Option<SocketAddr> {
    let v4 = || storage.as_sockaddr_in().map(|address| SocketAddr::V4((*address).into()));
    let v6 = || storage.as_sockaddr_in6().map(|address| SocketAddr::V6((*address).into()));
    v4().or_else(v6)
}

#[expect(clippy::wildcard_enum_match_arm, reason = "other messages are not asked for")]
fn note(arrival: &mut Arrival, control: &ControlMessageOwned) {
    match control {
        ControlMessageOwned::Ipv4PacketInfo(info) => {
            arrival.to = Some(IpAddr::from(info.ipi_addr.s_addr.to_ne_bytes()));
            arrival.interface = u32::try_from(info.ipi_ifindex).unwrap_or(0);
        }
        ControlMessageOwned::Ipv6PacketInfo(info) => {
            arrival.to = Some(IpAddr::from(info.ipi6_addr.s6_addr));
            arrival.interface = info.ipi6_ifindex;
        }
        ControlMessageOwned::Ipv4Ttl(limit) | ControlMessageOwned::Ipv6HopLimit(limit) => {
            arrival.hop_limit = u8::try_from(*limit).ok();
        }
        ControlMessageOwned::Ipv4Tos(class) => arrival.traffic_class = *class,
        ControlMessageOwned::Ipv6TClass(class) => {
            arrival.traffic_class = u8::try_from(*class).unwrap_or(0);
        }
        ControlMessageOwned::UdpGroSegments(stride) => {
            arrival.stride = usize::try_from(*stride).unwrap_or(arrival.length);
        }
        _ => {}
    }
}
