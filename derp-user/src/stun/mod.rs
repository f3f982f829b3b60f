//! The userspace STUN server, with the same decisions as the XDP program in front of it.
//!
//! It answers whatever the program passes up, or everything where there is none. Like derper it answers
//! Binding requests silently or not at all. Unlike derper it serves any RFC 8489 client (SOFTWARE and
//! FINGERPRINT may be absent), refuses what it does not understand with the RFC's error 420, reports a
//! port it cannot bind, and tells an IPv4 client an IPv4 address.

pub(crate) mod client;
mod counters;
#[cfg(any(test, feature = "fuzzing"))]
#[allow(clippy::unwrap_used, reason = "these are tests")]
pub(crate) mod fuzz;
mod mapping;
mod respond;
mod responder;

use std::{
    io,
    net::{IpAddr, SocketAddr},
    os::fd::AsFd as _,
    sync::Arc,
    time::Duration,
};

use derp_common::Settings;
use futures_util::future::join_all;
use tokio::{io::Interest, net::UdpSocket, sync::Notify, task::yield_now, time::sleep};

use self::respond::DATAGRAM_MAX;
pub use self::{
    counters::StunCounters,
    mapping::{StunTarget, StunTargetError},
    responder::Responder,
};
pub(crate) use self::{
    mapping::{MappingSurvey, PERIOD, VARIATION},
    responder::is_one_host,
};
use crate::udp::{
    BATCH, Inbox, Merging, SettingsCell, SettingsView, Socket, Tally, Totals, bind_families, now,
};

/// How long to leave a socket alone that cannot be read.
const AFTER_ERROR: Duration = Duration::from_millis(100);

/// Why the STUN server cannot start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StunError {
    /// The port is taken.
    #[error(
        "cannot answer STUN on {address}: the UDP port is in use by another process \
         (`ss -ulpn` names it); choose another with -stun-port"
    )]
    InUse {
        /// What was to be bound.
        address: SocketAddr,
    },
    /// The socket could not be made or bound.
    #[error("cannot answer STUN on {address}: {source}")]
    Bind {
        /// What was to be bound.
        address: SocketAddr,
        /// What the kernel said.
        source: io::Error,
    },
}

impl StunError {
    fn new(address: SocketAddr, source: io::Error) -> Self {
        if source.kind() == io::ErrorKind::AddrInUse {
            Self::InUse { address }
        } else {
            Self::Bind { address, source }
        }
    }
}

/// One socket of the server.
struct StunPort {
    socket: Arc<Socket>,
    /// The same socket, for the runtime to wait on.
    readiness: UdpSocket,
    tally: Arc<Tally>,
}

impl StunPort {
    fn new(socket: Socket) -> io::Result<Self> {
        let descriptor = socket.as_fd().try_clone_to_owned()?;
        let readiness = UdpSocket::from_std(descriptor.into())?;
        Ok(Self { socket: Arc::new(socket), readiness, tally: Arc::default() })
    }
}

/// A bound STUN server, for ports that nothing else is served on. Where a port is also a relay's, the
/// forwarder has its socket and answers by the same [`Responder`].
pub struct StunServer {
    ports: Vec<StunPort>,
    responder: Arc<Responder>,
    settings: Arc<SettingsCell>,
    retired: Arc<Notify>,
}

/// The sockets of a STUN server, for a forwarder that is to serve their port, too.
#[derive(Clone)]
pub struct StunSockets {
    sockets: Vec<Arc<Socket>>,
    retired: Arc<Notify>,
}

impl StunSockets {
    /// Returns them. The server goes on reading them.
    #[must_use]
    pub fn sockets(&self) -> &[Arc<Socket>] {
        &self.sockets
    }

    /// Has the server end; whoever else has its sockets goes on with them. For good.
    pub fn retire(self) {
        self.retired.notify_one();
    }
}

