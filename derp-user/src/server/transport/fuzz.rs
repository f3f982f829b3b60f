//! Connections that say anything.

use std::{
    sync::{Arc, LazyLock},
    time::SystemTime,
};

use rustls::ServerConfig;

use super::{Outgoing, Phase, Transport};
use crate::{fuzzing::pieces, proto::keys::NodePublic, tls};

static CONFIG: LazyLock<Arc<ServerConfig>> = LazyLock::new(|| {
    let directory = tempfile::tempdir().expect("a directory can be made");
    let now = SystemTime::now();
    let certificate =
        tls::load_or_create(directory.path(), "127.0.0.1", now).expect("as it is new");
    let meta = tls::meta_certificate(&NodePublic::from_bytes([1; 32]), now).expect("of a good key");
    Arc::new(tls::server_config(certificate, meta).expect("these are the right ones"))
});

/// WebSocket: the DERP bytes are the same however the connection's bytes are cut.
pub(crate) fn websocket(bytes: &[u8]) {
    let server = || {
        let mut transport = Transport::plain();
        transport.begin_websocket(Vec::new());
        transport
    };
    assert_eq!(all(server(), &[bytes]), all(server(), &pieces(bytes)));
}

/// TLS, from the first byte on.
pub(crate) fn tls(bytes: &[u8]) {
    let server = Transport::tls(CONFIG.clone()).expect("the configuration is good");
    assert!(all(server, &pieces(bytes)).0.is_empty(), "nobody has the keys");
}

/// The DERP bytes in `pieces` as they arrive one after the other, and what is wrong with them, if anything.
fn all(mut server: Transport, pieces: &[&[u8]]) -> (Vec<u8>, Option<String>) {
    let mut plain = Vec::new();
    for piece in pieces {
        let mut received = [server.incomplete(), piece].concat();
        match server.receive(&mut received, &mut plain, &mut Outgoing::default()) {
            Ok(Phase::Ended) => break,
            Ok(Phase::Handshaking | Phase::Established) => {}
            Err(error) => return (plain, Some(error.to_string())),
        }
    }
    (plain, None)
}
