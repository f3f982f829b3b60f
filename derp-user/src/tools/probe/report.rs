//! What `derpd probe` has found, for people and for programs.

use std::{collections::BTreeMap, fmt, time::SystemTime};

use serde::Serialize;

use crate::tools::Severity;

/// What one probe came to.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Outcome {
    /// Name, as derpprobe has it: `derp/REGION/NODE/tls`, `derp/REGION/FROM/TO/mesh`.
    pub name: String,
    /// Kind of probe, as derpprobe has it.
    pub class: &'static str,
    /// How bad it is.
    pub status: Severity,
    /// What was found, in a sentence.
    pub text: String,
    /// What was measured, by name and unit.
    pub values: BTreeMap<&'static str, f64>,
}

/// All probes of one round.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// When it began.
    #[serde(serialize_with = "unix_seconds")]
    pub time: SystemTime,
    /// The worst of all.
    pub status: Severity,
    /// One by one.
    pub probes: Vec<Outcome>,
}

impl Report {
    pub(super) fn new(time: SystemTime, probes: Vec<Outcome>) -> Self {
        let status = probes.iter().map(|it| it.status).max().unwrap_or(Severity::Ok);
        Self { time, status, probes }
    }

    /// Writes it as one JSON object.
    #[must_use]
    pub fn to_json(&self) -> String {
        serde_json::json!(self).to_string()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = self.probes.len();
        let bad: Vec<_> = self.probes.iter().filter(|it| it.status != Severity::Ok).collect();
        write!(f, "DERP {}: ", self.status)?;
        match bad.first() {
            None => writeln!(f, "{count} probes")?,
            Some(_) => {
                let names: Vec<_> = bad.iter().map(|it| it.name.as_str()).collect();
                writeln!(f, "{} of {count} probes: {}", bad.len(), names.join(", "))?;
            }
        }
        self.probes.iter().try_for_each(|Outcome { name, status, text, .. }| {
            writeln!(f, "{status:<8} {name}: {text}")
        })
    }
}

fn unix_seconds<S: serde::Serializer>(time: &SystemTime, serializer: S) -> Result<S::Ok, S::Error> {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    serializer.serialize_u64(since.as_secs())
}
