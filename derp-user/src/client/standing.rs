//! A client that connects again whenever its connection has ended.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::Mutex,
    time::{Instant, sleep_until},
};

use super::{
    Backoff, Client, ClientError, Connector, Receiver, RegionConnector, Sender, random_fraction,
};
use crate::proto::{
    client::{login::ServerInfo, read::Message},
    keys::{NodePrivate, NodePublic},
};

/// Where a standing client connects to.
#[derive(Clone)]
pub enum Dialer {
    /// One relay.
    Relay(Box<Connector>),
    /// Whichever relay of a region is there.
    Region(RegionConnector),
}

impl From<Connector> for Dialer {
    fn from(connector: Connector) -> Self {
        Self::Relay(Box::new(connector))
    }
}

impl From<RegionConnector> for Dialer {
    fn from(connector: RegionConnector) -> Self {
        Self::Region(connector)
    }
}

impl Dialer {
    /// Connects and logs in as the owner of `key`.
    ///
    /// # Errors
    ///
    /// Whatever stands between here and a finished login.
    pub async fn connect(&self, key: &NodePrivate) -> Result<Client, ClientError> {
        match self {
            Self::Relay(connector) => connector.connect(key).await,
            Self::Region(connector) => connector.connect(key).await,
        }
    }
}

/// What a standing client is told.
#[derive(Debug)]
pub enum Event<'a> {
    /// There is a connection now, a first or another one. What the relay told before counts no more.
    Connected {
        /// Host and port of the relay.
        host: String,
        /// The relay's public key.
        server_key: NodePublic,
        /// What it says of itself.
        server_info: ServerInfo,
    },
    /// There is no connection: it ended, or none came to stand. The next call waits and tries again.
    Disconnected {
        /// Why.
        error: ClientError,
        /// How long the next call waits first.
        pause: Duration,
    },
    /// The relay says this.
    Message(Message<'a>),
}

/// The receiving half, which also connects.
pub struct StandingReceiver {
    dialer: Dialer,
    key: NodePrivate,
    shared: Arc<Shared>,
    receiver: Option<Receiver>,
    backoff: Backoff,
    /// When the connection came to stand.
    since: Instant,
    /// When to try again.
    retry_at: Option<Instant>,
    watches: bool,
}

/// The sending half; clones send over the same connection.
#[derive(Clone)]
pub struct StandingSender(Arc<Shared>);

struct Shared {
    /// `None` while there is no connection.
    sender: Mutex<Option<Sender>>,
    preferred: AtomicBool,
}

/// Makes a client that stays connected as the owner of `key`, for as long as its receiving half is asked for
/// events. After a failure it waits half a second at most, then longer, 5 s at most.
pub fn standing(dialer: impl Into<Dialer>, key: NodePrivate) -> (StandingSender, StandingReceiver) {
    let shared = Arc::new(Shared { sender: Mutex::new(None), preferred: AtomicBool::new(false) });
    let receiver = StandingReceiver {
        dialer: dialer.into(),
        key,
        shared: Arc::clone(&shared),
        receiver: None,
        backoff: Backoff::default(),
        since: Instant::now(),
        retry_at: None,
        watches: false,
    };
    (StandingSender(shared), receiver)
}

impl StandingReceiver {
    /// Asks who is connected whenever a connection comes to stand, as [`Sender::watch`] does.
    #[must_use]
    pub fn watching(mut self) -> Self {
        self.watches = true;
        self
    }

    /// Waits for what happens next: connects if there is no connection. May be dropped at any time; an
    /// attempt to connect then begins anew.
    pub async fn next(&mut self) -> Event<'_> {
        if let Some(at) = self.retry_at {
            sleep_until(at).await;
            self.retry_at = None;
        }
        let Some(receiver) = &mut self.receiver else {
            return match self.connect().await {
                Ok(connected) => connected,
                Err(error) => self.disconnected(error).await,
            };
        };
        match receiver.next_frame().await {
            Ok(frame) => match &self.receiver {
                Some(receiver) => Event::Message(receiver.message(frame)),
                None => unreachable!("the frame is in it"),
            },
            Err(error) => {
                self.backoff.stood(self.since.elapsed());
                self.disconnected(error).await
            }
        }
    }

    async fn connect(&mut self) -> Result<Event<'static>, ClientError> {
        let client = self.dialer.connect(&self.key).await?;
        let host = client.host().to_owned();
        let (server_key, server_info) = (client.server_key(), client.server_info());
        let (mut sender, receiver) = client.split();
        if self.watches {
            sender.watch().await?;
        }
        let mut shared = self.shared.sender.lock().await;
        if self.shared.preferred.load(Ordering::Relaxed) {
            sender.note_preferred(true).await?;
        }
        *shared = Some(sender);
        drop(shared);
        self.receiver = Some(receiver);
        self.since = Instant::now();
        Ok(Event::Connected { host, server_key, server_info })
    }

    async fn disconnected(&mut self, error: ClientError) -> Event<'static> {
        self.receiver = None;
        let pause = self.backoff.next(random_fraction());
        self.retry_at = Some(Instant::now() + pause);
        *self.shared.sender.lock().await = None;
        Event::Disconnected { error, pause }
    }
}

impl StandingSender {
    /// Sends `packet` to the client with the key `destination`, as [`Sender::send`] does; whether there was
    /// a connection to send it over. A packet that finds none is lost, as relays lose packets.
    ///
    /// # Errors
    ///
    /// If the packet has more than 64 KiB.
    pub async fn send(&self, destination: &NodePublic, packet: &[u8]) -> Result<bool, ClientError> {
        let mut shared = self.0.sender.lock().await;
        let Some(sender) = &mut *shared else { return Ok(false) };
        match sender.send(destination, packet).await {
            Ok(()) => Ok(true),
            Err(error @ ClientError::Packet(_)) => Err(error),
            // The receiving half is told the same.
            Err(_) => {
                *shared = None;
                Ok(false)
            }
        }
    }

    /// Tells the relay whether it is this client's home, now and after every reconnect.
    pub async fn note_preferred(&self, preferred: bool) {
        let mut shared = self.0.sender.lock().await;
        self.0.preferred.store(preferred, Ordering::Relaxed);
        if let Some(sender) = &mut *shared
            && sender.note_preferred(preferred).await.is_err()
        {
            *shared = None;
        }
    }
}
