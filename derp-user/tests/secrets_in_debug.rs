//! Secrets have no form for people: whatever holds one can be printed for debugging, and does not show it.

use std::{collections::BTreeMap, num::NonZeroUsize};

use derp_user::{
    acme::BindingKey,
    config::{self, Config, Environment, Invocation, KeySource, MeshKeySource, Surroundings},
    peer_relay::disco::DiscoPrivate,
    proto::keys::{MeshKey, NodePrivate},
    server::MeshSecret,
    tailnet::MachinePrivate,
};

/// 32 bytes that occur nowhere else, in hexadecimal digits,
const CANARY: &str = "c0ffee11c0ffee22c0ffee33c0ffee44c0ffee55c0ffee66c0ffee77c0ffee08";
/// and in base64.
const CANARY_BASE64: &str = "wP_uEcD_7iLA_-4zwP_uRMD_7lXA_-5mwP_ud8D_7gg";

/// Fails if a text shows the canary in any of the forms that `Debug` could give it.
fn assert_hidden(what: &str, text: &str) {
    let text = text.to_lowercase();
    let decimal = "192, 255, 238, 17";
    for form in ["c0ffee11", "wp_uecd", "wp/uecd", decimal, "c0, ff, ee", "\\xff\\xee"] {
        assert!(!text.contains(form), "{what} shows a secret as {form:?}: {text}");
    }
}

#[test]
fn keys_are_not_shown() {
    let private = format!("privkey:{CANARY}");
    let node: NodePrivate = private.parse().expect("a key");
    let mesh: MeshKey = CANARY.parse().expect("a key");
    let disco: DiscoPrivate = private.parse().expect("a key");
    let machine: MachinePrivate = private.parse().expect("a key");
    let binding: BindingKey = CANARY_BASE64.parse().expect("a key");
    let secret = MeshSecret::new(Some(mesh.clone()));
    for (what, plain, pretty) in [
        ("NodePrivate", format!("{node:?}"), format!("{node:#?}")),
        ("MeshKey", format!("{mesh:?}"), format!("{mesh:#?}")),
        ("MeshSecret", format!("{secret:?}"), format!("{secret:#?}")),
        ("DiscoPrivate", format!("{disco:?}"), format!("{disco:#?}")),
        ("MachinePrivate", format!("{machine:?}"), format!("{machine:#?}")),
        ("BindingKey", format!("{binding:?}"), format!("{binding:#?}")),
    ] {
        assert_hidden(what, &plain);
        assert_hidden(what, &pretty);
    }
    assert_eq!(node.to_secret_text(), private, "the file's form has it");
}

#[test]
fn settings_that_hold_secrets_do_not_show_them() {
    let variables = BTreeMap::from([
        ("TAILSCALE_DERPER_MESH_KEY", CANARY),
        ("DERP_ACME_EAB_KEY", CANARY_BASE64),
    ]);
    let variable = |name: &str| variables.get(name).map(|value| (*value).to_owned());
    let acme = [
        "-c=/k",
        "-certdir=/c",
        "-acme-directory=https://ca.example/d",
        "-acme-eab-kid=k",
        "-hostname=h.example",
    ];
    let surroundings = Surroundings { variable: &variable, ..Surroundings::nothing() };
    let mut holders = 0;
    for arguments in [&["-dev"][..], &acme] {
        let parsed = config::parse(arguments.iter().map(Into::into), &surroundings);
        let Ok(Invocation::Run(options)) = parsed else { panic!("flags that can be used") };
        assert_hidden("Options", &format!("{options:?}"));
        let environment = Environment {
            variable: &variable,
            is_root: false,
            file_exists: &|_| false,
            processors: NonZeroUsize::MIN,
        };
        let config = Config::resolve(*options, &environment).expect("a configuration");
        assert_hidden("Config", &format!("{config:?}"));
        holders += usize::from(matches!(config.mesh_key, MeshKeySource::Text(_)));
        let binding = config.tls.and_then(|tls| tls.acme).and_then(|acme| acme.binding);
        holders += usize::from(binding.is_some());
    }
    assert_eq!(holders, 2, "both secrets were there");
}

#[test]
fn files_that_are_no_keys_are_not_quoted() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("key");
    let contents = [
        format!("{{\"PrivateKey\": \"privkey:{CANARY}0\"}}"),
        format!("{{\"PrivateKey\": {CANARY}}}"),
        format!("{{\"PrivateKey\": [\"{CANARY}\"]}}"),
        format!("{CANARY}0"),
    ];
    for text in contents {
        std::fs::write(&path, &text).expect("written");
        let identity =
            config::load_identity(&KeySource::File { path: path.clone(), by_default: false });
        let mesh = config::load_mesh_key(&MeshKeySource::File(path.clone()));
        let relay = config::load_relay_keys(&path, false);
        let faults =
            [identity.err(), mesh.err(), relay.err()].map(|fault| fault.expect("no key is in it"));
        for fault in faults {
            assert_hidden("an error", &format!("{fault} {fault:?}"));
        }
    }
}
