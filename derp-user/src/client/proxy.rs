//! HTTP proxies between a client and its relays.

use std::fmt;

use hyper::{Uri, header::HeaderValue};
use hyper_util::client::proxy::matcher::Matcher;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use super::{ClientError, Target};

/// Longest head of a proxy's answer.
const MAX_HEAD: usize = 16 << 10;
/// Most header fields of a proxy's answer.
const MAX_FIELDS: usize = 64;

/// Which proxy leads to which relay. By default none does.
#[derive(Default)]
pub struct Proxies(Option<Matcher>);

impl Proxies {
    /// What the environment says: `HTTPS_PROXY` for relays over TLS, `HTTP_PROXY` for others, `ALL_PROXY`
    /// for both, `NO_PROXY` for the hosts, domains and networks that need none. This machine needs none.
    #[must_use]
    pub fn from_environment() -> Self {
        Self(Some(Matcher::from_env()))
    }

    /// This proxy for every relay: `http://host:port`, or `http://user:password@host:port` for one that
    /// wants to know who asks.
    ///
    /// # Errors
    ///
    /// If it is no HTTP address.
    pub fn always(url: &str) -> Result<Self, ClientError> {
        let matcher = Matcher::builder().all(url.to_owned()).build();
        let proxies = Self(Some(matcher));
        let anywhere = Target { tls: true, host: "relay.invalid".to_owned(), port: 443 };
        match proxies.towards(&anywhere)? {
            Some(_) => Ok(proxies),
            // What was written may hold a password.
            None => Err(ClientError::ProxyScheme("what is no address".to_owned())),
        }
    }

    /// The proxy that leads to `target`.
    pub(super) fn towards(&self, target: &Target) -> Result<Option<Proxy>, ClientError> {
        let Some(matcher) = &self.0 else { return Ok(None) };
        if is_this_machine(&target.host) {
            return Ok(None);
        }
        let Ok(uri) = target.to_string().parse::<Uri>() else { return Ok(None) };
        let Some(found) = matcher.intercept(&uri) else { return Ok(None) };
        let (scheme, authority) = (found.uri().scheme_str(), found.uri().authority());
        let (Some("http"), Some(authority)) = (scheme, authority) else {
            return Err(ClientError::ProxyScheme(found.uri().to_string()));
        };
        let address = Target::of_authority(false, authority.as_str())
            .map_err(|_| ClientError::ProxyScheme(found.uri().to_string()))?;
        Ok(Some(Proxy { address, authorization: found.basic_auth().cloned() }))
    }
}

/// Go's clients never ask a proxy for these either.
fn is_this_machine(host: &str) -> bool {
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// A proxy that speaks HTTP.
#[derive(Clone)]
pub(super) struct Proxy {
    /// Where it is.
    pub(super) address: Target,
    authorization: Option<HeaderValue>,
}

impl fmt::Debug for Proxy {
    /// Does not show who asks.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Proxy({})", self.address)
    }
}

impl Proxy {
    /// The request for a connection to `target` (RFC 9110 section 9.3.6).
    fn request(&self, target: &Target) -> Vec<u8> {
        let authority = target.authority_with_port();
        let mut request =
            format!("CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n").into_bytes();
        if let Some(authorization) = &self.authorization {
            request.extend(b"Proxy-Authorization: ");
            request.extend(authorization.as_bytes());
            request.extend(b"\r\n");
        }
        request.extend(b"\r\n");
        request
    }

    /// Has the proxy connect to `target`. The socket leads there afterwards.
    pub(super) async fn connect(
        &self,
        mut socket: TcpStream,
        target: &Target,
    ) -> Result<TcpStream, ClientError> {
        let proxy = self.address.to_string();
        let io = |source| ClientError::Io { host: proxy.clone(), source };
        socket.write_all(&self.request(target)).await.map_err(io)?;
        let mut received = Vec::new();
        loop {
            if socket.read_buf(&mut received).await.map_err(io)? == 0 {
                let during = "instead of connecting us";
                return Err(ClientError::Closed { host: proxy, during });
            }
            match answer(&received) {
                Ok(None) => {}
                Ok(Some(200)) => return Ok(socket),
                Ok(Some(status)) => {
                    return Err(ClientError::ProxyRefused {
                        proxy,
                        target: target.authority(),
                        status,
                    });
                }
                Err(reason) => return Err(ClientError::NotHttp { host: proxy, reason }),
            }
        }
    }
}

