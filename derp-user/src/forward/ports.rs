//! The sockets of a forwarder's threads, which may become others while it runs.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    os::fd::{AsFd as _, BorrowedFd},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use nix::sys::eventfd::{EfdFlags, EventFd};
use parking_lot::Mutex;

use super::ForwardError;
use crate::udp::{Merging, Socket, bind_families};

/// How long threads may take to let go of sockets that are no longer served. They need one batch.
const PATIENCE: Duration = Duration::from_secs(1);
const LOOK: Duration = Duration::from_millis(1);

/// Sockets of every thread, bound port by port.
type Sockets = Vec<Vec<Arc<Socket>>>;

/// How ports are bound.
#[derive(Clone, Copy, Debug)]
pub(super) struct Binding {
    pub(super) host: Option<IpAddr>,
    pub(super) threads: usize,
    pub(super) merging: Merging,
}

impl Binding {
    /// Binds these ports for every thread, and those of `lent` for every thread but the first, which gets these.
    ///
    /// A port that a second thread binds, too, gets a share of the packets at once. So the lent ones, which are in use, come
    /// last, when nothing else can fail.
    pub(super) fn bind(
        self,
        ports: &BTreeSet<u16>,
        lent: &[Arc<Socket>],
    ) -> Result<Sockets, ForwardError> {
        let mut first = Vec::new();
        for port in ports {
            let sockets = bind_families(self.host, *port, self.merging, "UDP is relayed")
                .map_err(|(address, error)| ForwardError::bind(address, error))?;
            first.extend(sockets.into_iter().map(Arc::new));
        }
        let beside = |socket: &Arc<Socket>| {
            let bound = Socket::bind_beside(socket, self.merging).map(Arc::new);
            bound.map_err(|error| ForwardError::bind(socket.local_address(), error))
        };
        let mut others: Sockets = Vec::new();
        for _ in 1..self.threads {
            others.push(first.iter().map(beside).collect::<Result<_, _>>()?);
        }
        for sockets in &mut others {
            for socket in lent {
                sockets.push(beside(socket)?);
            }
        }
        first.extend(lent.iter().map(Arc::clone));
        Ok(std::iter::once(first).chain(others).collect())
    }
}

/// What the threads of a forwarder are to serve.
pub(super) struct Board {
    threads: Vec<Place>,
    is_over: AtomicBool,
}

struct Place {
    sockets: Mutex<Vec<Arc<Socket>>>,
    /// Written when there is something to look at.
    wake: EventFd,
}

impl Board {
    pub(super) fn new(sockets: Sockets) -> nix::Result<Self> {
        let place = |sockets| {
            let wake = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
            Ok(Place { sockets: Mutex::new(sockets), wake })
        };
        let threads = sockets.into_iter().map(place).collect::<nix::Result<_>>()?;
        Ok(Self { threads, is_over: AtomicBool::new(false) })
    }

    /// Returns how many threads there are to be.
    pub(super) const fn threads(&self) -> usize {
        self.threads.len()
    }

    /// Returns what a thread is to serve; `None` when it is to end.
    pub(super) fn sockets(&self, thread: usize) -> Option<Vec<Arc<Socket>>> {
        let place = self.threads.get(thread)?;
        // First, so that what changes from now on wakes it again. At the start there is nothing to read.
        let _ = place.wake.read();
        let is_over = self.is_over.load(Ordering::Acquire);
        (!is_over).then(|| place.sockets.lock().clone())
    }

    /// Returns what becomes readable when a thread is to ask again.
    pub(super) fn wake(&self, thread: usize) -> Option<BorrowedFd<'_>> {
        self.threads.get(thread).map(|place| place.wake.as_fd())
    }

    /// Returns the sockets of the first thread.
    pub(super) fn first(&self) -> Vec<Arc<Socket>> {
        self.threads.first().map(|place| place.sockets.lock().clone()).unwrap_or_default()
    }

    /// Has every thread end.
    pub(super) fn end(&self) {
        self.is_over.store(true, Ordering::Release);
        self.threads.iter().for_each(Place::call);
    }
}

impl Place {
    fn call(&self) {
        // Cannot fail: the counter is far from full.
        let _ = self.wake.write(1);
    }
}

/// Has a forwarder serve other ports while it runs; cheap to clone.
#[derive(Clone)]
pub struct Ports {
    board: Arc<Board>,
    binding: Binding,
}

/// Other ports, bound, that nobody serves yet. What is dropped is closed.
pub struct PreparedPorts {
    wanted: BTreeSet<u16>,
    fresh: Sockets,
}

impl PreparedPorts {
    /// Returns what was bound for it.
    pub fn bound(&self) -> impl Iterator<Item = SocketAddr> {
        self.fresh.first().into_iter().flatten().map(|socket| socket.local_address())
    }
}

impl Ports {
    pub(super) const fn new(board: Arc<Board>, binding: Binding) -> Self {
        Self { board, binding }
    }

    /// Returns the ports that are served.
    #[must_use]
    pub fn served(&self) -> BTreeSet<u16> {
        self.board.first().iter().map(|socket| socket.local_address().port()).collect()
    }

    /// Binds those of these ports that are not served yet. `lent` are sockets that another server has had: what is
    /// bound there goes on with them.
    ///
    /// # Errors
    ///
    /// When a socket cannot be bound; nothing has changed then.
    pub fn prepare(
        &self,
        wanted: BTreeSet<u16>,
        lent: &[Arc<Socket>],
    ) -> Result<PreparedPorts, ForwardError> {
        let is_lent = |port: &u16| lent.iter().any(|it| it.local_address().port() == *port);
        let served = self.served();
        let fresh: BTreeSet<_> = wanted.difference(&served).copied().collect();
        let (lent_ports, fresh): (BTreeSet<_>, _) = fresh.into_iter().partition(is_lent);
        let is_wanted = |socket: &&Arc<Socket>| lent_ports.contains(&socket.local_address().port());
        let lent: Vec<_> = lent.iter().filter(is_wanted).map(Arc::clone).collect();
        let fresh = self.binding.bind(&fresh, &lent)?;
        Ok(PreparedPorts { wanted, fresh })
    }

    /// Has the threads serve these from now on, and closes the others. Those that were served before lose nothing.
    pub fn apply(&self, prepared: PreparedPorts) {
        let PreparedPorts { wanted, fresh } = prepared;
        let mut closing = Vec::new();
        for (place, fresh) in self.board.threads.iter().zip(fresh) {
            let mut sockets = place.sockets.lock();
            let is_wanted = |socket: &Arc<Socket>| wanted.contains(&socket.local_address().port());
            let (kept, gone): (Vec<_>, Vec<_>) =
                std::mem::take(&mut *sockets).into_iter().partition(is_wanted);
            closing.extend(gone);
            *sockets = kept;
            sockets.extend(fresh);
            drop(sockets);
            place.call();
        }
        // Else the same port could not be bound again right away.
        let deadline = Instant::now() + PATIENCE;
        while closing.iter().any(|socket| Arc::strong_count(socket) > 1)
            && Instant::now() < deadline
        {
            std::thread::sleep(LOOK);
        }
    }
}
