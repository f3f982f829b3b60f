//! The file that holds the keys of the peer relay's node.

use std::{fs::DirBuilder, io, path::Path};

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::ConfigError;
use crate::{
    files,
    peer_relay::disco::DiscoPrivate,
    proto::keys::{KEY_LENGTH, KeyError, NodePrivate},
    tailnet::MachinePrivate,
};

/// What names the file.
const NAME: &str = "[peer_relay] key_file";

/// The keys that other nodes and a control server know the peer relay's node by.
#[derive(Clone, Debug)]
pub struct RelayKeys {
    /// Its node key.
    pub node: NodePrivate,
    /// Its disco key.
    pub disco: DiscoPrivate,
    /// Its machine key, if it has ever been told to join a tailnet.
    pub machine: Option<MachinePrivate>,
    /// The node key that is to take the place of an expired one.
    pub next_node: Option<NodePrivate>,
    /// The control server that has registered the node key.
    pub registered_with: Option<String>,
}

/// The file as it is written.
#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "PascalCase")]
struct KeyFile {
    node_key: Zeroizing<String>,
    disco_key: Zeroizing<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    machine_key: Option<Zeroizing<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_node_key: Option<Zeroizing<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    registered_with: Option<String>,
}

/// Loads the keys of the peer relay's node, or makes them and saves them, for this user only, where there are none.
/// A machine key is made only if one is wanted.
///
/// # Errors
///
/// If the file cannot be read or created, or does not hold the keys. What it has is never overwritten by this.
pub fn load_relay_keys(path: &Path, wants_machine: bool) -> Result<RelayKeys, ConfigError> {
    let mut keys = match files::read_bounded(path) {
        Ok(contents) => {
            let contents = Zeroizing::new(contents);
            parse(&contents).map_err(|reason| ConfigError::Malformed {
                flag: NAME,
                path: path.to_owned(),
                reason: format!("{reason} (the file is left as it is)"),
            })?
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return create(path, wants_machine);
        }
        Err(source) => return Err(ConfigError::Read { flag: NAME, path: path.to_owned(), source }),
    };
    if wants_machine && keys.machine.is_none() {
        keys.machine = Some(MachinePrivate::from_random(*random()?));
        save_relay_keys(path, &keys)?;
    }
    Ok(keys)
}

/// Replaces the file with one that has these keys, for this user only: all of it or nothing.
///
/// # Errors
///
/// If it cannot be written. The old file is still there then.
pub fn save_relay_keys(path: &Path, keys: &RelayKeys) -> Result<(), ConfigError> {
    let replaced = files::replace(path, &render(keys), 0o600);
    replaced.map_err(|source| ConfigError::Create { flag: NAME, path: path.to_owned(), source })
}

fn parse(contents: &[u8]) -> Result<RelayKeys, String> {
    // The parser's own message may quote a key.
    let file: KeyFile = serde_json::from_slice(contents).map_err(|error| {
        let (line, column) = (error.line(), error.column());
        format!("not a JSON file with NodeKey and DiscoKey, see line {line} column {column}")
    })?;
    let fault = |name: &'static str| move |error: KeyError| format!("\"{name}\": {error}");
    let optional = |text: Option<Zeroizing<String>>| text.map(|text| text.parse()).transpose();
    let machine = file.machine_key.map(|text| text.parse()).transpose();
    Ok(RelayKeys {
        node: file.node_key.parse().map_err(fault("NodeKey"))?,
        disco: file.disco_key.parse().map_err(fault("DiscoKey"))?,
        machine: machine.map_err(fault("MachineKey"))?,
        next_node: optional(file.next_node_key).map_err(fault("NextNodeKey"))?,
        registered_with: file.registered_with,
    })
}

fn render(keys: &RelayKeys) -> Zeroizing<Vec<u8>> {
    let file = KeyFile {
        node_key: Zeroizing::new(keys.node.to_secret_text()),
        disco_key: Zeroizing::new(keys.disco.to_secret_text()),
        machine_key: keys.machine.as_ref().map(|key| Zeroizing::new(key.to_secret_text())),
        next_node_key: keys.next_node.as_ref().map(|key| Zeroizing::new(key.to_secret_text())),
        registered_with: keys.registered_with.clone(),
    };
    let text = serde_json::to_vec_pretty(&file);
    let mut text = Zeroizing::new(text.expect("texts can be written as JSON"));
    text.push(b'\n');
    text
}

