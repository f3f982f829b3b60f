//! Connections that ask anything.

use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

use super::*;

/// An address that may not see `/debug/`.
pub(super) const STRANGER: &str = "198.51.100.7:4000";

/// A site without anything behind it, for tests of others too.
pub(crate) fn settings() -> Settings {
    Settings {
        home: Home::BuiltIn,
        derp_enabled: true,
        hostname: "derp.example.com".to_owned(),
        machine: "relay<1>".to_owned(),
        version: "1.2.3",
        has_mesh_key: Box::new(|| false),
        mesh: Box::new(MeshView::default),
        status: Box::new(|_| Status::default()),
        admission: Box::new(|| "open: <everybody>".to_owned()),
        bootstrap: Arc::default(),
        access: DebugAccess::default(),
        acme_challenge: None,
        started: Instant::now(),
        varz: Box::new(|| "derp_accepts 1\n".to_owned()),
        vars: Box::new(String::new),
        tls_requests: TlsRequests::default(),
        traffic: Box::new(|| None),
        flows: Box::new(FlowsView::default),
        peer_relay: Box::new(|| None),
        wireguard: Box::new(|| None),
        check: Box::new(|| Ok(())),
    }
}

/// The main listener, with this client.
pub(super) fn main_from(remote: &str) -> Origin {
    Origin {
        remote: remote.parse().unwrap(),
        listener: Listener::Main { tls: Some(TlsVersion::V13) },
    }
}

/// What becomes of a connection whose client says this, and no more.
pub(super) fn outcome_of(bytes: &[u8]) -> Outcome<tokio::io::DuplexStream> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(async {
        let (near, mut far) = duplex(64 * 1024);
        let site = Arc::new(Site::new(settings()));
        let server = serve_connection(near, main_from(STRANGER), site);
        let client = async {
            far.write_all(bytes).await.unwrap();
            far.shutdown().await.unwrap();
            let mut answer = Vec::new();
            far.read_to_end(&mut answer).await.unwrap();
        };
        // The client waits for the end of answers, so a hand-over has to end it.
        tokio::select! {
            biased;
            outcome = server => outcome,
            () = client => Outcome::Done,
        }
    })
}

/// Any bytes are served or refused; those that follow an upgrade are not lost.
pub(crate) fn request(bytes: &[u8]) {
    if let Outcome::Derp { unread, .. } = outcome_of(bytes) {
        assert!(bytes.ends_with(&unread), "{unread:?}");
    }
}
