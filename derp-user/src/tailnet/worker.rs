//! The control connection at work: connect, register, publish, follow, and all of it again after a pause.

use std::{
    convert::Infallible,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use http_body_util::BodyExt as _;
use tokio::time::sleep;

use super::{
    Identity, Phase, ServerNames, TailnetError, TailnetOptions,
    control::{Connection, ControlServer, MAP, REGISTER, json},
    frames::Frames,
    identity::read_auth_key,
    netmap::{Netmap, Own},
    ping::Pings,
    plan::{Attempt, Verdict},
    region,
    request::{HostInfo, MapRequest, RegisterRequest},
    response::{MapResponse, RegisterResponse},
    shared::Shared,
};
use crate::{
    client::{Backoff, random_fraction},
    proto::keys::{KEY_LENGTH, NodePrivate},
};

/// Longest pauses after faults of the network, and after refusals.
const FAULTS: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(60)];
const REFUSALS: [Duration; 2] = [Duration::from_secs(5), Duration::from_secs(600)];
/// Longest that a server may send us away for.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(3600);
/// How long before the end of the node key that is warned of.
const EXPIRY_WARNING: Duration = Duration::from_secs(14 * 24 * 3600);
/// Longest that the node key's end is slept towards in one go: clocks may be set meanwhile.
const LONGEST_SLEEP: Duration = Duration::from_secs(60);

/// What keeps the node in its tailnet.
pub(super) struct Worker {
    options: TailnetOptions,
    /// How long the stream may be silent.
    silence: Duration,
    url: String,
    server: ControlServer,
    shared: Arc<Shared>,
    pings: Pings,
    /// The server has taken this node since this process started, and not denied knowing it since.
    is_registered: bool,
    /// The server has said that the node key has expired.
    is_expired: bool,
    /// The home region that was published last.
    published: Option<u32>,
    joined_at: Option<Instant>,
    warned: Warned,
}

/// What has been warned of.
#[derive(Debug, Default)]
struct Warned {
    region: bool,
    lock: bool,
    expiry: Option<SystemTime>,
}

impl Worker {
    pub(super) fn new(
        options: TailnetOptions,
        silence: Duration,
        shared: Arc<Shared>,
    ) -> Result<Self, TailnetError> {
        Ok(Self {
            url: options.control.to_string(),
            server: ControlServer::new(&options.control, &options.trust)?,
            pings: Pings::new(options.trust.clone()),
            options,
            silence,
            shared,
            is_registered: false,
            is_expired: false,
            published: None,
            joined_at: None,
            warned: Warned::default(),
        })
    }

    /// Goes on until dropped.
    pub(super) async fn run(mut self) {
        let mut faults = Backoff::new(FAULTS[0], FAULTS[1]);
        let mut refusals = Backoff::new(REFUSALS[0], REFUSALS[1]);
        let mut last = String::new();
        loop {
            self.shared.enter(Phase::Connecting);
            let Err(error) = self.attend().await;
            let has_joined = self.joined_at.is_some();
            if let Some(joined_at) = self.joined_at.take() {
                faults.stood(joined_at.elapsed());
                refusals.stood(joined_at.elapsed());
                last.clear();
            }
            // A server that calls each new key expired must not be given one a second.
            let is_refusal =
                error.is_refusal() || !has_joined && matches!(error, TailnetError::KeyExpired);
            let backoff = if is_refusal { &mut refusals } else { &mut faults };
            let mut pause = backoff.next(random_fraction());
            if let TailnetError::Status { retry_after: Some(wish), .. } = &error {
                pause = pause.max((*wish).min(MAX_RETRY_AFTER));
            }
            let text = error.to_string();
            // The same fault again is no news.
            if text != last {
                tracing::warn!("tailnet: {text}; again in {pause:.1?}");
            }
            self.shared.fail(&text);
            last = text;
            sleep(pause).await;
        }
    }

    /// Makes a connection and lives by it to its end.
    async fn attend(&mut self) -> Result<Infallible, TailnetError> {
        let connection = self.server.connect(&self.options.identity.machine).await?;
        if !self.is_registered {
            self.register(&connection).await?;
        }
        match self.publish(&connection).await {
            Err(error) if error.is_unknown_node() => {
                tracing::info!("tailnet: the control server does not know this node: {error}");
                self.is_registered = false;
                self.register(&connection).await?;
                self.publish(&connection).await?;
            }
            published => published?,
        }
        self.follow(&connection).await
    }

