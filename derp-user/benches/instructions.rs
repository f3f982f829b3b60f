//! Parts of the packet path, for `cargo xtask instructions` to count under callgrind.
//!
//! `instructions CASE BYTES` does the case's work for [`PACKETS`] packets of that size. Only what runs
//! inside [`counted_section`] counts.

use std::{error::Error, hint::black_box, io::Write as _, sync::Arc, time::SystemTime};

use derp_user::{
    proto::{
        frame::{self, Found, FrameReader, FrameType},
        keys::{KEY_LENGTH, NodePublic},
    },
    server::bench_support::Tls,
    tls,
};
use rustls::{
    ClientConfig, ClientConnection, DigitallySignedStruct, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, aws_lc_rs},
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// As many rounds of [`ROUND`] packets are counted.
const ROUNDS: usize = 50;
/// Packets that a quantum handles together: as many of 1400 bytes as fit.
const ROUND: usize = 20;
/// `cargo xtask instructions` divides by this.
const PACKETS: usize = ROUNDS * ROUND;

fn main() -> Result<()> {
    // cargo adds `--bench`.
    let arguments: Vec<_> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
    let [case, bytes] = &*arguments else {
        println!("{PACKETS}");
        return Ok(());
    };
    let packet = vec![0x5a; bytes.parse::<usize>()?];
    match &**case {
        "frames" => frames(&packet),
        "records-in" => records_in(&packet),
        "records-out" => records_out(&packet),
        unknown => Err(format!("no case {unknown:?}").into()),
    }
}

/// What is done in here is counted: callgrind is told this function's name.
#[inline(never)]
fn counted_section<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    // Something must be left to do after the work, or calling it would end this function.
    black_box(work())
}

/// Finds SendPacket frames, and turns each into the frame that its destination gets.
fn frames(packet: &[u8]) -> Result<()> {
    let source = NodePublic::from_bytes([1; KEY_LENGTH]);
    let round: Vec<u8> = send_packet(packet)?.repeat(ROUND);
    for _ in 0..ROUNDS {
        let mut plain = round.clone();
        let found = counted_section(|| {
            let (mut reader, mut at, mut found) = (FrameReader::new(false), 0, 0);
            while let Found::Frame(_, range) = reader.next(&plain, at)? {
                at = range.end;
                let destination = frame::send_to_recv(&mut plain[range], &source);
                found += usize::from(black_box(destination).is_some());
            }
            Ok(found)
        })?;
        check(found, ROUND)?;
    }
    Ok(())
}

/// Opens records of one packet each, which is what clients send.
fn records_in(packet: &[u8]) -> Result<()> {
    let (mut server, mut client) = established()?;
    let frame = send_packet(packet)?;
    for _ in 0..ROUNDS {
        for _ in 0..ROUND {
            client.writer().write_all(&frame)?;
        }
        let mut records = client_bytes(&mut client)?;
        let length = counted_section(|| Ok(server.receive(&mut records)?.0.len()))?;
        check(length, ROUND * frame.len())?;
    }
    Ok(())
}

/// Seals a quantum's packets for one destination.
fn records_out(packet: &[u8]) -> Result<()> {
    let (mut server, _client) = established()?;
    let round = send_packet(packet)?.repeat(ROUND);
    for _ in 0..ROUNDS {
        let length = counted_section(|| Ok(server.send(&round)?.len()))?;
        check(usize::from(length > round.len()), 1)?;
    }
    Ok(())
}

/// Counting less work than there should be would look like progress.
fn check(found: usize, expected: usize) -> Result<()> {
    if found == expected { Ok(()) } else { Err(format!("{found} instead of {expected}").into()) }
}

fn send_packet(packet: &[u8]) -> Result<Vec<u8>> {
    let length = u32::try_from(KEY_LENGTH + packet.len())?;
    let header = frame::header(FrameType::SendPacket, length);
    Ok([&header[..], &[2; KEY_LENGTH], packet].concat())
}

/// A server and a client after the handshake.
fn established() -> Result<(Tls, ClientConnection)> {
    let directory = tempfile::tempdir()?;
    let now = SystemTime::now();
    let certificate = tls::load_or_create(directory.path(), "127.0.0.1", now)?;
    let meta = tls::meta_certificate(&NodePublic::from_bytes([1; KEY_LENGTH]), now)?;
    let mut server = Tls::accept(Arc::new(tls::server_config(certificate, meta)?))?;

    let provider = Arc::new(aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyCertificate(provider)))
        .with_no_client_auth();
    let mut client = ClientConnection::new(Arc::new(config), ServerName::try_from("127.0.0.1")?)?;
    while client.wants_write() {
        let mut bytes = client_bytes(&mut client)?;
        let (_, mut answer) = server.receive(&mut bytes)?;
        while !answer.is_empty() {
            client.read_tls(&mut answer)?;
            client.process_new_packets()?;
        }
    }
    Ok((server.establish()?, client))
}

fn client_bytes(client: &mut ClientConnection) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    while client.wants_write() {
        client.write_tls(&mut bytes)?;
    }
    Ok(bytes)
}

/// The server's certificate is of this process's own making.
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> std::result::Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
