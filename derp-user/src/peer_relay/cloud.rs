//! The public addresses of a host in a cloud, as the cloud's metadata service tells them. Without I/O.
//!
//! Where a cloud translates addresses one to one, no interface has the public one. As in the reference, Amazon EC2 is
//! known by its BIOS and asked; other clouds are not.

use std::{
    collections::VecDeque,
    fmt,
    net::{IpAddr, Ipv4Addr},
};

/// The file with the name of the BIOS's vendor.
pub(crate) const BIOS_VENDOR: &str = "/sys/class/dmi/id/bios_vendor";
/// Most bytes of an answer.
pub(crate) const MOST_METADATA_BYTES: usize = 8192;
/// Most interfaces that are asked about; instances have up to 15 on a network card.
const MOST_INTERFACES: usize = 16;
/// Most addresses that are kept.
const MOST_ADDRESSES: usize = 16;
/// Longest token, in bytes; they have 56.
const LONGEST_TOKEN: usize = 512;
/// For how many seconds a token is to be good.
const TOKEN_LIFETIME: &str = "10";
/// How many rounds in a row fail until what was known is forgotten.
const MOST_FAILURES: u32 = 3;
/// What EC2's metadata service calls itself.
const EC2_SERVER: &str = "EC2ws";
const EC2_INTERFACES: &str = "/latest/meta-data/network/interfaces/macs/";

/// A cloud whose metadata service tells public addresses.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Cloud {
    /// Amazon EC2.
    Aws,
}

impl Cloud {
    /// Returns the cloud whose machines have this vendor of their BIOS.
    #[must_use]
    pub fn of_bios_vendor(vendor: &str) -> Option<Self> {
        let vendor = vendor.trim();
        (vendor == "Amazon EC2" || vendor.ends_with(".amazon")).then_some(Self::Aws)
    }

    /// Returns where its metadata service is, by plain HTTP on port 80.
    #[must_use]
    pub const fn metadata_address(self) -> Ipv4Addr {
        match self {
            Self::Aws => Ipv4Addr::new(169, 254, 169, 254),
        }
    }
}

impl fmt::Display for Cloud {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Aws => f.write_str("Amazon EC2"),
        }
    }
}

/// Which cloud's metadata service is asked.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum CloudChoice {
    /// That of the cloud that this machine is found to be in, if it is in one.
    #[default]
    Detect,
    /// This one's.
    Given(Cloud),
    /// None.
    Off,
}

/// What is asked of a metadata service.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct MetadataRequest {
    pub(crate) method: &'static str,
    pub(crate) path: String,
    /// Name and value of the only header.
    pub(crate) header: (&'static str, String),
}

/// What it has answered.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct MetadataAnswer {
    pub(crate) status: u16,
    /// The header `Server`.
    pub(crate) server: String,
    pub(crate) body: Vec<u8>,
}

/// Why a round of questions was in vain.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub(crate) enum MetadataError {
    /// Something else answers at the service's address.
    #[error("it calls itself {0:?}")]
    OtherServer(String),
    #[error("{path}: status {status}")]
    Status { path: String, status: u16 },
    #[error("{path}: an answer that cannot be used: {line:?}")]
    Answer { path: String, line: String },
}

/// One round of questions to EC2's metadata service, version 2: a token first, then the interfaces, then the addresses of
/// each of them.
#[derive(Debug)]
pub(crate) struct MetadataRound {
    token: Option<String>,
    is_listed: bool,
    /// Questions about interfaces that have not been answered.
    left: VecDeque<Addresses>,
    found: Vec<IpAddr>,
    /// What was wrong with the first question about an interface that had no good answer.
    fault: Option<MetadataError>,
}

/// The question for an interface's addresses of one family.
#[derive(Debug)]
struct Addresses {
    path: String,
    is_ipv4: bool,
}

impl MetadataRound {
    pub(crate) const fn new(cloud: Cloud) -> Self {
        match cloud {
            Cloud::Aws => Self {
                token: None,
                is_listed: false,
                left: VecDeque::new(),
                found: Vec::new(),
                fault: None,
            },
        }
    }

