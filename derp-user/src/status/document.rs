//! The document itself. Both viewers read it, so that its shape is in one place; `docs/OPERATIONS.md` describes it.

use std::{
    collections::BTreeMap,
    time::{SystemTime, UNIX_EPOCH},
};

use serde::{Deserialize, Serialize};

use super::{History, MOST_ROWS, Rates, Reading, Samples};
use crate::{
    flow::{CountView, EndView, FlowView},
    metrics::MeshView,
    tls::CertificateFigures,
};

/// Which samples a viewer wants.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Since {
    /// All that are kept.
    Everything,
    /// Only the newest.
    Last,
    /// Those after a time, in milliseconds since the Unix epoch, that the run of the process `run` has told; all
    /// that are kept if that was another run.
    After {
        /// [`Status::run`] of the answer before.
        run: u64,
        /// The last of its times.
        time: u64,
    },
}

/// Everything that is shown. Numbers of bytes, packets and seconds, unless a name says otherwise.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct Status {
    /// When the process started, in milliseconds since the Unix epoch: another one means that it was restarted.
    pub run: u64,
    /// How long it has run.
    pub uptime_seconds: u64,
    /// Version of the program.
    pub version: String,
    /// Value of `-hostname`; empty where nobody has given one.
    pub hostname: String,
    /// Name of the machine.
    pub machine: String,
    /// Who may use the relay, in words.
    pub admission: String,
    /// Where the XDP program is attached.
    pub interfaces: Vec<Interface>,
    /// Every series: what has been counted since the start, or the value of the moment.
    pub values: BTreeMap<String, u64>,
    /// The same over time, counters as rates.
    pub history: History,
    /// The certificates of the main listener; null without TLS.
    pub certificates: Option<Vec<Certificate>>,
    /// The links to the other servers of the region.
    pub links: Vec<Link>,
    /// The clients.
    pub clients: Clients,
    /// The UDP flows.
    pub flows: Flows,
}

/// An interface on which the XDP program runs.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// `native` or `generic`.
    pub mode: String,
}

/// One certificate.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Certificate {
    /// What it is for.
    pub name: String,
    /// The end of its life, in seconds since the Unix epoch.
    pub not_after: u64,
    /// Until then; negative when it has passed.
    pub seconds_left: i64,
}

/// One address of a mesh peer.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Link {
    /// The peer as the operator wrote it.
    pub peer: String,
    /// What is dialled; null if the name could not be looked up.
    pub address: Option<String>,
    /// `up`, `down`, `in reserve`, `this server` or `not found`.
    pub state: String,
    /// For how long.
    pub seconds: u64,
    /// Short form of the key of the server there, once it has been heard.
    pub server_key: Option<String>,
    /// Keys that the peer has announced.
    pub clients: u64,
    /// Packets handed to the link.
    pub forwarded_packets: u64,
    /// Their bytes.
    pub forwarded_bytes: u64,
    /// Those among them that were dropped.
    pub dropped_packets: u64,
    /// Attempts that failed, and links that broke.
    pub failures: u64,
    /// The last of these in words, or why the name could not be looked up.
    pub fault: Option<String>,
}

/// Clients, of whom the busiest are shown.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct Clients {
    /// Connections in all.
    pub total: u64,
    /// Those whose client calls this server its home.
    pub home: u64,
    /// The busiest, at most [`MOST_ROWS`].
    pub shown: Vec<Client>,
}

/// One client's connection.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Client {
    /// Short form of its key.
    pub key: String,
    /// Where it comes from.
    pub address: String,
    /// Bytes from it, of its whole TCP connection.
    pub received_bytes: u64,
    /// Bytes to it, repeated ones included.
    pub sent_bytes: u64,
    /// The same by the second, over the last two seconds or more; null before it was looked at twice.
    pub received_rate: Option<f32>,
    /// And to it.
    pub sent_rate: Option<f32>,
    /// Smoothed round trip time of the TCP connection.
    pub round_trip_milliseconds: f64,
    /// How long it has been connected.
    pub connected_seconds: u64,
    /// Whether it calls this server its home.
    pub is_home: bool,
    /// Keys that have sent to it.
    pub senders: u64,
    /// Whether its socket is full, so that packets wait for it.
    pub is_waiting: bool,
}

