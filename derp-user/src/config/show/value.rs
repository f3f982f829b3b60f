//! Values as TOML and JSON write them.

use std::fmt;

/// One value.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(in crate::config) enum Shown {
    Text(String),
    /// A number, a truth value or a date, as TOML writes it.
    Bare(String),
    List(Vec<Self>),
    /// A table within a line.
    Table(Vec<(String, Self)>),
}

impl Shown {
    /// A number as flags write it, which may be `+Inf`.
    pub(super) fn number(text: &str) -> Self {
        let is_plain = text.parse::<i64>().is_ok();
        match text.parse::<f64>() {
            Ok(number) if number.is_infinite() => Self::Bare("inf".to_owned()),
            // TOML wants digits on both sides of the point.
            Ok(number) if !is_plain => Self::Bare(format!("{number:?}")),
            Ok(_) | Err(_) => Self::Bare(text.trim_start_matches('+').to_owned()),
        }
    }

    /// Whether any text in it is an address that tells a secret.
    pub(in crate::config) fn has_secret(&self) -> bool {
        match self {
            Self::Text(text) => super::has_secret(text),
            Self::Bare(_) => false,
            Self::List(values) => values.iter().any(Self::has_secret),
            Self::Table(entries) => entries.iter().any(|(_, value)| value.has_secret()),
        }
    }

    pub(super) fn to_json(&self) -> serde_json::Value {
        match self {
            Self::Text(text) => text.as_str().into(),
            Self::Bare(text) => serde_json::from_str(text).unwrap_or_else(|_| text.as_str().into()),
            Self::List(values) => values.iter().map(Self::to_json).collect(),
            Self::Table(entries) => {
                let entries = entries.iter().map(|(key, value)| (key.clone(), value.to_json()));
                serde_json::Value::Object(entries.collect())
            }
        }
    }
}

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) => write_text(f, text),
            Self::Bare(text) => f.write_str(text),
            Self::List(values) => {
                f.write_str("[")?;
                for (index, value) in values.iter().enumerate() {
                    let comma = if index == 0 { "" } else { ", " };
                    write!(f, "{comma}{value}")?;
                }
                f.write_str("]")
            }
            Self::Table(entries) => {
                f.write_str("{")?;
                for (index, (key, value)) in entries.iter().enumerate() {
                    let comma = if index == 0 { " " } else { ", " };
                    write!(f, "{comma}{key} = {value}")?;
                }
                f.write_str(" }")
            }
        }
    }
}

/// Writes a basic string of TOML.
fn write_text(f: &mut fmt::Formatter<'_>, text: &str) -> fmt::Result {
    f.write_str("\"")?;
    for letter in text.chars() {
        match letter {
            '"' | '\\' => write!(f, "\\{letter}")?,
            letter if letter.is_control() => write!(f, "\\u{:04X}", u32::from(letter))?,
            letter => write!(f, "{letter}")?,
        }
    }
    f.write_str("\"")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn texts_are_read_back(text in any::<String>()) {
            let document = format!("a = {}", Shown::Text(text.clone()));
            let document = toml::de::DeTable::parse(&document).expect("TOML");
            let value = document.get_ref().get("a").and_then(|value| value.get_ref().as_str());
            prop_assert_eq!(value, Some(text.as_str()));
        }
    }

    #[test]
    fn numbers_are_as_toml_has_them() {
        for (text, expected) in [
            ("80", "80"),
            ("-1", "-1"),
            ("+Inf", "inf"),
            ("2.5", "2.5"),
            ("5.", "5.0"),
            ("+7", "7"),
        ] {
            assert_eq!(Shown::number(text).to_string(), expected);
        }
        assert_eq!(Shown::Bare("80".to_owned()).to_json(), 80);
        assert_eq!(Shown::Bare("inf".to_owned()).to_json(), "inf");
    }
}
