//! Returns every packet to whoever sent it.
//!
//! Stays connected to one relay, or to a region of a DERP map, and prints the key to which packets can be
//! sent. A proxy in the environment (`HTTPS_PROXY`) is used.
//!
//! ```sh
//! cargo run --package derp-user --example echo -- relay.example.com
//! cargo run --package derp-user --example echo -- 192.0.2.1:8443 sha256-raw:0123...
//! cargo run --package derp-user --example echo -- derpmap.json fra
//! ```

use std::{error::Error, fs};

use derp_user::{
    client::{
        Connector, Dialer, Event, Proxies, RegionConnector, Trust, map::DerpMap, new_key, standing,
    },
    proto::{client::read::Message, login::ClientInfo},
};

const USAGE: &str = "usage: echo RELAY [PIN], or echo DERP_MAP REGION";

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let key = new_key()?;
    println!("send to {}", key.public());
    let (to_relay, mut from_relay) = standing(dialer(&arguments)?, key);
    to_relay.note_preferred(true).await;
    loop {
        match from_relay.next().await {
            Event::Connected { host, server_key, .. } => {
                println!("connected to {host}, {server_key}");
            }
            Event::Disconnected { error, pause } => eprintln!("{error}; again in {pause:?}"),
            Event::Message(Message::Packet { source, packet }) => {
                println!("{} bytes from {source}", packet.len());
                to_relay.send(&source, packet).await?;
            }
            Event::Message(
                Message::PeerPresent { .. }
                | Message::PeerGone { .. }
                | Message::KeepAlive
                | Message::Ping(_)
                | Message::Pong(_)
                | Message::Health(_)
                | Message::Restarting { .. },
            ) => {}
        }
    }
}

fn dialer(arguments: &[&str]) -> Result<Dialer, Box<dyn Error>> {
    let info = || ClientInfo { app_name: "echo".to_owned(), ..ClientInfo::default() };
    let proxies = Proxies::from_environment();
    let trust = match arguments {
        [_] => Trust::System,
        [_, pin] if pin.starts_with("sha256-raw:") => Trust::Pinned(pin.parse()?),
        [map, region] => {
            let map: DerpMap = fs::read_to_string(map)?.parse()?;
            let region = map.region(region).ok_or("the map has no such region")?;
            let connector = RegionConnector::new(region, &Trust::System)?.with_info(info);
            return Ok(connector.with_proxies(&proxies)?.into());
        }
        _ => return Err(USAGE.into()),
    };
    let relay = arguments.first().ok_or(USAGE)?.parse()?;
    let connector = Connector::new(relay, &trust)?.with_info(info()).with_proxies(&proxies)?;
    Ok(connector.into())
}
