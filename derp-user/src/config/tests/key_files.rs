//! Files with keys.

use super::*;

fn file_source(path: &Path) -> KeySource {
    KeySource::File { path: path.to_owned(), by_default: false }
}

#[test]
fn a_key_file_is_made_once_and_then_kept() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("new/deep/derper.key");
    let made = load_identity(&file_source(&path)).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let text = fs::read_to_string(&path).unwrap();
    assert_eq!(text, format!("{{\n\t\"PrivateKey\": \"{}\"\n}}", made.to_secret_text()));
    let loaded = load_identity(&file_source(&path)).unwrap();
    assert_eq!(loaded.public(), made.public());
    assert_eq!(fs::read_to_string(&path).unwrap(), text);
}

#[test]
fn two_new_keys_differ() {
    let one = load_identity(&KeySource::Ephemeral).unwrap();
    let two = load_identity(&KeySource::Ephemeral).unwrap();
    assert_ne!(one.public(), two.public());
}

#[test]
fn a_derper_key_file_loads() {
    let expected = KEY_TEXT.parse::<crate::proto::keys::NodePrivate>().unwrap().public();
    for contents in [
        format!("{{\n\t\"PrivateKey\": \"{KEY_TEXT}\"\n}}"),
        format!("{{\"Other\":[1],\"PrivateKey\":\"{KEY_TEXT}\"}}\n"),
    ] {
        assert_eq!(parse_key_file(contents.as_bytes()).unwrap().public(), expected);
    }
}

#[test]
fn damaged_key_files_are_named_and_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("derper.key");
    let zero = format!("{{\"PrivateKey\":\"privkey:{}\"}}", "0".repeat(64));
    for contents in [
        "",
        "{",
        "null",
        "[]",
        "{}",
        "{\"PrivateKey\":1}",
        "\"secret\"",
        "{\"PrivateKey\":\"secret\"}",
        &zero,
    ] {
        fs::write(&path, contents).unwrap();
        let error = load_identity(&file_source(&path)).unwrap_err();
        assert!(matches!(error, ConfigError::Malformed { .. }), "{contents}: {error}");
        assert!(error.to_string().contains("derper.key"), "{error}");
        assert!(!error.to_string().contains('\n'), "{error}");
        assert!(!error.to_string().contains("secret"), "{error}");
        assert_eq!(fs::read_to_string(&path).unwrap(), contents);
    }
    let error = load_identity(&file_source(directory.path())).unwrap_err();
    assert!(matches!(error, ConfigError::Read { .. }), "{error}");
    fs::write(&path, "x").unwrap();
    let error = load_identity(&file_source(&path.join("below"))).unwrap_err();
    assert!(matches!(error, ConfigError::Read { .. }), "{error}");
}

#[test]
fn mesh_key_files() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("mesh.key");
    let load = |contents: &str| {
        fs::write(&path, contents).unwrap();
        load_mesh_key(&MeshKeySource::File(path.clone()))
    };
    let digits = "aB".repeat(32);
    let expected = digits.parse().unwrap();
    assert_eq!(load(&digits).unwrap(), Some(expected));
    assert!(load(&format!(" {digits}\n")).unwrap().is_some());
    assert!(load("").unwrap().is_none());
    assert!(load(&"0".repeat(64)).unwrap().is_none());
    for wrong in ["\n", "abc", &"g".repeat(64)] {
        assert!(matches!(load(wrong), Err(ConfigError::Malformed { .. })), "{wrong:?}");
    }
    let missing = MeshKeySource::File(directory.path().join("none"));
    assert!(matches!(load_mesh_key(&missing), Err(ConfigError::Read { .. })));
    let secret = MeshKeySource::Text("not a key".to_owned().into());
    assert!(!load_mesh_key(&secret).unwrap_err().to_string().contains("not a key"));
}