impl Client {
    /// Bytes by the second in both directions.
    pub fn rate(&self) -> f32 {
        self.received_rate.unwrap_or_default() + self.sent_rate.unwrap_or_default()
    }
}

/// UDP flows, of which the busiest are shown.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct Flows {
    /// Flows in all.
    pub total: u64,
    /// Those that forward.
    pub forwarding: u64,
    /// The busiest, at most [`MOST_ROWS`].
    pub shown: Vec<Flow>,
}

/// One UDP flow.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Flow {
    /// Its name.
    pub name: String,
    /// Its VNI, if it has one.
    pub vni: Option<u32>,
    /// `forwarding`, `learning` or `unbound`.
    pub state: String,
    /// Its ends, A first.
    pub ends: [FlowEnd; 2],
}

/// One end of a flow.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct FlowEnd {
    /// Where it is, if that is known.
    pub remote: Option<String>,
    /// Who forwards packets to it, in words.
    pub forwarder: String,
    /// Packets from it through the kernel, and the bytes of their UDP payloads.
    pub kernel_packets: u64,
    /// Those bytes.
    pub kernel_bytes: u64,
    /// The same through userspace.
    pub userspace_packets: u64,
    /// Those bytes.
    pub userspace_bytes: u64,
    /// Packets from it that were over its rate.
    pub dropped_over_rate: u64,
    /// Bytes from it by the second, between the last two times that flows were counted; null before that.
    pub rate: Option<f32>,
    /// How long ago it was heard of; null if never.
    pub last_seen_seconds: Option<u64>,
}

impl Flow {
    /// Bytes by the second in both directions.
    pub fn rate(&self) -> f32 {
        self.ends.iter().filter_map(|end| end.rate).sum()
    }

    /// The same flow with the rates that have become known.
    #[must_use]
    pub fn with_rates(mut self, rates: Rates) -> Self {
        for (index, end) in self.ends.iter_mut().enumerate() {
            end.rate = rates.and_then(|rates| rates.get(index).copied());
        }
        self
    }
}

impl Status {
    /// The values and the history.
    #[must_use]
    pub fn with_samples(self, samples: &Samples, reading: &Reading, since: Since) -> Self {
        Self {
            run: samples.run(),
            uptime_seconds: reading.at.as_secs(),
            values: reading.values().map(|(name, value)| (name.to_owned(), value)).into(),
            history: samples.history(since),
            ..self
        }
    }

    /// The value of a series: what has been counted since the start, or is now.
    pub fn value(&self, series: &str) -> u64 {
        self.values.get(series).copied().unwrap_or_default()
    }
}

/// The certificates, the one that ends first at the top.
pub fn certificates(figures: &CertificateFigures, now: SystemTime) -> Vec<Certificate> {
    let seconds = |time: SystemTime| time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let now = seconds(now);
    let certificate = |(name, not_after): &(String, SystemTime)| {
        let not_after = seconds(*not_after);
        let seconds_left = not_after.cast_signed().saturating_sub(now.cast_signed());
        Certificate { name: name.clone(), not_after, seconds_left }
    };
    let mut certificates: Vec<_> = figures.expiries.iter().map(certificate).collect();
    certificates.sort_by_key(|certificate| certificate.not_after);
    certificates.truncate(MOST_ROWS);
    certificates
}

/// The links of the mesh. `short` makes the short form of a key that is written out.
pub fn links(mesh: &MeshView, short: impl Fn(&str) -> String) -> Vec<Link> {
    let mut links = Vec::new();
    for peer in &mesh.peers {
        if let Some(fault) = &peer.look_up_fault {
            links.push(Link {
                peer: peer.name.clone(),
                address: None,
                state: "not found".to_owned(),
                seconds: 0,
                server_key: None,
                clients: 0,
                forwarded_packets: 0,
                forwarded_bytes: 0,
                dropped_packets: 0,
                failures: 0,
                fault: Some(fault.clone()),
            });
        }
        links.extend(peer.addresses.iter().map(|address| Link {
            peer: peer.name.clone(),
            address: Some(address.address.to_string()),
            state: address.state.label().to_owned(),
            seconds: address.seconds,
            server_key: address.server_key.as_deref().map(&short),
            clients: address.clients as u64,
            forwarded_packets: address.forwarded_packets,
            forwarded_bytes: address.forwarded_bytes,
            dropped_packets: address.dropped_packets,
            failures: address.failures,
            fault: address.last_failure.clone(),
        }));
    }
    links
}

