//! Whether the machine has an address family.

use std::io;

/// Tells whether binding an IPv6 socket failed because the machine has no IPv6.
#[must_use]
pub fn is_no_ipv6(error: &io::Error) -> bool {
    let no_ipv6 = [libc::EAFNOSUPPORT, libc::EADDRNOTAVAIL];
    error.raw_os_error().is_some_and(|code| no_ipv6.contains(&code))
}
