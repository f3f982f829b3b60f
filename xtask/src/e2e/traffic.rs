//! Traffic through the tunnel from one client's host to the other's, over their network devices.

use std::{
    fs::File,
    io::{ErrorKind, Read as _, Write as _},
    net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use sha2::{Digest as _, Sha256};

use super::{
    PATIENCE,
    lab::{Lab, Work},
    node::Node,
};

const COPY_PORT: u16 = 7001;
const STREAM_PORT: u16 = 7002;
/// How long after one datagram of a stream the next one is sent.
const INTERVAL: Duration = Duration::from_millis(10);
/// How much of a copy is written at once.
const CHUNK: usize = 64 << 10;
/// Longest that a copy may take.
const LONGEST_COPY: Duration = Duration::from_secs(120);

/// Random bytes on their way over TCP.
pub(super) struct Copy {
    sent: Work<(String, Duration)>,
    received: Work<(String, Duration)>,
}

impl Copy {
    /// Starts to copy so many bytes, at most `rate` bytes per second if there is one.
    pub(super) fn start(
        lab: &Lab,
        from: &Node<'_>,
        to: &Node<'_>,
        bytes: u64,
        rate: Option<u64>,
    ) -> Result<Self> {
        let address = to.address()?;
        let listener =
            lab.work(to.host(), || Ok(TcpListener::bind((Ipv4Addr::UNSPECIFIED, COPY_PORT))?))?;
        let listener = listener.finish().context("listening for a copy")?;
        let received = lab.work(to.host(), move || receive(&listener))?;
        let sent = lab.work(from.host(), move || {
            let stream = TcpStream::connect_timeout(&(address, COPY_PORT).into(), PATIENCE)
                .context("connecting through the tunnel")?;
            send(stream, bytes, rate)
        })?;
        Ok(Self { sent, received })
    }

    /// Waits until everything has arrived as it was sent. Returns how long that took, and its SHA-256.
    pub(super) fn finish(self) -> Result<(Duration, String)> {
        let (sent, start) = self.sent.finish().context("sending a copy")?;
        let (received, end) = self.received.finish().context("receiving a copy")?;
        ensure!(sent == received, "sent bytes with SHA-256 {sent}, received some with {received}");
        Ok((start.max(end), sent))
    }
}

fn send(mut stream: TcpStream, bytes: u64, rate: Option<u64>) -> Result<(String, Duration)> {
    let start = Instant::now();
    let mut random = File::open("/dev/urandom").context("opening /dev/urandom")?;
    let (mut hash, mut left, mut chunk) = (Sha256::new(), bytes, vec![0; CHUNK]);
    while left > 0 {
        let length = CHUNK.min(usize::try_from(left).unwrap_or(CHUNK));
        let chunk = &mut chunk[..length];
        random.read_exact(chunk).context("reading /dev/urandom")?;
        hash.update(&*chunk);
        stream.write_all(chunk).context("writing")?;
        left -= length as u64;
        if let Some(rate) = rate {
            let due = Duration::from_secs_f64((bytes - left) as f64 / rate as f64);
            std::thread::sleep(due.saturating_sub(start.elapsed()));
        }
    }
    Ok((hex(hash), start.elapsed()))
}

fn receive(listener: &TcpListener) -> Result<(String, Duration)> {
    let (mut stream, _) = listener.accept().context("accepting")?;
    stream.set_read_timeout(Some(PATIENCE)).context("setting a timeout")?;
    let start = Instant::now();
    let (mut hash, mut chunk) = (Sha256::new(), vec![0; CHUNK]);
    loop {
        ensure!(start.elapsed() < LONGEST_COPY, "the copy takes longer than {LONGEST_COPY:?}");
        match stream.read(&mut chunk).context("reading")? {
            0 => return Ok((hex(hash), start.elapsed())),
            length => hash.update(&chunk[..length]),
        }
    }
}

fn hex(hash: Sha256) -> String {
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Datagrams one after the other until it is finished.
pub(super) struct Stream {
    stop: Stop,
    sent: Work<()>,
    longest: Work<Duration>,
}

/// Has the threads end when it is dropped, also where a run fails in the midst.
struct Stop(Arc<AtomicBool>);

impl Drop for Stop {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}

impl Stream {
    /// Starts it, and waits for the first datagram to arrive.
    pub(super) fn start(lab: &Lab, from: &Node<'_>, to: &Node<'_>) -> Result<Self> {
        let to_address = to.address()?;
        let bind = |node: &Node<'_>, port: u16| {
            let bound =
                lab.work(node.host(), move || Ok(UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port))?));
            bound?.finish().context("binding a socket")
        };
        let (sender, receiver) = (bind(from, 0)?, bind(to, STREAM_PORT)?);
        receiver.set_read_timeout(Some(INTERVAL)).context("setting a timeout")?;
        let stop = Stop(Arc::new(AtomicBool::new(false)));
        let stopped = Arc::clone(&stop.0);
        let sent = lab.work(from.host(), move || {
            while !stopped.load(Relaxed) {
                // Without a way there is no reason to end: that is what is measured.
                sender.send_to(&[0; 100], (to_address, STREAM_PORT)).ok();
                std::thread::sleep(INTERVAL);
            }
            Ok(())
        })?;
        let deadline = Instant::now() + PATIENCE;
        while !has_received(&receiver)? {
            ensure!(Instant::now() < deadline, "no datagram arrives");
        }
        let stopped = Arc::clone(&stop.0);
        let longest = lab.work(to.host(), move || longest_silence(&receiver, &stopped))?;
        Ok(Self { stop, sent, longest })
    }

    /// Ends it. Returns the longest time in which nothing arrived.
    pub(super) fn finish(self) -> Result<Duration> {
        drop(self.stop);
        self.sent.finish()?;
        self.longest.finish()
    }
}

fn longest_silence(receiver: &UdpSocket, stop: &AtomicBool) -> Result<Duration> {
    let (mut longest, mut last) = (Duration::ZERO, Instant::now());
    while !stop.load(Relaxed) {
        let is_received = has_received(receiver)?;
        longest = longest.max(last.elapsed());
        if is_received {
            last = Instant::now();
        }
    }
    Ok(longest)
}

fn has_received(receiver: &UdpSocket) -> Result<bool> {
    match receiver.recv(&mut [0; 200]) {
        Ok(_) => Ok(true),
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
            Ok(false)
        }
        Err(error) => bail!("receiving a datagram: {error}"),
    }
}
