//! From a name to a logged-in connection: addresses, TCP, TLS, HTTP upgrade, login.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use rustls::{
    ClientConfig, ProtocolVersion,
    pki_types::{CertificateDer, ServerName},
};
use tokio::{net::TcpStream, time::timeout};

use super::{
    Client, ClientError, Proxies, Target, Trust,
    map::{Node, NodeAddress},
    meta,
    proxy::Proxy,
    race::race,
    random,
    session::{Line, READ_CHUNK},
    trust::{Judge, UsualJudge},
    wire::Wire,
};
use crate::proto::{
    client::login::{self, LoginError, LoginRequest},
    keys::{NodePrivate, NodePublic},
    login::ClientInfo,
};

/// Longest that connecting may take, from looking up the name to the login.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest head of an HTTP answer.
const MAX_HEAD: usize = 16 << 10;
/// Most header fields of an HTTP answer.
const MAX_FIELDS: usize = 64;
/// How much of the body of a refusal is shown.
const SHOWN_BODY: usize = 200;

/// Connects to one relay, as often as wanted.
///
/// A host with several addresses is connected to by whichever answers first, IPv6 and IPv4 in turn. Over
/// TLS 1.3 the relay's certificates tell its key, and the login is sent with the first bytes.
#[derive(Clone)]
pub struct Connector {
    target: Target,
    tls: Option<Tls>,
    addresses: Addresses,
    info: Arc<ClientInfo>,
    proxy: Option<Proxy>,
    /// The node that a client of this region would rather be on, if this is another one.
    ideal_node: Option<String>,
    fast_start: bool,
}

/// What TLS needs to know.
#[derive(Clone)]
struct Tls {
    config: Arc<ClientConfig>,
    /// Asked for, and expected in the certificate unless the judge expects another one.
    name: ServerName<'static>,
    judge: Judge,
}

