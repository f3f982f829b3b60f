//! Where a relay is: scheme, host and port.

use std::{
    fmt,
    net::{IpAddr, Ipv6Addr},
    str::FromStr,
};

use super::ClientError;

/// A relay as a user writes it: `relay.example.com`, `192.0.2.1:8443`, `https://[2001:db8::1]`, or
/// `http://127.0.0.1:3340` for DERP without TLS.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Target {
    /// Whether there is TLS.
    pub tls: bool,
    /// DNS name or IP address, the latter without brackets.
    pub host: String,
    /// TCP port.
    pub port: u16,
}

impl Target {
    const HTTPS_PORT: u16 = 443;
    const HTTP_PORT: u16 = 80;

    /// Host and port as they stand in a URL or a Host header; the scheme's own port is left out.
    pub fn authority(&self) -> String {
        let usual = if self.tls { Self::HTTPS_PORT } else { Self::HTTP_PORT };
        if self.port == usual { self.bracketed_host() } else { self.authority_with_port() }
    }

    /// Host and port, whatever the port is.
    pub(super) fn authority_with_port(&self) -> String {
        format!("{}:{}", self.bracketed_host(), self.port)
    }

    fn bracketed_host(&self) -> String {
        match self.host.parse::<Ipv6Addr>() {
            Ok(ip) => format!("[{ip}]"),
            Err(_) => self.host.clone(),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls { "https" } else { "http" };
        write!(formatter, "{scheme}://{}", self.authority())
    }
}

impl FromStr for Target {
    type Err = ClientError;

    fn from_str(text: &str) -> Result<Self, ClientError> {
        let fault = |reason| ClientError::Target { text: text.to_owned(), reason };
        let (tls, rest) = match text.split_once("://") {
            Some(("https", rest)) => (true, rest),
            Some(("http", rest)) => (false, rest),
            Some(_) => return Err(fault("the scheme must be https or http")),
            None => (true, text),
        };
        let authority = rest.strip_suffix("/derp").or(rest.strip_suffix('/')).unwrap_or(rest);
        Self::of_authority(tls, authority).map_err(fault)
    }
}

impl Target {
    /// Reads a host with or without a port; what is wrong with it.
    pub(crate) fn of_authority(tls: bool, authority: &str) -> Result<Self, &'static str> {
        if authority.contains(['/', '?', '#', '@']) {
            return Err("only scheme, host and port can be given");
        }
        let usual = if tls { Self::HTTPS_PORT } else { Self::HTTP_PORT };
        let (host, port) = if authority.parse::<IpAddr>().is_ok() {
            (authority, None)
        } else if let Some(bracketed) = authority.strip_prefix('[') {
            let (ip, rest) = bracketed.split_once(']').ok_or("a bracket is missing")?;
            if ip.parse::<Ipv6Addr>().is_err() {
                return Err("only an IPv6 address stands in brackets");
            }
            match rest {
                "" => (ip, None),
                rest => (ip, Some(rest.strip_prefix(':').ok_or("after ] comes :port")?)),
            }
        } else {
            match authority.split_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (authority, None),
            }
        };
        if host.is_empty() || host.contains(|letter: char| letter.is_whitespace()) {
            return Err("it needs a host name or an IP address");
        }
        let port = match port {
            Some(digits) => digits.parse().map_err(|_| "the port must be 1 to 65535")?,
            None => usual,
        };
        if port == 0 {
            return Err("the port must be 1 to 65535");
        }
        Ok(Self { tls, host: host.to_owned(), port })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn forms_of_a_relay() {
        for (text, tls, host, port, written) in [
            ("relay.example.com", true, "relay.example.com", 443, "https://relay.example.com"),
            ("127.0.0.1:8443", true, "127.0.0.1", 8443, "https://127.0.0.1:8443"),
            ("https://h:80/", true, "h", 80, "https://h:80"),
            ("https://h/derp", true, "h", 443, "https://h"),
            ("http://h", false, "h", 80, "http://h"),
            ("http://[::1]:3340", false, "::1", 3340, "http://[::1]:3340"),
            ("2001:db8::1", true, "2001:db8::1", 443, "https://[2001:db8::1]"),
            ("[2001:db8::1]", true, "2001:db8::1", 443, "https://[2001:db8::1]"),
        ] {
            let target: Target = text.parse().unwrap();
            assert_eq!(target, Target { tls, host: host.to_owned(), port }, "{text}");
            assert_eq!(target.to_string(), written);
        }
    }

    #[test]
    fn other_texts_are_refused() {
        for text in [
            "",
            ":443",
            "ftp://h",
            "h:",
            "h:0",
            "h:65536",
            "h:x",
            "https://h/x",
            "[::1",
            "[h]:1",
            "[::1]443",
            "u@h",
            "a b",
            "https://",
        ] {
            assert!(text.parse::<Target>().is_err(), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_judged(text in "(https://|http://|)[\\[\\]:/.0-9a-z@]{0,20}") {
            if let Ok(target) = text.parse::<Target>() {
                prop_assert_eq!(target.to_string().parse::<Target>().unwrap(), target);
            }
        }
    }
}
