//! One process after another on the same listening socket, and how the first one ends.

#[path = "support/binary.rs"]
mod binary;

use std::{
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::OwnedFd,
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use derp_user::{
    client::{Client, ClientError, Connector, Target, Trust, new_key},
    proto::{client::read::Message, keys::NodePrivate, login::ClientInfo},
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::time::{sleep, timeout};

use self::binary::{Place, Relay, assert_refused, derpd};

const PATIENCE: Duration = Duration::from_secs(30);

/// Has `command` started by a shell that hands a socket over as systemd does.
fn with_socket(command: &Command, socket: OwnedFd) -> Command {
    let mut shell = Command::new("/bin/sh");
    let script = r#"LISTEN_FDS=1 LISTEN_PID=$$ exec "$0" "$@" 3<&0 </dev/null"#;
    shell.arg("-c").arg(script).arg(command.get_program()).args(command.get_args());
    shell.env_clear().stdin(Stdio::from(socket));
    shell.stdout(Stdio::piped()).stderr(Stdio::piped());
    shell
}

/// A relay on plain HTTP that is handed `listener`.
fn start_on(listener: &TcpListener, place: &Place, flags: &[&str]) -> Relay {
    let address = listener.local_addr().expect("bound").to_string();
    let flags: Vec<&str> = ["-a", &address].iter().chain(flags).copied().collect();
    let socket = listener.try_clone().expect("a descriptor");
    Relay::start(&mut with_socket(&derpd(&place.arguments(&flags)), socket.into()))
}

fn connector(address: SocketAddr) -> Connector {
    let target: Target = format!("http://{address}").parse().expect("a target");
    Connector::new(target, &Trust::System).expect("a connector")
}

async fn connect(address: SocketAddr) -> Result<(NodePrivate, Client), ClientError> {
    let key = new_key()?;
    let client = connector(address).connect(&key).await?;
    Ok((key, client))
}

fn signal(relay: &Relay, signal: Signal) {
    kill(Pid::from_raw(i32::try_from(relay.child.id()).expect("a pid")), signal).expect("it runs");
}

async fn exited(mut relay: Relay) -> Option<i32> {
    tokio::task::spawn_blocking(move || binary::wait(&mut relay.child).code())
        .await
        .expect("waited")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_is_refused_while_one_process_follows_another() {
    const CLIENTS: usize = 50;
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let place = Place::new();
    let first = start_on(&listener, &place, &[]);
    assert!(first.has_line("which was open already"), "{:?}", first.lines);

    let again = Arc::new(AtomicUsize::new(0));
    let mut clients = Vec::new();
    for _ in 0..CLIENTS {
        let (key, client) = connect(address).await.unwrap();
        let again = Arc::clone(&again);
        clients.push(tokio::spawn(async move {
            let (_sender, mut receiver) = client.split();
            while receiver.recv().await.is_ok() {}
            // One attempt. It waits in the socket's queue for the next process.
            let client = connector(address).connect(&key).await.expect("not refused");
            again.fetch_add(1, Ordering::Relaxed);
            client
        }));
    }
    let is_over = Arc::new(AtomicBool::new(false));
    let newcomers = {
        let is_over = Arc::clone(&is_over);
        std::thread::spawn(move || {
            let mut count = 0;
            while !is_over.load(Ordering::Relaxed) {
                TcpStream::connect(address).expect("not refused");
                count += 1;
                std::thread::sleep(Duration::from_millis(1));
            }
            count
        })
    };
    signal(&first, Signal::SIGTERM);
    assert_eq!(exited(first).await, Some(0));
    let second = start_on(&listener, &place, &[]);
    for client in clients {
        timeout(PATIENCE, client).await.expect("in time").expect("connected again");
    }
    is_over.store(true, Ordering::Relaxed);
    assert!(newcomers.join().unwrap() > 0);
    assert_eq!(again.load(Ordering::Relaxed), CLIENTS);
    assert!(second.stop(Signal::SIGTERM).success());
}

#[tokio::test]
async fn a_draining_relay_serves_those_that_are_there_and_ends_with_the_last() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let place = Place::new();
    let relay = start_on(&listener, &place, &["-drain-timeout=1h"]);
    drop(listener);
    let (_, alice) = connect(address).await.unwrap();
    let (bob, to_bob) = connect(address).await.unwrap();

    signal(&relay, Signal::SIGTERM);
    let closed = async {
        while TcpStream::connect(address).is_ok() {
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(PATIENCE, closed).await.expect("the listener is closed");
    let (mut alice, alice_receives) = alice.split();
    let (bob_sends, mut bob_receives) = to_bob.split();
    alice.send(&bob.public(), b"still here").await.unwrap();
    let relayed = async {
        loop {
            if let Message::Packet { packet, .. } = bob_receives.recv().await.unwrap() {
                return packet.to_vec();
            }
        }
    };
    assert_eq!(timeout(PATIENCE, relayed).await.expect("in time"), b"still here");
    drop((alice, alice_receives, bob_sends, bob_receives));
    assert_eq!(timeout(PATIENCE, exited(relay)).await.expect("in time"), Some(0));
}

/// The frames of a connection up to its end, but for packets.
async fn others_until_the_end(client: Client) -> Vec<String> {
    let (_sender, mut receiver) = client.split();
    let mut others = Vec::new();
    while let Ok(message) = timeout(PATIENCE, receiver.recv()).await.expect("in time") {
        if !matches!(message, Message::Packet { .. }) {
            others.push(format!("{message:?}"));
        }
    }
    others
}

#[tokio::test]
async fn mesh_peers_are_told_of_a_restart_and_clients_are_not() {
    for signals in [&[Signal::SIGTERM, Signal::SIGTERM][..], &[Signal::SIGINT]] {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let place = Place::new();
        let key = "5a".repeat(32);
        std::fs::write(place.path("mesh.key"), &key).unwrap();
        let mesh_key = format!("-mesh-psk-file={}", place.path("mesh.key"));
        let relay = start_on(&listener, &place, &["-drain-timeout=1h", &mesh_key]);
        let (_, client) = connect(address).await.unwrap();
        let info = ClientInfo { mesh_key: Some(key.parse().unwrap()), ..ClientInfo::default() };
        let peer = connector(address).with_info(info).connect(&new_key().unwrap()).await.unwrap();
        let (mut watch, mut heard) = peer.split();
        watch.watch().await.unwrap();
        // Of the client, itself, and whoever else.
        while !matches!(heard.recv().await.unwrap(), Message::PeerPresent { .. }) {}

        let client = tokio::spawn(others_until_the_end(client));
        signal(&relay, signals[0]);
        let told = async {
            loop {
                let message = heard.recv().await.expect("it is told before the end");
                if let Message::Restarting { reconnect_in, try_for } = message {
                    return (reconnect_in, try_for);
                }
            }
        };
        let told = timeout(PATIENCE, told).await.expect("in time");
        assert_eq!(told, (Duration::ZERO, Duration::from_secs(10)));
        if let Some(second) = signals.get(1) {
            signal(&relay, *second);
        }
        assert_eq!(timeout(PATIENCE, exited(relay)).await.expect("in time"), Some(0));
        assert_eq!(client.await.unwrap(), Vec::<String>::new());
    }
}

#[tokio::test]
async fn a_second_signal_ends_a_draining_relay_and_so_does_the_time() {
    for (flag, second) in
        [("-drain-timeout=1h", Some(Signal::SIGINT)), ("-drain-timeout=300ms", None)]
    {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let place = Place::new();
        let relay = start_on(&listener, &place, &[flag]);
        let (_, client) = connect(address).await.unwrap();
        signal(&relay, Signal::SIGTERM);
        if let Some(second) = second {
            sleep(Duration::from_millis(200)).await;
            signal(&relay, second);
        }
        assert_eq!(timeout(PATIENCE, exited(relay)).await.expect("in time"), Some(0), "{flag}");
        drop(client);
    }
}

#[test]
fn sockets_for_nothing_are_refused_by_name() {
    let place = Place::new();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let command = derpd(&place.arguments(&[]));
    let complaint = format!(
        "a socket that listens on {address} was handed over (LISTEN_FDS), but neither -a nor -http-port says so"
    );
    assert_refused(&mut with_socket(&command, listener.into()), 1, &[&complaint]);

    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let complaint = "socket 0 of LISTEN_FDS is no TCP listener";
    assert_refused(&mut with_socket(&command, socket.into()), 1, &[complaint]);
}