    /// Returns what is to be asked next; nothing when the round is over.
    pub(crate) fn request(&self) -> Option<MetadataRequest> {
        let Some(token) = &self.token else {
            let header = ("x-aws-ec2-metadata-token-ttl-seconds", TOKEN_LIFETIME.to_owned());
            let path = "/latest/api/token".to_owned();
            return Some(MetadataRequest { method: "PUT", path, header });
        };
        let path = if self.is_listed { &self.left.front()?.path } else { EC2_INTERFACES };
        let header = ("x-aws-ec2-metadata-token", token.clone());
        Some(MetadataRequest { method: "GET", path: path.to_owned(), header })
    }

    /// Takes the answer to what is to be asked.
    ///
    /// # Errors
    ///
    /// When the round is in vain. An answer about one interface that is of no use does not end it.
    pub(crate) fn answer(&mut self, answer: &MetadataAnswer) -> Result<(), MetadataError> {
        let Some(MetadataRequest { path, .. }) = self.request() else { return Ok(()) };
        if self.token.is_none() {
            if answer.server != EC2_SERVER {
                return Err(MetadataError::OtherServer(answer.server.clone()));
            }
            let token = lines(&path, answer)?.into_iter().next().unwrap_or_default();
            if token.is_empty() || token.len() > LONGEST_TOKEN || !is_graphic(token) {
                // It is a secret.
                return Err(MetadataError::Answer { path, line: String::new() });
            }
            self.token = Some(token.to_owned());
            return Ok(());
        }
        if !self.is_listed {
            for line in lines(&path, answer)?.into_iter().take(MOST_INTERFACES) {
                let mac = line.trim_end_matches('/');
                if !is_mac(mac) {
                    return Err(MetadataError::Answer { path, line: line.to_owned() });
                }
                for (name, is_ipv4) in [("public-ipv4s", true), ("ipv6s", false)] {
                    let path = format!("{EC2_INTERFACES}{mac}/{name}");
                    self.left.push_back(Addresses { path, is_ipv4 });
                }
            }
            self.is_listed = true;
            return Ok(());
        }
        let Some(question) = self.left.pop_front() else { return Ok(()) };
        match addresses(&question, answer) {
            Ok(addresses) => {
                let room = MOST_ADDRESSES.saturating_sub(self.found.len());
                self.found.extend(addresses.into_iter().take(room));
            }
            Err(fault) => {
                self.fault.get_or_insert(fault);
            }
        }
        Ok(())
    }

    /// Returns what the round has found; what was found counts, even if there were faults.
    pub(crate) fn finish(self) -> Result<Vec<IpAddr>, MetadataError> {
        match self.fault {
            Some(fault) if self.found.is_empty() => Err(fault),
            Some(_) | None => Ok(self.found),
        }
    }
}

fn addresses(question: &Addresses, answer: &MetadataAnswer) -> Result<Vec<IpAddr>, MetadataError> {
    let Addresses { path, is_ipv4 } = question;
    let address = |line: &str| {
        let parsed = line.parse::<IpAddr>().ok().filter(|ip| ip.is_ipv4() == *is_ipv4);
        let line = || line.to_owned();
        parsed.ok_or_else(|| MetadataError::Answer { path: path.clone(), line: line() })
    };
    lines(path, answer)?.into_iter().map(address).collect()
}

/// Returns the lines of an answer; none where there is nothing of the kind.
fn lines<'a>(path: &str, answer: &'a MetadataAnswer) -> Result<Vec<&'a str>, MetadataError> {
    match answer.status {
        200 => {}
        404 => return Ok(Vec::new()),
        status => return Err(MetadataError::Status { path: path.to_owned(), status }),
    }
    let text = std::str::from_utf8(&answer.body).map_err(|_| MetadataError::Answer {
        path: path.to_owned(),
        line: "not UTF-8".to_owned(),
    })?;
    Ok(text.split_whitespace().collect())
}

fn is_graphic(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_graphic())
}

