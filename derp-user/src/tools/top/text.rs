//! One look as plain text.

use std::fmt::Write as _;

use crate::status::{ClientOrder, Status, figures, words};

/// The document in words. What comes from the relay has no control characters afterwards, which would be the terminal's
/// to obey.
pub(super) fn of(status: &Status, order: ClientOrder) -> String {
    let mut text = format!(
        "derpd {} on {}, up {}\n\n",
        status.version,
        if status.hostname.is_empty() { &status.machine } else { &status.hostname },
        words::duration(status.uptime_seconds)
    );
    for figure in figures(status) {
        let _ = writeln!(text, "{:<14}{:<20}{}", figure.name, figure.value, figure.note);
    }
    for certificate in status.certificates.iter().flatten() {
        let left = words::duration(certificate.seconds_left.unsigned_abs());
        let when = if certificate.seconds_left < 0 { "ended, ago:" } else { "ends in" };
        let _ = writeln!(text, "{:<14}{} {when} {left}", "Certificate", certificate.name);
    }
    for link in &status.links {
        let address = link.address.as_deref().unwrap_or_default();
        let _ = writeln!(text, "{:<14}{} {address} {}", "Mesh link", link.peer, link.state);
    }
    let mut clients = status.clients.shown.clone();
    order.sort(&mut clients);
    if !clients.is_empty() {
        let _ =
            writeln!(text, "\nClients by {order}: {} of {}", clients.len(), status.clients.total);
    }
    for client in clients {
        // One look alone knows no rates, unless somebody else looks too.
        let rate = client.received_rate.map(|_| words::bits(client.rate().into()));
        let _ = writeln!(
            text,
            "{:<9}{:<28}{:>12} {:>9} in {:>9} out {:>8.1} ms",
            client.key,
            client.address,
            rate.unwrap_or_default(),
            words::bytes(client.received_bytes),
            words::bytes(client.sent_bytes),
            client.round_trip_milliseconds
        );
    }
    text.chars().map(|it| if it.is_control() && it != '\n' { '?' } else { it }).collect()
}
