//! One thread of the forwarder, and the sockets it reads.

use std::{
    io,
    ops::Range,
    os::fd::{AsFd as _, BorrowedFd},
    sync::Arc,
    thread,
    time::Duration,
};

use derp_common::{
    Address, Family, Reason, Settings,
    flow::{Class, Datagram},
};
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
};

use super::{
    Action, ControlPacket, Delivery, Forward, Notices, Refusal, Stranger, decide, notice::Reporter,
    ports::Board, socket_for,
};
use crate::{
    flow::SharedMirror,
    stun::Responder,
    udp::{Arrival, BATCH, Inbox, Outbox, Route, SettingsCell, SettingsView, Socket, Tally, now},
};

/// How many batches are read from one socket before others have their turn.
const TURN: usize = 4;
/// Fewest buffers that are offered to the kernel: preparing many for one datagram costs more than it brings.
const FEWEST: usize = 4;
/// How long to leave everything alone when a socket cannot be read.
const AFTER_ERROR: Duration = Duration::from_millis(10);

pub(super) struct Shard {
    sockets: Vec<Arc<Socket>>,
    tables: SharedMirror,
    cell: Arc<SettingsCell>,
    settings: SettingsView,
    responder: Arc<Responder>,
    reporter: Reporter,
    tally: Arc<Tally>,
    inbox: Inbox,
    outbox: Outbox,
    /// STUN messages of the batch: arrival and place.
    stun: Vec<(usize, Range<usize>)>,
    /// How many buffers are offered next.
    offered: usize,
}

impl Shard {
    pub(super) fn new(
        tables: &SharedMirror,
        settings: &Arc<SettingsCell>,
        responder: &Arc<Responder>,
        notices: &Notices,
        tally: Arc<Tally>,
    ) -> Self {
        Self {
            sockets: Vec::new(),
            tables: tables.clone(),
            cell: Arc::clone(settings),
            settings: SettingsView::new(settings),
            responder: Arc::clone(responder),
            reporter: Reporter::new(notices.clone()),
            tally,
            inbox: Inbox::new(),
            outbox: Outbox::new(),
            stun: Vec::new(),
            offered: FEWEST,
        }
    }

    /// Forwards until told to stop.
    pub(super) fn run(mut self, board: &Board, thread: usize) {
        let Some(wake) = board.wake(thread) else { return };
        while let Some(sockets) = board.sockets(thread) {
            self.sockets.clone_from(&sockets);
            if let Err(errno) = self.forward(&sockets, wake) {
                return tracing::error!("cannot wait for UDP to relay: {errno}");
            }
        }
    }

    /// Forwards until there is something to read from `wake`.
    fn forward(&mut self, sockets: &[Arc<Socket>], wake: BorrowedFd<'_>) -> nix::Result<()> {
        // Not epoll: its callback would run for every packet that comes and for every one that has left,
        // also while nobody waits.
        let mut waits = vec![PollFd::new(wake, PollFlags::POLLIN)];
        waits.extend(sockets.iter().map(|it| PollFd::new(it.as_fd(), PollFlags::POLLIN)));
        loop {
            match poll(&mut waits, PollTimeout::NONE) {
                Ok(_) => {}
                Err(Errno::EINTR) => continue,
                Err(errno) => return Err(errno),
            }
            let mut is_ready = waits.iter().map(|wait| wait.any().unwrap_or(true));
            if is_ready.next() == Some(true) {
                return Ok(());
            }
            for (index, is_ready) in is_ready.enumerate() {
                if is_ready {
                    self.turn(index);
                }
            }
        }
    }

    /// Serves a readable socket for a while.
    fn turn(&mut self, index: usize) {
        let Some(socket) = self.sockets.get(index).map(Arc::clone) else { return };
        for _ in 0..TURN {
            let offered = self.offered;
            match socket.receive(&mut self.inbox, offered) {
                Ok(count) => {
                    self.tally.overran(socket.take_overruns());
                    self.serve(&socket);
                    if count < offered {
                        self.offered = offered.min(count.next_power_of_two()).max(FEWEST);
                        return;
                    }
                    self.offered = (2 * offered).min(BATCH);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) => {
                    self.tally.read_failed();
                    tracing::debug!(%error, "cannot read UDP to relay");
                    return thread::sleep(AFTER_ERROR);
                }
            }
        }
    }

