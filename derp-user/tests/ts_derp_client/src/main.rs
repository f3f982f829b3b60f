//! The Rust client crate of Tailscale as an echo: prints its key, sends every packet back to its
//! source, and ends on the packet `stop` or with the error that ended its connection.

use std::{env, error::Error, net::Ipv4Addr};

use ts_derp::{DefaultClient, IpUsage, ServerConnInfo, TlsValidationConfig, frame};
use ts_keys::NodeKeyPair;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = env::args().skip(1);
    let address: Ipv4Addr = arguments.next().ok_or("missing address")?.parse()?;
    let port: u16 = arguments.next().ok_or("missing port")?.parse()?;
    let server = ServerConnInfo {
        hostname: address.to_string(),
        ipv4: IpUsage::FixedAddr(address),
        ipv6: IpUsage::Disable,
        tls_validation_config: TlsValidationConfig::InsecureForTests,
        https_port: port,
        stun_port: None,
        stun_only: false,
        supports_port_80: false,
    };
    let keys = NodeKeyPair::random();
    let client = DefaultClient::connect([&server], &keys).await?;
    client.send_frame(&frame::NotePreferred { is_home: 1 }).await?;
    println!("{}", keys.public);
    loop {
        let (source, packet) = client.recv_one().await?;
        if packet.as_ref() == b"stop" {
            return Ok(());
        }
        client.send_one(source, packet.as_ref()).await?;
    }
}
