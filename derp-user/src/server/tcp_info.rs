//! What the kernel knows of a TCP connection (tcp(7), `TCP_INFO`).

use std::{
    io,
    os::fd::{AsFd, AsRawFd as _},
    time::Duration,
};

/// Bytes of `struct tcp_info` that are asked for; the kernel gives fewer if it knows fewer.
const LENGTH: usize = 208;
/// Where its fields are, by linux/tcp.h, which only ever grows at its end.
const RTT: usize = 68;
const BYTES_RECEIVED: usize = 128;
const BYTES_SENT: usize = 200;

/// Figures of one connection.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct TcpInfo {
    /// Smoothed round trip time.
    pub(super) round_trip: Duration,
    /// Bytes sent, repeated ones included; 0 before Linux 4.19.
    pub(super) bytes_sent: u64,
    /// Bytes received in order.
    pub(super) bytes_received: u64,
}

impl TcpInfo {
    /// Asks the kernel.
    #[expect(unsafe_code, reason = "no crate has the fields beyond those of the first kernels")]
    pub(super) fn read(socket: &impl AsFd) -> io::Result<Self> {
        let mut bytes = [0u8; LENGTH];
        let mut length = LENGTH as libc::socklen_t;
        // SAFETY: the socket stays open while it is borrowed, and the kernel writes at most `length` bytes, which
        // `bytes` has.
        let result = unsafe {
            libc::getsockopt(
                socket.as_fd().as_raw_fd(),
                libc::IPPROTO_TCP,
                libc::TCP_INFO,
                bytes.as_mut_ptr().cast(),
                &mut length,
            )
        };
        if result != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Self::parse(&bytes))
    }

    /// Reads the fields; what the kernel did not give is 0.
    fn parse(bytes: &[u8; LENGTH]) -> Self {
        fn field<const N: usize>(bytes: &[u8; LENGTH], at: usize) -> [u8; N] {
            std::array::from_fn(|index| bytes[at + index])
        }
        Self {
            round_trip: Duration::from_micros(u32::from_ne_bytes(field(bytes, RTT)).into()),
            bytes_sent: u64::from_ne_bytes(field(bytes, BYTES_SENT)),
            bytes_received: u64::from_ne_bytes(field(bytes, BYTES_RECEIVED)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read as _, Write as _},
        net::{TcpListener, TcpStream},
    };

    use super::*;

    #[test]
    fn the_kernel_tells_of_a_connection() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut server, _) = listener.accept().unwrap();
        client.write_all(&[1; 1000]).unwrap();
        server.read_exact(&mut [0; 1000]).unwrap();
        server.write_all(&[2; 300]).unwrap();
        client.read_exact(&mut [0; 300]).unwrap();
        let (near, far) = (TcpInfo::read(&client).unwrap(), TcpInfo::read(&server).unwrap());
        assert_eq!((near.bytes_sent, near.bytes_received), (1000, 300));
        assert_eq!((far.bytes_sent, far.bytes_received), (300, 1000));
        for info in [near, far] {
            assert!(!info.round_trip.is_zero() && info.round_trip < Duration::from_secs(1));
        }
        let no_socket = std::fs::File::open("/dev/null").unwrap();
        assert_eq!(TcpInfo::read(&no_socket).unwrap_err().raw_os_error(), Some(libc::ENOTSOCK));
    }
}