/// What a TLS handshake begins with: the settings, and whom it asks for.
pub(super) type TlsStart = (Arc<ClientConfig>, ServerName<'static>);

/// Where the host is.
#[derive(Clone, Debug)]
struct Addresses {
    known: Vec<SocketAddr>,
    look_up_ipv4: bool,
    look_up_ipv6: bool,
}

impl Connector {
    /// A connector to `target`, whose certificate must be as `trust` says; its name is the host's.
    ///
    /// # Errors
    ///
    /// If root certificates cannot be had, or the host cannot be the name of a server.
    pub fn new(target: Target, trust: &Trust) -> Result<Self, ClientError> {
        let tls = if target.tls { Some(Tls::new(&target.host, trust.judge()?)?) } else { None };
        Ok(Self::with_tls(target, tls))
    }

    fn with_tls(target: Target, tls: Option<Tls>) -> Self {
        Self {
            target,
            tls,
            addresses: Addresses { known: Vec::new(), look_up_ipv4: true, look_up_ipv6: true },
            info: Arc::default(),
            proxy: None,
            ideal_node: None,
            fast_start: true,
        }
    }

    /// A connector to a relay of a DERP map. What its certificate must be is as the map says, and as
    /// `trust` says where that is silent.
    ///
    /// # Errors
    ///
    /// As [`Connector::new`], and if its name or pin cannot be one.
    pub fn to_node(node: &Node, trust: &Trust) -> Result<Self, ClientError> {
        Self::to_node_of(node, &UsualJudge::new(trust))
    }

    /// The same for one of several relays.
    pub(crate) fn to_node_of(node: &Node, usual: &UsualJudge<'_>) -> Result<Self, ClientError> {
        let judge = match node.pin()? {
            _ if node.insecure_for_tests => Trust::Anything.judge()?,
            Some(pin) => Trust::Pinned(pin).judge()?,
            None if node.cert_name.is_empty() => usual.get()?,
            None => usual.get()?.by_name(server_name(&node.cert_name)?),
        };
        let target = Target { tls: true, host: node.host_name.clone(), port: node.derp_port() };
        let tls = Tls::new(&target.host, judge)?;
        let mut connector = Self::with_tls(target, Some(tls));
        let families = [node.ipv6(), node.ipv4()];
        let [look_up_ipv6, look_up_ipv4] = families.map(|it| it == NodeAddress::OfName);
        let known = families.into_iter().filter_map(|it| match it {
            NodeAddress::Fixed(ip) => Some(SocketAddr::new(ip, node.derp_port())),
            NodeAddress::OfName | NodeAddress::None => None,
        });
        connector.addresses = Addresses { known: known.collect(), look_up_ipv4, look_up_ipv6 };
        Ok(connector)
    }

    /// Expects this name in the certificate, and asks for it, instead of the host's.
    ///
    /// # Errors
    ///
    /// If it is neither a DNS name nor an IP address.
    pub fn with_server_name(mut self, name: &str) -> Result<Self, ClientError> {
        let name = server_name(name)?;
        if let Some(tls) = &mut self.tls {
            tls.name = name;
        }
        Ok(self)
    }

    /// Says this of the client when logging in.
    #[must_use]
    pub fn with_info(mut self, info: ClientInfo) -> Self {
        self.info = Arc::new(info);
        self
    }

    /// Connects through the proxy that leads to this relay, if there is one. It looks up the host's name.
    ///
    /// # Errors
    ///
    /// If that proxy speaks another protocol than plain HTTP.
    pub fn with_proxies(mut self, proxies: &Proxies) -> Result<Self, ClientError> {
        self.proxy = proxies.towards(&self.target)?;
        Ok(self)
    }

    /// Waits for the answer to the upgrade before logging in, as over TLS 1.2.
    #[must_use]
    pub fn without_fast_start(mut self) -> Self {
        self.fast_start = false;
        self
    }

    /// Tells the relay that the client would rather be on the node of this name, if it can be said in HTTP.
    pub(super) fn with_ideal_node(mut self, name: &str) -> Self {
        let fits = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_graphic());
        self.ideal_node = fits.then(|| name.to_owned());
        self
    }

    /// Looks up the host's addresses now, once, instead of at each connect.
    ///
    /// # Errors
    ///
    /// If the host is unknown, or cannot be looked up within [`CONNECT_TIMEOUT`].
    pub async fn resolved(self) -> Result<Self, ClientError> {
        let found = timeout(CONNECT_TIMEOUT, self.addresses()).await;
        let known = found.unwrap_or_else(|_| Err(self.late()))?;
        Ok(Self { addresses: Addresses::only(known), ..self })
    }

    /// Connects to this address, whatever the host's addresses are.
    #[must_use]
    pub fn with_address(mut self, address: SocketAddr) -> Self {
        self.addresses = Addresses::only(vec![address]);
        self
    }

    /// Where this connects to.
    pub fn target(&self) -> &Target {
        &self.target
    }

    /// Connects and logs in as the owner of `key`.
    ///
    /// # Errors
    ///
    /// Whatever stands between here and a finished login; [`CONNECT_TIMEOUT`] among it.
    pub async fn connect(&self, key: &NodePrivate) -> Result<Client, ClientError> {
        timeout(CONNECT_TIMEOUT, self.connect_without_limit(key))
            .await
            .unwrap_or_else(|_| Err(self.late()))
    }

    /// Connects and hears the relay's greeting, without logging in yet. [`CONNECT_TIMEOUT`] is the caller's
    /// business.
    ///
    /// # Errors
    ///
    /// Whatever stands between here and the greeting.
    pub async fn greet(&self) -> Result<Greeting, ClientError> {
        let mut line = self.open_line().await?;
        let (info, host) = (Arc::clone(&self.info), self.host());
        if self.fast_start
            && line.tls_version() == Some(ProtocolVersion::TLSv1_3)
            && let Some(server_key) = meta::relay_key(&line.certificates())
        {
            let head = self.upgrade_request("Derp-Fast-Start: 1\r\n").into_bytes();
            return Ok(Greeting { line, server_key, info, host, unsent: head });
        }
        self.upgrade(&mut line).await?;
        let server_key = hear_key(&mut line, &host).await?;
        Ok(Greeting { line, server_key, info, host, unsent: Vec::new() })
    }

    /// Connects as far as TLS, and looks at what the server shows, be it good or not. [`CONNECT_TIMEOUT`]
    /// is the caller's business.
    pub(crate) async fn inspect(&self) -> Result<Inspection, ClientError> {
        let Some(tls) = &self.tls else { return Err(not_tls(&self.target)) };
        let (config, witness) = tls.judge.overruled();
        let tls = Tls { config: Arc::new(config), ..tls.clone() };
        let is_pinned = tls.judge.is_pinned;
        let begun = Instant::now();
        let line = Self { tls: Some(tls), ..self.clone() }.open_line().await?;
        Ok(Inspection {
            certificates: line.certificates(),
            fault: witness.verdict(),
            is_pinned,
            took: begun.elapsed(),
        })
    }

    /// Asks for a page; the status of the answer, and how long the server took for its head.
    /// [`CONNECT_TIMEOUT`] is the caller's business.
    pub(crate) async fn get(&self, path: &str) -> Result<(u16, Duration), ClientError> {
        let mut line = self.open_line().await?;
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: {}\r\nUser-Agent: {USER_AGENT}\r\nConnection: close\r\n\r\n",
            self.target.authority(),
        );
        let begun = Instant::now();
        line.write(request.as_bytes()).await?;
        let status = answer_head(&mut line, &self.host()).await?;
        Ok((status, begun.elapsed()))
    }

    /// Connects by TCP; with what to begin TLS, if there is any.
    pub(super) async fn open_tcp(&self) -> Result<(TcpStream, Option<TlsStart>), ClientError> {
        let socket = self.open_socket().await?;
        let tls = self.tls.as_ref().map(|tls| (Arc::clone(&tls.config), tls.name.clone()));
        Ok((socket, tls))
    }

    async fn open_line(&self) -> Result<Line, ClientError> {
        let socket = self.open_socket().await?;
        let wire = match &self.tls {
            Some(Tls { config, name, .. }) => Wire::tls(Arc::clone(config), name.clone())
                .map_err(|source| ClientError::Tls { host: self.host(), source })?,
            None => Wire::plain(),
        };
        let mut line = Line::new(socket, wire, self.host());
        line.handshake().await?;
        Ok(line)
    }

    async fn connect_without_limit(&self, key: &NodePrivate) -> Result<Client, ClientError> {
        self.greet().await?.log_in(key).await
    }

    /// The host's addresses, as far as they are to be used.
    async fn addresses(&self) -> Result<Vec<SocketAddr>, ClientError> {
        let Addresses { known, look_up_ipv4, look_up_ipv6 } = &self.addresses;
        let mut addresses = known.clone();
        if *look_up_ipv4 || *look_up_ipv6 {
            let found = look_up(&self.target).await;
            let is_wanted =
                |it: &SocketAddr| if it.is_ipv6() { *look_up_ipv6 } else { *look_up_ipv4 };
            match found {
                Ok(found) => addresses.extend(found.into_iter().filter(is_wanted)),
                // The other family's address is known.
                Err(_) if !addresses.is_empty() => {}
                Err(error) => return Err(error),
            }
        }
        if addresses.is_empty() {
            return Err(no_address(&self.target.host));
        }
        Ok(addresses)
    }

    async fn open_socket(&self) -> Result<TcpStream, ClientError> {
        let Some(proxy) = &self.proxy else {
            return open_socket(&self.target.host, &self.addresses().await?).await;
        };
        let addresses = look_up(&proxy.address).await?;
        let socket = open_socket(&proxy.address.host, &addresses).await?;
        proxy.connect(socket, &self.target).await
    }

    fn upgrade_request(&self, more: &str) -> String {
        let ideal = self.ideal_node.as_ref().map(|name| format!("Ideal-Node: {name}\r\n"));
        format!(
            "GET /derp HTTP/1.1\r\nHost: {}\r\nUser-Agent: {USER_AGENT}\r\nConnection: Upgrade\r\nUpgrade: DERP\r\n{}{more}\r\n",
            self.target.authority(),
            ideal.unwrap_or_default(),
        )
    }

    /// Asks for DERP and reads the answer; what follows its head already belongs to DERP.
    async fn upgrade(&self, line: &mut Line) -> Result<(), ClientError> {
        line.write(self.upgrade_request("").as_bytes()).await?;
        let status = answer_head(line, &self.host()).await?;
        if status == 101 { Ok(()) } else { Err(refused(line, status, self.host()).await) }
    }

    fn late(&self) -> ClientError {
        ClientError::ConnectTimeout { host: self.host(), limit: CONNECT_TIMEOUT }
    }

    fn host(&self) -> String {
        self.target.authority()
    }
}

