//! tungstenite's frames and its client on the other side.

use std::{collections::VecDeque, io};

use proptest::prelude::*;
use tungstenite::{
    Message,
    protocol::{Role, WebSocket as Peer, frame::Frame},
};

use super::*;
use crate::server::transport::Transport;

const TEXT: OpCode = OpCode::Data(Data::Text);
const BINARY: OpCode = OpCode::Data(Data::Binary);
const MORE: OpCode = OpCode::Data(Data::Continue);
const PING: OpCode = OpCode::Control(Control::Ping);
const PONG: OpCode = OpCode::Control(Control::Pong);
const CLOSE: OpCode = OpCode::Control(Control::Close);

fn server() -> Transport {
    let mut transport = Transport::plain();
    transport.begin_websocket(Vec::new());
    transport
}

/// Gives `bytes` to the server; what comes of them, the DERP bytes in them, and what is answered.
fn feed(server: &mut Transport, bytes: &[u8]) -> (Result<Phase, TransportError>, Vec<u8>, Vec<u8>) {
    let (mut plain, mut outgoing) = (Vec::new(), Outgoing::default());
    let result = server.receive(&mut bytes.to_vec(), &mut plain, &mut outgoing);
    (result, plain, outgoing.unsent().to_vec())
}

fn send(server: &mut Transport, plain: &[u8]) -> Result<Vec<u8>, TransportError> {
    let mut outgoing = Outgoing::default();
    server.send(plain, &mut outgoing)?;
    Ok(outgoing.unsent().to_vec())
}

/// A client's frame.
fn masked(opcode: OpCode, payload: &[u8], is_final: bool) -> Vec<u8> {
    let mut frame = Frame::message(payload.to_vec(), BINARY, is_final);
    frame.header_mut().opcode = opcode;
    frame.header_mut().mask = Some([0xa5, 0x5a, 0x0f, 0xf1]);
    let mut bytes = Vec::new();
    frame.format(&mut bytes).unwrap();
    bytes
}

/// The server's frames: their types and what is in them.
fn frames(mut bytes: &[u8]) -> Vec<(OpCode, Vec<u8>)> {
    let mut frames = Vec::new();
    while !bytes.is_empty() {
        let mut cursor = io::Cursor::new(bytes);
        let (header, length) = FrameHeader::parse(&mut cursor).unwrap().expect("a whole header");
        assert!(header.is_final && header.mask.is_none());
        assert!(!(header.rsv1 || header.rsv2 || header.rsv3));
        let (_, rest) = bytes.split_at(usize::try_from(cursor.position()).unwrap());
        let (payload, rest) = rest.split_at(usize::try_from(length).unwrap());
        frames.push((header.opcode, payload.to_vec()));
        bytes = rest;
    }
    frames
}

/// What the client is told when the server closes.
fn farewell(bytes: &[u8]) -> (u16, String) {
    let frames = frames(bytes);
    let [(CLOSE, payload)] = &frames[..] else { panic!("not one Close frame: {frames:?}") };
    let (code, reason) = payload.split_first_chunk().unwrap();
    (u16::from_be_bytes(*code), String::from_utf8(reason.to_vec()).unwrap())
}

#[test]
fn what_a_client_must_not_send_closes_with_the_reason() {
    let long = vec![0; 126];
    let reserved = |first: u8| [&[first][..], &masked(BINARY, b"x", true)[1..]].concat();
    let endless =
        [masked(BINARY, &[0; 60_000], false), masked(MORE, &[0; 60_000], false).repeat(20)];
    let huge = [&[0x82, 0xff][..], &u64::MAX.to_be_bytes(), &[0; 4]].concat();
    let cases = [
        (vec![0x82, 1, b'x'], 1002, "a frame that is not masked"),
        (reserved(0xc2), 1002, "a frame with a reserved bit or type"),
        (reserved(0x92), 1002, "a frame with a reserved bit or type"),
        (reserved(0x83), 1002, "a frame with a reserved bit or type"),
        (reserved(0x8b), 1002, "a frame with a reserved bit or type"),
        (masked(PING, &long, true), 1002, "a control frame in pieces or of more than 125 bytes"),
        (masked(PING, b"x", false), 1002, "a control frame in pieces or of more than 125 bytes"),
        (masked(CLOSE, b"x", true), 1002, "a close frame with a malformed status"),
        (
            masked(CLOSE, &1005u16.to_be_bytes(), true),
            1002,
            "a close frame with a malformed status",
        ),
        (masked(CLOSE, &999u16.to_be_bytes(), true), 1002, "a close frame with a malformed status"),
        (masked(MORE, b"x", true), 1002, "the continuation of no message"),
        (
            [masked(BINARY, b"x", false), masked(BINARY, b"y", true)].concat(),
            1002,
            "a message within another one",
        ),
        (masked(TEXT, b"x", true), 1003, "a text message"),
        (endless.concat(), 1009, "a message of more than 1048576 bytes"),
        (huge, 1009, "a message of more than 1048576 bytes"),
    ];
    for (bytes, code, reason) in cases {
        let mut server = server();
        let good = masked(BINARY, b"before", true);
        let (result, plain, answer) = feed(&mut server, &[good, bytes].concat());
        assert!(result.unwrap_err().to_string().ends_with(reason), "{reason}");
        assert!(plain.starts_with(b"before"), "what came before is good");
        assert_eq!(farewell(&answer), (code, reason.to_owned()));
        assert!(send(&mut server, b"more").is_err());
        let mut outgoing = Outgoing::default();
        server.close(&mut outgoing);
        assert!(outgoing.is_empty(), "one farewell is enough");
    }
}

