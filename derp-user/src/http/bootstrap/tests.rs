use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::atomic::AtomicU32,
    time::Duration,
};

use domain::{
    base::{Message, MessageBuilder, Name, iana::Rcode},
    rdata::Txt,
};
use tokio::net::UdpSocket;

use super::{refresh::Lookup, *};

const STRANGER: &str = "192.0.2.9";

/// Answers from a table; a name that is not in it fails.
#[derive(Default)]
struct Fake {
    addresses: BTreeMap<&'static str, &'static [&'static str]>,
    texts: BTreeMap<&'static str, &'static [&'static str]>,
    /// Answers only after this long.
    delay: Duration,
    asked: AtomicU32,
}

impl Lookup for Fake {
    async fn addresses(&self, name: &str) -> io::Result<Vec<IpAddr>> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        tokio::time::sleep(self.delay).await;
        let found = self.addresses.get(name).ok_or(io::ErrorKind::NotFound)?;
        Ok(found.iter().map(|text| text.parse().unwrap()).collect())
    }

    async fn texts(&self, name: &str) -> io::Result<Vec<String>> {
        let found = self.texts.get(name).ok_or(io::ErrorKind::NotFound)?;
        Ok(found.iter().map(|text| (*text).to_owned()).collect())
    }
}

fn dns(published: &str, unpublished: &str) -> BootstrapDns {
    let list = |text: &str| text.parse().unwrap();
    BootstrapDns::new(Names { published: list(published), unpublished: list(unpublished) })
}

fn ask(dns: &BootstrapDns, query: &str) -> String {
    let query = (!query.is_empty()).then_some(query);
    let never = || panic!("no coin is tossed for a stranger");
    String::from_utf8(dns.answer(query, STRANGER.parse().unwrap(), never).to_vec()).unwrap()
}

#[test]
fn lists_are_checked() {
    let entry = |name: &str, rollout: Option<&str>| names::Entry {
        name: name.to_owned(),
        rollout: rollout.map(str::to_owned),
    };
    let list = |text: &str| text.parse::<NameList>().map(|list| list.0);
    let good = "b.example, a.example,,c.example/txt.example,d.example/";
    let expected = [
        entry("b.example", None),
        entry("a.example", None),
        entry("c.example", Some("txt.example")),
        entry("d.example", None),
    ];
    assert_eq!(list(good), Ok(expected.into()));
    assert_eq!(list(""), Ok(Vec::new()));
    for wrong in ["a b", "a..b", "http://a", "a/b/c", "/a", "\u{e9}", &"a".repeat(64)] {
        let fault = NamesError::Name(wrong.to_owned());
        assert_eq!(list(&format!("good.example,{wrong}")), Err(fault), "{wrong}");
    }
    assert_eq!(list(&vec!["a"; 257].join(",")), Err(NamesError::TooMany(257)));
}

#[tokio::test]
async fn published_names_are_told_to_everybody() {
    let dns = dns("b.example,a.example,gone.example", "");
    assert_eq!(ask(&dns, ""), "", "nothing is known before the first look-up");
    let fake = Fake {
        addresses: BTreeMap::from([
            ("a.example", &["192.0.2.1", "2001:db8::1", "192.0.2.1"][..]),
            ("b.example", &["::ffff:198.51.100.1"]),
        ]),
        ..Fake::default()
    };
    // Always the last of those that are left: the order stays.
    dns.refresh(&fake, || 1).await;
    let page = "{\n\t\"a.example\": [\n\t\t\"192.0.2.1\",\n\t\t\"2001:db8::1\"\n\t],\n\
                \t\"b.example\": [\n\t\t\"198.51.100.1\"\n\t]\n}";
    assert_eq!(ask(&dns, ""), page);
    assert_eq!(ask(&dns, "q=a.example"), page, "not filtered");
    assert_eq!(ask(&dns, "q=unknown.example&q=a.example"), page);
    assert_eq!(ask(&dns, "q="), page);
    let expected = BootstrapCounts {
        requests: 5,
        published_hits: 1,
        unpublished_misses: 1,
        queried_domains: 2,
        ..BootstrapCounts::default()
    };
    assert_eq!(dns.counts(), expected);

    dns.refresh(&fake, || 0).await;
    assert!(ask(&dns, "").contains("\"2001:db8::1\",\n\t\t\"192.0.2.1\""), "shuffled");
    dns.refresh(&Fake::default(), || 0).await;
    assert_eq!(ask(&dns, "q=a.example"), "{}", "what is found replaces what was known");
}

#[tokio::test]
async fn unpublished_names_are_told_to_their_share_of_those_who_ask() {
    let dns = dns("", "all.example,half.example/half.txt,none.example/gone.txt,empty.example");
    let fake = Fake {
        addresses: BTreeMap::from([
            ("all.example", &["192.0.2.1"][..]),
            ("half.example", &["192.0.2.2"]),
            ("none.example", &["192.0.2.3"]),
            ("empty.example", &[]),
        ]),
        texts: BTreeMap::from([("half.txt", &["nonsense", "50"][..])]),
        ..Fake::default()
    };
    dns.refresh(&fake, || 0).await;
    assert_eq!(ask(&dns, ""), "");
    assert_eq!(ask(&dns, "q=all.example"), "{\n\t\"all.example\": [\n\t\t\"192.0.2.1\"\n\t]\n}");
    assert_eq!(ask(&dns, "q=none.example"), "", "a percentage that cannot be had is 0");
    assert_eq!(ask(&dns, "q=empty.example"), "");
    let half = |from: &str, toss: bool| {
        !dns.answer(Some("q=half.example"), from.parse().unwrap(), || toss).is_empty()
    };
    assert!(half("1.2.3.4", false) && !half("1.2.3.6", true));
    assert!(half("127.0.0.1", true) && !half("::1", false));
    let expected = BootstrapCounts {
        requests: 8,
        unpublished_hits: 6,
        // Held back three times, and one name without an address.
        unpublished_misses: 4,
        unpublished_percent_misses: 3,
        queried_domains: 4,
        ..BootstrapCounts::default()
    };
    assert_eq!(dns.counts(), expected);
}

#[test]
fn names_asked_for_are_counted_up_to_a_limit() {
    let dns = dns("", "");
    for number in 0..MOST_QUERIED {
        ask(&dns, &format!("q={number}&a=b"));
        ask(&dns, &format!("q={number}"));
    }
    assert_eq!(dns.counts().queried_domains, MOST_QUERIED as u64);
    ask(&dns, "q=one-more");
    assert_eq!(dns.counts().queried_domains, 0);
}

#[tokio::test]
async fn a_round_takes_only_so_long() {
    let pace = Pace { rest: Duration::ZERO, round: Duration::from_millis(500) };
    let dns = BootstrapDns { pace, ..dns("a.example,b.example,c.example", "") };
    let fake = Fake {
        addresses: BTreeMap::from([
            ("a.example", &["192.0.2.1"][..]),
            ("b.example", &["192.0.2.2"]),
            ("c.example", &["192.0.2.3"]),
        ]),
        delay: Duration::from_millis(300),
        ..Fake::default()
    };
    dns.refresh(&fake, || 0).await;
    // A name that is asked for when the time is over gets no answer, however quick.
    assert_eq!(ask(&dns, ""), "{\n\t\"a.example\": [\n\t\t\"192.0.2.1\"\n\t]\n}");
}

#[tokio::test]
async fn names_are_looked_up_again_and_again() {
    assert_eq!((PACE.rest, PACE.round), (Duration::from_secs(600), Duration::from_secs(60)));
    let pace = Pace { rest: Duration::from_millis(20), round: Duration::from_secs(1) };
    let fake = Fake::default();
    let some = BootstrapDns { pace, ..dns("a.example", "") };
    let thrice = async {
        while fake.asked.load(Ordering::Relaxed) < 3 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    let begun = tokio::time::Instant::now();
    tokio::select! {
        () = some.run(&fake) => panic!("it ended"),
        () = thrice => {}
    }
    assert!(begun.elapsed() >= 2 * pace.rest);
    let none = BootstrapDns { pace, ..dns("", "") };
    let asked = fake.asked.load(Ordering::Relaxed);
    assert!(tokio::time::timeout(5 * pace.rest, none.run(&fake)).await.is_err());
    assert_eq!(fake.asked.load(Ordering::Relaxed), asked);
}

/// Answers TXT questions with `texts` under one name, and NXDOMAIN under others.
async fn dns_server(name: &'static str, texts: &'static [&'static str]) -> SocketAddr {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap();
    tokio::spawn(async move {
        let mut buffer = [0; 1500];
        loop {
            let (length, from) = socket.recv_from(&mut buffer).await.unwrap();
            let question = Message::from_octets(buffer[..length].to_vec()).unwrap();
            let asked = question.sole_question().unwrap();
            let is_known = asked.qname().to_string() == name;
            let rcode = if is_known { Rcode::NOERROR } else { Rcode::NXDOMAIN };
            let mut answer = MessageBuilder::new_vec().start_answer(&question, rcode).unwrap();
            for text in texts.iter().filter(|_| is_known) {
                let owner = Name::vec_from_str(name).unwrap();
                let text: Txt<Vec<u8>> = Txt::build_from_slice(text.as_bytes()).unwrap();
                answer.push((owner, 60, text)).unwrap();
            }
            socket.send_to(&answer.finish(), from).await.unwrap();
        }
    });
    address
}

#[tokio::test]
async fn percentages_come_from_a_dns_server() {
    let server = dns_server("rollout.example", &["70", "some text", "100"]).await;
    let system = SystemDns { server: Some(server) };
    assert_eq!(system.texts("rollout.example").await.unwrap(), ["70", "some text", "100"]);
    let error = system.texts("other.example").await.unwrap_err();
    assert_eq!(error.to_string(), "NXDOMAIN");
    // The names themselves from the hosts file, which every machine has.
    let dns = dns("localhost", "localhost/rollout.example");
    dns.refresh(&system, || 0).await;
    assert!(ask(&dns, "").contains("\"127.0.0.1\""), "{}", ask(&dns, ""));
    assert!(ask(&dns, "q=localhost").contains("\"127.0.0.1\""));
    assert_eq!(dns.counts().unpublished_percent_misses, 0);
}
