//! What tailscaled says of its peer relay (udp-relay reference, section 3.6).

use std::net::SocketAddr;

use serde::Deserialize;

/// Longest answer that is read, in bytes: that of some 30,000 sessions.
pub const MAX_ANSWER: usize = 8 << 20;

/// Highest VNI there is.
const MAX_VNI: u32 = (1 << 24) - 1;

/// Bytes of a disco key in a `ShortDisco`, which are those the kernel program compares.
const SHORT_BYTES: usize = 8;

/// An answer, understood.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Report {
    /// The UDP port that is configured: `None` if tailscaled is no relay, 0 if it has chosen one itself.
    pub port: Option<u16>,
    /// The sessions, by VNI.
    pub sessions: Vec<Session>,
}

/// One session.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Session {
    /// Its VNI, which no other has.
    pub vni: u32,
    /// The two clients, in tailscaled's order, which does not change.
    pub clients: [Client; 2],
}

/// One of the two clients of a session.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Client {
    /// Where it is.
    pub endpoint: Endpoint,
    /// First eight bytes of its disco key, as they lie in a packet.
    pub sender: u64,
}

/// Where a client is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Endpoint {
    /// It is not bound.
    Unbound,
    /// At this address.
    At(SocketAddr),
    /// At an address that says nothing without an interface, or is none.
    Unusable,
}

/// Why an answer is not believed.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    /// It is not what the API promises.
    #[error("{0}")]
    Json(#[from] serde_json::Error),
    /// No session has such a VNI.
    #[error("the VNI {0} is not between 1 and {MAX_VNI}")]
    Vni(u32),
    /// Two sessions have one VNI.
    #[error("two sessions have the VNI {0}")]
    TwoSessions(u32),
    /// A client's key is not as we know keys.
    #[error("the ShortDisco of VNI {vni} is {text:?}, not d: and {} hex digits", SHORT_BYTES * 2)]
    ShortDisco {
        /// The session.
        vni: u32,
        /// The beginning of what is there.
        text: String,
    },
}

#[derive(Deserialize)]
struct WireReport {
    #[serde(rename = "UDPPort", default)]
    port: Option<u16>,
    #[serde(rename = "Sessions", default)]
    sessions: Option<Vec<WireSession>>,
}

#[derive(Deserialize)]
struct WireSession {
    #[serde(rename = "VNI")]
    vni: u32,
    #[serde(rename = "Client1")]
    one: WireClient,
    #[serde(rename = "Client2")]
    other: WireClient,
}

#[derive(Deserialize)]
struct WireClient {
    #[serde(rename = "Endpoint", default)]
    endpoint: String,
    #[serde(rename = "ShortDisco")]
    short: String,
}

impl Report {
    /// Reads the body of an answer. Fields that are not needed may be missing, or there may be more.
    ///
    /// # Errors
    ///
    /// The first thing that is wrong with it. None of it is to be used then.
    pub fn parse(body: &[u8]) -> Result<Self, ReportError> {
        let WireReport { port, sessions } = serde_json::from_slice(body)?;
        let sessions = sessions.unwrap_or_default();
        let mut sessions = sessions.iter().map(WireSession::read).collect::<Result<Vec<_>, _>>()?;
        sessions.sort_unstable_by_key(|session| session.vni);
        let mut neighbours = sessions.iter().zip(sessions.iter().skip(1));
        if let Some((one, _)) = neighbours.find(|(one, other)| one.vni == other.vni) {
            return Err(ReportError::TwoSessions(one.vni));
        }
        Ok(Self { port, sessions })
    }
}

impl WireSession {
    fn read(&self) -> Result<Session, ReportError> {
        let vni = self.vni;
        if !(1..=MAX_VNI).contains(&vni) {
            return Err(ReportError::Vni(vni));
        }
        Ok(Session { vni, clients: [self.one.read(vni)?, self.other.read(vni)?] })
    }
}

impl WireClient {
    fn read(&self, vni: u32) -> Result<Client, ReportError> {
        let sender = sender(&self.short).ok_or_else(|| ReportError::ShortDisco {
            vni,
            text: self.short.chars().take(2 * SHORT_BYTES + 8).collect(),
        })?;
        let endpoint = match self.endpoint.as_str() {
            "" => Endpoint::Unbound,
            text => text.parse().map_or(Endpoint::Unusable, |address: SocketAddr| {
                Endpoint::At(SocketAddr::new(address.ip().to_canonical(), address.port()))
            }),
        };
        Ok(Client { endpoint, sender })
    }
}

/// Reads a `ShortDisco`; a key of zeroes, which stands for none in the flow tables, is none here either.
fn sender(short: &str) -> Option<u64> {
    let digits = short.strip_prefix("d:")?;
    let is_hex = digits.len() == 2 * SHORT_BYTES && digits.bytes().all(|it| it.is_ascii_hexdigit());
    let number = u64::from_str_radix(digits, 16).ok().filter(|number| is_hex && *number != 0)?;
    Some(u64::from_ne_bytes(number.to_be_bytes()))
}