impl StunServer {
    /// Binds `port` on `host`, or on every address of both families.
    ///
    /// Each family has its own socket. Port 0 takes any port, the same for both. A machine without IPv6
    /// serves IPv4 only. Must be called on a Tokio runtime with I/O.
    ///
    /// # Errors
    ///
    /// When a socket cannot be bound.
    pub fn bind(host: Option<IpAddr>, port: u16) -> Result<Self, StunError> {
        let sockets = bind_families(host, port, Merging::Off, "STUN is answered")
            .map_err(|(address, error)| StunError::new(address, error))?;
        let port = sockets.first().map_or(port, |socket| socket.local_address().port());
        let port_of = |socket: Socket| {
            let address = socket.local_address();
            StunPort::new(socket).map_err(|error| StunError::new(address, error))
        };
        let ports = sockets.into_iter().map(port_of).collect::<Result<_, _>>()?;
        let settings = Arc::new(SettingsCell::new(Settings::new(port)));
        Ok(Self { ports, responder: Arc::default(), settings, retired: Arc::default() })
    }

    /// Has the server obey these settings: whether requests are shed, and how many a source may make.
    #[must_use]
    pub fn with_settings(self, settings: Arc<SettingsCell>) -> Self {
        Self { settings, ..self }
    }

    /// Returns what the server is bound to.
    #[must_use]
    pub fn local_addresses(&self) -> Vec<SocketAddr> {
        self.ports.iter().map(|port| port.socket.local_address()).collect()
    }

    /// Returns its sockets, by which a forwarder may take its place.
    #[must_use]
    pub fn sockets(&self) -> StunSockets {
        let sockets = self.ports.iter().map(|port| Arc::clone(&port.socket)).collect();
        StunSockets { sockets, retired: Arc::clone(&self.retired) }
    }

    /// Returns what answers, for others that answer STUN: they count together, and a source has one
    /// allowance.
    #[must_use]
    pub fn responder(&self) -> Arc<Responder> {
        Arc::clone(&self.responder)
    }

    /// Returns the counters, which stay valid after the server is gone.
    #[must_use]
    pub fn counters(&self) -> Arc<StunCounters> {
        self.responder.counters()
    }

    /// Returns the counts by family and reason, now and whenever it is called later.
    pub fn totals(&self) -> impl Fn() -> Totals + Send + Sync + use<> {
        let tallies: Vec<_> = self.ports.iter().map(|port| Arc::clone(&port.tally)).collect();
        move || {
            let mut totals = Totals::default();
            tallies.iter().for_each(|tally| tally.add_to(&mut totals));
            totals
        }
    }

    /// Answers requests until dropped or [retired](StunSockets::retire). Any Tokio runtime with I/O and time does,
    /// current-thread included.
    pub async fn run(self) {
        tokio::select! {
            biased;
            () = self.retired.notified() => {}
            _ = join_all(self.ports.iter().map(|port| self.serve(port))) => {}
        }
    }

    async fn serve(&self, port: &StunPort) {
        let mut inbox = Inbox::with_size(DATAGRAM_MAX);
        let mut settings = SettingsView::new(&self.settings);
        loop {
            let receive = || port.socket.receive(&mut inbox, BATCH);
            match port.readiness.async_io(Interest::READABLE, receive).await {
                Ok(count) => {
                    port.tally.overran(port.socket.take_overruns());
                    self.answer(port, &mut inbox, settings.current(&self.settings));
                    // Under a flood the socket is always readable; others have to run, too.
                    if count == BATCH {
                        yield_now().await;
                    }
                }
                Err(error) => {
                    self.responder.read_failed(&port.tally);
                    tracing::debug!(%error, "cannot read STUN requests");
                    sleep(AFTER_ERROR).await;
                }
            }
        }
    }

    fn answer(&self, port: &StunPort, inbox: &mut Inbox, settings: &Settings) {
        let now = now();
        for index in 0..inbox.arrivals().len() {
            let Some(arrival) = inbox.arrivals().get(index).copied() else { continue };
            for range in inbox.datagrams(index) {
                let datagram = inbox.bytes(range);
                let StunPort { socket, tally, .. } = port;
                self.responder.serve(socket, datagram, &arrival, settings, tally, now);
            }
        }
    }
}