    async fn register(&mut self, connection: &Connection) -> Result<(), TailnetError> {
        let mut attempt = Attempt::first(&self.options.identity, &self.url, self.is_expired);
        loop {
            match attempt.judge(self.ask(connection, attempt).await?) {
                Verdict::Registered => break,
                Verdict::Again(next) => attempt = next,
                Verdict::Failed(error) => return Err(error),
            }
        }
        self.is_registered = true;
        self.is_expired = false;
        let identity = &mut self.options.identity;
        if attempt == Attempt::Renewed
            && let Some(node) = identity.next_node.take()
        {
            identity.node = node;
            tracing::info!("tailnet: a new node key is registered: {}", identity.node.public());
            self.shared.set_node(identity.node.clone());
        }
        if attempt != Attempt::Known {
            identity.registered_with = Some(self.url.clone());
            // The server knows the key; not to know that it does costs one more question after a restart.
            if let Err(error) = (self.options.save)(identity) {
                tracing::error!("tailnet: cannot save the node's keys: {error}");
            }
        }
        Ok(())
    }

    /// Asks to be registered in one way.
    async fn ask(
        &mut self,
        connection: &Connection,
        attempt: Attempt,
    ) -> Result<RegisterResponse, TailnetError> {
        if attempt == Attempt::Renewed {
            self.prepare_next_node()?;
        }
        let Identity { node, next_node, .. } = &self.options.identity;
        let (node, old) = match (attempt, next_node) {
            (Attempt::Renewed, Some(next)) => (next.public(), Some(node.public())),
            (Attempt::Known | Attempt::WithAuthKey | Attempt::Renewed, _) => (node.public(), None),
        };
        let auth_key = match attempt {
            Attempt::Known => None,
            Attempt::WithAuthKey | Attempt::Renewed => {
                Some(read_auth_key(&self.options.auth_key_file)?)
            }
        };
        let auth_key = auth_key.as_ref().map(|key| key.as_str());
        let host = HostInfo::new(&self.options.hostname, self.home_region());
        let request = RegisterRequest::new(&node, old.as_ref(), auth_key, &host);
        connection.requests.ask(REGISTER, &node, &request).await
    }

    /// Makes the node key that is to follow. It is saved before anybody is told of it, so that it is not lost after the
    /// server has taken it.
    fn prepare_next_node(&mut self) -> Result<(), TailnetError> {
        let identity = &mut self.options.identity;
        if identity.next_node.is_none() {
            let mut bytes = [0; KEY_LENGTH];
            getrandom::fill(&mut bytes).map_err(TailnetError::Random)?;
            identity.next_node = Some(NodePrivate::from_random(bytes));
            (self.options.save)(identity).map_err(TailnetError::Save)?;
        }
        Ok(())
    }

    fn home_region(&self) -> Option<u32> {
        self.options.home_region.or_else(|| {
            let names: ServerNames = (self.options.server)();
            self.shared.with_netmap(|netmap| region::of_server(netmap.regions(), &names))
        })
    }

    /// Tells the server what this node is.
    async fn publish(&mut self, connection: &Connection) -> Result<(), TailnetError> {
        let region = self.home_region();
        let node = self.options.identity.node.public();
        let host = HostInfo::new(&self.options.hostname, region);
        let update = MapRequest::update(&node, &self.options.disco, &host);
        connection.requests.tell(MAP, &node, &update).await?;
        self.published = region;
        self.shared.set_home_region(region);
        Ok(())
    }

    /// Follows what changes in the tailnet.
    async fn follow(&mut self, connection: &Connection) -> Result<Infallible, TailnetError> {
        let node = self.options.identity.node.public();
        let host = HostInfo::new(&self.options.hostname, self.published);
        let stream = MapRequest::stream(&node, &self.options.disco, &host);
        let mut body = connection.requests.follow(MAP, &node, &stream).await?;
        let mut frames = Frames::default();
        // What was known stays in force until the server has said everything once.
        let mut first = Some(Netmap::default());
        let mut heard = Instant::now();
        loop {
            // What is known from before may be of a node key that has been replaced since.
            let expiry = if first.is_none() { self.until_expiry() } else { LONGEST_SLEEP };
            let frame = tokio::select! {
                frame = body.frame() => frame,
                () = sleep(self.silence.saturating_sub(heard.elapsed())) => {
                    return Err(TailnetError::Silent(self.silence));
                }
                is_good = self.pings.answered() => {
                    self.shared.count_ping(is_good);
                    continue;
                }
                () = sleep(expiry) => {
                    if first.is_none() {
                        self.check_expiry()?;
                    }
                    continue;
                }
            };
            let frame = frame.ok_or(TailnetError::Ended)?.map_err(|error| TailnetError::Http {
                request: MAP,
                reason: crate::admit::in_words(&error),
            })?;
            let Ok(data) = frame.into_data() else { continue };
            let mut data = &data[..];
            while let Some(message) = frames.next(&mut data)? {
                heard = Instant::now();
                self.hear(connection, json(MAP, &message)?, &mut first).await?;
            }
        }
    }

