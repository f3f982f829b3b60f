use std::{collections::BTreeMap, time::Duration};

use crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use ratatui::{Terminal, backend::TestBackend};

use super::{
    draw,
    view::{Action, Tab, View},
    *,
};
use crate::status::{
    Certificate, Client, Clients, Flows, Interface, Link, Reading, Samples, Since, Status,
};

fn client(number: u32) -> Client {
    Client {
        key: format!("[k{number:03}]"),
        address: format!("192.0.2.{number}:4711"),
        received_bytes: 1000 * u64::from(number),
        sent_bytes: 5_000_000 / u64::from(number + 1),
        received_rate: Some(125.0 * number as f32),
        sent_rate: Some(0.0),
        round_trip_milliseconds: f64::from(100 - number),
        connected_seconds: 3600,
        is_home: true,
        senders: 1,
        is_waiting: false,
    }
}

/// A relay that started at `run` and has run for `seconds`.
fn status(run: u64, seconds: u64) -> Status {
    let mut samples = Samples::new(run);
    for second in 0..=seconds {
        samples.add(Reading {
            at: Duration::from_secs(second),
            bytes_received: 125_000 * second * second,
            dropped_queue_head: if second == seconds { 3 } else { 0 },
            connections: second,
            memory: 20_000_000,
            ..Reading::default()
        });
    }
    let reading = samples.last();
    Status {
        version: "1.2.3".to_owned(),
        hostname: "relay.example".to_owned(),
        interfaces: vec![Interface { name: "eth0".to_owned(), mode: "native".to_owned() }],
        certificates: Some(vec![Certificate {
            name: "relay.example".to_owned(),
            not_after: 1_900_000_000,
            seconds_left: 86_400,
        }]),
        links: vec![Link {
            peer: "b.example".to_owned(),
            address: Some("192.0.2.1:443".to_owned()),
            state: "down".to_owned(),
            seconds: 61,
            server_key: None,
            clients: 0,
            forwarded_packets: 0,
            forwarded_bytes: 0,
            dropped_packets: 0,
            failures: 9,
            fault: Some("refused".to_owned()),
        }],
        clients: Clients { total: 300, home: 200, shown: (1..40).map(client).collect() },
        flows: Flows::default(),
        ..Status::default()
    }
    .with_samples(&samples, &reading, Since::Everything)
}

/// What a terminal of this size shows, line by line.
fn screen(view: &View, width: u16, height: u16) -> Vec<String> {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal.draw(|frame| draw::draw(frame, view)).unwrap();
    let buffer = terminal.backend().buffer();
    (0..height)
        .map(|y| (0..width).map(|x| buffer[(x, y)].symbol()).collect::<String>())
        .map(|line| line.trim_end().to_owned())
        .collect()
}

fn press(view: &mut View, code: KeyCode) -> Action {
    view.key(KeyEvent::new(code, KeyModifiers::NONE))
}

fn shown() -> View {
    let mut view = View::new(ClientOrder::Rate);
    view.take(Ok(status(1_000_000, 4)));
    view
}

#[test]
fn the_overview_has_every_chart_and_what_needs_a_look() {
    let lines = screen(&shown(), 112, 40);
    let text = lines.join("\n");
    assert!(lines[0].starts_with("derpd relay.example  1.2.3, up 4 s"), "{text}");
    assert!(lines[1].contains("1 Overview") && lines[1].contains("5 Certificates"));
    for chart in crate::status::CHARTS {
        assert!(text.contains(chart.title), "{} is missing from\n{text}", chart.title);
    }
    // 125000 * (2 * 4 - 1) bytes in the last second.
    assert!(text.contains("from clients             7.00 Mbit/s"), "{text}");
    assert!(text.contains("▂▄▆█") || text.contains("▂▄▆▇") || text.contains("▂▄▆█"), "{text}");
    assert!(text.contains("queue full: oldest"), "{text}");
    assert!(!text.contains("write failed"), "what is always 0 is left out\n{text}");
    assert!(text.contains("XDP: eth0 (native)   Certificate relay.example: 1 d"), "{text}");
    assert!(lines[39].contains("q: end"));
}

#[test]
fn every_screen_fits_small_terminals() {
    let mut view = shown();
    for tab in '1'..='5' {
        press(&mut view, KeyCode::Char(tab));
        for (width, height) in [(80, 24), (40, 10), (10, 3), (1, 1), (300, 100)] {
            assert_eq!(screen(&view, width, height).len(), usize::from(height));
        }
    }
    screen(&View::new(ClientOrder::Rate), 80, 24);
}

