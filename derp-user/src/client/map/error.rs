//! What is wrong with a DERP map.

/// Why a text is no DERP map.
#[derive(Debug, thiserror::Error)]
pub enum MapError {
    /// It is no JSON, or a field is of the wrong kind.
    #[error("{}{reason}", at(.field))]
    Json {
        /// Where, as far as there are fields; `.` for the whole.
        field: String,
        /// What is wrong, with line and column.
        reason: String,
    },
    /// It is no YAML, or a field is of the wrong kind.
    #[error("{0}")]
    Yaml(String),
    /// A field cannot have this value.
    #[error("{place} {reason}")]
    Content {
        /// The field, with all it is in.
        place: String,
        /// What is wrong.
        reason: String,
    },
}

fn at(field: &str) -> String {
    if field == "." { String::new() } else { format!("{field}: ") }
}