fn create(path: &Path, wants_machine: bool) -> Result<RelayKeys, ConfigError> {
    let failed = |source| ConfigError::Create { flag: NAME, path: path.to_owned(), source };
    if let Some(directory) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        DirBuilder::new().recursive(true).create(directory).map_err(failed)?;
    }
    let machine = wants_machine.then(random).transpose()?;
    let keys = RelayKeys {
        node: NodePrivate::from_random(*random()?),
        disco: DiscoPrivate::from_random(*random()?),
        machine: machine.map(|bytes| MachinePrivate::from_random(*bytes)),
        next_node: None,
        registered_with: None,
    };
    files::create_new(path, &render(&keys), 0o600).map_err(failed)?;
    Ok(keys)
}

fn random() -> Result<Zeroizing<[u8; KEY_LENGTH]>, ConfigError> {
    let mut bytes = Zeroizing::new([0; KEY_LENGTH]);
    getrandom::fill(bytes.as_mut_slice()).map_err(ConfigError::Random)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn mode(path: &Path) -> u32 {
        std::fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn keys_are_made_once_for_this_user_only_and_stay() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("new/relay.keys");
        let made = load_relay_keys(&path, false).unwrap();
        assert_eq!(mode(&path), 0o600);
        let read = load_relay_keys(&path, false).unwrap();
        assert_eq!(read.node.public(), made.node.public());
        assert_eq!(read.disco.public(), made.disco.public());
        assert_ne!(read.node.public().as_bytes(), read.disco.public().as_bytes());
        assert!(read.machine.is_none());
    }

    #[test]
    fn a_machine_key_joins_the_others_and_what_changes_is_kept() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("relay.keys");
        let made = load_relay_keys(&path, false).unwrap();
        let mut keys = load_relay_keys(&path, true).unwrap();
        assert_eq!(keys.node.public(), made.node.public());
        let machine = keys.machine.clone().unwrap().public();
        keys.next_node = Some(NodePrivate::from_random([5; 32]));
        keys.registered_with = Some("https://control.example \"&<>\u{e9}".to_owned());
        save_relay_keys(&path, &keys).unwrap();
        assert_eq!(mode(&path), 0o600);
        let read = load_relay_keys(&path, true).unwrap();
        assert_eq!(read.machine.unwrap().public(), machine);
        assert_eq!(read.next_node.unwrap().public(), keys.next_node.unwrap().public());
        assert_eq!(read.registered_with, keys.registered_with);
        assert_eq!(read.disco.public(), made.disco.public());
        let whole = load_relay_keys(&directory.path().join("other"), true).unwrap();
        assert!(whole.machine.is_some());
    }

    #[test]
    fn a_file_that_holds_no_keys_is_refused_without_quoting_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("relay.keys");
        let good = format!("privkey:{}", "11".repeat(32));
        let both = format!("\"NodeKey\":\"{good}\",\"DiscoKey\":\"{good}\"");
        let files = [
            ("", "not a JSON file"),
            ("{}", "not a JSON file"),
            (&format!("{{\"NodeKey\":\"{good}\"}}"), "not a JSON file"),
            (&format!("{{{both},\"Other\":\"\"}}"), "not a JSON file"),
            (&format!("{{\"NodeKey\":\"{good}\",\"DiscoKey\":\"x\"}}"), "\"DiscoKey\": a key must"),
            (&format!("{{\"NodeKey\":\"\",\"DiscoKey\":\"{good}\"}}"), "\"NodeKey\": a key must"),
            (&format!("{{{both},\"MachineKey\":\"x\"}}"), "\"MachineKey\": a key must"),
            (&format!("{{{both},\"NextNodeKey\":\"x\"}}"), "\"NextNodeKey\": a key must"),
        ];
        for (contents, reason) in files {
            std::fs::write(&path, contents).unwrap();
            let error = load_relay_keys(&path, true).unwrap_err().to_string();
            assert!(error.contains(reason) && !error.contains("1111"), "{error}");
            assert_eq!(std::fs::read_to_string(&path).unwrap(), contents);
        }
    }
}
