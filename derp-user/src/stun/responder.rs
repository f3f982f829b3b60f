//! Answers the STUN requests of any socket, within the limits that the settings set.

use std::{
    io::IoSlice,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use derp_common::{Family, Reason, Settings, Switches};
use parking_lot::Mutex;

use super::{
    StunCounters,
    respond::{REPLY_MAX, respond},
};
use crate::udp::{Arrival, Route, Socket, SourceBuckets, Tally};

/// What all sockets that answer STUN share: the counters, and each source's allowance.
#[derive(Default)]
pub struct Responder {
    counters: Arc<StunCounters>,
    buckets: Mutex<SourceBuckets>,
}

impl Responder {
    /// Returns one that has answered nothing yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Returns the counters, which stay valid after everything else is gone.
    #[must_use]
    pub fn counters(&self) -> Arc<StunCounters> {
        Arc::clone(&self.counters)
    }

    /// Writes the answer to a datagram, which came at time `now`, into `reply` and returns its length.
    ///
    /// Requests that are shed are not even looked at; only what would be answered uses up an allowance.
    ///
    /// # Errors
    ///
    /// The reason why the datagram gets no answer.
    pub(crate) fn answer(
        &self,
        datagram: &mut [u8],
        arrival: &Arrival,
        settings: &Settings,
        now: u64,
        reply: &mut [u8; REPLY_MAX],
    ) -> Result<usize, Reason> {
        if settings.has(Switches::SHED_STUN) {
            return Err(Reason::StunShed);
        }
        if arrival.truncated {
            return Err(Reason::StunTooLong);
        }
        if !arrival.to.is_none_or(is_one_host) {
            return Err(Reason::NotLocal);
        }
        let length = respond(datagram, arrival.from, reply)?;
        let rate = settings.stun_rate;
        // The lock is not worth taking where there is no limit.
        if rate.interval != 0 && !self.buckets.lock().take(arrival.from.ip(), rate, now) {
            return Err(Reason::StunOverRate);
        }
        Ok(length)
    }

    /// Answers a datagram that `socket` received, if it is to be answered, and counts it.
    pub(crate) fn serve(
        &self,
        socket: &Socket,
        datagram: &mut [u8],
        arrival: &Arrival,
        settings: &Settings,
        tally: &Tally,
        now: u64,
    ) {
        let bytes = datagram.len();
        let family = if arrival.from.is_ipv4() { Family::Ipv4 } else { Family::Ipv6 };
        let mut reply = [0; REPLY_MAX];
        let length = match self.answer(datagram, arrival, settings, now, &mut reply) {
            Ok(length) => length,
            Err(reason) => {
                // derper knows no requests that are valid and not answered.
                if reason != Reason::StunShed && reason != Reason::StunOverRate {
                    self.counters.not_stun();
                }
                return tally.refused(family, reason, bytes);
            }
        };
        self.counters.valid(family == Family::Ipv4);
        let route = answer_route(arrival.from, arrival.to);
        let contents = reply.get(..length).unwrap_or_default();
        // A full send queue loses the answer, as the network might; the client asks again.
        match socket.send(&route, &[IoSlice::new(contents)], None) {
            Ok(()) => {
                self.counters.success();
                tally.refused(family, Reason::StunAnswered, bytes);
            }
            Err(error) => {
                tracing::debug!(%error, to = %arrival.from, "cannot send a STUN answer");
                self.counters.write_error();
                tally.send_failed(error.into());
            }
        }
    }

    /// Counts a socket that cannot be read.
    pub(crate) fn read_failed(&self, tally: &Tally) {
        self.counters.read_error();
        tally.read_failed();
    }
}

/// An answer leaves from the address that was asked, whatever the route would prefer.
fn answer_route(destination: SocketAddr, source: Option<IpAddr>) -> Route {
    Route { destination, source, hop_limit: None, traffic_class: 0 }
}

/// Tells whether an address that was asked is one host's, and not a group's.
pub(crate) fn is_one_host(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => !v4.is_multicast() && !v4.is_broadcast(),
        IpAddr::V6(v6) => !v6.is_multicast(),
    }
}

#[cfg(test)]
mod tests {
    use derp_common::Rate;

    use super::*;

    const NOW: u64 = 5_000_000_000;

    fn arrival(from: &str, to: &str) -> Arrival {
        Arrival {
            from: from.parse().expect("address"),
            to: Some(to.parse().expect("address")),
            interface: 1,
            hop_limit: Some(64),
            traffic_class: 0,
            stride: 20,
            length: 20,
            truncated: false,
        }
    }

    fn ask(responder: &Responder, arrival: &Arrival, settings: &Settings) -> Result<usize, Reason> {
        let mut request = *b"\x00\x01\x00\x00\x21\x12\xa4\x42transaction!";
        responder.answer(&mut request, arrival, settings, NOW, &mut [0; REPLY_MAX])
    }

    #[test]
    fn shed_requests_are_dropped_until_the_switch_is_off_again() {
        let responder = Responder::new();
        let mut settings = Settings::new(3478);
        let arrival = arrival("192.0.2.1:1000", "192.0.2.9");
        assert_eq!(ask(&responder, &arrival, &settings), Ok(32));
        settings.switches = Switches::SHED_STUN;
        assert_eq!(ask(&responder, &arrival, &settings), Err(Reason::StunShed));
        settings.switches = 0;
        assert_eq!(ask(&responder, &arrival, &settings), Ok(32));
    }

    #[test]
    fn each_source_has_its_allowance_whatever_its_port() {
        let responder = Responder::new();
        let mut settings = Settings::new(3478);
        settings.stun_rate = Rate::per_second(1, 2);
        for port in [1000, 1001] {
            let arrival = arrival(&format!("192.0.2.1:{port}"), "192.0.2.9");
            assert_eq!(ask(&responder, &arrival, &settings), Ok(32));
        }
        let over = arrival("192.0.2.1:1002", "192.0.2.9");
        assert_eq!(ask(&responder, &over, &settings), Err(Reason::StunOverRate));
        let other = arrival("[2001:db8::1]:1", "2001:db8::9");
        assert_eq!(ask(&responder, &other, &settings), Ok(44));
    }

    #[test]
    fn what_is_not_answered_uses_up_no_allowance() {
        let responder = Responder::new();
        let mut settings = Settings::new(3478);
        settings.stun_rate = Rate::per_second(1, 1);
        let group = arrival("192.0.2.1:1", "224.0.0.1");
        assert_eq!(ask(&responder, &group, &settings), Err(Reason::NotLocal));
        let cut = Arrival { truncated: true, ..arrival("192.0.2.1:1", "192.0.2.9") };
        assert_eq!(ask(&responder, &cut, &settings), Err(Reason::StunTooLong));
        assert_eq!(ask(&responder, &arrival("192.0.2.1:1", "192.0.2.9"), &settings), Ok(32));
    }
}
