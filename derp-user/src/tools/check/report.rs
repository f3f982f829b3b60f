//! What `derpd check` has found, for people and for programs.

use std::fmt;

use serde::Serialize;

use crate::dataplane::inspect::{Occupied, PinnedMap, PinnedMaps, Pins};

/// How a finding bears on running the kernel data plane.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// As it should be.
    Ok,
    /// Worth knowing, and no obstacle.
    Note,
    /// An obstacle.
    Problem,
}

impl Status {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Note => "note",
            Self::Problem => "problem",
        }
    }
}

/// One thing that was looked at.
#[derive(Clone, Debug, Serialize)]
pub struct Finding {
    /// What it is about, in one word.
    pub area: &'static str,
    /// What it means.
    pub status: Status,
    /// What was found.
    pub text: String,
    /// What would change it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remedy: Option<&'static str>,
}

/// Something that would be served.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct Service {
    /// What it is, in a word or two.
    pub what: &'static str,
    /// Transport and address.
    #[serde(rename = "where")]
    pub place: String,
    /// By what, to whom.
    pub how: String,
}

/// Everything that was found.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// One by one, in the order of looking.
    pub findings: Vec<Finding>,
    /// What would be served; nothing where the configuration cannot be used.
    pub services: Vec<Service>,
    /// Interfaces with an XDP program, anybody's.
    pub interfaces: Vec<Occupied>,
    /// What is pinned; `None` when it cannot be read.
    pub pins: Option<Pins>,
}

impl Report {
    /// Tells whether there is no problem.
    #[must_use]
    pub fn is_ok(&self) -> bool {
        self.findings.iter().all(|finding| finding.status != Status::Problem)
    }

    /// Writes it as one JSON object.
    #[must_use]
    pub fn to_json(&self) -> String {
        let mut value = serde_json::json!(self);
        value["ok"] = self.is_ok().into();
        value.to_string()
    }

    /// Adds what another one says. If it is not `vital`, no problem of its is one.
    pub(super) fn extend(&mut self, other: Self, vital: bool) {
        let Self { findings, services, interfaces, pins } = other;
        self.findings.extend(findings.into_iter().map(|mut finding| {
            if !vital && finding.status == Status::Problem {
                finding.status = Status::Note;
            }
            finding
        }));
        self.services.extend(services);
        self.interfaces.extend(interfaces);
        self.pins = self.pins.take().or(pins);
    }

    pub(super) fn ok(&mut self, area: &'static str, text: String) {
        self.findings.push(Finding { area, status: Status::Ok, text, remedy: None });
    }

    pub(super) fn note(&mut self, area: &'static str, text: String) {
        self.findings.push(Finding { area, status: Status::Note, text, remedy: None });
    }

    pub(super) fn problem(
        &mut self,
        area: &'static str,
        text: String,
        remedy: Option<&'static str>,
    ) {
        self.findings.push(Finding { area, status: Status::Problem, text, remedy });
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Finding { area, status, text, remedy } in &self.findings {
            let remedy = remedy.map(|remedy| format!("; {remedy}")).unwrap_or_default();
            writeln!(f, "{:<8} {area}: {text}{remedy}", status.as_str())?;
        }
        if !self.services.is_empty() {
            writeln!(f, "\nwould serve")?;
        }
        for Service { what, place, how } in &self.services {
            writeln!(f, "  {what:<12}{place:<24}{how}")?;
        }
        self.pins.iter().try_for_each(|pins| write_pins(f, pins))
    }
}

fn write_pins(f: &mut fmt::Formatter<'_>, pins: &Pins) -> fmt::Result {
    for link in &pins.links {
        let name = link.interface.as_deref().unwrap_or("(gone)");
        let (index, mode, program) = (link.index, link.mode, link.program_id);
        writeln!(f, "\nlink to {name} (interface {index}): {mode}, program {program}")?;
    }
    pins.generations.iter().try_for_each(|maps| write_generation(f, maps))
}

fn write_generation(f: &mut fmt::Formatter<'_>, maps: &PinnedMaps) -> fmt::Result {
    write!(f, "\n{}", maps.path.display())?;
    if let Some(version) = maps.settings_version {
        write!(f, ", settings version {version}")?;
    }
    if let (Some(process), Some(age)) = (maps.process, maps.age_seconds) {
        write!(f, ", taken by process {process} {} ago", Age(age))?;
    }
    writeln!(f)?;
    if let Some(program) = &maps.program {
        let object = maps.object.as_deref().unwrap_or("unknown");
        write!(f, "  program {}, tag {}, object {object}", program.id, program.tag)?;
        if let Some(age) = program.age_seconds {
            write!(f, ", loaded {} ago", Age(age))?;
        }
        writeln!(f)?;
    }
    for map in &maps.maps {
        let PinnedMap { name, id, kind, key_size, value_size, max_entries, .. } = map;
        write!(f, "  {name:<14} {id:>6} {kind:<12} {key_size:>3} -> {value_size:<3} ")?;
        match map.entries {
            Some(entries) => write!(f, "{entries} of {max_entries} entries")?,
            None => write!(f, "{max_entries} entries")?,
        }
        match map.memory {
            Some(memory) => writeln!(f, ", {} KiB", memory.div_ceil(1024))?,
            None => writeln!(f)?,
        }
    }
    Ok(())
}

/// Seconds as people say them.
struct Age(u64);

impl fmt::Display for Age {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(seconds) = *self;
        match seconds {
            0..=119 => write!(f, "{seconds} s"),
            120..=7199 => write!(f, "{} min", seconds / 60),
            7200..=172_799 => write!(f, "{} h", seconds / 3600),
            _ => write!(f, "{} days", seconds / 86_400),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_decides_and_its_remedy_follows() {
        let mut report = Report::default();
        report.ok("kernel", "Linux 6.18".to_owned());
        report.note("daemon", "none".to_owned());
        assert!(report.is_ok());
        report.problem("rights", "CAP_BPF is missing".to_owned(), Some("run as root"));
        assert!(!report.is_ok());
        let text = report.to_string();
        assert!(text.ends_with("problem  rights: CAP_BPF is missing; run as root\n"), "{text}");
        let json: serde_json::Value = serde_json::from_str(&report.to_json()).expect("JSON");
        assert_eq!(json["ok"], false);
        assert_eq!(json["findings"][2]["status"], "problem");
        assert_eq!(json["findings"][0].get("remedy"), None);
    }

    #[test]
    fn ages_are_short() {
        for (seconds, text) in [(5, "5 s"), (300, "5 min"), (7200, "2 h"), (900_000, "10 days")] {
            assert_eq!(Age(seconds).to_string(), text);
        }
    }
}
