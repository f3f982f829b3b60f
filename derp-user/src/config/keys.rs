//! Where the configuration file has the value of each flag, and how it is written there.
//!
//! Both follow from the flag itself, its name, heading and value, so that a new flag has its key at once. Only names that
//! are too short for a file, and those of a section that the file had first, are listed here.

use clap::{Arg, ArgAction, Command};

use super::options::{ACME, ADMISSION, IDENTITY, KERNEL, LIMITS, LISTENING, MESH, OTHER};

/// Flags with a place of their own.
const OWN: [(&str, &str, &str); 4] = [
    ("a", "server", "address"),
    ("c", "server", "key_file"),
    ("stun", "stun", "enabled"),
    ("log", "log", "levels"),
];
/// Flags that only make sense before the file is read.
const NONE: [&str; 2] = ["config", "version"];
/// Sections of flags whose names begin like this.
const BY_PREFIX: [(&str, &str); 5] = [
    ("acme-", "acme"),
    ("log-", "log"),
    ("mesh-", "mesh"),
    ("stun-", "stun"),
    ("xdp-", "dataplane"),
];
/// Sections of the rest, by heading.
const BY_HEADING: [(&str, &str); 8] = [
    (LISTENING, "server"),
    (IDENTITY, "server"),
    (ACME, "acme"),
    (MESH, "mesh"),
    (ADMISSION, "admission"),
    (LIMITS, "limits"),
    (KERNEL, "dataplane"),
    (OTHER, "server"),
];
/// What the values of flags are called that hold several texts, with commas between them.
const LISTS: [&str; 4] = ["HOSTS", "LIST", "NAMES", "PINS"];
/// What the values of flags are called that are numbers.
const NUMBERS: [&str; 2] = ["NUMBER", "PORT"];

/// Where a flag's value is in the configuration file.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Key {
    /// The section, without brackets.
    pub section: &'static str,
    /// The key in it.
    pub name: String,
}

impl Key {
    /// Returns the key of a flag, if it has one.
    #[must_use]
    pub fn of(flag: &Arg) -> Option<Self> {
        let id = flag.get_id().as_str();
        if NONE.contains(&id) {
            return None;
        }
        if let Some((_, section, name)) = OWN.iter().find(|(own, ..)| *own == id) {
            return Some(Self { section, name: (*name).to_owned() });
        }
        let stripped = BY_PREFIX.iter().find_map(|(prefix, section)| {
            id.strip_prefix(prefix).map(|name| Self { section, name: snake(name) })
        });
        stripped.or_else(|| {
            let heading = flag.get_help_heading()?;
            let (_, section) = BY_HEADING.iter().find(|(of, _)| *of == heading)?;
            Some(Self { section, name: snake(id) })
        })
    }

    /// Returns the key that a flag of this name has; the name may be written as keys are.
    pub(super) fn of_name(command: &Command, name: &str) -> Option<(String, Self)> {
        let name = name.replace('_', "-");
        let flag = command.get_arguments().find(|flag| flag.get_id() == name.as_str())?;
        Some((name, Self::of(flag)?))
    }

    /// Returns the keys that flags have in a section.
    pub(super) fn in_section(command: &Command, section: &str) -> Vec<String> {
        let keys = command.get_arguments().filter_map(Self::of);
        keys.filter(|key| key.section == section).map(|key| key.name).collect()
    }
}

impl std::fmt::Display for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "[{}] {}", self.section, self.name)
    }
}

/// A flag's name as keys are written.
fn snake(name: &str) -> String {
    name.replace('-', "_")
}

/// How a flag's value is written in the file.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Kind {
    /// True or false.
    Switch,
    /// A whole number or one with a fraction.
    Number,
    /// A text with units, like `15s`.
    Duration,
    /// Any number of texts; the flag is given once for each.
    Repeated,
    /// Any number of texts, with commas between them in the flag.
    Joined,
    /// A text.
    Text,
}

impl Kind {
    pub(super) fn of(flag: &Arg) -> Self {
        let value_name = flag.get_value_names().and_then(<[_]>::first).map_or("", |name| name);
        // Switches are the flags that may stand without a value.
        if flag.get_num_args().is_some_and(|number| number.min_values() == 0) {
            Self::Switch
        } else if matches!(flag.get_action(), ArgAction::Append) {
            Self::Repeated
        } else if LISTS.contains(&value_name) {
            Self::Joined
        } else if NUMBERS.contains(&value_name) {
            Self::Number
        } else if value_name == "DURATION" {
            Self::Duration
        } else {
            Self::Text
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use clap::CommandFactory as _;

    use super::{super::Options, *};

    #[test]
    fn every_flag_has_one_place_and_no_place_has_two() {
        let mut places = BTreeMap::new();
        for flag in Options::command().get_arguments() {
            let id = flag.get_id().to_string();
            let Some(key) = Key::of(flag) else {
                assert!(NONE.contains(&id.as_str()), "{id}");
                continue;
            };
            assert!(key.name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_'), "{id}");
            assert_eq!(places.insert(key, id.clone()), None, "{id}");
        }
        let place = |section, name: &str| places[&Key { section, name: name.to_owned() }].clone();
        assert_eq!(place("server", "address"), "a");
        assert_eq!(place("stun", "port"), "stun-port");
        assert_eq!(place("dataplane", "interface"), "xdp-interface");
        assert_eq!(place("mesh", "psk_file"), "mesh-psk-file");
        assert_eq!(place("limits", "rate_config"), "rate-config");
        assert_eq!(place("log", "format"), "log-format");
    }

    #[test]
    fn values_are_of_the_kind_that_their_flags_say() {
        for flag in Options::command().get_arguments() {
            let help = flag.get_help().map(ToString::to_string).unwrap_or_default();
            let (id, kind) = (flag.get_id(), Kind::of(flag));
            let joins = help.contains("separated by commas");
            assert_eq!(kind == Kind::Joined, joins, "{id}");
            let default = flag.get_default_values().first().and_then(|text| text.to_str());
            match (kind, default) {
                (Kind::Switch, Some(text)) => assert!(text.parse::<bool>().is_ok(), "{id}"),
                (Kind::Number, Some(text)) => assert!(text.parse::<f64>().is_ok(), "{id}"),
                (Kind::Switch, None) => panic!("{id}"),
                _ => {}
            }
        }
    }
}
