//! The TCP listeners: bound here, or by whoever has started this process.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener},
};

use anyhow::{Context as _, Result, anyhow, bail};
use derp_user::config::ListenAddress;
use listenfd::ListenFd;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use socket2::{Domain, Protocol, Socket, Type};

/// Connections that may wait to be accepted; the kernel caps it at net.core.somaxconn.
const BACKLOG: i32 = 4096;
/// Open files that every system allows.
const LEAST_FILES: u64 = 1024;

/// Listeners that the process was started with: a service manager keeps them open while one process follows another,
/// so that no connection is refused meanwhile (sd_listen_fds(3)).
pub(crate) struct Inherited(Vec<(SocketAddr, TcpListener)>);

impl Inherited {
    /// Takes them from the environment. There are none, usually.
    pub(crate) fn take() -> Result<Self> {
        let mut given = ListenFd::from_env();
        let mut listeners = Vec::new();
        for index in 0..given.len() {
            let listener = given
                .take_tcp_listener(index)
                .with_context(|| format!("socket {index} of LISTEN_FDS is no TCP listener"))?;
            if let Some(listener) = listener {
                listener.set_nonblocking(true)?;
                listeners.push((listener.local_addr()?, listener));
            }
        }
        Ok(Self(listeners))
    }

    /// Returns the one for this address, or binds it; see [`bind`].
    pub(crate) fn listener(&mut self, listen: ListenAddress, flag: &str) -> Result<TcpListener> {
        let wanted = listen.socket_address();
        let is_wanted = |address: &SocketAddr| {
            let (is_any, wants_any) = (address.ip().is_unspecified(), wanted.ip().is_unspecified());
            address.port() == wanted.port() && (is_any && wants_any || address.ip() == wanted.ip())
        };
        match self.0.iter().position(|(address, _)| is_wanted(address)) {
            Some(index) => {
                let (address, listener) = self.0.swap_remove(index);
                tracing::info!("{flag}: listening on {address}, which was open already");
                Ok(listener)
            }
            None => bind(listen, flag),
        }
    }

    /// Checks that every one has been asked for.
    pub(crate) fn finish(self) -> Result<()> {
        if let Some((address, _)) = self.0.first() {
            bail!(
                "a socket that listens on {address} was handed over (LISTEN_FDS), but neither -a nor -http-port \
                 says so"
            );
        }
        Ok(())
    }
}

/// Binds a non-blocking TCP listener. Without an IP address it takes both families, or IPv4 alone where the
/// machine has no IPv6. `flag` is named in errors.
fn bind(listen: ListenAddress, flag: &str) -> Result<TcpListener> {
    let address = listen.socket_address();
    let bound = match bind_address(address) {
        Err(error) if listen.ip.is_none() && is_no_ipv6(&error) => {
            bind_address(SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), listen.port))
        }
        other => other,
    };
    bound.map_err(|error| {
        let what = format!("cannot listen on {listen} ({flag})");
        match error.raw_os_error() {
            Some(libc::EADDRINUSE) => {
                anyhow!("{what}: the port is in use by another process (`ss -ltnp` names it)")
            }
            Some(libc::EACCES) => {
                anyhow!("{what}: ports below 1024 need root or CAP_NET_BIND_SERVICE")
            }
            Some(libc::EADDRNOTAVAIL) => {
                anyhow!("{what}: this machine does not have the address")
            }
            Some(_) | None => anyhow!("{what}: {error}"),
        }
    })
}

fn bind_address(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(!address.ip().is_unspecified())?;
    }
    // Connections of an earlier run that are still closing must not keep the port.
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

fn is_no_ipv6(error: &io::Error) -> bool {
    let no_ipv6 = [libc::EAFNOSUPPORT, libc::EADDRNOTAVAIL];
    error.raw_os_error().is_some_and(|code| no_ipv6.contains(&code))
}

/// Allows as many open files as the system lets this process have: each connection is one. Returns how many.
pub(crate) fn raise_file_limit() -> u64 {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_soft, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard).map(|()| hard));
    raised.unwrap_or_else(|error| {
        tracing::warn!("cannot raise the limit of open files: {error}");
        getrlimit(Resource::RLIMIT_NOFILE).map_or(LEAST_FILES, |(soft, _hard)| soft)
    })
}
