//! Binding the TCP listeners.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener},
};

use anyhow::anyhow;
use derp_user::config::ListenAddress;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use socket2::{Domain, Protocol, Socket, Type};

/// Connections that may wait to be accepted; the kernel caps it at net.core.somaxconn.
const BACKLOG: i32 = 4096;

/// Binds a non-blocking TCP listener. Without an IP address it takes both families, or IPv4 alone where the
/// machine has no IPv6. `flag` is named in errors.
pub(crate) fn bind(listen: ListenAddress, flag: &str) -> anyhow::Result<TcpListener> {
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

/// Allows as many open files as the system lets this process have: each connection is one.
pub(crate) fn raise_file_limit() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_soft, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(error) = raised {
        tracing::warn!("cannot raise the limit of open files: {error}");
    }
}