#[test]
fn case_22_a_text_message_is_refused_before_it_is_whole() {
    let (result, plain, answer) = feed(&mut server(), &masked(TEXT, &[b'x'; 1000], true)[..8]);
    assert!(matches!(result, Err(TransportError::WebSocket(WebSocketFault::Text))));
    assert_eq!((plain.len(), farewell(&answer).0), (0, 1003));
}

#[test]
fn a_close_frame_gets_its_code_back_and_is_the_end() {
    let behind = masked(BINARY, b"too late", true);
    for (payload, answer) in [
        (&b""[..], &b""[..]),
        (b"\x03\xe8", b"\x03\xe8"),
        (b"\x03\xe9going away", b"\x03\xe9"),
        (b"\x0f\xa0application's own", b"\x0f\xa0"),
    ] {
        let mut server = server();
        let bytes = [masked(BINARY, b"good", true), masked(CLOSE, payload, true), behind.clone()];
        let (result, plain, answered) = feed(&mut server, &bytes.concat());
        assert_eq!((result.unwrap(), &plain[..]), (Phase::Ended, &b"good"[..]));
        assert_eq!(frames(&answered), [(CLOSE, answer.to_vec())]);
        assert!(send(&mut server, b"more").is_err(), "nothing follows a Close frame");
        let mut outgoing = Outgoing::default();
        server.close(&mut outgoing);
        assert!(outgoing.is_empty());
    }
}

#[test]
fn the_server_closes_with_1000() {
    let mut server = server();
    let mut outgoing = Outgoing::default();
    server.close(&mut outgoing);
    assert_eq!(farewell(outgoing.unsent()), (1000, String::new()));
}

#[test]
fn bytes_behind_the_request_are_the_first_frames() {
    let bytes = [masked(BINARY, b"early", true), masked(BINARY, b" bird", true)].concat();
    for cut in 0..=bytes.len() {
        let mut server = Transport::plain();
        server.begin_websocket(bytes[..cut].to_vec());
        let first = feed(&mut server, &[]).1;
        let second = feed(&mut server, &bytes[cut..]).1;
        assert_eq!([first, second].concat(), b"early bird", "cut at {cut}");
    }
}

#[test]
fn messages_to_the_client_fill_two_tls_records_at_the_most() {
    let mut server = server();
    for length in [1, 125, 126, MAX_MESSAGE_SENT, MAX_MESSAGE_SENT + 1, 200_000] {
        let plain: Vec<u8> = (0..length).map(|number| number as u8).collect();
        let bytes = send(&mut server, &plain).unwrap();
        let messages = frames(&bytes);
        assert_eq!(messages.len(), length.div_ceil(MAX_MESSAGE_SENT));
        assert!(messages.iter().all(|(opcode, payload)| *opcode == BINARY
            && payload.len() + MESSAGE_HEADER <= 2 * RECORD_PAYLOAD));
        let payloads: Vec<u8> = messages.into_iter().flat_map(|(_, payload)| payload).collect();
        assert_eq!(payloads, plain);
    }
    assert!(send(&mut server, &[]).unwrap().is_empty());
}

/// Between the client of tungstenite and the server: bytes in memory, some of which it writes.
#[derive(Default)]
struct Pipe {
    to_client: VecDeque<u8>,
    to_server: Vec<u8>,
}

impl io::Read for Pipe {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.to_client.is_empty() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        self.to_client.read(buffer)
    }
}

