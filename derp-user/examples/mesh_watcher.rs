//! Shows who comes to a relay and who leaves it.
//!
//! Asks any DERP server, derpd or another, whose mesh key is known:
//!
//! ```sh
//! cargo run --package derp-user --example mesh_watcher -- relay.example.com /etc/derpd/mesh.key
//! cargo run --package derp-user --example mesh_watcher -- http://127.0.0.1:3340 mesh.key
//! ```

use std::{error::Error, time::Duration};

use derp_user::{
    client::{ClientError, Connector, Receiver, Trust, new_key},
    config::{MeshKeySource, load_mesh_key},
    proto::{client::read::Message, login::ClientInfo},
};

/// Pause before connecting again.
const PAUSE: Duration = Duration::from_secs(5);

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [relay, key_file] = arguments.as_slice() else {
        return Err("usage: mesh_watcher RELAY MESH_KEY_FILE".into());
    };
    let mesh_key = load_mesh_key(&MeshKeySource::File(key_file.into()))?;
    let info =
        ClientInfo { mesh_key, app_name: "mesh_watcher".to_owned(), ..ClientInfo::default() };
    let connector = Connector::new(relay.parse()?, &Trust::System)?.with_info(info);
    let key = new_key()?;
    loop {
        let client = match connector.connect(&key).await {
            Ok(client) => client,
            Err(error) => {
                eprintln!("{error}; again in {PAUSE:?}");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        println!("connected to {}", client.server_key());
        let (mut to_relay, mut from_relay) = client.split();
        to_relay.watch().await?;
        let Err(error) = watch(&mut from_relay).await;
        // A relay with another mesh key closes the connection, too.
        eprintln!("{error}; again in {PAUSE:?}");
        tokio::time::sleep(PAUSE).await;
    }
}

/// Prints what the relay says until the connection ends.
async fn watch(from_relay: &mut Receiver) -> Result<std::convert::Infallible, ClientError> {
    loop {
        match from_relay.recv().await? {
            Message::PeerPresent { key, address, traits } => {
                let address = address.map(|address| address.to_string()).unwrap_or_default();
                let traits = traits.unwrap_or_default();
                let kinds = [
                    (traits.mesh_peer, " (mesh peer)"),
                    (traits.prober, " (prober)"),
                    (traits.not_ideal, " (would rather be elsewhere)"),
                ];
                let kinds: String =
                    kinds.iter().filter(|(is, _)| *is).map(|(_, word)| *word).collect();
                println!("+ {key} {address}{kinds}");
            }
            Message::PeerGone { key, .. } => println!("- {key}"),
            Message::Packet { .. }
            | Message::KeepAlive
            | Message::Ping(_)
            | Message::Pong(_)
            | Message::Health(_)
            | Message::Restarting { .. } => {}
        }
    }
}
