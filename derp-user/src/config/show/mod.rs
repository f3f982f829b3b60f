//! The configuration as it came out, each value with who says it: as TOML that may be read again, and as JSON.

mod value;

use std::fmt;

use clap::{Arg, CommandFactory as _};
use serde_json::json;

pub(super) use self::value::Shown;
use super::{
    Config, ConfigError, FileSettings, Key, KeySource, MeshKeySource, Options, Origin,
    arguments::SECRETS, keys::Kind,
};
use crate::config::GoDuration;

/// Variables without flags, as the help lists them.
const VARIABLES: [&str; 10] = [
    "TS_DEBUG_DERP_PER_CLIENT_SEND_QUEUE_DEPTH",
    "TS_ALLOW_DEBUG_IP",
    "TS_DEBUG_TRUSTED_CIDRS",
    "TS_DEBUG_KEY_PATH",
    "TS_DEBUG_VERBOSE_DROPS",
    "TS_DERP_DISABLE_RTT_STATS",
    "DERP_DEBUG_LOGS",
    "DERP_PROBER_DEBUG_LOGS",
    "TAILSCALE_DERPER_MESH_KEY",
    "RUST_LOG",
];
/// The one of them that is a secret itself.
const SECRET_VARIABLE: &str = "TAILSCALE_DERPER_MESH_KEY";
/// Where comments begin.
const COLUMN: usize = 44;

/// One value.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) key: String,
    /// The flag that it stands for, if it does for one.
    pub(super) flag: Option<String>,
    /// `None` where nobody gives one and there is no default.
    pub(super) value: Option<Shown>,
    /// `None` for a default.
    pub(super) origin: Option<Origin>,
    pub(super) is_secret: bool,
}

/// One section.
#[derive(Clone, Debug)]
pub(super) struct Table {
    /// With dots, without brackets.
    pub(super) name: String,
    /// Whether there may be several.
    pub(super) is_repeated: bool,
    pub(super) entries: Vec<Entry>,
}

/// What a relay's flags, file and environment come to.
#[derive(Clone, Debug)]
pub struct Settings {
    path: Option<String>,
    tables: Vec<Table>,
    variables: Vec<(&'static str, String)>,
}

impl Settings {
    /// Puts together what is in force with this configuration.
    ///
    /// # Errors
    ///
    /// If the sections of the file that are not for flags cannot be used.
    pub fn new(
        config: &Config,
        variable: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Self, ConfigError> {
        let file = config.file_settings()?;
        let mut tables: Vec<Table> = Vec::new();
        for flag in Options::command().get_arguments() {
            let Some(key) = Key::of(flag) else { continue };
            let entry = of_flag(flag, &key, config, variable);
            match tables.iter_mut().find(|table| table.name == key.section) {
                Some(table) => table.entries.push(entry),
                None => tables.push(Table {
                    name: key.section.to_owned(),
                    is_repeated: false,
                    entries: vec![entry],
                }),
            }
        }
        let of_file = config.layers.file.as_ref().map(super::ConfigFile::tables);
        for table in of_file.unwrap_or_default() {
            match tables.iter_mut().find(|it| it.name == table.name && !it.is_repeated) {
                Some(known) => {
                    let is_flag =
                        |entry: &Entry| known.entries.iter().any(|it| it.key == entry.key);
                    let own: Vec<_> =
                        table.entries.into_iter().filter(|entry| !is_flag(entry)).collect();
                    known.entries.extend(own);
                }
                None => tables.push(table),
            }
        }
        add_defaults(&mut tables, &file);
        let set = |name: &&'static str| {
            let value = variable(name).filter(|value| !value.is_empty())?;
            Some((*name, if *name == SECRET_VARIABLE { "...".to_owned() } else { value }))
        };
        Ok(Self {
            path: config.layers.path().map(|path| path.display().to_string()),
            tables,
            variables: VARIABLES.iter().filter_map(set).collect(),
        })
    }

