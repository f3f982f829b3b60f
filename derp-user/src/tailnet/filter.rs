//! Whom the packet filter allows to ask for relay endpoints (Tailscale's `tailcfg.FilterRule`).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use super::response::FilterRule;

/// The capability to ask a relay for endpoints.
const RELAY: &str = "tailscale.com/cap/relay";

/// A rule that grants [`RELAY`].
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Grant {
    sources: Vec<Range>,
    destinations: Vec<IpNet>,
}

impl Grant {
    /// Returns what rules say of it.
    pub(super) fn of(rules: &[FilterRule]) -> Vec<Self> {
        rules.iter().filter_map(Self::of_rule).collect()
    }

    fn of_rule(rule: &FilterRule) -> Option<Self> {
        // No server sends this form to clients of this version; what it would mean is not granted.
        if !rule.source_bits.is_empty() {
            return None;
        }
        let grants = rule.cap_grant.iter().filter(|grant| {
            grant.caps.iter().any(|cap| cap == RELAY) || grant.cap_map.contains_key(RELAY)
        });
        let networks = grants.flat_map(|grant| &grant.destinations);
        let destinations: Vec<IpNet> = networks.filter_map(|text| text.parse().ok()).collect();
        let sources: Vec<Range> = rule.source_ips.iter().flat_map(|text| sources(text)).collect();
        (!destinations.is_empty() && !sources.is_empty()).then_some(Self { sources, destinations })
    }

    /// Returns how many networks it holds.
    pub(super) fn networks(&self) -> usize {
        self.sources.len() + self.destinations.len()
    }

    fn reaches(&self, address: IpAddr) -> bool {
        self.destinations.iter().any(|network| network.contains(&address))
    }
}

/// Addresses of one family, from the first to the last.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
struct Range {
    is_ipv6: bool,
    first: u128,
    last: u128,
}

impl Range {
    fn new(first: IpAddr, last: IpAddr) -> Option<Self> {
        let range = Self { is_ipv6: first.is_ipv6(), first: number(first), last: number(last) };
        (first.is_ipv6() == last.is_ipv6() && range.first <= range.last).then_some(range)
    }
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(ip) => u128::from(u32::from(ip)),
        IpAddr::V6(ip) => u128::from(ip),
    }
}

/// Reads one source: `*`, an address, a network, or two addresses and a hyphen. Sources by the capability of a node
/// (`cap:`) grant no capabilities, and what cannot be read grants nothing.
fn sources(text: &str) -> Vec<Range> {
    if text == "*" {
        let ipv4 = Range::new(Ipv4Addr::UNSPECIFIED.into(), Ipv4Addr::BROADCAST.into());
        let ipv6 = Range::new(Ipv6Addr::UNSPECIFIED.into(), Ipv6Addr::from(u128::MAX).into());
        return ipv4.into_iter().chain(ipv6).collect();
    }
    let range = if let Some((first, last)) = text.split_once('-') {
        let both = first.parse().ok().zip(last.parse().ok());
        both.and_then(|(first, last)| Range::new(first, last))
    } else if text.contains('/') {
        let network: Option<IpNet> = text.parse().ok();
        let network = network.filter(|network| network.addr() == network.network());
        network.and_then(|network| Range::new(network.network(), network.broadcast()))
    } else {
        text.parse().ok().and_then(|address| Range::new(address, address))
    };
    range.into_iter().collect()
}

/// The addresses whose owners may ask, towards each of the relay's own.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct Granted {
    /// In order, without overlaps.
    ranges: Vec<Range>,
}

