//! The names, as the flags list them.

use domain::base::Name;

/// Most names of one list: each costs questions in every round.
const MOST_NAMES: usize = 256;

/// A list of names that cannot be used.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum NamesError {
    /// An entry is no DNS name, or no pair of them.
    #[error("{0:?} is not a DNS name, nor name/txtname")]
    Name(String),
    /// Too many.
    #[error("{0} names are more than {MOST_NAMES}")]
    TooMany(usize),
}

/// One name.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Entry {
    pub(super) name: String,
    /// The name whose TXT records hold the rollout percentage; without one, everybody is told.
    pub(super) rollout: Option<String>,
}

/// Names, separated by commas where they are written. A name may be followed by a slash and the name whose TXT records
/// hold its rollout percentage, which counts for unpublished names only.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct NameList(pub(super) Vec<Entry>);

/// The names whose addresses are told.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Names {
    /// To everybody.
    pub published: NameList,
    /// To those who ask for them.
    pub unpublished: NameList,
}

impl std::str::FromStr for NameList {
    type Err = NamesError;

    fn from_str(list: &str) -> Result<Self, NamesError> {
        let texts = list.split(',').map(str::trim).filter(|text| !text.is_empty());
        let entries: Vec<Entry> = texts.map(entry).collect::<Result<_, _>>()?;
        if entries.len() > MOST_NAMES {
            return Err(NamesError::TooMany(entries.len()));
        }
        Ok(Self(entries))
    }
}

fn entry(text: &str) -> Result<Entry, NamesError> {
    let (name, rollout) = match text.split_once('/') {
        Some((name, "")) => (name, None),
        Some((name, rollout)) => (name, Some(rollout)),
        None => (text, None),
    };
    let is_name = |name: &str| {
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b".-_".contains(&byte);
        name.bytes().all(is_plain) && Name::vec_from_str(name).is_ok()
    };
    if !is_name(name) || !rollout.is_none_or(is_name) {
        return Err(NamesError::Name(text.to_owned()));
    }
    Ok(Entry { name: name.to_owned(), rollout: rollout.map(str::to_owned) })
}