impl Tls {
    /// Asks for `host`, whose certificate `judge` looks at.
    fn new(host: &str, judge: Judge) -> Result<Self, ClientError> {
        Ok(Self { config: Arc::new(judge.tls_config()), name: server_name(host)?, judge })
    }
}

impl Addresses {
    fn only(known: Vec<SocketAddr>) -> Self {
        Self { known, look_up_ipv4: false, look_up_ipv6: false }
    }
}

/// What a server shows in its TLS handshake.
pub(crate) struct Inspection {
    /// Its certificates, its own first.
    pub(crate) certificates: Vec<CertificateDer<'static>>,
    /// Why a client would not accept them.
    pub(crate) fault: Option<rustls::Error>,
    /// Whether a client knows the certificate itself, so that its dates do not matter.
    pub(crate) is_pinned: bool,
    /// How long connecting and the handshake took.
    pub(crate) took: Duration,
}

const USER_AGENT: &str = concat!("derpd/", env!("CARGO_PKG_VERSION"));

/// The addresses of a host, both families.
pub(crate) async fn look_up(target: &Target) -> Result<Vec<SocketAddr>, ClientError> {
    let found = tokio::net::lookup_host((target.host.as_str(), target.port)).await;
    let found =
        found.map_err(|source| ClientError::Resolve { host: target.host.clone(), source })?;
    let addresses: Vec<_> = found.collect();
    if addresses.is_empty() { Err(no_address(&target.host)) } else { Ok(addresses) }
}