impl Granted {
    /// Puts together what `grants` say of a node with these addresses. Only its first address of each family counts,
    /// as in the reference.
    pub(super) fn new<'a>(grants: impl Iterator<Item = &'a Grant> + Clone, own: &[IpAddr]) -> Self {
        let mut ranges = Vec::new();
        for is_ipv6 in [false, true] {
            let Some(own) = own.iter().find(|own| own.is_ipv6() == is_ipv6) else { continue };
            let granted = grants.clone().filter(|grant| grant.reaches(*own));
            let sources = granted.flat_map(|grant| grant.sources.iter().copied());
            ranges.extend(sources.filter(|range| range.is_ipv6 == is_ipv6));
        }
        ranges.sort_unstable();
        ranges.dedup_by(|next, before| {
            let joins =
                next.is_ipv6 == before.is_ipv6 && next.first <= before.last.saturating_add(1);
            if joins {
                before.last = before.last.max(next.last);
            }
            joins
        });
        Self { ranges }
    }

    /// Tells whether the owner of `address` may ask.
    pub(super) fn contains(&self, address: IpAddr) -> bool {
        let place = (address.is_ipv6(), number(address));
        let after = self.ranges.partition_point(|range| (range.is_ipv6, range.first) <= place);
        let range = after.checked_sub(1).and_then(|at| self.ranges.get(at));
        range.is_some_and(|range| range.is_ipv6 == place.0 && place.1 <= range.last)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rules(json: &str) -> Vec<FilterRule> {
        serde_json::from_str(json).unwrap()
    }

    fn granted(json: &str, own: &[&str]) -> Granted {
        let own: Vec<IpAddr> = own.iter().map(|text| text.parse().unwrap()).collect();
        Granted::new(Grant::of(&rules(json)).iter(), &own)
    }

    fn is_granted(json: &str, own: &[&str], source: &str) -> bool {
        granted(json, own).contains(source.parse().unwrap())
    }

    const OWN: [&str; 2] = ["100.64.0.9", "fd7a:115c:a1e0::9"];

    #[test]
    fn the_capability_is_granted_in_either_form_and_no_other_is_taken_for_it() {
        for (grant, is_good) in [
            (r#""Caps":["tailscale.com/cap/relay"]"#, true),
            (r#""CapMap":{"tailscale.com/cap/relay":null}"#, true),
            (r#""CapMap":{"tailscale.com/cap/relay":[{"x":[1]}],"y":[]}"#, true),
            (r#""Caps":["tailscale.com/cap/relay-target"]"#, false),
            (r#""CapMap":{"https://tailscale.com/cap/ingress":[]},"Caps":null"#, false),
            (r#""Caps":[]"#, false),
        ] {
            let json = format!(
                r#"[{{"SrcIPs":["*"],"DstPorts":[{{"IP":"*","Ports":{{"First":0,"Last":65535}}}}]}},
                    {{"SrcIPs":["100.64.0.1"],"CapGrant":[{{"Dsts":["100.64.0.9/32"],{grant}}}]}}]"#
            );
            assert_eq!(is_granted(&json, &OWN, "100.64.0.1"), is_good, "{grant}");
            assert!(!is_granted(&json, &OWN, "100.64.0.2"), "another source: {grant}");
            assert!(!is_granted(&json, &["100.64.0.8"], "100.64.0.1"), "another node: {grant}");
        }
    }

    #[test]
    fn sources_have_five_forms_and_what_cannot_be_read_grants_nothing() {
        for (source, good, bad) in [
            ("*", &["0.0.0.0", "255.255.255.255", "::", "ffff::"][..], &[][..]),
            ("100.64.0.1", &["100.64.0.1"], &["100.64.0.2", "::6440:1"]),
            ("fd7a:115c:a1e0::1", &["fd7a:115c:a1e0::1"], &["fd7a:115c:a1e0::2"]),
            ("100.64.0.0/10", &["100.64.0.0", "100.127.255.255"], &["100.128.0.0"]),
            ("fd7a::/16", &["fd7a::", "fd7a:ffff::1"], &["fd7b::"]),
            ("100.64.0.3-100.64.0.5", &["100.64.0.3", "100.64.0.5"], &["100.64.0.6"]),
            ("::1-::3", &["::2"], &["::4", "0.0.0.2"]),
            ("cap:tag", &[], &["100.64.0.1"]),
            ("100.64.0.5-100.64.0.3", &[], &["100.64.0.4"]),
            ("100.64.0.3-::1", &[], &["100.64.0.3"]),
            ("100.64.0.1/10", &[], &["100.64.0.1"]),
            ("100.64.0.0/33", &[], &["100.64.0.0"]),
            ("", &[], &["0.0.0.0"]),
        ] {
            let json = format!(
                r#"[{{"SrcIPs":["{source}"],"CapGrant":[{{"Dsts":["0.0.0.0/0","::/0"],
                    "Caps":["tailscale.com/cap/relay"]}}]}}]"#
            );
            for (address, is_good) in
                good.iter().map(|it| (it, true)).chain(bad.iter().map(|it| (it, false)))
            {
                assert_eq!(is_granted(&json, &OWN, address), is_good, "{source} {address}");
            }
        }
    }

    /// As the reference's `nodeHasCap`: a further address of a family is not looked at.
    #[test]
    fn only_the_first_own_address_of_a_family_counts() {
        let json = r#"[{"SrcIPs":["*"],"CapGrant":[{"Dsts":["100.64.0.9/32"],
            "Caps":["tailscale.com/cap/relay"]}]}]"#;
        assert!(is_granted(json, &["100.64.0.9", "100.64.0.10"], "100.64.0.1"));
        assert!(!is_granted(json, &["100.64.0.10", "100.64.0.9"], "100.64.0.1"));
        assert!(!is_granted(json, &["fd7a::9"], "100.64.0.1"));
        assert!(!is_granted(json, &["100.64.0.9"], "fd7a::1"));
        assert!(!is_granted(json, &[], "100.64.0.1"));
    }

    #[test]
    fn lengths_in_the_older_form_grant_nothing() {
        let json = r#"[{"SrcIPs":["100.64.0.0"],"SrcBits":[10],"CapGrant":[{"Dsts":["0.0.0.0/0"],
            "Caps":["tailscale.com/cap/relay"]}]}]"#;
        assert!(!is_granted(json, &OWN, "100.64.0.0"));
    }

    proptest! {
        /// Merged ranges hold what the rules hold one by one.
        #[test]
        fn merging_changes_nothing(
            pairs in prop::collection::vec((any::<bool>(), 0u8..40, 0u8..40), 0..12),
            asked in 0u8..40,
            is_ipv6 in any::<bool>(),
        ) {
            let address = |is_ipv6: bool, last: u8| -> IpAddr {
                if is_ipv6 {
                    Ipv6Addr::from(u128::MAX - 39 + u128::from(last)).into()
                } else {
                    Ipv4Addr::from(u32::MAX - 39 + u32::from(last)).into()
                }
            };
            let grants: Vec<Grant> = pairs.iter().map(|&(is_ipv6, a, b)| Grant {
                sources: Range::new(address(is_ipv6, a), address(is_ipv6, b)).into_iter().collect(),
                destinations: vec!["0.0.0.0/0".parse().unwrap(), "::/0".parse().unwrap()],
            }).collect();
            let own = OWN.map(|text| text.parse().unwrap());
            let granted = Granted::new(grants.iter(), &own);
            let expected =
                pairs.iter().any(|&(family, a, b)| family == is_ipv6 && (a..=b).contains(&asked));
            prop_assert_eq!(granted.contains(address(is_ipv6, asked)), expected);
        }

        #[test]
        fn any_text_is_a_source_or_none(text in "[0-9a-f:./*-]{0,24}") {
            sources(&text);
        }
    }
}
