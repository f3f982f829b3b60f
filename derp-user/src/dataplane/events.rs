//! What the program reports of flows: who sends what is not theirs.

use std::net::{IpAddr, SocketAddr};

use aya::maps::{MapData, RingBuf};
use derp_common::{Address, Reason, maps::EVENTS};
use tokio::io::unix::AsyncFd;

use super::{DataplaneError, Kernel};

/// Somebody's packet that a flow had no use for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct FlowEvent {
    /// Who sent it.
    pub source: SocketAddr,
    /// The port of ours it came to.
    pub local_port: u16,
    /// What was found.
    pub reason: Reason,
    /// The flow's slot.
    pub slot: u32,
    /// The packet's VNI, 0 when it has none.
    pub vni: u32,
}

impl FlowEvent {
    /// Reads an event ([`derp_common::maps::Event`]) as it lies in the ring buffer.
    fn read(bytes: &[u8]) -> Option<Self> {
        let (words, rest) = bytes.as_chunks::<4>();
        let [a, b, c, d, reason, slot, ports, vni] = words.try_into().ok()?;
        let word = u32::from_ne_bytes;
        let address = Address([word(a), word(b), word(c), word(d)]);
        let [s0, s1, l0, l1] = ports;
        let reason = Reason::ALL.get(usize::try_from(word(reason)).ok()?)?;
        rest.is_empty().then_some(Self {
            source: SocketAddr::new(IpAddr::from(address), u16::from_be_bytes([s0, s1])),
            local_port: u16::from_be_bytes([l0, l1]),
            reason: *reason,
            slot: word(slot),
            vni: word(vni),
        })
    }
}

/// The program's reports, which it limits itself to a hundred a second.
pub struct FlowEvents(AsyncFd<RingBuf<MapData>>);

impl FlowEvents {
    /// Takes the program's ring buffer. To be called on a Tokio runtime with I/O.
    ///
    /// # Errors
    ///
    /// When it is taken, or cannot be waited on.
    pub fn take(kernel: &mut Kernel) -> Result<Self, DataplaneError> {
        let ring = kernel.take_map(EVENTS)?;
        // SAFETY: a ring buffer has the same descriptor as long as it exists, and AsyncFd owns it.
        #[expect(unsafe_code, reason = "a promise about the descriptor, which aya keeps")]
        let registered = unsafe { AsyncFd::register(ring) };
        registered.map(Self).map_err(|error| DataplaneError::Events(error.into()))
    }

    /// Waits for the next report.
    ///
    /// # Errors
    ///
    /// When the ring buffer cannot be waited on any more.
    pub async fn next(&mut self) -> Result<FlowEvent, DataplaneError> {
        loop {
            let mut ready = self.0.readable_mut().await.map_err(DataplaneError::Events)?;
            while let Some(item) = ready.get_inner_mut().next() {
                if let Some(event) = FlowEvent::read(&item) {
                    return Ok(event);
                }
            }
            ready.clear_ready();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(reason: u32) -> Vec<u8> {
        let address = Address::from(IpAddr::from([192, 0, 2, 1]));
        let words = address.0.into_iter().chain([reason, 7]);
        let mut bytes: Vec<u8> = words.flat_map(u32::to_ne_bytes).collect();
        bytes.extend(41641_u16.to_be_bytes());
        bytes.extend(40000_u16.to_be_bytes());
        bytes.extend(9_u32.to_ne_bytes());
        bytes
    }

    #[test]
    fn an_event_is_read_as_the_program_writes_it() {
        let event = FlowEvent::read(&bytes(Reason::UnknownLeg as u32)).expect("an event");
        let expected = FlowEvent {
            source: "192.0.2.1:41641".parse().expect("address"),
            local_port: 40000,
            reason: Reason::UnknownLeg,
            slot: 7,
            vni: 9,
        };
        assert_eq!(event, expected);
    }

    #[test]
    fn what_is_no_event_is_none() {
        assert_eq!(FlowEvent::read(&[]), None);
        assert_eq!(FlowEvent::read(&bytes(0)[..31]), None);
        assert_eq!(FlowEvent::read(&[bytes(0), vec![0]].concat()), None);
        assert_eq!(FlowEvent::read(&bytes(u32::MAX)), None);
    }
}
