//! The keys of the file that stand for flags.

use clap::{Arg, Command};
use toml::de::DeValue;

use super::reader::{Fault, Section, Value};
use crate::{
    config::{
        keys::{Key, Kind},
        layers::{Given, Origin},
    },
    dataplane::DEFAULT_DIRECTORY,
};

/// Sections that have keys besides those of flags, with these.
const SHARED: [(&str, &[&str]); 1] = [("stun", &["rate", "burst", "shed"])];
/// Sections without flags; who reads them looks at their keys.
const OTHERS: [&str; 5] = ["relay", "peer_relay", "companion", "wireguard", "flow"];

/// Reads what the file says of flags. Refuses sections that there are not, and keys in the sections of flags.
pub(super) fn read(document: &Section<'_>, command: &Command) -> Result<Vec<Given>, Fault> {
    let mut sections: Vec<&str> = Vec::new();
    for key in command.get_arguments().filter_map(Key::of) {
        if !sections.contains(&key.section) {
            sections.push(key.section);
        }
    }
    document
        .expect_only(&[&sections[..], &OTHERS].concat())
        .map_err(|fault| point_to_key(fault, document, command))?;
    for name in sections {
        let Some(section) = document.section(name)? else { continue };
        let own =
            SHARED.iter().find(|(shared, _)| *shared == name).map_or(&[][..], |(_, keys)| keys);
        let of_flags = Key::in_section(command, name);
        let known: Vec<_> =
            of_flags.iter().map(String::as_str).chain(own.iter().copied()).collect();
        section.expect_only(&known).map_err(|fault| point_to_key(fault, &section, command))?;
    }
    let mut given = Vec::new();
    for flag in command.get_arguments() {
        let Some(key) = Key::of(flag) else { continue };
        let Some(section) = document.section(key.section)? else { continue };
        let Some(value) = section.value(&key.name) else { continue };
        given.push(Given {
            flag: flag.get_id().to_string(),
            values: values(flag, &value)?,
            origin: Origin::File { line: value.line(), place: key.to_string() },
        });
    }
    Ok(given)
}

/// Says where the key is that is meant, if the unknown one is the name of a flag.
fn point_to_key(fault: Fault, section: &Section<'_>, command: &Command) -> Fault {
    let unknown = fault.place.rsplit(' ').next().unwrap_or_default();
    match Key::of_name(command, unknown) {
        Some((flag, key)) => {
            let reason = format!("unknown key; -{flag} is {} in [{}]", key.name, key.section);
            Fault { reason, ..fault }
        }
        None if section.name.is_empty()
            && command.get_arguments().any(|it| it.get_id() == unknown) =>
        {
            Fault { reason: format!("-{unknown} has no key"), ..fault }
        }
        None => fault,
    }
}

/// The values as they stand on a command line.
fn values(flag: &Arg, value: &Value<'_>) -> Result<Vec<String>, Fault> {
    let text = |value: &Value<'_>| value.text().map(str::to_owned);
    Ok(match Kind::of(flag) {
        Kind::Switch => vec![value.boolean()?.to_string()],
        Kind::Number => vec![number(value)?],
        Kind::Duration => {
            let wrong = || value.fault("must be a duration in quotes, like \"15s\" or \"1h30m\"");
            vec![value.as_text().ok_or_else(wrong)?.to_owned()]
        }
        Kind::Repeated if value.as_text().is_none() => {
            value.list()?.iter().map(text).collect::<Result<_, _>>()?
        }
        Kind::Joined if value.as_text().is_none() => {
            let items = value.list()?;
            for item in &items {
                if item.text()?.contains(',') {
                    return Err(item.fault("a comma separates items; give each its own quotes"));
                }
            }
            vec![items.iter().map(text).collect::<Result<Vec<_>, _>>()?.join(",")]
        }
        Kind::Text if flag.get_id() == "xdp-pin" => vec![pin(value)?],
        Kind::Text | Kind::Repeated | Kind::Joined => vec![text(value)?],
    })
}

fn number(value: &Value<'_>) -> Result<String, Fault> {
    match value.get() {
        DeValue::Integer(number) if number.radix() == 10 => Ok(number.as_str().to_owned()),
        DeValue::Integer(_) => value
            .as_number()
            .map(|number| number.to_string())
            .ok_or_else(|| value.fault("must be a number")),
        DeValue::Float(number) => Ok(number.as_str().to_owned()),
        DeValue::String(_)
        | DeValue::Boolean(_)
        | DeValue::Datetime(_)
        | DeValue::Array(_)
        | DeValue::Table(_) => Err(value.fault("must be a number, without quotes")),
    }
}

/// `-xdp-pin`, for which a file may say true or false as well.
fn pin(value: &Value<'_>) -> Result<String, Fault> {
    match (value.as_boolean(), value.as_text()) {
        (Some(true), _) => Ok(DEFAULT_DIRECTORY.to_owned()),
        (Some(false), _) => Ok("off".to_owned()),
        (None, Some(path)) => Ok(path.to_owned()),
        (None, None) => Err(value.fault(format!(
            "must be a directory of a BPF file system like {DEFAULT_DIRECTORY:?}, or false"
        ))),
    }
}
