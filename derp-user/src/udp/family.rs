//! One port in both address families.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use super::{Merging, Socket};

/// Binds `port` on `host`, or on every address of both families, a socket for each family. Port 0 takes any
/// port, the same for both. On a machine without IPv6, IPv4 has to do; the log then says so of `what`.
///
/// # Errors
///
/// What could not be bound, and why.
pub fn bind_families(
    host: Option<IpAddr>,
    port: u16,
    merging: Merging,
    what: &str,
) -> Result<Vec<Socket>, (SocketAddr, io::Error)> {
    let hosts = match host {
        Some(host) => vec![host],
        None => vec![Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()],
    };
    let mut port = port;
    let mut sockets = Vec::new();
    for ip in hosts {
        let address = SocketAddr::new(ip, port);
        match Socket::bind(address, merging) {
            Ok(socket) => {
                port = socket.local_address().port();
                sockets.push(socket);
            }
            Err(error) if host.is_none() && ip.is_ipv6() && is_no_ipv6(&error) => {
                tracing::info!("this machine has no IPv6: {what} over IPv4 only");
            }
            Err(error) => return Err((address, error)),
        }
    }
    Ok(sockets)
}

fn is_no_ipv6(error: &io::Error) -> bool {
    let no_ipv6 = [libc::EAFNOSUPPORT, libc::EADDRNOTAVAIL];
    error.raw_os_error().is_some_and(|code| no_ipv6.contains(&code))
}
