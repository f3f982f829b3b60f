//! Which sessions are flows, and which of them the kernel may forward.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
};

use derp_common::flow::Side;

use super::{Client, CompanionView, Endpoint, Report, Session, Standing, Status};
use crate::flow::{
    AdmitError, EndSpec, FlowId, FlowSource, FlowSpec, FlowTable, Kind, Lifetime, Local, Remote,
};

/// How long no control packet may have come for a flow before answers about it count, in nanoseconds.
pub const QUIET: u64 = 500_000_000;

/// What a companion is made with.
#[derive(Clone, Debug)]
pub struct CompanionOptions {
    /// How long the kernel forwards after an answer was asked for, in nanoseconds.
    pub lease: u64,
    /// UDP ports that this daemon serves itself.
    pub own_ports: Vec<u16>,
}

/// Why nothing is known of tailscaled's sessions.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Failure {
    /// It cannot be asked, or does not answer in time.
    Unreachable,
    /// Its answer is not understood.
    Malformed,
    /// The kernel's tables cannot be read or written.
    Kernel,
}

impl Failure {
    /// Every failure, in order.
    pub const ALL: [Self; 3] = [Self::Unreachable, Self::Malformed, Self::Kernel];

    /// Returns the metric label.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Unreachable => "unreachable",
            Self::Malformed => "malformed",
            Self::Kernel => "kernel",
        }
    }
}

/// What is known at one time.
#[derive(Clone, Copy, Debug)]
pub struct Observation<'a> {
    /// When tailscaled was asked.
    pub asked: u64,
    /// What it has answered.
    pub report: &'a Report,
    /// Slots of [`Companion::slots`] for which the kernel program has noted a control packet, as read after the
    /// answer came.
    pub suspects: &'a BTreeSet<u32>,
    /// When that was, in nanoseconds of `CLOCK_MONOTONIC`, as all times.
    pub now: u64,
}

/// What the kernel program is to serve for tailscaled.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Serving {
    /// The UDP port.
    pub port: u16,
    /// Until when it may forward.
    pub lease: u64,
}

/// Accompanies one tailscaled.
#[derive(Debug)]
pub struct Companion {
    options: CompanionOptions,
    /// By VNI.
    flows: BTreeMap<u32, Entry>,
    /// When the last answer was asked for, of those that were understood in a row.
    last_asked: Option<u64>,
    serving: Option<Serving>,
    view: CompanionView,
}

/// A session that is a flow.
#[derive(Debug)]
struct Entry {
    flow: FlowId,
    session: Session,
    phase: Phase,
}

/// How far a flow is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Phase {
    /// No control packet has come since then, as far as is known; `is_confirmed` once an answer has shown that
    /// nothing had changed after [`QUIET`].
    Held {
        since: u64,
        is_confirmed: bool,
    },
    Forwarding,
}

impl Phase {
    const fn held(now: u64) -> Self {
        Self::Held { since: now, is_confirmed: false }
    }
}

impl Companion {
    /// Makes a companion that knows of no sessions.
    #[must_use]
    pub fn new(options: CompanionOptions) -> Self {
        Self {
            options,
            flows: BTreeMap::new(),
            last_asked: None,
            serving: None,
            view: CompanionView::default(),
        }
    }

    /// Returns the places of the flows in the tables.
    pub fn slots(&self) -> impl Iterator<Item = u32> {
        self.flows.values().map(|entry| entry.flow.slot())
    }

    /// Returns what the kernel program is to serve now.
    #[must_use]
    pub const fn serving(&self) -> Option<Serving> {
        self.serving
    }

    /// Returns what is known and was done.
    #[must_use]
    pub const fn view(&self) -> &CompanionView {
        &self.view
    }

    /// Brings the flows into agreement with an answer. What the kernel has noted of control packets is to be
    /// forgotten for the slots that are returned, once the changes of the table have been applied.
    pub fn poll(&mut self, table: &mut FlowTable, seen: &Observation<'_>) -> Vec<u32> {
        self.view.answers += 1;
        let Some(port) = self.port(seen.report) else {
            self.end(table);
            return Vec::new();
        };
        if self.serving.is_some_and(|serving| serving.port != port) {
            self.end(table);
        }
        self.view.status = Status::Accompanying { port };
        let is_late = self.last_asked.is_some_and(|last| {
            !(last..=last.saturating_add(self.options.lease)).contains(&seen.asked)
        });
        if is_late {
            self.hold_all(table, seen.now);
        }
        self.last_asked = Some(seen.asked);
        self.end_others(table, &seen.report.sessions);
        let trusted = self.look_at_kernel(table, seen);
        self.view.sessions = [0; Standing::ALL.len()];
        for session in &seen.report.sessions {
            let standing = self.follow(table, session, port, seen);
            self.view.sessions[standing as usize] += 1;
        }
        let lease = seen.asked.saturating_add(self.options.lease);
        self.serving = Some(Serving { port, lease });
        trusted
    }

    /// Leaves everything to tailscaled, because nothing is known of it.
    pub fn fail(&mut self, table: &mut FlowTable, failure: Failure) {
        self.end(table);
        self.view.failures[failure as usize] += 1;
        self.view.status = Status::Failed(failure);
    }

    /// Returns the port to be served, or says why there is none.
    fn port(&mut self, report: &Report) -> Option<u16> {
        self.view.status = match report.port {
            None => Status::NoRelay,
            Some(0) => Status::RandomPort,
            Some(port) if self.options.own_ports.contains(&port) => Status::OwnPort { port },
            Some(port) => return Some(port),
        };
        None
    }

    /// Ends every flow.
    fn end(&mut self, table: &mut FlowTable) {
        self.serving = None;
        self.last_asked = None;
        self.view.sessions = [0; Standing::ALL.len()];
        if !self.flows.is_empty() {
            self.view.flushes += 1;
        }
        for entry in std::mem::take(&mut self.flows).into_values() {
            table.remove(entry.flow);
        }
    }