/// One flow, whose rates are not known yet.
pub fn flow(view: &FlowView) -> Flow {
    Flow {
        name: view.name.clone(),
        vni: view.vni,
        state: view.state.label().to_owned(),
        ends: view.ends.each_ref().map(flow_end),
    }
}

fn flow_end(end: &EndView) -> FlowEnd {
    let CountView { packets: kernel_packets, bytes: kernel_bytes, dropped_over_rate } = end.kernel;
    FlowEnd {
        remote: end.remote.map(|remote| remote.to_string()),
        forwarder: end.forwarder.describe().to_owned(),
        kernel_packets,
        kernel_bytes,
        userspace_packets: end.userspace.packets,
        userspace_bytes: end.userspace.bytes,
        dropped_over_rate: dropped_over_rate.saturating_add(end.userspace.dropped_over_rate),
        rate: None,
        last_seen_seconds: end.last_seen_seconds,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::metrics::{AddressView, LinkState, PeerView};

    #[test]
    fn the_certificate_that_ends_first_is_at_the_top() {
        let at = |seconds| UNIX_EPOCH + Duration::from_secs(seconds);
        let figures = CertificateFigures {
            expiries: vec![("b".to_owned(), at(5000)), ("a".to_owned(), at(900))],
            ..CertificateFigures::default()
        };
        let certificate = |name: &str, not_after, seconds_left| Certificate {
            name: name.to_owned(),
            not_after,
            seconds_left,
        };
        let expected = [certificate("a", 900, -100), certificate("b", 5000, 4000)];
        assert_eq!(certificates(&figures, at(1000)), expected);
    }

    #[test]
    fn a_name_without_addresses_is_a_row_and_keys_are_short() {
        let address = AddressView {
            address: ([192, 0, 2, 1], 443).into(),
            state: LinkState::Up,
            seconds: 61,
            server_key: Some("nodekey:0a0a".to_owned()),
            connects: 2,
            failures: 1,
            last_failure: Some("broken".to_owned()),
            clients: 12,
            forwarded_packets: 3,
            forwarded_bytes: 400,
            dropped_packets: 4,
        };
        let peer = |name: &str, fault: Option<&str>, addresses| PeerView {
            name: name.to_owned(),
            dials: format!("{name}:443"),
            look_up_fault: fault.map(str::to_owned),
            addresses,
        };
        let mesh = MeshView {
            peers: vec![peer("a", None, vec![address]), peer("b", Some("no such name"), vec![])],
        };
        let links = links(&mesh, |_| "[short]".to_owned());
        assert_eq!(links.len(), 2);
        assert_eq!(links[0].address.as_deref(), Some("192.0.2.1:443"));
        assert_eq!(links[0].server_key.as_deref(), Some("[short]"));
        assert_eq!((links[0].state.as_str(), links[0].clients), ("up", 12));
        assert_eq!((links[1].state.as_str(), &links[1].address), ("not found", &None));
        assert_eq!(links[1].fault.as_deref(), Some("no such name"));
    }

    #[test]
    fn what_is_written_is_read() {
        let mut samples = Samples::new(1_000);
        for second in 0..3 {
            let at = Duration::from_secs(second);
            samples.add(Reading { at, bytes_sent: 7 * second, ..Reading::default() });
        }
        let reading = samples.last();
        let status = Status { hostname: "relay.example.com".to_owned(), ..Status::default() }
            .with_samples(&samples, &reading, Since::Everything);
        assert_eq!((status.value("bytes_sent"), status.uptime_seconds), (14, 2));
        assert_eq!(status.history.newest("bytes_sent"), 7.0);
        let text = serde_json::to_string(&status).unwrap();
        assert_eq!(serde_json::from_str::<Status>(&text).unwrap(), status);
    }
}
