//! DERP maps from text: JSON with comments, as in Tailscale's policy files, and YAML, as Headscale has it.

use std::str::FromStr;

use serde::{
    Deserialize,
    de::{DeserializeOwned, IgnoredAny},
};

use super::{DerpMap, MapError};

impl FromStr for DerpMap {
    type Err = MapError;

    /// Reads a map, or a policy file with one in its field `derpMap`.
    fn from_str(text: &str) -> Result<Self, MapError> {
        let text = text.trim_start_matches('\u{feff}');
        let json = standard(text);
        let map = if !json.trim_start().starts_with('{') {
            serde_saphyr::from_str(text).map_err(|error| MapError::Yaml(error.to_string()))?
        } else if from_json::<MaybePolicy>(&json)?.derp_map.is_some() {
            from_json::<Policy>(&json)?.derp_map
        } else {
            from_json(&json)?
        };
        map.checked()
    }
}

#[derive(Deserialize)]
struct MaybePolicy {
    #[serde(rename = "derpMap", alias = "DERPMap", default)]
    derp_map: Option<IgnoredAny>,
}

#[derive(Deserialize)]
struct Policy {
    #[serde(rename = "derpMap", alias = "DERPMap")]
    derp_map: DerpMap,
}

fn from_json<T: DeserializeOwned>(text: &str) -> Result<T, MapError> {
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let value = serde_path_to_error::deserialize(&mut deserializer).map_err(|error| {
        let field = error.path().to_string();
        MapError::Json { field, reason: error.into_inner().to_string() }
    })?;
    let end = deserializer.end();
    end.map_err(|error| MapError::Json { field: ".".to_owned(), reason: error.to_string() })?;
    Ok(value)
}

/// Puts blanks in the place of comments and of commas after the last element, so that lines and columns
/// stay.
pub(super) fn standard(text: &str) -> String {
    let mut output: Vec<char> = Vec::with_capacity(text.len());
    let mut letters = text.chars().peekable();
    // Where the last comma is, while only blanks follow it.
    let mut comma = None;
    while let Some(letter) = letters.next() {
        match letter {
            '"' => {
                comma = None;
                output.push(letter);
                while let Some(letter) = letters.next() {
                    output.push(letter);
                    match letter {
                        '\\' => output.extend(letters.next()),
                        '"' => break,
                        _ => {}
                    }
                }
            }
            '/' if letters.peek() == Some(&'/') => {
                output.push(' ');
                while let Some(letter) = letters.next_if(|&letter| letter != '\n') {
                    output.push(blank(letter));
                }
            }
            '/' if letters.peek() == Some(&'*') => {
                output.extend([' ', ' ']);
                letters.next();
                let mut last = ' ';
                for letter in letters.by_ref() {
                    output.push(blank(letter));
                    if (last, letter) == ('*', '/') {
                        break;
                    }
                    last = letter;
                }
            }
            ',' => {
                comma = Some(output.len());
                output.push(letter);
            }
            '}' | ']' => {
                if let Some(place) = comma.take().and_then(|at: usize| output.get_mut(at)) {
                    *place = ' ';
                }
                output.push(letter);
            }
            _ => {
                if !letter.is_whitespace() {
                    comma = None;
                }
                output.push(letter);
            }
        }
    }
    output.into_iter().collect()
}

fn blank(letter: char) -> char {
    if letter.is_whitespace() { letter } else { ' ' }
}
