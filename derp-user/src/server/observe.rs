//! Looks at every client's TCP connection from time to time: for the round trip times among the metrics, for
//! `/debug/traffic` and for the status page. This runs beside the workers, takes clients a few at a time, and holds no lock while it asks the
//! kernel about them.

use std::{collections::HashMap, fmt::Write as _, net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    task::yield_now,
    time::sleep,
};

use super::{Statistics, connection::Connection, tcp_info::TcpInfo};
use crate::{
    proto::keys::NodePublic,
    relay::{ClientFigures, ConnectionId},
};

/// Time between two samples of the round trip times; derper's.
const ROUND_TRIP_PERIOD: Duration = Duration::from_secs(10);
/// Time between two rounds of the traffic stream; derper's.
const TRAFFIC_PERIOD: Duration = Duration::from_secs(2);
/// Clients looked at before others get a turn.
const PIECE: usize = 128;
/// Pieces of the traffic stream that wait for its reader.
const PIECES_AHEAD: usize = 4;
/// Traffic streams at one time.
const MOST_STREAMS: usize = 4;

/// Who may look, and how many do.
#[derive(Debug)]
pub(super) struct Observers(Arc<Semaphore>);

impl Default for Observers {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(MOST_STREAMS)))
    }
}

impl Statistics {
    /// Samples the round trip time of every client again and again, until dropped; on a Tokio runtime with time.
    pub async fn sample_round_trips(&self) {
        loop {
            sleep(ROUND_TRIP_PERIOD).await;
            let mut clients = Clients::of(self);
            while let Some(piece) = clients.next().await {
                for (client, _) in piece {
                    let Some(socket) = client.socket() else { continue };
                    let info = TcpInfo::read(&socket);
                    self.round_trips.record(info.ok().map(|info| info.round_trip));
                }
            }
        }
    }

    /// Looks at every client once, a few at a time, so that others have their turn in between.
    pub async fn look_at_clients(&self, mut look: impl FnMut(&ClientSight)) {
        let mut clients = Clients::of(self);
        while let Some(piece) = clients.next().await {
            piece.iter().filter_map(ClientSight::of).for_each(|sight| look(&sight));
        }
    }

    /// Looks at the first few clients at once.
    pub fn look_at_first_clients(&self, look: impl FnMut(&ClientSight)) {
        let piece = self.hub.clients_after(None, PIECE);
        piece.iter().filter_map(ClientSight::of).collect::<Vec<_>>().iter().for_each(look);
    }

    /// Begins a stream that tells every two seconds how many bytes each client's connection has carried, if more than
    /// before: one JSON object a line, and an empty line after each round. `None` if enough people look already.
    /// The stream ends soon after its reader is dropped.
    pub fn traffic(
        self: &Arc<Self>,
        runtime: &tokio::runtime::Handle,
    ) -> Option<mpsc::Receiver<Bytes>> {
        let permit = Arc::clone(&self.observers.0).try_acquire_owned().ok()?;
        let (pieces, stream) = mpsc::channel(PIECES_AHEAD);
        runtime.spawn(tell_traffic(Arc::clone(self), pieces, permit));
        Some(stream)
    }
}

/// One client, as it is when somebody looks.
#[derive(Clone, Copy, Debug)]
pub struct ClientSight {
    /// The name of its connection.
    pub id: ConnectionId,
    /// Its key.
    pub key: NodePublic,
    /// Where it comes from.
    pub remote: SocketAddr,
    /// Bytes that its TCP connection has received, and sent, repeated ones included.
    pub carried: [u64; 2],
    /// Smoothed round trip time of the connection.
    pub round_trip: Duration,
    /// What the relay knows of it.
    pub figures: ClientFigures,
    /// Whether its socket is full.
    pub is_blocked: bool,
}

