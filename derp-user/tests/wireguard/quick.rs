//! What `derpd wireguard check` prints, in the hands of the real `wg-quick`.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use crate::{
    internet::Internet,
    netns::run_in,
    party::Keys,
    peer::{Identity, base64},
    programs::skip,
    relay::{Plane, Relay},
    transfer::{End, echo},
};

const WG_QUICK: &str = "/usr/bin/wg-quick";

/// A tunnel that `wg-quick` has brought up; down when dropped.
struct Tunnel {
    number: usize,
    namespace: String,
    file: PathBuf,
}

impl Tunnel {
    /// Brings one up from what a peer has in its file.
    fn up(internet: &Internet, number: usize, keys: &Keys, sections: &str) -> Self {
        // The interface has the file's name, and its socket is in one directory for all namespaces.
        let name = format!("wq{:x}n{number}.conf", std::process::id());
        let file = internet.directory().join(name);
        let text = format!(
            "[Interface]\nPrivateKey = {}\nAddress = 10.99.0.{number}/24, fd99::{number}/64\n\n{sections}",
            base64(keys.private.as_bytes())
        );
        fs::write(&file, text).expect("the file");
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).expect("chmod");
        let tunnel = Self { number, namespace: internet.sites[number - 1].host.clone(), file };
        tunnel.wg_quick("up", internet.programs.for_wg_quick()).expect("wg-quick up");
        tunnel
    }

    fn wg_quick(&self, verb: &'static str, implementation: &Path) -> Result<(), String> {
        let mut command = Command::new(WG_QUICK);
        command.arg(verb).arg(&self.file);
        command.env("WG_QUICK_USERSPACE_IMPLEMENTATION", implementation);
        let output = run_in(&self.namespace, move || command.output().expect("wg-quick"));
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        output.status.success().then_some(()).ok_or(said)
    }
}

impl End for Tunnel {
    fn number(&self) -> usize {
        self.number
    }

    fn namespace(&self) -> &str {
        &self.namespace
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        if let Err(error) = self.wg_quick("down", Path::new("")) {
            eprintln!("wg-quick down: {error}");
        }
    }
}

/// What `derpd wireguard check` prints for each peer, with the addresses filled in as it asks for.
fn sections(internet: &Internet) -> Vec<String> {
    let output = Command::new(env!("CARGO_BIN_EXE_derpd"))
        .args(["wireguard", "check", "-config"])
        .arg(internet.directory().join("derpd.toml"))
        .output()
        .expect("derpd");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).expect("text");
    let sections = text.split("# ---- ").skip(1).map(|section| {
        let (_, body) = section.split_once('\n').expect("a heading of a line");
        let peers = body.split_inclusive("CHANGE-ME/32").map(|peer| {
            let number = peer.split_once("# peer").map(|(_, rest)| &rest[..1]).unwrap_or_default();
            peer.replace("CHANGE-ME/32", &format!("10.99.0.{number}/32, fd99::{number}/128"))
        });
        peers.collect()
    });
    sections.collect()
}

#[test]
fn the_printed_sections_work_in_wg_quick() {
    const TEST: &str = "wg-quick with what derpd prints";
    if !Path::new(WG_QUICK).exists() {
        return skip(TEST, &format!("{WG_QUICK} is missing (the package wireguard-tools)"));
    }
    let Some(internet) = Internet::create(TEST, 3) else { return };
    let keys: Vec<_> = internet.sites.iter().map(|_| Keys::random()).collect();
    let identities: Vec<_> = keys
        .iter()
        .zip(1..)
        .map(|(keys, number)| Identity { number, public: keys.public })
        .collect();
    let pairs = "pairs = \"star\"\nhub = \"peer2\"";
    let _relay = Relay::start_for(&internet, &identities, pairs, Plane::Userspace, "false");
    let sections = sections(&internet);
    let tunnels: Vec<_> = (1..)
        .zip(keys.iter().zip(&sections))
        .map(|(number, (keys, sections))| Tunnel::up(&internet, number, keys, sections))
        .collect();
    let [a, hub, b] = &tunnels[..] else { panic!("three tunnels") };
    for spoke in [a, b] {
        echo(spoke, hub, false, 1420);
        echo(hub, spoke, true, 1420);
    }
}
