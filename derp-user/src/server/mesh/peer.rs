//! A mesh peer as the operator writes it (reference section 4.1).

use std::str::FromStr;

use crate::client::Target;

/// A server of the same region: `host`, `host:port`, or either with `/dial-host` or `/dial-host:port`
/// behind it. TLS and HTTP go to `host`, TCP to the dial host, if one is given.
///
/// Every address of the dialled name is a server, unless it turns out to be another address of one.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct MeshPeer {
    /// What was written before the slash: the peer's name in the log.
    pub name: String,
    /// What TLS and HTTP are told.
    pub target: Target,
    /// DNS name or IP address that is dialled.
    pub dial_host: String,
    /// Port that is dialled.
    pub dial_port: u16,
}

/// Why a text names no mesh peer.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{text:?}: {reason}")]
pub struct MeshPeerError {
    text: String,
    reason: String,
}

impl FromStr for MeshPeer {
    type Err = MeshPeerError;

    fn from_str(text: &str) -> Result<Self, MeshPeerError> {
        let fault =
            |reason: &str| MeshPeerError { text: text.to_owned(), reason: reason.to_owned() };
        let (host, dial) = match text.split_once('/') {
            Some((_, dial)) if dial.contains('/') => {
                return Err(fault("too many slashes: write host or host/dial-host"));
            }
            Some((host, dial)) => (host, Some(dial)),
            None => (text, None),
        };
        if text.contains(char::is_whitespace) {
            return Err(fault("blanks are not allowed, not even after a comma"));
        }
        let parse = |part: &str| Target::of_authority(true, part).map_err(fault);
        let target = parse(host)?;
        let (dial_host, dial_port) = match dial {
            None => (target.host.clone(), target.port),
            Some(dial) => {
                let dialled = parse(dial)?;
                // The port is the host's, unless this one has its own.
                let says_port = dial != dialled.host && dial != format!("[{}]", dialled.host);
                let port = if says_port { dialled.port } else { target.port };
                (dialled.host, port)
            }
        };
        Ok(Self { name: host.to_owned(), target, dial_host, dial_port })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms_of_a_peer() {
        for (text, host, port, dial_host, dial_port) in [
            ("a.example", "a.example", 443, "a.example", 443),
            ("a.example:8443", "a.example", 8443, "a.example", 8443),
            ("a.example/10.0.0.5", "a.example", 443, "10.0.0.5", 443),
            ("a.example:8443/10.0.0.5", "a.example", 8443, "10.0.0.5", 8443),
            ("a.example/b.internal:9443", "a.example", 443, "b.internal", 9443),
            ("192.0.2.1:8443", "192.0.2.1", 8443, "192.0.2.1", 8443),
            ("[2001:db8::1]:8443", "2001:db8::1", 8443, "2001:db8::1", 8443),
            ("a.example/[2001:db8::1]", "a.example", 443, "2001:db8::1", 443),
            ("a.example/2001:db8::1", "a.example", 443, "2001:db8::1", 443),
            ("a.example/[2001:db8::1]:444", "a.example", 443, "2001:db8::1", 444),
        ] {
            let peer: MeshPeer = text.parse().unwrap();
            assert_eq!((&*peer.target.host, peer.target.port), (host, port), "{text}");
            assert_eq!((&*peer.dial_host, peer.dial_port), (dial_host, dial_port), "{text}");
            assert!(peer.target.tls);
            assert!(text.starts_with(&peer.name));
        }
    }

    #[test]
    fn case_52_other_texts_are_refused() {
        for (text, reason) in [
            (" b", "blanks"),
            ("a b", "blanks"),
            ("", "needs a host name"),
            ("a/b/c", "too many slashes"),
            ("https://a", "too many slashes"),
            ("a:0", "port"),
            ("a:70000", "port"),
            ("a/", "needs a host name"),
            ("/a", "needs a host name"),
            ("a@b", "only scheme, host and port"),
        ] {
            let error = text.parse::<MeshPeer>().unwrap_err().to_string();
            assert!(error.contains(reason), "{text:?}: {error}");
            assert!(error.contains(&format!("{text:?}")), "{error}");
        }
    }
}