/// Tells whether a word is an Ethernet address: it becomes part of a path.
fn is_mac(word: &str) -> bool {
    let mut bytes = word.split(':');
    let is_byte = |it: &str| it.len() == 2 && it.bytes().all(|digit| digit.is_ascii_hexdigit());
    bytes.by_ref().take(6).filter(|it| is_byte(it)).count() == 6 && bytes.next().is_none()
}

/// What is known from round to round.
#[derive(Debug, Default)]
pub(crate) struct CloudAddresses {
    known: Vec<IpAddr>,
    failures: u32,
}

impl CloudAddresses {
    /// Takes what has come of a round, and returns what is known now. A service that does not answer once or twice has not
    /// taken the addresses away.
    pub(crate) fn take<E>(&mut self, round: &Result<Vec<IpAddr>, E>) -> &[IpAddr] {
        match round {
            Ok(found) => {
                self.known.clone_from(found);
                self.failures = 0;
            }
            Err(_) => {
                self.failures = self.failures.saturating_add(1);
                if self.failures >= MOST_FAILURES {
                    self.known.clear();
                }
            }
        }
        &self.known
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MAC: &str = "0e:49:61:0f:c3:11";

    fn good(body: &str) -> MetadataAnswer {
        MetadataAnswer { status: 200, server: EC2_SERVER.to_owned(), body: body.into() }
    }

    fn status(status: u16) -> MetadataAnswer {
        MetadataAnswer { status, ..good("") }
    }

    /// Asks a service that answers by path, and returns what was asked, too.
    fn run(
        service: impl Fn(&str) -> MetadataAnswer,
    ) -> (Vec<String>, Result<Vec<IpAddr>, MetadataError>) {
        let mut round = MetadataRound::new(Cloud::Aws);
        let mut asked = Vec::new();
        while let Some(request) = round.request() {
            let (name, value) = &request.header;
            asked.push(format!("{} {} {name}: {value}", request.method, request.path));
            if let Err(error) = round.answer(&service(&request.path)) {
                return (asked, Err(error));
            }
        }
        (asked, round.finish())
    }

    fn ips(ips: &[&str]) -> Vec<IpAddr> {
        ips.iter().map(|ip| ip.parse().unwrap()).collect()
    }

    #[test]
    fn a_token_is_asked_for_then_interfaces_then_their_addresses() {
        let (asked, found) = run(|path| match path.rsplit('/').next().unwrap() {
            "token" => good("TOKEN=="),
            "" => good(&format!("{MAC}/\n0e:49:61:0f:c3:12/")),
            "public-ipv4s" if path.contains(MAC) => good("203.0.113.5\n203.0.113.6\n"),
            "ipv6s" if path.contains(MAC) => good("2001:db8::5"),
            _ => status(404),
        });
        assert_eq!(found, Ok(ips(&["203.0.113.5", "203.0.113.6", "2001:db8::5"])));
        let macs = "/latest/meta-data/network/interfaces/macs/";
        let get = |rest: &str| format!("GET {macs}{rest} x-aws-ec2-metadata-token: TOKEN==");
        let expected = [
            "PUT /latest/api/token x-aws-ec2-metadata-token-ttl-seconds: 10".to_owned(),
            get(""),
            get("0e:49:61:0f:c3:11/public-ipv4s"),
            get("0e:49:61:0f:c3:11/ipv6s"),
            get("0e:49:61:0f:c3:12/public-ipv4s"),
            get("0e:49:61:0f:c3:12/ipv6s"),
        ];
        assert_eq!(asked, expected);
    }

    #[test]
    fn what_is_no_metadata_service_of_ec2_is_asked_nothing_more() {
        let other = |server: &str| MetadataAnswer { server: server.to_owned(), ..good("TOKEN") };
        for (answer, error) in [
            (other("nginx"), "it calls itself \"nginx\""),
            (other(""), "it calls itself \"\""),
            (status(403), "/latest/api/token: status 403"),
            (status(404), "/latest/api/token: an answer that cannot be used: \"\""),
            (good("\u{e9}"), "/latest/api/token: an answer that cannot be used: \"\""),
            (good(&"x".repeat(513)), "/latest/api/token: an answer that cannot be used: \"\""),
        ] {
            let (asked, found) = run(|_| answer.clone());
            assert_eq!((asked.len(), found.unwrap_err().to_string().as_str()), (1, error));
        }
    }

    #[test]
    fn an_answer_about_an_interface_that_is_of_no_use_spoils_nothing_else() {
        let with = |ipv4: &MetadataAnswer, ipv6: &MetadataAnswer| {
            run(|path| match path.rsplit('/').next().unwrap() {
                "token" => good("TOKEN"),
                "" => good(MAC),
                "public-ipv4s" => ipv4.clone(),
                _ => ipv6.clone(),
            })
            .1
            .map_err(|error| error.to_string())
        };
        let [four, six] = [good("203.0.113.5"), good("2001:db8::5")];
        assert_eq!(with(&four, &status(500)), Ok(ips(&["203.0.113.5"])));
        assert_eq!(with(&good("<html>"), &six), Ok(ips(&["2001:db8::5"])));
        assert_eq!(
            with(&six, &four).unwrap_err().split(": ").nth(1),
            Some("an answer that cannot be used")
        );
        assert_eq!(with(&status(404), &status(404)), Ok(Vec::new()));
        assert!(
            with(&status(500), &status(404)).unwrap_err().ends_with("public-ipv4s: status 500")
        );
        // What an answer says becomes no part of a path.
        let (asked, found) = run(|path| match path.rsplit('/').next().unwrap() {
            "token" => good("TOKEN"),
            _ => good("../../../user-data"),
        });
        assert_eq!((asked.len(), found.is_err()), (2, true));
    }

    #[test]
    fn clouds_are_known_by_their_bios() {
        for (vendor, cloud) in [
            ("Amazon EC2\n", Some(Cloud::Aws)),
            ("4.2.amazon", Some(Cloud::Aws)),
            ("Amazon EC2 Lookalike", None),
            ("Google", None),
            ("SeaBIOS", None),
            ("", None),
        ] {
            assert_eq!(Cloud::of_bios_vendor(vendor), cloud, "{vendor:?}");
        }
    }

    #[test]
    fn a_service_that_is_silent_for_long_is_not_believed_any_more() {
        let mut addresses = CloudAddresses::default();
        let known = ips(&["203.0.113.5"]);
        let silence: Result<Vec<IpAddr>, ()> = Err(());
        assert_eq!(addresses.take(&silence), ips(&[]));
        assert_eq!(addresses.take::<()>(&Ok(known.clone())), known);
        assert_eq!(addresses.take(&silence), known);
        assert_eq!(addresses.take(&silence), known);
        assert_eq!(addresses.take::<()>(&Ok(known.clone())), known, "it has come back");
        assert_eq!(addresses.take(&silence), known);
        assert_eq!(addresses.take(&silence), known);
        assert_eq!(addresses.take(&silence), ips(&[]));
        assert_eq!(addresses.take::<()>(&Ok(Vec::new())), ips(&[]));
    }

    proptest! {
        /// Whatever a service answers, a round comes to its end, with a bounded result.
        #[test]
        fn a_round_ends(
            answers in prop::collection::vec(
                (prop::sample::select(vec![200, 404, 500]), "([0-9a-f]{2}(:[0-9a-f]{2}){5}/?\n){0,40}|[0-9.\n]{0,200}"),
                1..8,
            )
        ) {
            let mut round = MetadataRound::new(Cloud::Aws);
            let mut count = 0;
            for answer in answers.iter().cycle() {
                if round.request().is_none() {
                    break;
                }
                count += 1;
                prop_assert!(count <= 2 + 2 * MOST_INTERFACES);
                let answer = MetadataAnswer { status: answer.0, ..good(&answer.1) };
                if round.answer(&answer).is_err() {
                    return Ok(());
                }
            }
            prop_assert!(round.finish().map_or(0, |found| found.len()) <= MOST_ADDRESSES);
        }
    }
}