/// The status of the answer, once its head is there and nothing else.
fn answer(received: &[u8]) -> Result<Option<u16>, String> {
    let mut fields = [httparse::EMPTY_HEADER; MAX_FIELDS];
    let mut answer = httparse::Response::new(&mut fields);
    match answer.parse(received).map_err(|error| error.to_string())? {
        httparse::Status::Complete(length) => {
            let status = answer.code.unwrap_or_default();
            // Servers of TLS and HTTP wait for their clients: nothing may come by itself.
            if status == 200 && length != received.len() {
                return Err("it sends data before it is asked for any".to_owned());
            }
            Ok(Some(status))
        }
        httparse::Status::Partial if received.len() > MAX_HEAD => {
            Err("its head never ends".to_owned())
        }
        httparse::Status::Partial => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn towards(proxies: &Proxies, target: &str) -> Option<Proxy> {
        proxies.towards(&target.parse().unwrap()).unwrap()
    }

    #[test]
    fn a_proxy_is_asked_with_name_and_password() {
        let proxies = Proxies::always("http://Aladdin:open%20sesame@proxy.test:3128").unwrap();
        let target: Target = "relay.test".parse().unwrap();
        let proxy = proxies.towards(&target).unwrap().unwrap();
        assert_eq!(proxy.address.to_string(), "http://proxy.test:3128");
        assert!(!format!("{proxy:?}").contains("QWx"));
        let request = String::from_utf8(proxy.request(&target)).unwrap();
        assert_eq!(
            request,
            "CONNECT relay.test:443 HTTP/1.1\r\nHost: relay.test:443\r\n\
             Proxy-Authorization: Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==\r\n\r\n"
        );
        let ipv6 = proxy.request(&"[2001:db8::1]:8443".parse().unwrap());
        assert!(ipv6.starts_with(b"CONNECT [2001:db8::1]:8443 HTTP/1.1\r\n"));
    }

    #[test]
    fn this_machine_needs_no_proxy() {
        let proxies = Proxies::always("proxy.test:3128").unwrap();
        for target in ["localhost:1", "127.0.0.1", "[::1]:443"] {
            assert!(towards(&proxies, target).is_none(), "{target}");
        }
        assert!(towards(&proxies, "relay.test").is_some());
        assert!(towards(&Proxies::default(), "relay.test").is_none());
    }

    #[test]
    fn other_proxies_are_refused() {
        for url in ["https://p", "socks5://user:secret@p", "ftp://p", "", ":"] {
            let error = Proxies::always(url).err().unwrap().to_string();
            assert!(error.contains("http://") && !error.contains("secret"), "{url}: {error}");
        }
    }

    #[test]
    fn answers_of_proxies() {
        let head = "HTTP/1.1 200 Connection established\r\nVia: x\r\n\r\n";
        for end in 0..head.len() {
            assert_eq!(answer(&head.as_bytes()[..end]), Ok(None), "{end}");
        }
        assert_eq!(answer(head.as_bytes()), Ok(Some(200)));
        assert!(answer(format!("{head}more").as_bytes()).is_err());
        assert_eq!(answer(b"HTTP/1.1 407 No\r\n\r\n<html>"), Ok(Some(407)));
        assert!(answer(b"SSH-2.0\r\n").is_err());
        let endless = format!("HTTP/1.1 200 OK\r\nA: {}", "a".repeat(MAX_HEAD));
        assert!(answer(endless.as_bytes()).is_err());
    }
}