    /// Serves what `socket` has received.
    fn serve(&mut self, socket: &Socket) {
        let now = now();
        let settings = *self.settings.current(&self.cell);
        self.decide(socket, &settings, now);
        let tally = &self.tally;
        for (index, range) in self.stun.drain(..) {
            let Some(arrival) = self.inbox.arrivals().get(index).copied() else { continue };
            let message = self.inbox.bytes(range);
            self.responder.serve(socket, message, &arrival, &settings, tally, now);
        }
        let from_ipv6 = socket.local_address().is_ipv6();
        let sockets = &self.sockets;
        self.outbox.send(
            &self.inbox,
            |index| sockets.get(index).map(Arc::as_ref),
            |route, packets, bytes| {
                tally.forwarded(from_ipv6, route.destination.is_ipv6(), packets, bytes);
            },
            |route, failure| {
                tracing::trace!(to = %route.destination, ?failure, "cannot forward");
                tally.send_failed(failure);
            },
        );
    }

    /// Decides about everything in the inbox. The tables are locked for no longer than that.
    fn decide(&mut self, socket: &Socket, settings: &Settings, now: u64) {
        let tables = self.tables.read();
        let port = socket.local_address().port();
        let family = if socket.local_address().is_ipv4() { Family::Ipv4 } else { Family::Ipv6 };
        for index in 0..self.inbox.arrivals().len() {
            let Some(arrival) = self.inbox.arrivals().get(index).copied() else { continue };
            let delivery = delivery(&arrival, port);
            for range in self.inbox.datagrams(index) {
                let payload = self.inbox.bytes(range.clone());
                match decide(payload, &delivery, &*tables, settings, now) {
                    Ok(Action::Forward(forward)) => {
                        if let Some(class) = forward.learn {
                            let reason = Reason::OtherLocal;
                            let seen = Noteworthy { delivery, arrival, class, reason };
                            seen.report(payload, &mut self.reporter, &self.tally, now);
                        }
                        match socket_for(&self.sockets, forward.source) {
                            Some(out) => {
                                self.outbox.add(out, route(&forward, &arrival), range);
                            }
                            // No port of this relay, or not in this family.
                            None => self.tally.refused(family, Reason::Unresolved, range.len()),
                        }
                    }
                    Ok(Action::Stun) => self.stun.push((index, range)),
                    Ok(Action::StunAnswer) => {
                        if !self.reporter.stun(arrival.from, payload, &self.tally, now) {
                            let reason = Reason::NotBindingRequest;
                            self.tally.refused(family, reason, payload.len());
                        }
                    }
                    Err(Refusal { reason, class }) => {
                        self.tally.refused(family, reason, payload.len());
                        if reason == Reason::WireGuardHandshake {
                            let datagram = delivery.datagram;
                            self.reporter.handshake(datagram, payload, &self.tally, now);
                        }
                        if let Some(class) = class {
                            let refused = Noteworthy { delivery, arrival, class, reason };
                            refused.report(payload, &mut self.reporter, &self.tally, now);
                        }
                    }
                }
            }
        }
    }
}

fn delivery(arrival: &Arrival, port: u16) -> Delivery {
    let unspecified = Address([0; 4]);
    let datagram = Datagram {
        source: Address::from(arrival.from.ip()),
        destination: arrival.to.map_or(unspecified, Address::from),
        source_port: arrival.from.port().to_be(),
        destination_port: port.to_be(),
    };
    Delivery { datagram, hop_limit: arrival.hop_limit }
}

fn route(forward: &Forward, arrival: &Arrival) -> Route {
    Route {
        destination: forward.destination,
        source: Some(forward.source.ip()).filter(|ip| !ip.is_unspecified()),
        hop_limit: forward.hop_limit,
        traffic_class: arrival.traffic_class,
    }
}

/// A datagram others are told of: it was not forwarded though it looks like one of a flow, or there is something
/// to learn from it.
struct Noteworthy {
    delivery: Delivery,
    arrival: Arrival,
    class: Class,
    reason: Reason,
}

impl Noteworthy {
    fn report(&self, payload: &[u8], reporter: &mut Reporter, tally: &Tally, now: u64) {
        let (datagram, interface) = (self.delivery.datagram, self.arrival.interface);
        match self.class {
            Class::Control { vni, .. } if self.reason == Reason::RelayControl => {
                let packet = || ControlPacket { datagram, interface, vni, payload: payload.into() };
                reporter.control(packet, tally);
            }
            Class::Control { .. } => {}
            Class::Geneve { vni } if self.reason == Reason::Binding => {
                let packet = || ControlPacket { datagram, interface, vni, payload: payload.into() };
                reporter.early(datagram.source.into(), packet, tally, now);
            }
            // WireGuard's flows are learnt from its handshakes.
            Class::WireGuard { .. } if self.reason != Reason::OtherLocal => {}
            class @ (Class::Stun
            | Class::Geneve { .. }
            | Class::WireGuard { .. }
            | Class::Any
            | Class::Known { .. }) => {
                let reason = self.reason;
                reporter.stranger(Stranger { datagram, class, reason, interface }, tally, now);
            }
        }
    }
}
