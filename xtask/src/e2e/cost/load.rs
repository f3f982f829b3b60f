//! Traffic through the tunnel for a time: one bulk transfer or many small flows, and pings beside it.

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};

use super::super::{
    PATIENCE,
    lab::{Host, Lab, Work},
    node::Node,
};

const BULK_PORT: u16 = 7010;
const FLOWS_PORT: u16 = 7011;
const ECHO_PORT: u16 = 7012;
/// How many small flows there are.
pub(super) const FLOWS: usize = 64;
/// Bytes of a datagram of theirs.
pub(super) const FLOW_BYTES: usize = 512;
/// Datagrams per second of all of them.
pub(super) const FLOWS_RATE: u32 = 20_000;
/// How long after one ping the next is sent, once it is answered.
const PING_INTERVAL: Duration = Duration::from_millis(5);
/// When a ping counts as lost; it is then left out.
const PING_PATIENCE: Duration = Duration::from_secs(1);

/// What is sent.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Kind {
    /// As much as TCP can, over one connection.
    Bulk,
    /// [`FLOWS`] flows of UDP at a fixed rate.
    Flows,
}

/// Traffic at work until finished.
pub(super) struct Load {
    stop: Arc<AtomicBool>,
    received: Arc<AtomicU64>,
    workers: Vec<Work<()>>,
    pings: Work<Vec<Duration>>,
}

impl Load {
    /// Starts to send, and to ping.
    pub(super) fn start(lab: &Lab, kind: Kind, from: &Node<'_>, to: &Node<'_>) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let received = Arc::new(AtomicU64::new(0));
        let mut workers = Vec::new();
        let mut work = |host: Host, work: Box<dyn FnOnce() -> Result<()> + Send>| {
            lab.work(host, work).map(|work| workers.push(work))
        };
        let destination = to.address()?;
        let (count, ended) = (Arc::clone(&received), Arc::clone(&stop));
        match kind {
            Kind::Bulk => {
                let listener = bind_on(lab, to, TcpListener::bind, BULK_PORT)?;
                work(to.host(), Box::new(move || receive_bulk(&listener, &count)))?;
                work(from.host(), Box::new(move || send_bulk(destination, &ended)))?;
            }
            Kind::Flows => {
                let socket = bind_on(lab, to, UdpSocket::bind, FLOWS_PORT)?;
                let stop = Arc::clone(&stop);
                work(to.host(), Box::new(move || receive_flows(&socket, &count, &stop)))?;
                work(from.host(), Box::new(move || send_flows(destination, &ended)))?;
            }
        }
        let echo = bind_on(lab, to, UdpSocket::bind, ECHO_PORT)?;
        let ended = Arc::clone(&stop);
        work(to.host(), Box::new(move || answer_pings(&echo, &ended)))?;
        let ended = Arc::clone(&stop);
        let pings = lab.work(from.host(), move || ping(destination, &ended))?;
        Ok(Self { stop, received, workers, pings })
    }

    /// Returns how many bytes have arrived.
    pub(super) fn received(&self) -> u64 {
        self.received.load(Relaxed)
    }

    /// Ends it; returns the times of the pings, in order of length.
    pub(super) fn finish(self) -> Result<Vec<Duration>> {
        self.stop.store(true, Relaxed);
        let mut pings = self.pings.finish()?;
        self.workers.into_iter().try_for_each(Work::finish)?;
        pings.sort();
        Ok(pings)
    }
}

fn bind_on<T: Send + 'static>(
    lab: &Lab,
    node: &Node<'_>,
    bind: fn(SocketAddr) -> std::io::Result<T>,
    port: u16,
) -> Result<T> {
    let address = SocketAddr::from((Ipv4Addr::UNSPECIFIED, port));
    lab.work(node.host(), move || Ok(bind(address)?))?.finish().context("binding a socket")
}

