//! What a request for `/derp` wants to become.

use std::{net::SocketAddr, time::Instant};

use hyper::{
    HeaderMap, StatusCode,
    http::{header, request::Parts},
};

use super::{Handshake, Reply, reply};
use crate::quiet::Quiet;

/// Most bytes of a strange `Upgrade` header that are logged.
const LONGEST_SHOWN: usize = 64;

/// What the `Upgrade` header of a request for `/derp` asks for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Upgrade<'a> {
    /// Raw DERP. Very old clients say `websocket` without a subprotocol and mean the same.
    Derp,
    /// DERP inside WebSocket messages.
    WebSocket,
    /// No upgrade at all.
    Absent,
    /// Something else.
    Other(&'a [u8]),
}

/// How a request begins a DERP connection.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Entry {
    /// DERP at once.
    Derp,
    /// DERP inside WebSocket messages.
    WebSocket(Handshake),
}

impl<'a> Upgrade<'a> {
    /// Classifies the values of the headers `Upgrade` and `Sec-WebSocket-Protocol`. Nothing else decides: not the
    /// method, not `Connection`.
    pub fn classify(upgrade: Option<&'a [u8]>, protocols: Option<&[u8]>) -> Self {
        match upgrade {
            None | Some(b"") => Self::Absent,
            Some(value) if value.eq_ignore_ascii_case(b"derp") => Self::Derp,
            Some(value) if value.eq_ignore_ascii_case(b"websocket") => {
                let protocols = protocols.unwrap_or_default();
                if protocols.windows(4).any(|window| window == b"derp") {
                    Self::WebSocket
                } else {
                    Self::Derp
                }
            }
            Some(value) => Self::Other(value),
        }
    }

    /// The same for parsed headers.
    pub(super) fn of(headers: &'a HeaderMap) -> Self {
        let value = |name| headers.get(name).map(|value| value.as_bytes());
        Self::classify(value(header::UPGRADE), value(header::SEC_WEBSOCKET_PROTOCOL))
    }
}

/// The answer to a request for `/derp` that cannot become a DERP connection. A strange upgrade is logged, because
/// it usually means a proxy in between.
pub(super) fn refusal(request: &Parts, remote: SocketAddr, quiet: &Quiet) -> Reply {
    match Upgrade::of(&request.headers) {
        Upgrade::Derp | Upgrade::Absent => {}
        Upgrade::WebSocket => {
            if let Err(fault) = Handshake::of(request) {
                return fault.reply();
            }
        }
        Upgrade::Other(value) => {
            if let Some(suffix) = quiet.suffix(Instant::now()) {
                let value = value.get(..LONGEST_SHOWN).unwrap_or(value).escape_ascii();
                tracing::info!("derp: {remote}: weird upgrade: \"{value}\"{suffix}");
            }
        }
    }
    reply::text(StatusCode::UPGRADE_REQUIRED, "DERP requires connection upgrade")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_upgrade_header_decides() {
        for (upgrade, protocols, expected) in [
            (None, None, Upgrade::Absent),
            (Some(""), None, Upgrade::Absent),
            (Some("DERP"), None, Upgrade::Derp),
            (Some("derp"), Some("derp"), Upgrade::Derp),
            (Some("WebSocket"), None, Upgrade::Derp),
            (Some("websocket"), Some("chat"), Upgrade::Derp),
            (Some("websocket"), Some("chat, derp"), Upgrade::WebSocket),
            (Some("websocket"), Some("xderp"), Upgrade::WebSocket),
            (Some("h2c"), None, Upgrade::Other(b"h2c")),
        ] {
            let classified =
                Upgrade::classify(upgrade.map(str::as_bytes), protocols.map(str::as_bytes));
            assert_eq!(classified, expected, "{upgrade:?} {protocols:?}");
        }
    }
}
