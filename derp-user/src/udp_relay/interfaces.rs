//! The addresses of this host's interfaces that clients might reach the relay at.

use std::{io, net::IpAddr};

use nix::{
    ifaddrs::{InterfaceAddress, getifaddrs},
    net::if_::InterfaceFlags,
};

/// Returns the addresses of the interfaces that are up, loopback left out, in this thread's network namespace.
/// Interfaces of other overlay networks are left out as in the reference: theirs and ours would carry each other.
///
/// # Errors
///
/// When the kernel cannot be asked.
pub(super) fn interface_addresses() -> io::Result<Vec<IpAddr>> {
    let entries = getifaddrs()?.filter(|entry| is_usual(&entry.interface_name, entry.flags));
    Ok(entries.filter_map(|entry| ip(&entry)).collect())
}

/// Tells whether packets of clients may come in by an interface.
fn is_usual(name: &str, flags: InterfaceFlags) -> bool {
    let is_overlay = name.starts_with("zt") || name == "wt0";
    flags.contains(InterfaceFlags::IFF_UP)
        && !flags.contains(InterfaceFlags::IFF_LOOPBACK)
        && !is_overlay
}

fn ip(entry: &InterfaceAddress) -> Option<IpAddr> {
    let address = entry.address.as_ref()?;
    let v4 = address.as_sockaddr_in().map(|address| IpAddr::from(address.ip()));
    v4.or_else(|| address.as_sockaddr_in6().map(|address| address.ip().into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interfaces_that_are_down_loopback_or_of_other_overlays_are_left_out() {
        let up = InterfaceFlags::IFF_UP;
        for (name, flags, expected) in [
            ("eth0", up, true),
            ("docker0", up, true),
            ("wt0abc", up, true),
            ("eth0", InterfaceFlags::empty(), false),
            ("lo", up | InterfaceFlags::IFF_LOOPBACK, false),
            ("ztabcdef", up, false),
            ("wt0", up, false),
        ] {
            assert_eq!(is_usual(name, flags), expected, "{name} {flags:?}");
        }
        assert!(!interface_addresses().unwrap().iter().any(IpAddr::is_loopback));
    }
}