#[test]
fn clients_are_sorted_and_scrolled() {
    let mut view = shown();
    press(&mut view, KeyCode::Char('2'));
    let first = |view: &View| screen(view, 100, 10)[4].split(' ').next().unwrap().to_owned();
    let text = screen(&view, 100, 10);
    assert_eq!(text[2], "39 of 300 clients, by rate");
    assert!(text[3].starts_with("Key      Address"), "{text:?}");
    assert_eq!(first(&view), "[k039]");
    press(&mut view, KeyCode::Down);
    assert_eq!(first(&view), "[k038]");
    for _ in 0..100 {
        press(&mut view, KeyCode::PageDown);
    }
    assert_eq!(first(&view), "[k001]");
    press(&mut view, KeyCode::Home);
    for (order, expected) in [
        (ClientOrder::Received, "[k039]"),
        (ClientOrder::Sent, "[k001]"),
        (ClientOrder::RoundTrip, "[k001]"),
    ] {
        press(&mut view, KeyCode::Char('s'));
        assert_eq!((view.order, first(&view).as_str()), (order, expected));
    }
    // Fewer clients than it was scrolled by.
    press(&mut view, KeyCode::PageDown);
    let mut fewer = status(1_000_000, 5);
    fewer.clients.shown.truncate(2);
    view.take(Ok(fewer));
    assert_eq!(view.scroll, 1);
}

#[test]
fn keys_lead_everywhere_and_out() {
    let mut view = shown();
    assert_eq!(press(&mut view, KeyCode::Tab), Action::Draw);
    assert_eq!(view.tab, Tab::Clients);
    press(&mut view, KeyCode::BackTab);
    press(&mut view, KeyCode::BackTab);
    assert_eq!(view.tab, Tab::Certificates);
    assert!(screen(&view, 100, 10).join("\n").contains("Sun, 17 Mar 2030"));
    press(&mut view, KeyCode::Char('3'));
    assert!(screen(&view, 100, 10).join("\n").contains("192.0.2.1:443"));
    press(&mut view, KeyCode::Char('p'));
    assert!(screen(&view, 100, 10)[0].ends_with("paused"));
    assert_eq!(press(&mut view, KeyCode::Char('x')), Action::Nothing);
    assert_eq!(press(&mut view, KeyCode::Char('q')), Action::End);
    assert_eq!(press(&mut view, KeyCode::Esc), Action::End);
    let interrupt = KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL);
    assert_eq!(view.key(interrupt), Action::End);
}

#[test]
fn a_restart_is_told_and_leaves_what_was_seen() {
    let mut view = shown();
    assert_eq!(view.after(), Some((1_000_000, 1_004_000)));
    view.take(Err("http://relay: connection refused".to_owned()));
    let text = screen(&view, 120, 40);
    assert!(text[0].contains("no answer: http://relay: connection refused"), "{text:?}");
    assert!(text.join("\n").contains("7.00 Mbit/s"), "what was there stays");
    view.take(Ok(status(1_010_000, 2)));
    let text = screen(&view, 120, 40);
    assert!(text[0].contains("up 2 s, restarted 1 times") && !text[0].contains("no answer"));
    assert_eq!(view.history.times.len(), 4 + 2);
    assert_eq!(view.after(), Some((1_010_000, 1_012_000)));
}

#[test]
fn one_look_is_plain_text() {
    let mut status = status(1_000_000, 4);
    status.clients.shown.truncate(2);
    status.links[0].peer = "evil\u{1b}[2J".to_owned();
    let text = text::of(&status, ClientOrder::Rate);
    for part in [
        "derpd 1.2.3 on relay.example, up 4 s\n",
        "From clients  7.00 Mbit/s",
        "Certificate   relay.example ends in 1 d 0 h\n",
        "Mesh link     evil?[2J 192.0.2.1:443 down\n",
        "Clients by rate: 2 of 300\n[k002]",
    ] {
        assert!(text.contains(part), "{part:?} is missing from\n{text}");
    }
}

#[test]
fn the_command_line_is_checked() {
    let words = |text: &str| text.split_whitespace().map(OsString::from).collect::<Vec<_>>();
    let Ok(Invocation::Help(help)) = parse(words("--help")) else { panic!("no help") };
    assert!(help.contains("derpd top --once --json") && help.contains("--key-file"), "{help}");
    for (line, part) in [
        ("--json", "--once"),
        ("--interval 0", "1..=60"),
        ("--sort size", "is no order of clients"),
        ("--ca f", "<URL>"),
        ("--ca f --insecure https://h", "cannot be used with"),
        ("one two", "two"),
    ] {
        let error = parse(words(line)).unwrap_err();
        assert!(error.to_string().contains(part), "{line}: {error}");
        assert_eq!(error.exit_status(), 2);
    }
    let bad = |line: &str| {
        let Ok(Invocation::Run(arguments)) = parse(words(line)) else { panic!("{line}") };
        run(&arguments).unwrap_err()
    };
    let error = bad("https://h --once --key-file /does/not/exist");
    assert!(error.to_string().starts_with("--key-file /does/not/exist: "), "{error}");
    assert_eq!(error.exit_status(), 1);
    let error = bad("https://h --once --ca /does/not/exist");
    assert!(error.to_string().contains("/does/not/exist"), "{error}");
}

#[test]
fn a_document_of_another_version_is_refused_by_name() {
    let mut document: BTreeMap<String, serde_json::Value> =
        serde_json::from_value(serde_json::to_value(status(1, 1)).unwrap()).unwrap();
    document.insert("something".to_owned(), "new".into());
    assert!(source::read(&serde_json::to_string(&document).unwrap()).is_ok());
    document.remove("clients");
    let error = source::read(&serde_json::to_string(&document).unwrap()).unwrap_err();
    assert!(error.contains("missing field `clients`"), "{error}");
}
