//! One UDP socket of the STUN server.

use std::{
    io::{self, IoSliceMut},
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use nix::sys::socket::{setsockopt, sockopt::UdpGroSegment};
use quinn_udp::{BATCH_SIZE, RecvMeta, Transmit, UdpSocketState};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::{io::Interest, net::UdpSocket, task::yield_now, time::sleep};

use super::{
    StunCounters,
    respond::{DATAGRAM_MAX, REPLY_MAX, respond},
};

/// Room for a burst of requests while the worker is busy elsewhere; the kernel grants what it may.
const RECEIVE_BUFFER: usize = 4 << 20;
/// How long to leave a socket alone that cannot be read.
const AFTER_ERROR: Duration = Duration::from_millis(100);

/// A bound socket, told by the kernel which local address each datagram came to.
pub(super) struct StunSocket {
    socket: UdpSocket,
    state: UdpSocketState,
}

impl StunSocket {
    /// Binds `address`; an IPv6 socket serves IPv6 only.
    pub(super) fn bind(address: SocketAddr) -> io::Result<Self> {
        let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
        if address.is_ipv6() {
            socket.set_only_v6(true)?;
        }
        socket.set_nonblocking(true)?;
        socket.bind(&address.into())?;
        // A smaller buffer than wished for is no reason to fail.
        let _ = socket.set_recv_buffer_size(RECEIVE_BUFFER);
        let state = UdpSocketState::new((&socket).into())?;
        // Merged datagrams would be of no use here, and generic XDP, which comes after the merging,
        // could answer none of them.
        let _ = setsockopt(&socket, UdpGroSegment, &false);
        let socket = UdpSocket::from_std(socket.into())?;
        Ok(Self { socket, state })
    }

    pub(super) fn local_address(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    /// Answers requests until dropped.
    pub(super) async fn serve(&self, counters: &StunCounters) {
        let mut buffers = vec![[0; DATAGRAM_MAX]; BATCH_SIZE];
        let mut metas = [RecvMeta::default(); BATCH_SIZE];
        loop {
            match self.receive(&mut buffers, &mut metas).await {
                Ok(count) => {
                    for (buffer, meta) in buffers.iter_mut().zip(&metas).take(count) {
                        self.answer(buffer, meta, counters);
                    }
                    // Under a flood the socket is always readable; others have to run, too.
                    if count == BATCH_SIZE {
                        yield_now().await;
                    }
                }
                Err(error) => {
                    counters.read_error();
                    tracing::debug!(%error, "cannot read STUN requests");
                    sleep(AFTER_ERROR).await;
                }
            }
        }
    }

    async fn receive(
        &self,
        buffers: &mut [[u8; DATAGRAM_MAX]],
        metas: &mut [RecvMeta],
    ) -> io::Result<usize> {
        let mut slices: Vec<_> = buffers.iter_mut().map(|it| IoSliceMut::new(it)).collect();
        self.socket
            .async_io(Interest::READABLE, || {
                self.state.recv((&self.socket).into(), &mut slices, metas)
            })
            .await
    }

    fn answer(&self, buffer: &mut [u8; DATAGRAM_MAX], meta: &RecvMeta, counters: &StunCounters) {
        let mut reply = [0; REPLY_MAX];
        let asked_at_one_host = meta.dst_ip.is_none_or(is_one_host);
        let datagram = buffer.get_mut(..meta.len).unwrap_or_default();
        let length = match respond(datagram, meta.addr, &mut reply) {
            Ok(length) if asked_at_one_host => length,
            Ok(_) | Err(_) => return counters.not_stun(),
        };
        counters.valid(meta.addr.is_ipv4());
        let transmit = Transmit {
            destination: meta.addr,
            ecn: None,
            contents: reply.get(..length).unwrap_or_default(),
            segment_size: None,
            // From the address that was asked, whatever the route would prefer.
            src_ip: meta.dst_ip,
        };
        // A full send queue loses the answer, as the network might; the client asks again.
        match self.state.try_send((&self.socket).into(), &transmit) {
            Ok(()) => counters.success(),
            Err(error) => {
                tracing::debug!(%error, to = %meta.addr, "cannot send a STUN answer");
                counters.write_error();
            }
        }
    }
}

/// Tells whether an address that was asked is one host's, and not a group's.
fn is_one_host(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => !v4.is_multicast() && !v4.is_broadcast(),
        IpAddr::V6(v6) => !v6.is_multicast(),
    }
}