    /// Writes it as one JSON object.
    #[must_use]
    pub fn to_json(&self) -> String {
        let mut settings = Vec::new();
        for table in &self.tables {
            for entry in &table.entries {
                let mut setting = json!({
                    "section": table.name,
                    "key": entry.key,
                    "value": match &entry.value {
                        Some(value) if !entry.is_secret => value.to_json(),
                        Some(_) | None => serde_json::Value::Null,
                    },
                    "source": self.source_json(entry.origin.as_ref()),
                });
                if let Some(flag) = &entry.flag {
                    setting["flag"] = flag.as_str().into();
                }
                if entry.is_secret {
                    setting["redacted"] = true.into();
                }
                settings.push(setting);
            }
        }
        let variables: serde_json::Map<_, _> = self
            .variables
            .iter()
            .map(|(name, value)| ((*name).to_owned(), value.as_str().into()))
            .collect();
        json!({ "file": self.path, "settings": settings, "variables": variables }).to_string()
    }

    fn source_json(&self, origin: Option<&Origin>) -> serde_json::Value {
        match origin {
            None => json!({ "kind": "default" }),
            Some(Origin::Flag) => json!({ "kind": "flag" }),
            Some(Origin::File { line, .. }) => {
                json!({ "kind": "file", "file": self.path, "line": line })
            }
            Some(Origin::Variable(name)) => json!({ "kind": "variable", "variable": name }),
        }
    }

    fn source(&self, entry: &Entry) -> String {
        match (&entry.origin, &entry.flag) {
            (None, _) => "default".to_owned(),
            (Some(Origin::Flag), Some(flag)) => format!("-{flag}"),
            (Some(Origin::Flag), None) => "flag".to_owned(),
            (Some(Origin::File { line, .. }), _) => {
                format!("{}:{line}", self.path.as_deref().unwrap_or_default())
            }
            (Some(Origin::Variable(name)), _) => name.clone(),
        }
    }
}

impl fmt::Display for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.path {
            Some(path) => writeln!(f, "# What is in force, with {path}.")?,
            None => writeln!(f, "# What is in force; no configuration file is read.")?,
        }
        for Table { name, is_repeated, entries } in &self.tables {
            let (open, close) = if *is_repeated { ("[[", "]]") } else { ("[", "]") };
            writeln!(f, "\n{open}{name}{close}")?;
            for entry in entries {
                let source = self.source(entry);
                let line = match (&entry.value, entry.is_secret) {
                    (Some(_), true) => format!("# {} is secret, and not shown", entry.key),
                    (Some(value), false) => format!("{} = {value}", entry.key),
                    (None, _) => format!("# {} is not set", entry.key),
                };
                // At least one blank, however long the value is.
                let width = COLUMN - 1;
                writeln!(f, "{line:<width$} # {source}")?;
            }
        }
        if !self.variables.is_empty() {
            writeln!(f, "\n# From the environment, and without a key:")?;
        }
        self.variables.iter().try_for_each(|(name, value)| writeln!(f, "# {name}={value:?}"))
    }
}

fn of_flag(
    flag: &Arg,
    key: &Key,
    config: &Config,
    variable: &dyn Fn(&str) -> Option<String>,
) -> Entry {
    let id = flag.get_id().as_str();
    let given = config.layers.values(flag);
    let resolved = resolved(id, config).map(|value| vec![value]);
    let values = resolved.unwrap_or(given);
    let is_secret = values.iter().any(|value| {
        SECRETS.contains(&id) && !value.is_empty() || id != "home" && has_secret(value)
    });
    let from_log_variable = id == "log" && variable("RUST_LOG").is_some_and(|it| !it.is_empty());
    let origin = config.layers.origin(id).cloned();
    let origin =
        origin.or_else(|| from_log_variable.then(|| Origin::Variable("RUST_LOG".to_owned())));
    let text = |value: &String| Shown::Text(value.clone());
    let value = match (Kind::of(flag), values.first()) {
        (Kind::Repeated, _) => Some(Shown::List(values.iter().map(text).collect())),
        (_, None) => None,
        (Kind::Joined, Some(value)) => {
            let items = value.split(',').filter(|item| !item.is_empty());
            Some(Shown::List(items.map(|item| Shown::Text(item.to_owned())).collect()))
        }
        (Kind::Switch, Some(value)) => {
            let is_on = super::options::parse_boolean(value) == Ok(true);
            Some(Shown::Bare(is_on.to_string()))
        }
        (Kind::Number, Some(value)) => Some(Shown::number(value)),
        (Kind::Duration | Kind::Text, Some(value)) => Some(Shown::Text(value.clone())),
    };
    Entry { key: key.name.clone(), flag: Some(id.to_owned()), value, origin, is_secret }
}

