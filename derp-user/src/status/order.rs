//! By what a table of clients is sorted.

use std::{cmp::Ordering, fmt, str::FromStr};

use super::Client;

/// By what clients are sorted; what is most comes first.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum ClientOrder {
    /// By bytes per second in both directions.
    #[default]
    Rate,
    /// By bytes received from them.
    Received,
    /// By bytes sent to them.
    Sent,
    /// By round trip time.
    RoundTrip,
    /// By how many keys have sent to them.
    Senders,
}

/// A word that names no order.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{0:?} is no order of clients: rate, received, sent, rtt or senders")]
pub struct UnknownOrder(pub String);

impl ClientOrder {
    /// Every order.
    pub const ALL: [Self; 5] =
        [Self::Rate, Self::Received, Self::Sent, Self::RoundTrip, Self::Senders];

    /// Its word in addresses and on command lines.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Rate => "rate",
            Self::Received => "received",
            Self::Sent => "sent",
            Self::RoundTrip => "rtt",
            Self::Senders => "senders",
        }
    }

    /// The next one, in a circle.
    #[must_use]
    pub fn next(self) -> Self {
        let at = Self::ALL.iter().position(|order| *order == self).unwrap_or_default();
        Self::ALL[(at + 1) % Self::ALL.len()]
    }

    /// Sorts clients; equals stay as they are.
    pub fn sort(self, clients: &mut [Client]) {
        clients.sort_by(|one, other| self.compare(other, one));
    }

    fn compare(self, one: &Client, other: &Client) -> Ordering {
        match self {
            Self::Rate => one.rate().total_cmp(&other.rate()),
            Self::Received => one.received_bytes.cmp(&other.received_bytes),
            Self::Sent => one.sent_bytes.cmp(&other.sent_bytes),
            Self::RoundTrip => {
                one.round_trip_milliseconds.total_cmp(&other.round_trip_milliseconds)
            }
            Self::Senders => one.senders.cmp(&other.senders),
        }
    }
}

impl FromStr for ClientOrder {
    type Err = UnknownOrder;

    fn from_str(word: &str) -> Result<Self, UnknownOrder> {
        let found = Self::ALL.into_iter().find(|order| order.word() == word);
        found.ok_or_else(|| UnknownOrder(word.to_owned()))
    }
}

impl fmt::Display for ClientOrder {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(self.word())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_most_comes_first() {
        let client = |key: &str, received_rate, received_bytes, sent_bytes, rtt, senders| Client {
            key: key.to_owned(),
            address: String::new(),
            received_bytes,
            sent_bytes,
            received_rate,
            sent_rate: None,
            round_trip_milliseconds: rtt,
            connected_seconds: 0,
            is_home: true,
            senders,
            is_waiting: false,
        };
        let mut clients = [
            client("a", None, 3, 1, 2.5, 1),
            client("b", Some(7.0), 1, 2, 0.5, 0),
            client("c", Some(2.0), 2, 3, 9.0, 0),
        ];
        for (word, expected) in [
            ("rate", "bca"),
            ("received", "acb"),
            ("sent", "cba"),
            ("rtt", "cab"),
            ("senders", "acb"),
        ] {
            let order: ClientOrder = word.parse().unwrap();
            assert_eq!(order.to_string(), word);
            order.sort(&mut clients);
            assert_eq!(
                clients.iter().map(|it| it.key.as_str()).collect::<String>(),
                expected,
                "{word}"
            );
        }
        let error = "size".parse::<ClientOrder>().unwrap_err().to_string();
        assert_eq!(error, "\"size\" is no order of clients: rate, received, sent, rtt or senders");
        assert_eq!(ClientOrder::Senders.next(), ClientOrder::Rate);
    }
}
