//! The files that hold secrets: the server's key, the mesh key and the key of the debug pages.

use std::{
    fs::DirBuilder,
    io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::{ConfigError, KeySource, MeshKeySource};
use crate::{
    files,
    proto::keys::{KEY_LENGTH, MeshKey, NodePrivate},
};

/// The key file as derper writes it. Unknown fields are ignored, as derper does.
#[derive(Deserialize, Serialize)]
struct KeyFile {
    #[serde(rename = "PrivateKey")]
    private_key: Option<Zeroizing<String>>,
}

/// Loads the server's key, or makes one and saves it where there is none.
///
/// # Errors
///
/// If the file cannot be read or created, or does not hold a key. What exists is never overwritten.
pub fn load_identity(source: &KeySource) -> Result<NodePrivate, ConfigError> {
    let path = match source {
        KeySource::Ephemeral => return new_key(),
        KeySource::File { path, .. } => path,
    };
    match files::read_bounded(path) {
        Ok(contents) => {
            let contents = Zeroizing::new(contents);
            parse_key_file(&contents).map_err(|reason| ConfigError::Malformed {
                flag: "-c",
                path: path.clone(),
                reason,
            })
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => create_key_file(path),
        Err(source) => Err(ConfigError::Read { flag: "-c", path: path.clone(), source }),
    }
}

/// Reads the key out of a key file, or says in words what is wrong with it.
pub(super) fn parse_key_file(contents: &[u8]) -> Result<NodePrivate, String> {
    // The parser's own message may quote the key.
    let file: KeyFile = serde_json::from_slice(contents).map_err(|error| {
        let (line, column) = (error.line(), error.column());
        format!("not a JSON key file, see line {line} column {column} (the file is left as it is)")
    })?;
    let key = file
        .private_key
        .ok_or("the field \"PrivateKey\" is missing (the file is left as it is)")?;
    key.parse().map_err(|error| format!("\"PrivateKey\": {error} (the file is left as it is)"))
}

fn create_key_file(path: &Path) -> Result<NodePrivate, ConfigError> {
    let create = |path: &Path| {
        let path = path.to_owned();
        move |source| ConfigError::Create { flag: "-c", path, source }
    };
    if let Some(directory) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        DirBuilder::new().recursive(true).create(directory).map_err(create(directory))?;
    }
    let key = new_key()?;
    let contents = Zeroizing::new(render_key_file(&key));
    files::create_new(path, contents.as_bytes(), 0o600).map_err(create(path))?;
    Ok(key)
}

/// The text of a key file, laid out as derper does.
pub(super) fn render_key_file(key: &NodePrivate) -> String {
    let text = Zeroizing::new(key.to_secret_text());
    format!("{{\n\t\"PrivateKey\": \"{}\"\n}}", text.as_str())
}

fn new_key() -> Result<NodePrivate, ConfigError> {
    let mut bytes = Zeroizing::new([0; KEY_LENGTH]);
    getrandom::fill(bytes.as_mut_slice()).map_err(ConfigError::Random)?;
    Ok(NodePrivate::from_random(*bytes))
}

/// Loads the mesh key. An empty file, and the all-zero key, mean that there is none.
///
/// # Errors
///
/// If the file cannot be read or holds anything but 64 hexadecimal digits.
pub fn load_mesh_key(source: &MeshKeySource) -> Result<Option<MeshKey>, ConfigError> {
    let (text, fault): (_, Box<dyn Fn(String) -> ConfigError>) = match source {
        MeshKeySource::None => return Ok(None),
        MeshKeySource::Text(text) => (
            text.clone(),
            // The value is a secret and must not appear in the message.
            Box::new(|reason| ConfigError::Variable {
                name: "TAILSCALE_DERPER_MESH_KEY",
                value: "...".to_owned(),
                reason,
            }),
        ),
        MeshKeySource::File(path) => (
            read_text("-mesh-psk-file", path)?,
            Box::new(|reason| ConfigError::Malformed {
                flag: "-mesh-psk-file",
                path: path.clone(),
                reason,
            }),
        ),
    };
    if text.is_empty() {
        return Ok(None);
    }
    let key: MeshKey =
        text.trim().parse().map_err(|error| fault(format!("invalid mesh key: {error}")))?;
    Ok((!key.is_zero()).then_some(key))
}

/// Loads the secret that opens the debug pages.
///
/// # Errors
///
/// If the file cannot be read.
pub fn load_debug_key(path: Option<&PathBuf>) -> Result<Option<Zeroizing<String>>, ConfigError> {
    path.map(|path| read_text("TS_DEBUG_KEY_PATH", path)).transpose()
}

fn read_text(flag: &'static str, path: &Path) -> Result<Zeroizing<String>, ConfigError> {
    let bytes = files::read_bounded(path).map_err(|source| ConfigError::Read {
        flag,
        path: path.to_owned(),
        source,
    })?;
    String::from_utf8(bytes).map(Zeroizing::new).map_err(|_| ConfigError::Malformed {
        flag,
        path: path.to_owned(),
        reason: "not a text file".to_owned(),
    })
}
