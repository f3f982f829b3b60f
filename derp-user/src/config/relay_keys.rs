//! The file that holds the keys of the peer relay's node.

use std::{fs::DirBuilder, io, path::Path};

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::ConfigError;
use crate::{
    files,
    peer_relay::disco::DiscoPrivate,
    proto::keys::{KEY_LENGTH, NodePrivate},
};

/// What names the file.
const NAME: &str = "[peer_relay] key_file";

/// The keys that other nodes know the peer relay's node by.
#[derive(Clone, Debug)]
pub struct RelayKeys {
    /// Its node key.
    pub node: NodePrivate,
    /// Its disco key.
    pub disco: DiscoPrivate,
}

/// The file as it is written.
#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct KeyFile {
    #[serde(rename = "NodeKey")]
    node: Zeroizing<String>,
    #[serde(rename = "DiscoKey")]
    disco: Zeroizing<String>,
}

/// Loads the keys of the peer relay's node, or makes them and saves them, for this user only, where there are none.
///
/// # Errors
///
/// If the file cannot be read or created, or does not hold both keys. What exists is never overwritten.
pub fn load_relay_keys(path: &Path) -> Result<RelayKeys, ConfigError> {
    match files::read_bounded(path) {
        Ok(contents) => {
            let contents = Zeroizing::new(contents);
            parse(&contents).map_err(|reason| ConfigError::Malformed {
                flag: NAME,
                path: path.to_owned(),
                reason: format!("{reason} (the file is left as it is)"),
            })
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => create(path),
        Err(source) => Err(ConfigError::Read { flag: NAME, path: path.to_owned(), source }),
    }
}

fn parse(contents: &[u8]) -> Result<RelayKeys, String> {
    // The parser's own message may quote a key.
    let file: KeyFile = serde_json::from_slice(contents).map_err(|error| {
        let (line, column) = (error.line(), error.column());
        format!("not a JSON file with NodeKey and DiscoKey, see line {line} column {column}")
    })?;
    Ok(RelayKeys {
        node: file.node.parse().map_err(|error| format!("\"NodeKey\": {error}"))?,
        disco: file.disco.parse().map_err(|error| format!("\"DiscoKey\": {error}"))?,
    })
}

fn create(path: &Path) -> Result<RelayKeys, ConfigError> {
    let failed = |source| ConfigError::Create { flag: NAME, path: path.to_owned(), source };
    if let Some(directory) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        DirBuilder::new().recursive(true).create(directory).map_err(failed)?;
    }
    let keys = RelayKeys {
        node: NodePrivate::from_random(*random()?),
        disco: DiscoPrivate::from_random(*random()?),
    };
    let (node, disco) =
        (Zeroizing::new(keys.node.to_secret_text()), Zeroizing::new(keys.disco.to_secret_text()));
    let contents = Zeroizing::new(format!(
        "{{\n\t\"NodeKey\": \"{}\",\n\t\"DiscoKey\": \"{}\"\n}}\n",
        node.as_str(),
        disco.as_str()
    ));
    files::create_new(path, contents.as_bytes(), 0o600).map_err(failed)?;
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

    #[test]
    fn keys_are_made_once_for_this_user_only_and_stay() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("new/relay.keys");
        let made = load_relay_keys(&path).unwrap();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let read = load_relay_keys(&path).unwrap();
        assert_eq!(read.node.public(), made.node.public());
        assert_eq!(read.disco.public(), made.disco.public());
        assert_ne!(read.node.public().as_bytes(), read.disco.public().as_bytes());
    }

    #[test]
    fn a_file_that_holds_no_keys_is_refused_without_quoting_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("relay.keys");
        let good = format!("privkey:{}", "11".repeat(32));
        let files = [
            ("", "not a JSON file"),
            ("{}", "not a JSON file"),
            (&format!("{{\"NodeKey\":\"{good}\"}}"), "not a JSON file"),
            (&format!("{{\"NodeKey\":\"{good}\",\"DiscoKey\":\"x\"}}"), "\"DiscoKey\": a key must"),
            (&format!("{{\"NodeKey\":\"\",\"DiscoKey\":\"{good}\"}}"), "\"NodeKey\": a key must"),
        ];
        for (contents, reason) in files {
            std::fs::write(&path, contents).unwrap();
            let error = load_relay_keys(&path).unwrap_err().to_string();
            assert!(error.contains(reason) && !error.contains("1111"), "{error}");
            assert_eq!(std::fs::read_to_string(&path).unwrap(), contents);
        }
    }
}
