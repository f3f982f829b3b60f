//! The userspace forwarder: the data plane where there is no kernel program, and for what that passes on.
//!
//! It owns the relay's UDP sockets. [`decide`] says what is done with a datagram, by the functions and
//! tables the kernel program uses; everything else here carries that out. A port may serve STUN too; the
//! [`Responder`] then answers as it does on ports of its own.
//!
//! Threads of its own do the work, asleep while there is none: a burst of relayed packets delays neither
//! the control runtime, on which flows are admitted, nor the workers that carry DERP. Each thread has one
//! socket per port and family; with several threads, the kernel spreads senders over them. All memory is
//! there from the start. [`Ports`] has them serve other ports; those that stay lose nothing by that.
//!
//! What a forwarded packet keeps: payload, boundaries, order within its flow and direction, DSCP and ECN.
//! Its hop limit falls by one. Its source becomes the address and port of this host that the other end
//! sends to. "Don't fragment" is not kept: userspace is not told of it. As for any socket, the kernel sets it
//! where the datagram fits the path's MTU and fragments the datagram where it does not.

mod decide;
mod notice;
mod ports;
mod shard;

use std::{
    io::{self, IoSlice},
    net::{IpAddr, SocketAddr},
    num::NonZeroUsize,
    sync::Arc,
    thread::JoinHandle,
};

pub use self::{
    decide::{Action, Delivery, Forward, Refusal, decide},
    notice::{ControlPacket, HandshakePacket, NOTICES, Notices, Stranger, StunAnswer},
    ports::{Ports, PreparedPorts},
};
use self::{
    ports::{Binding, Board},
    shard::Shard,
};
use crate::{
    flow::SharedMirror,
    stun::Responder,
    udp::{Merging, OwnTally, Route, SettingsCell, Socket, Tally, Totals},
};

/// Why the forwarder cannot start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ForwardError {
    /// The port is taken.
    #[error(
        "cannot relay UDP on {address}: the port is in use by another process \
         (`ss -ulpn` names it)"
    )]
    InUse {
        /// What was to be bound.
        address: SocketAddr,
    },
    /// The port needs a privilege.
    #[error("cannot relay UDP on {address}: ports below 1024 need root or CAP_NET_BIND_SERVICE")]
    Denied {
        /// What was to be bound.
        address: SocketAddr,
    },
    /// A socket could not be made or bound.
    #[error("cannot relay UDP on {address}: {source}")]
    Bind {
        /// What was to be bound.
        address: SocketAddr,
        /// What the kernel said.
        source: io::Error,
    },
    /// A thread could not be started.
    #[error("cannot start a thread that forwards UDP: {0}")]
    Thread(#[source] io::Error),
}

impl ForwardError {
    fn bind(address: SocketAddr, source: io::Error) -> Self {
        if source.kind() == io::ErrorKind::AddrInUse {
            Self::InUse { address }
        } else if source.kind() == io::ErrorKind::PermissionDenied {
            Self::Denied { address }
        } else {
            Self::Bind { address, source }
        }
    }
}

/// What is to be bound.
#[derive(Clone, Debug)]
pub struct ForwarderOptions {
    /// The address; `None` for every address of both families.
    pub host: Option<IpAddr>,
    /// The ports; what is served on each is in the settings. Port 0 takes any, the same for both families.
    pub ports: Vec<u16>,
    /// How many threads share the senders.
    pub threads: NonZeroUsize,
    /// [`Merging::Off`] where generic XDP serves these ports.
    pub merging: Merging,
}

/// Bound sockets that nobody reads yet.
pub struct Forwarder {
    board: Arc<Board>,
    binding: Binding,
    own: Arc<OwnTally>,
}

impl Forwarder {
    /// Binds what the options say. Each family has its own socket; a machine without IPv6 relays IPv4 only.
    ///
    /// # Errors
    ///
    /// When a socket cannot be bound.
    pub fn bind(options: &ForwarderOptions) -> Result<Self, ForwardError> {
        let ForwarderOptions { host, ports, threads, merging } = options;
        let binding = Binding { host: *host, threads: threads.get(), merging: *merging };
        let sockets = binding.bind(&ports.iter().copied().collect(), &[])?;
        let board = Board::new(sockets).map_err(|errno| ForwardError::Thread(errno.into()))?;
        Ok(Self { board: Arc::new(board), binding, own: Arc::default() })
    }