    async fn hear(
        &mut self,
        connection: &Connection,
        mut message: MapResponse,
        first: &mut Option<Netmap>,
    ) -> Result<(), TailnetError> {
        if let Some(ping) = message.ping_request.take() {
            self.pings.answer(ping, &connection.requests);
        }
        self.shared.hear();
        if message.keep_alive {
            return Ok(());
        }
        match first.take() {
            // A message that only asks for a pong is no map yet.
            Some(empty) if message.is_empty() => {
                *first = Some(empty);
                return Ok(());
            }
            Some(mut netmap) => {
                netmap.apply(message)?;
                self.shared.set_netmap(netmap);
            }
            None => self.shared.update_netmap(|netmap| netmap.apply(message))?,
        }
        self.check_expiry()?;
        self.enter_phase();
        let region = self.home_region();
        if region != self.published {
            self.publish(connection).await?;
            match region {
                Some(region) => tracing::info!("tailnet: reached by DERP in region {region}"),
                None => tracing::info!("tailnet: no longer reached by DERP"),
            }
        }
        self.warn();
        Ok(())
    }

    fn own(&self) -> Option<Own> {
        self.shared.with_netmap(|netmap| netmap.own().cloned())
    }

    /// How long to sleep towards the end of the node key.
    fn until_expiry(&self) -> Duration {
        let expiry = self.own().and_then(|own| own.key_expiry);
        let left = expiry.map(|it| it.duration_since(SystemTime::now()).unwrap_or_default());
        left.unwrap_or(LONGEST_SLEEP).min(LONGEST_SLEEP)
    }

    fn check_expiry(&mut self) -> Result<(), TailnetError> {
        if self.own().is_some_and(|own| own.is_over(SystemTime::now())) {
            self.is_expired = true;
            self.is_registered = false;
            return Err(TailnetError::KeyExpired);
        }
        Ok(())
    }

    /// Takes note of whether the node is let in, and says so once.
    fn enter_phase(&mut self) {
        let Some(own) = self.own() else { return };
        let phase = if own.is_authorized { Phase::Connected } else { Phase::AwaitingApproval };
        self.joined_at.get_or_insert_with(Instant::now);
        if !self.shared.enter(phase) {
            return;
        }
        let peers = self.shared.with_netmap(Netmap::peers);
        let (url, name) = (&self.url, &own.name);
        if own.is_authorized {
            let addresses: Vec<_> = own.addresses.iter().map(ToString::to_string).collect();
            let addresses = addresses.join(", ");
            tracing::info!("tailnet: joined by {url} as {name:?} ({addresses}), peers: {peers}");
        } else {
            tracing::warn!("tailnet: {url} wants an administrator to approve {name:?}");
        }
    }

    fn warn(&mut self) {
        let (has_regions, has_lock) =
            self.shared.with_netmap(|netmap| (!netmap.regions().is_empty(), netmap.has_lock()));
        if self.published.is_none()
            && has_regions
            && !std::mem::replace(&mut self.warned.region, true)
        {
            tracing::warn!(
                "tailnet: no region of the DERP map names this server, so clients cannot ask for the relay; \
                 set [peer_relay] home_region"
            );
        }
        if has_lock && !std::mem::replace(&mut self.warned.lock, true) {
            let node = self.options.identity.node.public();
            tracing::warn!(
                "tailnet: tailnet lock is on; peers see this node once it is signed: tailscale lock sign {node}"
            );
        }
        let expiry = self.own().and_then(|own| own.key_expiry);
        let left = expiry.and_then(|it| it.duration_since(SystemTime::now()).ok());
        if let Some(left) = left.filter(|left| *left < EXPIRY_WARNING)
            && self.warned.expiry != expiry
        {
            self.warned.expiry = expiry;
            let hours = left.as_secs() / 3600;
            tracing::warn!(
                "tailnet: the node key expires in {hours} h; the auth key must be good for another one then"
            );
        }
    }
}