fn send_bulk(to: Ipv4Addr, stop: &AtomicBool) -> Result<()> {
    let mut stream = TcpStream::connect_timeout(&(to, BULK_PORT).into(), PATIENCE)
        .context("connecting through the tunnel")?;
    stream.set_write_timeout(Some(PATIENCE)).context("setting a timeout")?;
    let chunk = vec![0; 64 << 10];
    while !stop.load(Relaxed) {
        stream.write_all(&chunk).context("sending")?;
    }
    Ok(())
}

fn receive_bulk(listener: &TcpListener, received: &AtomicU64) -> Result<()> {
    let (mut stream, _) = listener.accept().context("accepting")?;
    stream.set_read_timeout(Some(PATIENCE)).context("setting a timeout")?;
    let mut chunk = vec![0; 64 << 10];
    loop {
        match stream.read(&mut chunk).context("receiving")? {
            0 => return Ok(()),
            length => received.fetch_add(length as u64, Relaxed),
        };
    }
}

fn send_flows(to: Ipv4Addr, stop: &AtomicBool) -> Result<()> {
    const TICK: Duration = Duration::from_millis(1);
    let bind = |_| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0));
    let sockets = (0..FLOWS).map(bind).collect::<Result<Vec<_>, _>>().context("binding sockets")?;
    let (start, mut sent) = (Instant::now(), 0_u64);
    let mut sockets = sockets.iter().cycle();
    while !stop.load(Relaxed) {
        let due = (start.elapsed().as_secs_f64() * f64::from(FLOWS_RATE)) as u64;
        for socket in sockets.by_ref().take(usize::try_from(due - sent).unwrap_or(FLOWS)) {
            // Where queues are full, the datagram is lost, as it would be later on.
            socket.send_to(&[0; FLOW_BYTES], (to, FLOWS_PORT)).ok();
        }
        sent = due;
        std::thread::sleep(TICK);
    }
    Ok(())
}

fn receive_flows(socket: &UdpSocket, received: &AtomicU64, stop: &AtomicBool) -> Result<()> {
    socket.set_read_timeout(Some(Duration::from_millis(50))).context("setting a timeout")?;
    let mut buffer = [0; 2 * FLOW_BYTES];
    while !stop.load(Relaxed) {
        if let Some(length) = receive(socket, &mut buffer)? {
            received.fetch_add(length as u64, Relaxed);
        }
    }
    Ok(())
}

fn answer_pings(socket: &UdpSocket, stop: &AtomicBool) -> Result<()> {
    socket.set_read_timeout(Some(Duration::from_millis(50))).context("setting a timeout")?;
    let mut buffer = [0; 64];
    while !stop.load(Relaxed) {
        match socket.recv_from(&mut buffer) {
            Ok((length, from)) => {
                socket.send_to(&buffer[..length], from).ok();
            }
            Err(error) if is_timeout(&error) => {}
            Err(error) => return Err(error).context("waiting for a ping"),
        }
    }
    Ok(())
}

fn ping(to: Ipv4Addr, stop: &AtomicBool) -> Result<Vec<Duration>> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).context("binding a socket")?;
    socket.connect((to, ECHO_PORT)).context("connecting a socket")?;
    socket.set_read_timeout(Some(PING_PATIENCE)).context("setting a timeout")?;
    let mut times = Vec::new();
    let mut number = 0_u64;
    let mut answer = [0; 64];
    while !stop.load(Relaxed) {
        number += 1;
        let start = Instant::now();
        socket.send(&number.to_be_bytes()).ok();
        while let Some(length) = receive(&socket, &mut answer)? {
            // A late answer to an earlier one is not this one's.
            if answer[..length] == number.to_be_bytes() {
                times.push(start.elapsed());
                break;
            }
        }
        std::thread::sleep(PING_INTERVAL);
    }
    ensure!(!times.is_empty(), "no ping was answered");
    Ok(times)
}

fn receive(socket: &UdpSocket, buffer: &mut [u8]) -> Result<Option<usize>> {
    match socket.recv(buffer) {
        Ok(length) => Ok(Some(length)),
        Err(error) if is_timeout(&error) => Ok(None),
        Err(error) => Err(error).context("receiving"),
    }
}

fn is_timeout(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut)
}
