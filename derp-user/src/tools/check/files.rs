//! The files that the configuration names: keys, lists, limits, authorities.

use std::{
    fs, io,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use nix::unistd::{AccessFlags, access, geteuid};

use super::Report;
use crate::{
    admit::Admission,
    client::{Connector, Target, Trust},
    config::{self, Config, FileSettings, KeySource, MeshKeySource, PeerRelaySettings},
    http::DebugAccess,
    tailnet::read_auth_key,
};

/// Looks at everything that is read at a start, and makes nothing.
pub(super) fn check(
    report: &mut Report,
    config: &Config,
    file: &FileSettings,
    runtime: &tokio::runtime::Runtime,
) {
    identity(report, config);
    mesh(report, config);
    debug_pages(report, config);
    admission(report, config, runtime);
    if let Some(path) = &config.rate_config {
        match config::load_rate_limit(path) {
            Ok(_) => report.ok("limits", format!("{} is in order", path.display())),
            Err(error) => report.problem("limits", error.to_string(), None),
        }
    }
    if let Some(acme) = config.tls.as_ref().and_then(|tls| tls.acme.as_ref()) {
        authorities(report, "acme", "-acme-ca-file", &acme.trust);
    }
    if let Some(peer_relay) = &file.peer_relay {
        relay_node(report, peer_relay);
    }
    if let Some(path) = file.wireguard.as_ref().and_then(|it| it.state_file.as_ref()) {
        if path.exists() {
            private(report, "wireguard", path);
        } else {
            creatable(report, "wireguard", path, "peers shake hands when it starts");
        }
    }
}

fn identity(report: &mut Report, config: &Config) {
    match &config.key {
        KeySource::Ephemeral => report.note("key", "a new key at each start (-dev)".to_owned()),
        KeySource::File { path, .. } if !exists(path) => {
            creatable(report, "key", path, "derpd makes a new key");
        }
        KeySource::File { path, .. } => match config::load_identity(&config.key) {
            Ok(key) => {
                report.ok("key", format!("{} holds {}", path.display(), key.public()));
                private(report, "key", path);
            }
            Err(error) => report.problem("key", error.to_string(), None),
        },
    }
}

fn mesh(report: &mut Report, config: &Config) {
    let key = config::load_mesh_key(&config.mesh_key)
        .and_then(|key| config.check_mesh_key(key.as_ref()).map(|()| key));
    match key {
        Ok(None) => report.ok("mesh", "no mesh key: this server is alone".to_owned()),
        Ok(Some(_)) => match &config.mesh {
            None => report.ok("mesh", "a key, and no other servers to connect to".to_owned()),
            Some(mesh) => {
                let names: Vec<_> = mesh.peers.iter().map(|peer| peer.name.as_str()).collect();
                report.ok("mesh", format!("a key, and links to {}", names.join(", ")));
            }
        },
        Err(error) => report.problem("mesh", error.to_string(), None),
    }
    if let MeshKeySource::File(path) = &config.mesh_key {
        private(report, "mesh", path);
    }
    if let Some(mesh) = &config.mesh {
        authorities(report, "mesh", "-mesh-ca-file", &mesh.trust);
    }
}

fn debug_pages(report: &mut Report, config: &Config) {
    let settings = &config.debug_access;
    let key = match config::load_debug_key(settings.key_path.as_ref()) {
        Ok(key) => key,
        Err(error) => return report.problem("debug", error.to_string(), None),
    };
    let (address, networks) = (settings.address.as_deref(), settings.networks.as_deref());
    let key = key.as_ref().map(|key| key.as_str());
    if let Err(error) = DebugAccess::new(address, networks, key, config.dev) {
        report.problem("debug", error.to_string(), None);
    }
    settings.key_path.iter().for_each(|path| private(report, "debug", path));
}

fn admission(report: &mut Report, config: &Config, runtime: &tokio::runtime::Runtime) {
    let _entered = runtime.enter();
    match Admission::new(config.admission.clone(), runtime.handle().clone()) {
        Ok(admission) if admission.is_open() && config.derp_enabled => report.note(
            "admission",
            "anybody who can reach this relay may use it; -allow-keys, -allow-from-api, -verify-clients and \
             -verify-client-url change that"
                .to_owned(),
        ),
        Ok(admission) => report.ok("admission", admission.to_string()),
        Err(error) => report.problem("admission", error.to_string(), None),
    }
    config.admission.api.iter().for_each(|api| private(report, "admission", &api.token_file));
    if let Some(socket) = &config.admission.tailscaled
        && !exists(socket)
    {
        report.problem(
            "admission",
            format!("-verify-clients: there is no {}", socket.display()),
            Some("start tailscaled, or name its socket with -socket"),
        );
    }
}

fn relay_node(report: &mut Report, settings: &PeerRelaySettings) {
    let path = &settings.key_file;
    let mut registered = None;
    if exists(path) {
        match config::load_relay_keys(path, false) {
            Ok(keys) => {
                report.ok("peer relay", format!("{} holds {}", path.display(), keys.node.public()));
                registered = keys.registered_with;
                private(report, "peer relay", path);
            }
            Err(error) => report.problem("peer relay", error.to_string(), None),
        }
    } else {
        creatable(report, "peer relay", path, "derpd makes new keys");
    }
    authorities(report, "peer relay", "[peer_relay] derp_ca_file", &settings.derp_trust);
    let Some(control) = &settings.control else { return };
    // Whoever has not joined yet cannot do without.
    if registered.as_deref() != Some(control.url.to_string().as_str())
        && let Err(error) = read_auth_key(&control.auth_key_file)
    {
        report.problem("peer relay", error.to_string(), None);
    }
    if exists(&control.auth_key_file) {
        private(report, "peer relay", &control.auth_key_file);
    }
    if let Some(path) = &control.ca_file {
        let trust = Trust::Roots(path.clone());
        authorities(report, "peer relay", "[peer_relay] ca_file", &trust);
    }
}

/// Checks that a file of authorities can be used.
fn authorities(report: &mut Report, area: &'static str, named: &str, trust: &Trust) {
    let Trust::Roots(path) = trust else { return };
    let target = Target { tls: true, host: "localhost".to_owned(), port: 443 };
    match Connector::new(target, trust) {
        Ok(_) => report.ok(area, format!("{} holds authorities", path.display())),
        Err(error) => report.problem(area, format!("{named}: {error}"), None),
    }
}

/// Checks that a file with a secret is nobody else's to read.
pub(super) fn private(report: &mut Report, area: &'static str, path: &Path) {
    let Ok(metadata) = fs::metadata(path) else { return };
    let (mode, text) = (metadata.permissions().mode() & 0o777, path.display());
    let (owner, us) = (metadata.uid(), geteuid());
    if mode & 0o007 != 0 {
        let text = format!("{text} has mode {mode:04o}: everybody on this machine may use it");
        report.problem(area, text, Some("`chmod o=` takes that away"));
    } else if mode & 0o070 != 0 {
        report.note(area, format!("{text} has mode {mode:04o}: its group may use it"));
    }
    if !us.is_root() && owner != 0 && owner != us.as_raw() {
        let text = format!("{text} belongs to user {owner}, who may read and replace it");
        report.problem(area, text, Some("`chown` it to the user that derpd runs as"));
    }
}

/// Checks that a file that does not exist can be made.
fn creatable(report: &mut Report, area: &'static str, path: &Path, meanwhile: &str) {
    let existing = path.ancestors().skip(1).map(here).find(|directory| exists(directory));
    let directory = existing.unwrap_or_else(|| PathBuf::from("/"));
    let text = path.display();
    match access(&directory, AccessFlags::W_OK | AccessFlags::X_OK) {
        Ok(()) => report.note(area, format!("{text} does not exist yet: {meanwhile}")),
        Err(errno) => {
            let reason = errno.desc().to_lowercase();
            let text = format!("{text} cannot be made in {}: {reason}", directory.display());
            report.problem(area, text, Some("ask as the user that derpd runs as, or name another"));
        }
    }
}

/// The directory of a file that is named without one.
pub(super) fn here(directory: &Path) -> PathBuf {
    if directory.as_os_str().is_empty() { PathBuf::from(".") } else { directory.to_owned() }
}

/// Whether there is a file, even one that may not be looked at.
fn exists(path: &Path) -> bool {
    !matches!(fs::metadata(path), Err(error) if error.kind() == io::ErrorKind::NotFound)
}