fn no_address(host: &str) -> ClientError {
    let source = std::io::Error::other("it has no address");
    ClientError::Resolve { host: host.to_owned(), source }
}

fn not_tls(target: &Target) -> ClientError {
    ClientError::Target { text: target.to_string(), reason: "there is no TLS" }
}

async fn open_socket(host: &str, addresses: &[SocketAddr]) -> Result<TcpStream, ClientError> {
    let socket = race(addresses, TcpStream::connect).await.map_err(|fault| match fault {
        Some((address, source)) => ClientError::Connect { host: host.to_owned(), address, source },
        None => no_address(host),
    })?;
    let fault = |source| ClientError::Io { host: host.to_owned(), source };
    socket.set_nodelay(true).map_err(fault)?;
    Ok(socket)
}

/// Waits for the head of an HTTP answer, and takes it away; its status.
async fn answer_head(line: &mut Line, host: &str) -> Result<u16, ClientError> {
    let not_http = |reason: String| ClientError::NotHttp { host: host.to_owned(), reason };
    let (status, length) = loop {
        let mut fields = [httparse::EMPTY_HEADER; MAX_FIELDS];
        let mut answer = httparse::Response::new(&mut fields);
        match answer.parse(line.received()) {
            Ok(httparse::Status::Complete(length)) => {
                break (answer.code.unwrap_or_default(), length);
            }
            Ok(httparse::Status::Partial) if line.received().len() > MAX_HEAD => {
                return Err(not_http("its head never ends".to_owned()));
            }
            Ok(httparse::Status::Partial) => line.more("instead of answering").await?,
            Err(error) => return Err(not_http(error.to_string())),
        }
    };
    line.consume(length);
    Ok(status)
}