    /// Returns what is bound, port by port.
    #[must_use]
    pub fn local_addresses(&self) -> Vec<SocketAddr> {
        self.board.first().iter().map(|socket| socket.local_address()).collect()
    }

    /// Returns a way to send from the relay's ports.
    #[must_use]
    pub fn outlet(&self) -> Outlet {
        Outlet { board: Arc::clone(&self.board), own: Arc::clone(&self.own) }
    }

    /// Returns what has it serve other ports later.
    #[must_use]
    pub fn ports(&self) -> Ports {
        Ports::new(Arc::clone(&self.board), self.binding)
    }

    /// Forwards until dropped, by these tables and settings.
    ///
    /// # Errors
    ///
    /// When a thread cannot be started.
    pub fn start(
        self,
        tables: &SharedMirror,
        settings: &Arc<SettingsCell>,
        responder: &Arc<Responder>,
        notices: &Notices,
    ) -> Result<Running, ForwardError> {
        let board = self.board;
        let mut running = Running {
            board: Arc::clone(&board),
            threads: Vec::new(),
            tallies: Vec::new(),
            own: self.own,
        };
        for index in 0..board.threads() {
            let tally = Arc::new(Tally::default());
            running.tallies.push(Arc::clone(&tally));
            let shard = Shard::new(tables, settings, responder, notices, tally);
            let board = Arc::clone(&board);
            let thread = std::thread::Builder::new()
                .name(format!("udp-relay-{index}"))
                .spawn(move || shard.run(&board, index))
                .map_err(ForwardError::Thread)?;
            running.threads.push(thread);
        }
        Ok(running)
    }
}

/// A way to send from the relay's ports, for whoever answers control packets.
#[derive(Clone)]
pub struct Outlet {
    board: Arc<Board>,
    own: Arc<OwnTally>,
}

impl Outlet {
    /// Sends a datagram from an address and port of the relay; of the unspecified address, routing chooses.
    ///
    /// # Errors
    ///
    /// `AddrNotAvailable` when the relay has no such port in this family; else what the kernel says.
    pub fn send(&self, from: SocketAddr, to: SocketAddr, payload: &[u8]) -> io::Result<()> {
        let sockets = self.board.first();
        let index = socket_for(&sockets, from).ok_or(io::ErrorKind::AddrNotAvailable)?;
        let socket = sockets.get(index).ok_or(io::ErrorKind::AddrNotAvailable)?;
        let source = Some(from.ip()).filter(|ip| !ip.is_unspecified());
        let route = Route { destination: to, source, hop_limit: None, traffic_class: 0 };
        match socket.send(&route, &[IoSlice::new(payload)], None) {
            Ok(()) => {
                self.own.sent();
                Ok(())
            }
            Err(errno) => {
                self.own.send_failed(errno.into());
                Err(errno.into())
            }
        }
    }
}

/// Finds the socket that can send from an address.
fn socket_for(sockets: &[Arc<Socket>], from: SocketAddr) -> Option<usize> {
    sockets.iter().position(|socket| {
        let local = socket.local_address();
        local.port() == from.port() && local.is_ipv4() == from.is_ipv4()
    })
}

/// A forwarder at work, until dropped.
pub struct Running {
    board: Arc<Board>,
    threads: Vec<JoinHandle<()>>,
    tallies: Vec<Arc<Tally>>,
    own: Arc<OwnTally>,
}

impl Running {
    /// Returns the counts by family and reason, now and whenever it is called later.
    pub fn totals(&self) -> impl Fn() -> Totals + Send + Sync + use<> {
        let (tallies, own) = (self.tallies.clone(), Arc::clone(&self.own));
        move || {
            let mut totals = Totals::default();
            tallies.iter().for_each(|tally| tally.add_to(&mut totals));
            own.add_to(&mut totals);
            totals
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.board.end();
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a thread that forwards UDP has panicked");
            }
        }
    }
}
