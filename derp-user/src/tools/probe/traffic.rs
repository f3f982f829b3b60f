//! Packets between two clients of one region, both of this process.

use std::{
    cell::{Cell, RefCell},
    time::Duration,
};

use tokio::{
    sync::Semaphore,
    time::{Instant, sleep, sleep_until, timeout, timeout_at},
};

use super::plan::Pair;
use crate::{
    client::{ClientError, Connector, Receiver, Sender, new_key},
    proto::{client::read::Message, keys::NodePublic, login::ClientInfo},
    tools::bench::Delays,
};

/// How long a relay has to hear of a client of another one before something is sent to it.
const PRESENCE: Duration = Duration::from_millis(100);
/// How long until a packet that has not arrived is sent again, while it is found out whether any does.
const RESEND: Duration = Duration::from_millis(250);
/// How long a first packet is given at least.
const LEAST: Duration = Duration::from_secs(1);
/// How long packets of a flow may be under way before they count as lost.
const STRAGGLERS: Duration = Duration::from_secs(2);
/// A transfer in which nothing arrives for this long has lost packets.
const STALL: Duration = Duration::from_secs(2);
/// Bytes of a packet of a transfer, and how many of them are under way: less than a relay keeps for a client.
const LARGE: usize = 32 << 10;
const UNDER_WAY: usize = 16;
/// What packets of a transfer begin with, and numbers do not.
const MARK: u8 = 0x5a;
/// Bytes of a packet of a flow: about those of a CallMeMaybe, as derpprobe's.
const SMALL: usize = 260;
/// Bytes of the number in a packet.
const NUMBER: usize = 8;

/// How clients of a pair connect.
pub(super) struct Dialled<'a> {
    pub(super) pair: Pair<'a>,
    pub(super) from: Connector,
    pub(super) to: Connector,
}

/// A connected sender and receiver, between which a packet has arrived.
pub(super) struct Traffic {
    sender: Sender,
    receiver: Receiver,
    source: NodePublic,
    destination: NodePublic,
    /// How long that packet took.
    pub(super) latency: Duration,
    /// The other halves, which keep the connections open.
    _rest: (Receiver, Sender),
}

/// A steady flow of small packets.
pub(super) struct Flow {
    /// How many were sent.
    pub(super) sent: u64,
    /// How long those took that arrived.
    pub(super) delays: Delays,
}

impl Dialled<'_> {
    /// Connects both clients and sends packets until one arrives, within `limit`.
    ///
    /// # Errors
    ///
    /// In a sentence.
    pub(super) async fn open(
        &self,
        info: impl Fn() -> ClientInfo,
        limit: Duration,
    ) -> Result<Traffic, String> {
        let Pair { from, to } = self.pair;
        let deadline = Instant::now() + limit;
        let connect = async |connector: &Connector, name: &str| {
            let fault = |error: ClientError| format!("a client cannot log in to {name}: {error}");
            let key = new_key().map_err(fault)?;
            let connector = connector.clone().with_info(info());
            match timeout_at(deadline, connector.connect(&key)).await {
                Ok(client) => Ok((key.public(), client.map_err(fault)?)),
                Err(_) => Err(format!("a client cannot log in to {name} within {limit:?}")),
            }
        };
        let (source, sender) = connect(&self.from, &from.name).await?;
        let (destination, receiver) = connect(&self.to, &to.name).await?;
        let ((sender, other_receiver), (other_sender, receiver)) =
            (sender.split(), receiver.split());
        let mut traffic = Traffic {
            sender,
            receiver,
            source,
            destination,
            latency: Duration::ZERO,
            _rest: (other_receiver, other_sender),
        };
        if !self.pair.is_single() {
            sleep(PRESENCE).await;
        }
        // However long it took to connect, a packet gets its time.
        let deadline = deadline.max(Instant::now() + LEAST);
        let arrived = timeout_at(deadline, traffic.first_packet()).await;
        match arrived {
            Ok(Ok(latency)) => traffic.latency = latency,
            Ok(Err(error)) => return Err(format!("{} -> {}: {error}", from.name, to.name)),
            Err(_) if self.pair.is_single() => {
                return Err(format!("{} relays no packet between its own clients", from.name));
            }
            Err(_) => {
                let (from, to) = (&from.name, &to.name);
                return Err(format!(
                    "no packet got from {from} to {to} within {limit:?}: {from} has no mesh link to {to} \
                     (-mesh-with)"
                ));
            }
        }
        Ok(traffic)
    }
}

impl Traffic {
    /// Sends until one arrives; how long that one took.
    async fn first_packet(&mut self) -> Result<Duration, ClientError> {
        let Self { sender, receiver, source, destination, .. } = self;
        let sent = RefCell::new(Vec::new());
        let sending = async {
            loop {
                let number = sent.borrow().len();
                sent.borrow_mut().push(Instant::now());
                let packet = numbered(number as u64, NUMBER);
                if let Err(error) = sender.send(destination, &packet).await {
                    break error;
                }
                sleep(RESEND).await;
            }
        };
        let receiving = async {
            loop {
                let number = next_number(receiver, source).await?;
                let at = usize::try_from(number).ok().and_then(|at| sent.borrow().get(at).copied());
                if let Some(at) = at {
                    return Ok(at.elapsed());
                }
            }
        };
        tokio::select! {
            latency = receiving => latency,
            error = sending => Err(error),
        }
    }