/// What a refusal says, after its head.
async fn refused(line: &mut Line, status: u16, host: String) -> ClientError {
    // The reason is worth waiting for, but not for long, and its lack is no other error.
    let _ = timeout(Duration::from_millis(500), async {
        while line.received().len() < SHOWN_BODY && line.more("").await.is_ok() {}
    })
    .await;
    let body = line.received().get(..SHOWN_BODY).unwrap_or(line.received());
    let body = String::from_utf8_lossy(body).trim().to_owned();
    ClientError::Refused { host, status, body }
}

/// Waits for the frame with the relay's key, and takes it away.
async fn hear_key(line: &mut Line, host: &str) -> Result<NodePublic, ClientError> {
    loop {
        let found = login::server_key(line.received());
        let login_fault = |source| ClientError::Login { host: host.to_owned(), source };
        if let Some((server_key, length)) = found.map_err(login_fault)? {
            line.consume(length);
            return Ok(server_key);
        }
        line.more("before the login").await?;
    }
}

/// A relay that has said who it is, and does not know yet who is there. To drop this closes the
/// connection.
pub struct Greeting {
    line: Line,
    server_key: NodePublic,
    info: Arc<ClientInfo>,
    host: String,
    /// The request for DERP, where it goes together with the login.
    unsent: Vec<u8>,
}

impl Greeting {
    /// The relay's public key.
    pub fn server_key(&self) -> NodePublic {
        self.server_key
    }

    /// Logs in as the owner of `key`.
    ///
    /// # Errors
    ///
    /// Whatever keeps the login from finishing.
    pub async fn log_in(self, key: &NodePrivate) -> Result<Client, ClientError> {
        let Self { mut line, server_key, info, host, unsent } = self;
        let login_fault = |source| ClientError::Login { host: host.clone(), source };
        let request = LoginRequest::new(key, &server_key, &info, random()?).map_err(login_fault)?;
        if unsent.is_empty() {
            line.write(request.frame()).await?;
        } else {
            line.write(&[&unsent, request.frame()].concat()).await?;
            while line.received().is_empty() {
                line.more("before the login").await?;
            }
            // A server that relays answers with a frame at once; whatever else it has to say is HTTP.
            if line.received().first() == Some(&b'H') {
                let status = answer_head(&mut line, &host).await?;
                return Err(refused(&mut line, status, host).await);
            }
            if hear_key(&mut line, &host).await? != server_key {
                return Err(login_fault(LoginError::OtherKey));
            }
        }
        let server_info = loop {
            match request.server_info(line.received()).map_err(login_fault)? {
                Some((server_info, length)) => {
                    line.consume(length);
                    break server_info;
                }
                None => line.more("instead of finishing the login").await?,
            }
        };
        Ok(Client::new(line, server_key, server_info))
    }
}

fn server_name(name: &str) -> Result<ServerName<'static>, ClientError> {
    ServerName::try_from(name.to_owned()).map_err(|_| ClientError::ServerName(name.to_owned()))
}

const _: () = assert!(READ_CHUNK >= MAX_HEAD);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_that_is_not_the_best_of_its_region_is_told_so() {
        let target: Target = "relay.test:8443".parse().unwrap();
        let connector = Connector::new(target, &Trust::Anything).unwrap();
        let request = connector.clone().with_ideal_node("900a").upgrade_request("X: y\r\n");
        assert_eq!(
            request,
            format!(
                "GET /derp HTTP/1.1\r\nHost: relay.test:8443\r\nUser-Agent: {USER_AGENT}\r\n\
                 Connection: Upgrade\r\nUpgrade: DERP\r\nIdeal-Node: 900a\r\nX: y\r\n\r\n"
            )
        );
        for name in ["", "a\r\nX: y", "a b"] {
            let request = connector.clone().with_ideal_node(name).upgrade_request("");
            assert!(!request.contains("Ideal-Node"), "{request}");
        }
    }
}
