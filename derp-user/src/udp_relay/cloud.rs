//! Asks the metadata service of the cloud that this host is in for the host's public addresses.

use std::{net::IpAddr, path::Path, sync::Arc, time::Duration};

use bytes::Bytes;
use http_body_util::Empty;
use hyper::{
    Request,
    client::conn::http1,
    header::{HOST, SERVER},
};
use hyper_util::rt::TokioIo;
use tokio::{
    net::TcpStream,
    sync::watch,
    time::{Instant, sleep_until, timeout},
};

use super::PeerRelayRules;
use crate::{
    admit::web::{in_words, read_body},
    client::random_fraction,
    files,
    peer_relay::{
        BIOS_VENDOR, Cloud, CloudAddresses, CloudChoice, MOST_METADATA_BYTES, MetadataAnswer,
        MetadataRequest, MetadataRound,
    },
};

/// How long after one round the next begins, and by how much that varies.
const PERIOD: Duration = Duration::from_secs(60);
const VARIATION: Duration = Duration::from_secs(10);
/// How long a round may take, as in the reference.
const LIMIT: Duration = Duration::from_secs(2);
const PORT: u16 = 80;

/// What asks.
pub(super) struct CloudSurveyor {
    pub(super) rules: watch::Receiver<Arc<PeerRelayRules>>,
    /// Who is told what is known.
    pub(super) addresses: watch::Sender<Vec<IpAddr>>,
}

impl CloudSurveyor {
    /// Goes on until nobody is left who could change the rules; on a Tokio runtime with I/O and time.
    pub(super) async fn run(mut self) {
        loop {
            let choice = self.rules.borrow_and_update().cloud;
            let Some(cloud) = cloud(choice) else {
                self.publish(None, &[]);
                if self.rules.changed().await.is_err() {
                    return;
                }
                continue;
            };
            if self.survey(cloud, choice).await.is_none() {
                return;
            }
        }
    }

    /// Asks this cloud's service until the rules choose otherwise.
    async fn survey(&mut self, cloud: Cloud, choice: CloudChoice) -> Option<()> {
        let mut known = CloudAddresses::default();
        let mut is_warned = false;
        let mut next_round = Instant::now();
        loop {
            tokio::select! {
                changed = self.rules.changed() => {
                    changed.ok()?;
                    if self.rules.borrow_and_update().cloud != choice {
                        return Some(());
                    }
                }
                () = sleep_until(next_round) => {
                    next_round = Instant::now() + PERIOD + VARIATION.mul_f64(random_fraction());
                    let found = timeout(LIMIT, ask(cloud)).await;
                    let found = found.unwrap_or_else(|_| Err(format!("no answer within {LIMIT:?}")));
                    match &found {
                        Ok(_) => is_warned = false,
                        Err(error) if !std::mem::replace(&mut is_warned, true) => {
                            tracing::warn!("peer relay: the metadata service of {cloud}: {error}");
                        }
                        // The same again is no news.
                        Err(_) => {}
                    }
                    self.publish(Some(cloud), known.take(&found));
                }
            }
        }
    }

    /// Tells what is known, and logs it, if that is not what was known before.
    fn publish(&self, cloud: Option<Cloud>, addresses: &[IpAddr]) {
        self.addresses.send_if_modified(|before| {
            let is_other = before != addresses;
            if let Some(cloud) = cloud.filter(|_| is_other) {
                let told: Vec<_> = addresses.iter().map(ToString::to_string).collect();
                let told = if told.is_empty() { "nothing".to_owned() } else { told.join(", ") };
                tracing::info!("peer relay: this host's addresses by {cloud}'s metadata: {told}");
            }
            addresses.clone_into(before);
            is_other
        });
    }
}

/// Returns the cloud that is to be asked.
fn cloud(choice: CloudChoice) -> Option<Cloud> {
    match choice {
        CloudChoice::Detect => detect(Path::new(BIOS_VENDOR)),
        CloudChoice::Given(cloud) => Some(cloud),
        CloudChoice::Off => None,
    }
}

/// Returns the cloud that this machine is in by what a file says of its BIOS.
fn detect(bios_vendor: &Path) -> Option<Cloud> {
    // Not every machine has one.
    let text = files::read_bounded(bios_vendor).ok()?;
    Cloud::of_bios_vendor(std::str::from_utf8(&text).ok()?)
}

/// Asks for the addresses once.
async fn ask(cloud: Cloud) -> Result<Vec<IpAddr>, String> {
    let mut round = MetadataRound::new(cloud);
    while let Some(request) = round.request() {
        let answer = exchange(cloud, &request).await;
        let answer = answer.map_err(|error| format!("{}: {error}", request.path))?;
        round.answer(&answer).map_err(|error| error.to_string())?;
    }
    round.finish().map_err(|error| error.to_string())
}

/// Sends one request by a connection of its own.
async fn exchange(cloud: Cloud, request: &MetadataRequest) -> Result<MetadataAnswer, String> {
    let address = cloud.metadata_address();
    let (name, value) = &request.header;
    let request = Request::builder()
        .method(request.method)
        .uri(&request.path)
        .header(HOST, address.to_string())
        .header(*name, value)
        .body(Empty::<Bytes>::new())
        .map_err(|error| error.to_string())?;
    let stream = TcpStream::connect((address, PORT)).await.map_err(|error| error.to_string())?;
    let (mut sender, connection) =
        http1::handshake(TokioIo::new(stream)).await.map_err(|error| in_words(&error))?;
    let answered = async {
        let answer = sender.send_request(request).await;
        let mut answer = answer.map_err(|error| in_words(&error))?;
        let server = answer.headers().get(SERVER).and_then(|server| server.to_str().ok());
        let server = server.unwrap_or_default().to_owned();
        let status = answer.status().as_u16();
        match read_body(answer.body_mut(), MOST_METADATA_BYTES).await? {
            (body, true) => Ok(MetadataAnswer { status, server, body }),
            (_, false) => Err(format!("an answer of more than {MOST_METADATA_BYTES} bytes")),
        }
    };
    // The connection must be driven for the answer to come; its own end is no news.
    let driven = async {
        let _ = connection.await;
        std::future::pending().await
    };
    tokio::select! {
        answer = answered => answer,
        never = driven => never,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cloud_is_found_by_a_file_that_need_not_be_there() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("bios_vendor");
        assert_eq!(detect(&file), None);
        for (text, cloud) in
            [(&b"Amazon EC2\n"[..], Some(Cloud::Aws)), (b"SeaBIOS\n", None), (b"\xff\xfe", None)]
        {
            std::fs::write(&file, text).unwrap();
            assert_eq!(detect(&file), cloud);
        }
    }

    #[test]
    fn a_choice_of_the_operator_is_not_questioned() {
        assert_eq!(cloud(CloudChoice::Given(Cloud::Aws)), Some(Cloud::Aws));
        assert_eq!(cloud(CloudChoice::Off), None);
    }
}