impl ClientSight {
    /// `None` for a client without a socket, or whose socket the kernel says nothing of.
    fn of((client, figures): &(Arc<Connection>, ClientFigures)) -> Option<Self> {
        let info = TcpInfo::read(&client.socket()?).ok()?;
        Some(Self {
            id: client.id,
            key: client.key,
            remote: client.remote,
            carried: [info.bytes_received, info.bytes_sent],
            round_trip: info.round_trip,
            figures: *figures,
            is_blocked: client.is_blocked(),
        })
    }
}

async fn tell_traffic(
    statistics: Arc<Statistics>,
    pieces: mpsc::Sender<Bytes>,
    _permit: OwnedSemaphorePermit,
) {
    let mut traffic = Traffic::default();
    loop {
        let mut clients = Clients::of(&statistics);
        while let Some(piece) = clients.next().await {
            let mut text = String::new();
            for (client, figures) in piece {
                let info = client.socket().map(|socket| TcpInfo::read(&socket));
                if let Some(Ok(info)) = info {
                    traffic.tell(&mut text, client.id, &client.key, &info, figures.senders);
                }
            }
            if !text.is_empty() && pieces.send(Bytes::from(text)).await.is_err() {
                return;
            }
        }
        traffic.end_round();
        if pieces.send(Bytes::from_static(b"\n")).await.is_err() {
            return;
        }
        tokio::select! {
            () = sleep(TRAFFIC_PERIOD) => {}
            () = pieces.closed() => return,
        }
    }
}

/// All clients, a few at a time.
struct Clients<'a> {
    statistics: &'a Statistics,
    last: Option<ConnectionId>,
}

impl<'a> Clients<'a> {
    fn of(statistics: &'a Statistics) -> Self {
        Self { statistics, last: None }
    }

    async fn next(&mut self) -> Option<Vec<(Arc<Connection>, ClientFigures)>> {
        if self.last.is_some() {
            yield_now().await;
        }
        let piece = self.statistics.hub.clients_after(self.last, PIECE);
        self.last = Some(piece.last()?.0.id);
        Some(piece)
    }
}

/// What connections had carried when they were last looked at.
#[derive(Default)]
struct Traffic {
    before: HashMap<ConnectionId, (u64, u64)>,
    now: HashMap<ConnectionId, (u64, u64)>,
}

impl Traffic {
    /// Appends a line about a connection that has carried more than before.
    fn tell(
        &mut self,
        text: &mut String,
        id: ConnectionId,
        key: &NodePublic,
        info: &TcpInfo,
        senders: usize,
    ) {
        let TcpInfo { bytes_sent: sent, bytes_received: received, .. } = *info;
        let before = self.before.get(&id).copied().unwrap_or_default();
        self.now.insert(id, (sent, received));
        if sent <= before.0 && received <= before.1 {
            return;
        }
        let _ = write!(text, "{{\"Sent\":{sent},\"Recv\":{received},\"Key\":\"{key}\"");
        if senders > 0 {
            let _ = write!(text, ",\"UniqueSenders\":{senders}");
        }
        text.push_str("}\n");
    }

    /// Every connection has been looked at; those that were not are gone.
    fn end_round(&mut self) {
        self.before = std::mem::take(&mut self.now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_has_grown_is_told() {
        let key = NodePublic::from_bytes([7; 32]);
        let mut traffic = Traffic::default();
        let mut told = |sent, received, senders| {
            let mut text = String::new();
            let (bytes_sent, bytes_received) = (sent, received);
            let info = TcpInfo { round_trip: Duration::ZERO, bytes_sent, bytes_received };
            traffic.tell(&mut text, 1, &key, &info, senders);
            traffic.end_round();
            text
        };
        let key = "nodekey:".to_owned() + &"07".repeat(32);
        assert_eq!(told(10, 0, 0), format!("{{\"Sent\":10,\"Recv\":0,\"Key\":\"{key}\"}}\n"));
        assert_eq!(told(10, 0, 0), "");
        let line = format!("{{\"Sent\":10,\"Recv\":5,\"Key\":\"{key}\",\"UniqueSenders\":3}}\n");
        assert_eq!(told(10, 5, 3), line);
        traffic.end_round();
        assert!(traffic.before.is_empty(), "a connection that is gone is forgotten");
    }
}