    fn hold_all(&mut self, table: &mut FlowTable, now: u64) {
        for entry in self.flows.values_mut() {
            table.hold(entry.flow, true);
            entry.phase = Phase::held(now);
        }
    }

    /// Ends the flows of sessions that are no longer, or are now other clients'. Before anything is admitted, so that
    /// their places are free.
    fn end_others(&mut self, table: &mut FlowTable, sessions: &[Session]) {
        let senders = |session: &Session| session.clients.map(|client| client.sender);
        self.flows.retain(|vni, entry| {
            let found = sessions.binary_search_by_key(vni, |session| session.vni);
            let session = found.ok().and_then(|index| sessions.get(index));
            let is_same = session.is_some_and(|it| senders(it) == senders(&entry.session));
            if !is_same {
                table.remove(entry.flow);
            }
            is_same
        });
    }

    /// Holds flows that control packets have come for; returns which of them are held already, so that the next
    /// control packet can be told from this one.
    fn look_at_kernel(&mut self, table: &mut FlowTable, seen: &Observation<'_>) -> Vec<u32> {
        let mut trusted = Vec::new();
        for entry in self.flows.values_mut() {
            if !seen.suspects.contains(&entry.flow.slot()) {
                continue;
            }
            match entry.phase {
                // The note stays until the tables say so, too: it is what stops the kernel meanwhile.
                Phase::Forwarding => {
                    table.hold(entry.flow, true);
                    self.view.suspicions += 1;
                }
                Phase::Held { .. } => trusted.push(entry.flow.slot()),
            }
            entry.phase = Phase::held(seen.now);
        }
        trusted
    }

    /// Brings one session's flow up to date, or makes it.
    fn follow(
        &mut self,
        table: &mut FlowTable,
        session: &Session,
        port: u16,
        seen: &Observation<'_>,
    ) -> Standing {
        let ends = match ends(table, session) {
            Ok(ends) => ends,
            Err(standing) => {
                if let Some(entry) = self.flows.remove(&session.vni) {
                    table.remove(entry.flow);
                }
                return standing;
            }
        };
        if let Some(entry) = self.flows.get_mut(&session.vni) {
            if entry.move_to(table, session, ends, seen.now).is_ok() {
                return entry.advance(table, seen);
            }
            table.remove(entry.flow);
            self.flows.remove(&session.vni);
        }
        match table.add(spec(session, ends, port), seen.now) {
            Ok(flow) => {
                table.hold(flow, true);
                let entry = Entry { flow, session: *session, phase: Phase::held(seen.now) };
                self.flows.insert(session.vni, entry);
                Standing::Held
            }
            Err(AdmitError::SlotTaken { .. }) => Standing::SlotTaken,
            Err(_) => Standing::Unusable,
        }
    }
}

impl Entry {
    /// Puts the ends where they are now. A flow whose ends have moved is held.
    fn move_to(
        &mut self,
        table: &mut FlowTable,
        session: &Session,
        ends: [SocketAddr; 2],
        now: u64,
    ) -> Result<(), AdmitError> {
        if *session == self.session {
            return Ok(());
        }
        table.hold(self.flow, true);
        self.phase = Phase::held(now);
        self.session = *session;
        for (side, remote) in Side::ALL.into_iter().zip(ends) {
            table.rebind(self.flow, side, remote, now)?;
        }
        Ok(())
    }

    /// Lets the kernel forward, if enough is known by now.
    fn advance(&mut self, table: &mut FlowTable, seen: &Observation<'_>) -> Standing {
        match self.phase {
            Phase::Forwarding => Standing::Forwarding,
            Phase::Held { is_confirmed: true, .. } => {
                table.hold(self.flow, false);
                self.phase = Phase::Forwarding;
                Standing::Forwarding
            }
            Phase::Held { since, is_confirmed: false } => {
                let is_confirmed = seen.asked >= since.saturating_add(QUIET);
                self.phase = Phase::Held { since, is_confirmed };
                Standing::Held
            }
        }
    }
}

/// Returns where the ends of a session are, or why the kernel cannot forward between them.
fn ends(table: &FlowTable, session: &Session) -> Result<[SocketAddr; 2], Standing> {
    let address = |client: &Client| match client.endpoint {
        Endpoint::Unbound => Err(Standing::Unbound),
        Endpoint::Unusable => Err(Standing::Unusable),
        Endpoint::At(address) if table.is_this_host(address.ip()) => Err(Standing::ThisHost),
        Endpoint::At(address) => Ok(address),
    };
    let [one, other] = &session.clients;
    let (one, other) = (address(one)?, address(other)?);
    if one.is_ipv4() != other.is_ipv4() {
        return Err(Standing::CrossFamily);
    }
    Ok([one, other])
}

/// Returns a session as a flow. Packets leave from the address that routing chooses, as tailscaled's own do: a client
/// knows the relay by that address, since it goes by where its challenge came from.
fn spec(session: &Session, ends: [SocketAddr; 2], port: u16) -> FlowSpec {
    let [one, other] = session.clients;
    let end = |remote, client: Client| EndSpec {
        remote: Remote::Fixed(remote),
        local: Local { ip: None, port },
        sender: client.sender,
    };
    let short = |client: Client| format!("d:{:016x}", u64::from_be(client.sender));
    FlowSpec {
        name: format!("{} {}", short(one), short(other)),
        kind: Kind::Geneve { vni: Some(session.vni) },
        ends: [end(ends[0], one), end(ends[1], other)],
        rate: None,
        lifetime: Lifetime::Configured,
        source: FlowSource::Companion,
    }
}