impl io::Write for Pipe {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.to_server.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Lets everything that the client has written reach the server; the DERP bytes in it.
fn exchange(client: &mut Peer<Pipe>, server: &mut Transport) -> Vec<u8> {
    let written = std::mem::take(&mut client.get_mut().to_server);
    let (result, plain, answer) = feed(server, &written);
    result.unwrap();
    client.get_mut().to_client.extend(answer);
    plain
}

#[test]
fn a_client_of_another_make_talks_with_the_server() {
    let mut client = Peer::from_raw_socket(Pipe::default(), Role::Client, None);
    let mut server = server();
    for length in [0, 1, 125, 126, 65_535, 65_536, 300_000] {
        let data: Vec<u8> = (0..length).map(|number| number as u8).collect();
        client.send(Message::binary(data.clone())).unwrap();
        assert_eq!(exchange(&mut client, &mut server), data);
        let answer = send(&mut server, &data).unwrap();
        client.get_mut().to_client.extend(answer);
        let mut received = Vec::new();
        while let Ok(message) = client.read() {
            received.extend(message.into_data());
        }
        assert_eq!(received, data);
    }
    client.send(Message::Ping("are you there?".into())).unwrap();
    assert!(exchange(&mut client, &mut server).is_empty());
    assert_eq!(client.read().unwrap(), Message::Pong("are you there?".into()));
    client.close(None).unwrap();
    exchange(&mut client, &mut server);
    assert_eq!(client.read().unwrap(), Message::Close(None));
    assert!(!client.can_read() && !client.can_write(), "both have said that this is the end");
}

/// A frame that a client may send, and whether its message ends with it.
#[derive(Clone, Debug)]
enum Piece {
    Data(Vec<u8>, bool),
    Ping(Vec<u8>),
    Pong(Vec<u8>),
}

fn piece() -> impl Strategy<Value = Piece> {
    let bytes = |most| proptest::collection::vec(any::<u8>(), 0..most);
    prop_oneof![
        4 => (bytes(200), any::<bool>()).prop_map(|(data, ends)| Piece::Data(data, ends)),
        1 => bytes(126).prop_map(Piece::Ping),
        1 => bytes(126).prop_map(Piece::Pong),
    ]
}

proptest! {
    /// However messages are cut into frames, frames into reads, and whatever stands between them.
    #[test]
    fn case_21_messages_are_a_stream_of_bytes(
        pieces in proptest::collection::vec(piece(), 0..20),
        masks in any::<[u8; 4]>(),
        cuts in proptest::collection::vec(any::<prop::sample::Index>(), 0..20),
    ) {
        let (mut bytes, mut data, mut pongs) = (Vec::new(), Vec::new(), Vec::new());
        let mut begun = false;
        for piece in pieces {
            let (opcode, payload, is_final) = match piece {
                Piece::Data(payload, ends) => {
                    data.extend_from_slice(&payload);
                    let opcode = if begun { MORE } else { BINARY };
                    begun = !ends;
                    (opcode, payload, ends)
                }
                Piece::Ping(payload) => {
                    pongs.push((PONG, payload.clone()));
                    (PING, payload, true)
                }
                Piece::Pong(payload) => (PONG, payload, true),
            };
            let mut frame = Frame::message(payload, BINARY, is_final);
            frame.header_mut().opcode = opcode;
            frame.header_mut().mask = Some(masks);
            frame.format(&mut bytes).unwrap();
        }
        let mut at: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
        at.extend([0, bytes.len()]);
        at.sort_unstable();
        let (mut server, mut plain, mut answers) = (server(), Vec::new(), Vec::new());
        for cut in at.windows(2) {
            let (result, received, answer) = feed(&mut server, &bytes[cut[0]..cut[1]]);
            prop_assert_eq!(result.unwrap(), Phase::Established);
            plain.extend(received);
            answers.extend(answer);
        }
        prop_assert_eq!(plain, data);
        prop_assert_eq!(frames(&answers), pongs);
    }

    /// Any bytes whatever, cut anywhere, come to the same, and little of them is kept.
    #[test]
    fn cuts_make_no_difference_to_any_bytes(
        bytes in proptest::collection::vec(prop_oneof![any::<u8>(), Just(0x82), Just(0x80)], 0..400),
        cut in any::<prop::sample::Index>(),
    ) {
        let (whole, whole_plain, whole_answer) = feed(&mut server(), &bytes);
        let mut server = server();
        let (first, second) = bytes.split_at(cut.index(bytes.len() + 1));
        let (mut result, mut plain, mut answer) = feed(&mut server, first);
        let Layer::WebSocket(layer) = &mut server.layer else { panic!("no WebSocket") };
        let kept = layer.decoder.take_incomplete();
        prop_assert!(kept.len() < 14 + 125);
        if matches!(result, Ok(Phase::Established)) {
            let (later, rest, more) = feed(&mut server, &[&kept, second].concat());
            result = later;
            plain.extend(rest);
            answer.extend(more);
        }
        prop_assert_eq!(format!("{result:?}"), format!("{whole:?}"));
        prop_assert_eq!((plain, answer), (whole_plain, whole_answer));
    }
}