/// What flags come to whose value is not all that decides.
fn resolved(flag: &str, config: &Config) -> Option<String> {
    match flag {
        "a" => Some(config.listen.to_string()),
        "c" => match &config.key {
            KeySource::File { path, .. } => Some(path.display().to_string()),
            KeySource::Ephemeral => None,
        },
        "certdir" => {
            let tls = config.tls.as_ref()?;
            Some(tls.certificate_directory.display().to_string())
        }
        "mesh-psk-file" => match &config.mesh_key {
            MeshKeySource::File(path) => Some(path.display().to_string()),
            MeshKeySource::None | MeshKeySource::Text(_) => None,
        },
        "workers" => Some(config.workers.to_string()),
        "log" => Some(config.log.clone()),
        _ => None,
    }
}

/// Whether an address tells a password, or something that may be a token.
pub(super) fn has_secret(text: &str) -> bool {
    let Some((_, rest)) = text.split_once("://") else { return false };
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    authority.contains('@') || rest.contains('?')
}

/// Adds what the sections without flags have by default.
fn add_defaults(tables: &mut Vec<Table>, file: &FileSettings) {
    let text = |duration: std::time::Duration| {
        let nanoseconds = i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX);
        Shown::Text(GoDuration::from_nanoseconds(nanoseconds).to_string())
    };
    let number = |number: u64| Shown::Bare(number.to_string());
    let mut defaults =
        vec![("stun", "rate", number(0)), ("stun", "shed", Shown::Bare("false".to_owned()))];
    // The section by itself has tables made.
    if file.has_tables() {
        defaults.extend([
            ("relay", "slots", number(file.relay.slots.into())),
            ("relay", "idle_timeout", text(file.relay.idle_timeout)),
        ]);
    }
    if let Some(peer_relay) = &file.peer_relay {
        let count = |count: usize| number(count.try_into().unwrap_or(u64::MAX));
        defaults.extend([
            ("peer_relay", "port", number(peer_relay.port.into())),
            ("peer_relay", "max_endpoints", count(peer_relay.limits.endpoints)),
            ("peer_relay", "max_endpoints_per_node", count(peer_relay.limits.endpoints_per_node)),
        ]);
    }
    if let Some(companion) = &file.companion {
        defaults.extend([
            ("companion", "socket", Shown::Text(companion.socket.display().to_string())),
            ("companion", "poll", text(companion.poll)),
            ("companion", "sample", text(companion.sample)),
        ]);
    }
    if let Some(wireguard) = &file.wireguard {
        defaults.push(("wireguard", "port", number(wireguard.port.into())));
    }
    for (section, key, value) in defaults {
        let entry = Entry {
            key: key.to_owned(),
            flag: None,
            value: Some(value),
            origin: None,
            is_secret: false,
        };
        match tables.iter_mut().find(|table| table.name == section) {
            Some(table) if table.entries.iter().any(|it| it.key == key) => {}
            Some(table) => table.entries.push(entry),
            None => tables.push(Table {
                name: section.to_owned(),
                is_repeated: false,
                entries: vec![entry],
            }),
        }
    }
}

#[cfg(test)]
mod tests;