    /// Sends `size` bytes, as fast as they arrive; how long that took.
    ///
    /// # Errors
    ///
    /// In a sentence.
    pub(super) async fn transfer(&mut self, size: u64) -> Result<Duration, String> {
        let Self { sender, receiver, source, destination, .. } = self;
        let room = Semaphore::new(UNDER_WAY);
        let arrived = Cell::new(0_u64);
        let begun = Instant::now();
        let sending = async {
            let mut left = size;
            let packet = vec![MARK; LARGE];
            while left > 0 {
                let length = LARGE.min(usize::try_from(left).unwrap_or(LARGE));
                if let Ok(permit) = room.acquire().await {
                    permit.forget();
                }
                sender.send(destination, &packet[..length]).await?;
                left -= length as u64;
            }
            Ok::<(), ClientError>(())
        };
        let receiving = async {
            while arrived.get() < size {
                let Ok(packet) = timeout(STALL, next_packet(receiver, source)).await else {
                    return Ok(false);
                };
                let packet = packet?;
                // Packets of an earlier try may still come.
                if packet.first() == Some(&MARK) {
                    arrived.set(arrived.get() + packet.len() as u64);
                    room.add_permits(1);
                }
            }
            Ok::<bool, ClientError>(true)
        };
        // A sender that waits for room must not outlast a receiver that has given up.
        let whole = tokio::select! {
            whole = receiving => whole,
            Err(error) = sending => Err(error),
        };
        match whole {
            Ok(true) => Ok(begun.elapsed()),
            Ok(false) if sender.held_back() > 0 => Err(format!(
                "{} of {size} bytes arrived: the relay asks its clients to send no more",
                arrived.get()
            )),
            Ok(false) => Err(format!("stalled: {} of {size} bytes arrived", arrived.get())),
            Err(error) => Err(error.to_string()),
        }
    }

    /// Sends `per_second` small packets a second, for so long.
    ///
    /// # Errors
    ///
    /// In a sentence.
    pub(super) async fn flow(&mut self, per_second: u32, lasts: Duration) -> Result<Flow, String> {
        let Self { sender, receiver, source, destination, .. } = self;
        // Numbers of this flow begin behind those that found out whether packets arrive.
        const FIRST: u64 = 1 << 32;
        let sent = RefCell::new(Vec::new());
        let delays = RefCell::new(Delays::default());
        let total = (f64::from(per_second) * lasts.as_secs_f64()).round().max(1.0) as u64;
        let apart = Duration::from_secs(1) / per_second.max(1);
        let begun = Instant::now();
        let sending = async {
            for number in 0..total {
                sleep_until(begun + apart.mul_f64(number as f64)).await;
                sent.borrow_mut().push(Instant::now());
                sender.send(destination, &numbered(FIRST + number, SMALL)).await?;
            }
            Ok::<(), ClientError>(())
        };
        let receiving = async {
            while delays.borrow().count() < total {
                let number = next_number(receiver, source).await?;
                let now = Instant::now();
                let at = number.checked_sub(FIRST).and_then(|at| usize::try_from(at).ok());
                if let Some(at) = at.and_then(|at| sent.borrow().get(at).copied()) {
                    delays.borrow_mut().record(now - at);
                }
            }
            Ok::<(), ClientError>(())
        };
        let both = async { tokio::try_join!(sending, receiving).map(drop) };
        match timeout(lasts + STRAGGLERS, both).await {
            // Those that are not here yet are lost.
            Ok(Ok(())) | Err(_) => {}
            Ok(Err(error)) => return Err(error.to_string()),
        }
        let sent = sent.borrow().len() as u64;
        Ok(Flow { sent, delays: delays.into_inner() })
    }
}

/// A packet of this length that begins with its number.
fn numbered(number: u64, length: usize) -> Vec<u8> {
    let mut packet = vec![0; length.max(NUMBER)];
    packet[..NUMBER].copy_from_slice(&number.to_be_bytes());
    packet
}

async fn next_packet(receiver: &mut Receiver, wanted: &NodePublic) -> Result<Vec<u8>, ClientError> {
    loop {
        if let Message::Packet { source, packet } = receiver.recv().await?
            && source == *wanted
        {
            return Ok(packet.to_vec());
        }
    }
}

async fn next_number(receiver: &mut Receiver, wanted: &NodePublic) -> Result<u64, ClientError> {
    loop {
        let packet = next_packet(receiver, wanted).await?;
        if let Some(number) = packet.first_chunk::<NUMBER>() {
            return Ok(u64::from_be_bytes(*number));
        }
    }
}
