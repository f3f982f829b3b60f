//! Flags of derper for what this program does not do.
//!
//! Refused when they ask for something; accepted when they spell out that nothing is asked for, as scripts and
//! container images do (`-ace=false`).

use super::UsageError;

/// One such flag.
#[derive(Debug)]
pub(super) struct Foreign {
    pub(super) name: &'static str,
    kind: Kind,
    feature: &'static str,
}

#[derive(Debug, Eq, PartialEq)]
enum Kind {
    /// A switch, off by default.
    Switch,
    /// A text, empty by default.
    Text,
    /// A text that only refines another flag of this table, so alone it asks for nothing.
    Detail,
}

const FOREIGN: [Foreign; 4] = [
    foreign("ace", Kind::Switch, "tunnels for Tailscale's control plane"),
    foreign("secrets-cache-dir", Kind::Detail, "secrets from setec"),
    foreign("secrets-path-prefix", Kind::Detail, "secrets from setec"),
    foreign("secrets-url", Kind::Text, "secrets from setec"),
];

const fn foreign(name: &'static str, kind: Kind, feature: &'static str) -> Foreign {
    Foreign { name, kind, feature }
}

impl Foreign {
    /// The flag of this name, if it is one of derper's that do not exist here.
    pub(super) fn find(name: &str) -> Option<&'static Self> {
        FOREIGN.iter().find(|flag| flag.name == name)
    }

    /// Whether the flag stands for true when it has no value.
    pub(super) fn is_switch(&self) -> bool {
        self.kind == Kind::Switch
    }

    /// Accepts the value if it asks for nothing.
    pub(super) fn check(&self, value: &str) -> Result<(), UsageError> {
        let asks_for_nothing = match self.kind {
            Kind::Switch => super::options::parse_boolean(value) == Ok(false),
            Kind::Text => value.is_empty(),
            Kind::Detail => true,
        };
        if asks_for_nothing {
            return Ok(());
        }
        Err(UsageError::Unsupported { name: self.name, feature: self.feature })
    }
}
