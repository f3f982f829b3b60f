//! Whether the ports are free, and who has them if not.

use std::{
    fs, io,
    net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket},
};

use socket2::{Domain, Protocol, Socket, Type};

use super::Report;
use crate::config::{Config, FileSettings, ListenAddress};

/// A listening socket in `/proc/net/tcp`.
const LISTENING: &str = "0A";

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Transport {
    Tcp,
    Udp,
}

impl Transport {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
        }
    }
}

/// Tries every port that a start would bind, for a moment, without listening.
pub(super) fn check(report: &mut Report, config: &Config, file: &FileSettings) {
    let tcp = |port, flag| (Transport::Tcp, config.listen.with_port(port), flag);
    let udp = |port, flag| (Transport::Udp, config.listen.with_port(port), flag);
    let mut ports = vec![tcp(config.listen.port, "-a")];
    if let Some(port) = config.tls.as_ref().and_then(|tls| tls.http_port) {
        ports.push(tcp(port, "-http-port"));
    }
    ports.extend(config.stun_port.map(|port| udp(port, "-stun-port")));
    for port in file.ports(None).into_iter().filter(|port| port.services != 0) {
        let port = u16::from_be(port.number);
        if config.stun_port != Some(port) {
            ports.push(udp(port, "-config"));
        }
    }
    for (transport, address, flag) in ports {
        try_port(report, transport, address, flag);
    }
}

fn try_port(report: &mut Report, transport: Transport, address: ListenAddress, flag: &str) {
    let name = format!("{} {address} ({flag})", transport.as_str());
    if address.port == 0 {
        return report.ok("ports", format!("{name}: the system chooses one"));
    }
    let Err(error) = bind(transport, address) else {
        return report.ok("ports", format!("{name} is free"));
    };
    match error.raw_os_error() {
        Some(libc::EADDRINUSE) => match holder(transport, address.port) {
            Some(Holder { process, name: program }) if program == "derpd" => {
                report.ok("ports", format!("{name} has the derpd that runs, process {process}"));
            }
            Some(Holder { process, name: program }) => report.problem(
                "ports",
                format!("{name} is in use by {program}, process {process}"),
                Some("stop it, or choose another port"),
            ),
            None => report.problem(
                "ports",
                format!("{name} is in use by a process of another user"),
                Some("`ss -lntup` as root names it"),
            ),
        },
        Some(libc::EACCES) => report.problem(
            "ports",
            format!("{name} may not be bound by this user"),
            Some("ports below 1024 need root or CAP_NET_BIND_SERVICE"),
        ),
        Some(libc::EADDRNOTAVAIL) => report.problem(
            "ports",
            format!("{name}: this machine does not have the address"),
            Some("`ip -br address` lists those that it has"),
        ),
        Some(_) | None => report.problem("ports", format!("{name}: {error}"), None),
    }
}

fn bind(transport: Transport, listen: ListenAddress) -> io::Result<()> {
    let bound = bind_address(transport, listen.socket_address());
    let is_no_ipv6 = |error: &io::Error| error.raw_os_error() == Some(libc::EAFNOSUPPORT);
    if listen.ip.is_none() && bound.as_ref().is_err_and(is_no_ipv6) {
        let any = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
        return bind_address(transport, SocketAddr::new(any, listen.port));
    }
    bound
}

fn bind_address(transport: Transport, address: SocketAddr) -> io::Result<()> {
    if transport == Transport::Udp {
        return UdpSocket::bind(address).map(drop);
    }
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(!address.ip().is_unspecified())?;
    }
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())
}

/// Who has a port.
#[derive(Debug, Eq, PartialEq)]
struct Holder {
    process: u32,
    name: String,
}

/// Finds the process that has a port, among those that this user may look at.
fn holder(transport: Transport, port: u16) -> Option<Holder> {
    let tables = match transport {
        Transport::Tcp => ["/proc/net/tcp", "/proc/net/tcp6"],
        Transport::Udp => ["/proc/net/udp", "/proc/net/udp6"],
    };
    let sockets: Vec<String> = tables
        .iter()
        .filter_map(|table| fs::read_to_string(table).ok())
        .flat_map(|table| inodes(&table, transport, port))
        .map(|inode| format!("socket:[{inode}]"))
        .collect();
    let processes = fs::read_dir("/proc").ok()?.flatten();
    let numbers = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    numbers.into_iter().find_map(|process| {
        let descriptors = fs::read_dir(format!("/proc/{process}/fd")).ok()?.flatten();
        let mut links = descriptors.filter_map(|entry| fs::read_link(entry.path()).ok());
        let is_ours = |link: std::path::PathBuf| {
            link.to_str().is_some_and(|link| sockets.iter().any(|socket| socket == link))
        };
        links.any(is_ours).then(|| Holder {
            process,
            name: fs::read_to_string(format!("/proc/{process}/comm"))
                .unwrap_or_default()
                .trim()
                .to_owned(),
        })
    })
}

/// The inodes of the sockets that have a port, from a table of `/proc/net`.
fn inodes(table: &str, transport: Transport, port: u16) -> Vec<u64> {
    let of_line = |line: &str| {
        let mut fields = line.split_ascii_whitespace();
        let (_, local_port) = fields.nth(1)?.rsplit_once(':')?;
        let state = fields.nth(1)?;
        let is_port = u16::from_str_radix(local_port, 16) == Ok(port);
        let is_wanted = transport == Transport::Udp || state == LISTENING;
        // uid and timeout lie between.
        let inode = fields.nth(5)?;
        (is_port && is_wanted).then(|| inode.parse().ok()).flatten()
    };
    table.lines().skip(1).filter_map(of_line).collect()
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    const TABLE: &str = "\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 4711 1 0000
   1: 0100007F:1F90 0100007F:8888 01 00000000:00000000 00:00000000 00000000  1000        0 4712 1 0000
";

    #[test]
    fn tables_are_read() {
        assert_eq!(inodes(TABLE, Transport::Tcp, 8080), [4711]);
        assert_eq!(inodes(TABLE, Transport::Udp, 8080), [4711, 4712]);
        assert_eq!(inodes(TABLE, Transport::Tcp, 81), [0; 0]);
        assert_eq!(inodes("x\ny z", Transport::Tcp, 81), [0; 0]);
    }

    #[test]
    fn whoever_has_a_port_is_named_and_free_ones_stay_free() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a socket");
        let port = listener.local_addr().expect("bound").port();
        let found = holder(Transport::Tcp, port).expect("this process");
        assert_eq!(found.process, std::process::id());
        let address = ListenAddress { ip: Some(Ipv4Addr::LOCALHOST.into()), port };
        let mut report = Report::default();
        try_port(&mut report, Transport::Tcp, address, "-a");
        assert!(!report.is_ok() && report.to_string().contains(&found.name), "{report}");
        drop(listener);
        for _ in 0..2 {
            let mut report = Report::default();
            try_port(&mut report, Transport::Tcp, address, "-a");
            assert!(report.is_ok(), "{report}");
        }
        let mut report = Report::default();
        let elsewhere = ListenAddress { ip: Some([192, 0, 2, 77].into()), port };
        try_port(&mut report, Transport::Udp, elsewhere, "-stun-port");
        assert!(report.to_string().contains("does not have the address; "), "{report}");
    }
}
