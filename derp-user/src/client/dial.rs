//! From a name to a logged-in connection: addresses, TCP, TLS, HTTP upgrade, login.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use rustls::{ClientConfig, pki_types::ServerName};
use tokio::{net::TcpStream, time::timeout};

use super::{
    Client, ClientError, Target, Trust, random,
    session::{Line, READ_CHUNK},
    wire::Wire,
};
use crate::proto::{
    client::login::{self, LoginRequest},
    keys::{NodePrivate, NodePublic},
    login::ClientInfo,
};

/// Longest that connecting may take, from looking up the name to the login.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest that one of several addresses is tried.
const ADDRESS_TIMEOUT: Duration = Duration::from_secs(3);
/// Longest head of an HTTP answer.
const MAX_HEAD: usize = 16 << 10;
/// Most header fields of an HTTP answer.
const MAX_FIELDS: usize = 64;
/// How much of the body of a refusal is shown.
const SHOWN_BODY: usize = 200;

/// Connects to one relay, as often as wanted.
#[derive(Clone)]
pub struct Connector {
    target: Target,
    tls: Option<(Arc<ClientConfig>, ServerName<'static>)>,
    addresses: Vec<SocketAddr>,
    info: Arc<ClientInfo>,
}

impl Connector {
    /// A connector to `target`, whose certificate must be as `trust` says; its name is the host's.
    ///
    /// # Errors
    ///
    /// If root certificates cannot be had, or the host cannot be the name of a server.
    pub fn new(target: Target, trust: &Trust) -> Result<Self, ClientError> {
        let tls = if target.tls {
            Some((Arc::new(trust.tls_config()?), server_name(&target.host)?))
        } else {
            None
        };
        Ok(Self { target, tls, addresses: Vec::new(), info: Arc::default() })
    }

    /// Expects this name in the certificate, and asks for it, instead of the host's.
    ///
    /// # Errors
    ///
    /// If it is neither a DNS name nor an IP address.
    pub fn with_server_name(mut self, name: &str) -> Result<Self, ClientError> {
        let name = server_name(name)?;
        if let Some((_, expected)) = &mut self.tls {
            *expected = name;
        }
        Ok(self)
    }

    /// Says this of the client when logging in.
    #[must_use]
    pub fn with_info(mut self, info: ClientInfo) -> Self {
        self.info = Arc::new(info);
        self
    }

    /// Looks up the host's addresses now, once, instead of at each connect.
    ///
    /// # Errors
    ///
    /// If the host is unknown, or cannot be looked up within [`CONNECT_TIMEOUT`].
    pub async fn resolved(mut self) -> Result<Self, ClientError> {
        self.addresses =
            timeout(CONNECT_TIMEOUT, self.look_up()).await.unwrap_or_else(|_| Err(self.late()))?;
        Ok(self)
    }

    /// Connects to this address, whatever the host's addresses are.
    #[must_use]
    pub fn with_address(mut self, address: SocketAddr) -> Self {
        self.addresses = vec![address];
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
        let socket = self.open_socket().await?;
        let wire = match &self.tls {
            Some((config, name)) => Wire::tls(Arc::clone(config), name.clone())
                .map_err(|source| ClientError::Tls { host: self.host(), source })?,
            None => Wire::plain(),
        };
        let mut line = Line::new(socket, wire, self.target.authority());
        line.handshake().await?;
        self.upgrade(&mut line).await?;
        let server_key = loop {
            let found = login::server_key(line.received());
            match found.map_err(|source| ClientError::Login { host: self.host(), source })? {
                Some((server_key, length)) => {
                    line.consume(length);
                    break server_key;
                }
                None => line.more("before the login").await?,
            }
        };
        Ok(Greeting { line, server_key, info: Arc::clone(&self.info), host: self.host() })
    }

    async fn connect_without_limit(&self, key: &NodePrivate) -> Result<Client, ClientError> {
        self.greet().await?.log_in(key).await
    }

    async fn look_up(&self) -> Result<Vec<SocketAddr>, ClientError> {
        let fault = |source| ClientError::Resolve { host: self.target.host.clone(), source };
        let found = tokio::net::lookup_host((self.target.host.as_str(), self.target.port));
        let addresses: Vec<_> = found.await.map_err(fault)?.collect();
        if addresses.is_empty() {
            return Err(fault(std::io::Error::other("it has no address")));
        }
        Ok(addresses)
    }

    /// Tries the host's addresses one after the other.
    async fn open_socket(&self) -> Result<TcpStream, ClientError> {
        let addresses = match self.addresses.as_slice() {
            [] => self.look_up().await?,
            known => known.to_vec(),
        };
        let mut fault = None;
        for &address in &addresses {
            let opened = timeout(ADDRESS_TIMEOUT, TcpStream::connect(address)).await;
            match opened.unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into())) {
                Ok(socket) => {
                    socket
                        .set_nodelay(true)
                        .map_err(|source| ClientError::Io { host: self.host(), source })?;
                    return Ok(socket);
                }
                Err(source) => {
                    let host = self.target.host.clone();
                    fault = Some(ClientError::Connect { host, address, source });
                }
            }
        }
        Err(fault.unwrap_or_else(|| ClientError::Closed { host: self.host(), during: "at once" }))
    }

    /// Asks for DERP and reads the answer; what follows its head already belongs to DERP.
    async fn upgrade(&self, line: &mut Line) -> Result<(), ClientError> {
        let request = format!(
            "GET /derp HTTP/1.1\r\nHost: {}\r\nUser-Agent: derpd/{}\r\nConnection: Upgrade\r\nUpgrade: DERP\r\n\r\n",
            self.target.authority(),
            env!("CARGO_PKG_VERSION")
        );
        line.write(request.as_bytes()).await?;
        let not_http = |reason: String| ClientError::NotHttp { host: self.host(), reason };
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
        if status == 101 {
            return Ok(());
        }
        // The reason is worth waiting for, but not for long, and its lack is no other error.
        let _ = timeout(Duration::from_millis(500), async {
            while line.received().len() < SHOWN_BODY && line.more("").await.is_ok() {}
        })
        .await;
        let body = line.received().get(..SHOWN_BODY).unwrap_or(line.received());
        let body = String::from_utf8_lossy(body).trim().to_owned();
        Err(ClientError::Refused { host: self.host(), status, body })
    }

    fn late(&self) -> ClientError {
        ClientError::ConnectTimeout { host: self.host(), limit: CONNECT_TIMEOUT }
    }

    fn host(&self) -> String {
        self.target.authority()
    }
}

/// A relay that has said who it is, and does not know yet who is there. To drop this closes the
/// connection.
pub struct Greeting {
    line: Line,
    server_key: NodePublic,
    info: Arc<ClientInfo>,
    host: String,
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
        let Self { mut line, server_key, info, host } = self;
        let login_fault = |source| ClientError::Login { host: host.clone(), source };
        let request = LoginRequest::new(key, &server_key, &info, random()?).map_err(login_fault)?;
        line.write(request.frame()).await?;
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
