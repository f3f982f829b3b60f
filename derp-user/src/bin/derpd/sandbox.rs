//! What derpd goes on needing once it serves, and giving up the rest.

use derp_user::{
    acme,
    client::Trust,
    config::{Config, FileSettings, MeshKeySource},
    privilege::{self, Capability, Files, Needs, Sandbox},
};

use crate::udp::Udp;

/// Gives up what is not needed any more, and says once what could not be given up. Without `-sandbox` that is
/// everything but capabilities.
pub(crate) fn enter(config: &Config, file: &FileSettings, udp: &Udp) -> Option<Sandbox> {
    let kernel_maps = udp.xdp.is_some();
    let has_neighbours = kernel_maps && udp.keeper().is_some();
    let capabilities = privilege::needed_later(kernel_maps, has_neighbours);
    if !config.sandbox {
        tracing::warn!("-sandbox=false: files and system calls are not restricted");
        match privilege::reduce(&capabilities) {
            Ok(kept) => log_kept(&kept),
            Err(error) => tracing::warn!("cannot give up capabilities: {error}"),
        }
        return None;
    }
    let needs = Needs { capabilities, files: files(config, file), kernel_maps };
    let sandbox = privilege::enter(&needs);
    log_kept(&sandbox.kept);
    for path in &sandbox.missing {
        let path = path.display();
        tracing::warn!(
            "sandbox: {path} does not exist: nothing in it can be used before a restart"
        );
    }
    let faults: Vec<_> =
        sandbox.faults().map(|(layer, reason)| format!("{}: {reason}", layer.as_str())).collect();
    if !faults.is_empty() {
        tracing::warn!("sandbox: not all is in force: {}", faults.join("; "));
    }
    Some(sandbox)
}

fn log_kept(kept: &[Capability]) {
    if kept.is_empty() {
        return tracing::debug!("no capabilities are kept");
    }
    let names: Vec<_> = kept.iter().map(|it| it.as_str()).collect();
    tracing::info!("capabilities that are kept: {}", names.join(", "));
}

/// The files that are read again after the start, and those that are written. The server's own key is neither.
fn files(config: &Config, file: &FileSettings) -> Files {
    let mut files = Files::default();
    let Files { read, write } = &mut files;
    read.extend(config.layers.path());
    read.extend(config.rate_config.clone());
    read.extend(config.admission.allow_keys.clone());
    read.extend(config.admission.api.as_ref().map(|api| api.token_file.clone()));
    if let MeshKeySource::File(path) = &config.mesh_key {
        read.push(path.clone());
    }
    let authorities = |trust: &Trust| match trust {
        Trust::Roots(path) => Some(path.clone()),
        Trust::System | Trust::Pinned(_) | Trust::PinnedAny(_) | Trust::Anything => None,
    };
    read.extend(config.mesh.as_ref().and_then(|mesh| authorities(&mesh.trust)));
    if let Some(tls) = &config.tls {
        let directory = tls.certificate_directory.clone();
        match &tls.acme {
            None => read.push(directory),
            Some(acme::Settings { trust, .. }) => {
                write.push(directory);
                read.extend(authorities(trust));
            }
        }
    }
    if let Some(peer_relay) = &file.peer_relay {
        read.extend(authorities(&peer_relay.derp_trust));
        if let Some(control) = &peer_relay.control {
            write.push(peer_relay.key_file.clone());
            read.push(control.auth_key_file.clone());
            read.extend(control.ca_file.clone());
        }
    }
    write.extend(file.wireguard.as_ref().and_then(|it| it.state_file.clone()));
    files
}

#[cfg(test)]
mod tests {
    use derp_user::config::{self, Invocation, Surroundings};

    use super::*;

    fn config(arguments: &[&str]) -> Config {
        let arguments = arguments.iter().map(Into::into);
        let surroundings = Surroundings { variable: &|_| None, read: &config::read_file };
        let Ok(Invocation::Run(options)) = config::parse(arguments, &surroundings) else {
            panic!("flags that can be used")
        };
        crate::around::resolve(*options).expect("a configuration")
    }

    #[test]
    fn what_is_reloaded_is_readable_and_what_is_kept_is_writable() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("derpd.toml");
        let peer = |byte: char| {
            let key = format!("{}=", String::from(byte).repeat(43));
            format!("[[wireguard.network.peer]]\nlabel = \"{byte}\"\npublic_key = \"{key}\"\n")
        };
        let peers = format!("{}{}", peer('E'), peer('I'));
        let text = format!(
            "[peer_relay]\nport = 7777\nkey_file = \"/p/keys\"\ncontrol_url = \"https://c.example\"\n\
             auth_key_file = \"/p/auth\"\nca_file = \"/p/ca.pem\"\nderp = \"d.example\"\n\
             derp_ca_file = \"/p/derp.pem\"\n[wireguard]\nport = 51820\nstate_file = \"{}/state\"\n\
             [[wireguard.network]]\nname = \"n\"\n{peers}",
            directory.path().display()
        );
        std::fs::write(&path, text).expect("a file");
        let config = config(&[
            "-c=/keys/derper.key",
            &format!("-config={}", path.display()),
            "-rate-config=/r/rate.json",
            "-allow-keys=/allowed",
            "-allow-from-api=https://c.example/api/v1/node",
            "-api-token-file=/t/token",
            "-mesh-psk-file=/m/mesh.key",
            "-mesh-with=a.example",
            "-mesh-ca-file=/m/ca.pem",
            "-hostname=derp.example.com",
            "-certdir=/certs",
            "-acme-directory=https://acme.example/directory",
            "-acme-ca-file=/a/ca.pem",
        ]);
        let file = config.file_settings().expect("a configuration file");
        let Files { read, write } = files(&config, &file);
        let expected = [
            path.to_str().expect("a text"),
            "/r/rate.json",
            "/allowed",
            "/t/token",
            "/m/mesh.key",
            "/m/ca.pem",
            "/a/ca.pem",
            "/p/derp.pem",
            "/p/auth",
            "/p/ca.pem",
        ];
        assert_eq!(read, expected.map(std::path::PathBuf::from));
        let state = directory.path().join("state");
        assert_eq!(write, ["/certs".into(), "/p/keys".into(), state]);
    }

    #[test]
    fn certificates_of_others_are_only_read() {
        let manual = config(&["-c=/k", "-certmode=manual", "-hostname=h", "-certdir=/certs"]);
        let Files { read, write } = files(&manual, &FileSettings::default());
        assert_eq!((read, write), (vec!["/certs".into()], Vec::new()));
    }
}
