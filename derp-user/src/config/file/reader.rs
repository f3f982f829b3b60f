//! A TOML document as sections and values that know their line.

use std::{fmt, ops::RangeInclusive, time::Duration};

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use crate::config::GoDuration;

/// How similar an unknown key must be to a known one to be suggested.
const SIMILAR: f64 = 0.6;

/// What is wrong with a document, and where.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Fault {
    /// Counted from 1.
    pub(super) line: usize,
    /// What the line is about; empty where the document is no TOML.
    pub(super) place: String,
    pub(super) reason: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { line, place, reason } = self;
        let place = if place.is_empty() { String::new() } else { format!("{place}: ") };
        write!(f, "line {line}: {place}{reason}")
    }
}

/// Parses a document.
pub(super) fn parse(text: &str) -> Result<Spanned<DeTable<'_>>, Fault> {
    DeTable::parse(text).map_err(|error| {
        let line = error.span().map_or(1, |span| line_of(text, span.start));
        Fault { line, place: String::new(), reason: error.message().replace('\n', ", ") }
    })
}

pub(super) fn line_of(text: &str, position: usize) -> usize {
    1 + text.bytes().take(position).filter(|byte| *byte == b'\n').count()
}

/// One table of a document.
pub(super) struct Section<'a> {
    text: &'a str,
    table: &'a DeTable<'a>,
    /// What it is called in messages.
    pub(super) name: String,
    line: usize,
}

impl<'a> Section<'a> {
    /// Makes the section of the whole document.
    pub(super) fn of_document(text: &'a str, document: &'a Spanned<DeTable<'a>>) -> Self {
        Self { text, table: document.get_ref(), name: String::new(), line: 1 }
    }

    /// Says that something is wrong with the section as a whole.
    pub(super) fn fault(&self, reason: impl Into<String>) -> Fault {
        Fault { line: self.line, place: self.name.clone(), reason: reason.into() }
    }

    /// Refuses keys that are not among these.
    pub(super) fn expect_only(&self, known: &[&str]) -> Result<(), Fault> {
        // The first one in the text, whatever the order of the table.
        let unknown = self.table.iter().filter(|(key, _)| !known.contains(&key.get_ref().as_ref()));
        let Some((key, _)) = unknown.min_by_key(|(key, _)| key.span().start) else { return Ok(()) };
        let similarity =
            |candidate: &str| strsim::normalized_damerau_levenshtein(candidate, key.get_ref());
        let nearest = known
            .iter()
            .map(|candidate| (similarity(candidate), candidate))
            .filter(|(similarity, _)| *similarity >= SIMILAR)
            .max_by(|(left, _), (right, _)| left.total_cmp(right));
        let hint = match nearest {
            Some((_, candidate)) => format!("; did you mean {candidate}?"),
            None => format!(" (there are {})", known.join(", ")),
        };
        Err(Fault {
            line: line_of(self.text, key.span().start),
            place: self.place(key.get_ref()),
            reason: format!("unknown key{hint}"),
        })
    }

    fn place(&self, key: &str) -> String {
        if self.name.is_empty() { key.to_owned() } else { format!("{} {key}", self.name) }
    }

    /// Returns the value of a key, if it is there.
    pub(super) fn value(&self, key: &str) -> Option<Value<'a>> {
        let value = self.table.get(key)?;
        Some(Value { text: self.text, value, place: self.place(key) })
    }

    /// Returns the table of a key, if it is there.
    pub(super) fn section(&self, key: &str) -> Result<Option<Self>, Fault> {
        let Some(value) = self.value(key) else { return Ok(None) };
        value.section(format!("[{key}]")).map(Some)
    }

    /// Returns the tables of a key.
    pub(super) fn sections(&self, key: &str) -> Result<Vec<Self>, Fault> {
        self.tables(key, key)
    }

    /// Returns the tables of a key that is called `full` in the text.
    pub(super) fn tables(&self, key: &str, full: &str) -> Result<Vec<Self>, Fault> {
        let Some(value) = self.value(key) else { return Ok(Vec::new()) };
        let name = format!("[[{full}]]");
        let wrong = value.fault(format!("must be tables that begin with {name}"));
        let Some(array) = value.value.get_ref().as_array() else { return Err(wrong) };
        array
            .iter()
            .map(|value| {
                Value { text: self.text, value, place: name.clone() }.section(name.clone())
            })
            .collect()
    }
}

/// One value of a document.
pub(super) struct Value<'a> {
    text: &'a str,
    value: &'a Spanned<DeValue<'a>>,
    place: String,
}

impl<'a> Value<'a> {
    /// Says what is wrong with the value.
    pub(super) fn fault(&self, reason: impl Into<String>) -> Fault {
        let line = line_of(self.text, self.value.span().start);
        Fault { line, place: self.place.clone(), reason: reason.into() }
    }

    /// The line that the value begins in, counted from 1.
    pub(super) fn line(&self) -> usize {
        line_of(self.text, self.value.span().start)
    }

    /// The value as it was parsed.
    pub(super) fn get(&self) -> &'a DeValue<'a> {
        self.value.get_ref()
    }

    fn section(&self, name: String) -> Result<Section<'a>, Fault> {
        let table = self.value.get_ref().as_table();
        let table = table.ok_or_else(|| self.fault("must be a table"))?;
        let line = line_of(self.text, self.value.span().start);
        Ok(Section { text: self.text, table, name, line })
    }

    /// Returns the text, if it is one.
    pub(super) fn as_text(&self) -> Option<&'a str> {
        self.value.get_ref().as_str()
    }

    /// Returns the truth value, if it is one.
    pub(super) fn as_boolean(&self) -> Option<bool> {
        self.value.get_ref().as_bool()
    }

    /// Returns the number, if it is a whole one that is not negative.
    pub(super) fn as_number(&self) -> Option<u64> {
        let number = self.value.get_ref().as_integer()?;
        u64::from_str_radix(number.as_str(), number.radix()).ok()
    }

    /// Returns the text.
    pub(super) fn text(&self) -> Result<&'a str, Fault> {
        self.as_text().ok_or_else(|| self.fault("must be a text in quotes"))
    }

    /// Returns the truth value.
    pub(super) fn boolean(&self) -> Result<bool, Fault> {
        self.as_boolean().ok_or_else(|| self.fault("must be true or false"))
    }

    /// Returns a number of this range.
    pub(super) fn number<T>(&self, range: RangeInclusive<T>) -> Result<T, Fault>
    where
        T: TryFrom<u64> + PartialOrd + fmt::Display,
    {
        let number = self.as_number().and_then(|number| T::try_from(number).ok());
        number.filter(|number| range.contains(number)).ok_or_else(|| {
            self.fault(format!("must be a number from {} to {}", range.start(), range.end()))
        })
    }

    /// Returns the text as something that is written as text; `example` is how.
    pub(super) fn parsed<T: std::str::FromStr>(&self, example: &str) -> Result<T, Fault> {
        let text = self.text()?;
        text.parse().map_err(|_| self.fault(format!("{text:?} is not {example}")))
    }

    /// Returns a duration from the first to the last of these, which are given with how they are written.
    pub(super) fn duration(
        &self,
        [(shortest, least), (longest, most)]: [(&str, Duration); 2],
    ) -> Result<Duration, Fault> {
        let duration: GoDuration = self.parsed("a duration like 30s or 5m")?;
        let duration = duration.to_duration().filter(|it| (least..=most).contains(it));
        duration.ok_or_else(|| self.fault(format!("must be from {shortest} to {longest}")))
    }

    /// Returns the values of a list.
    pub(super) fn list(&self) -> Result<Vec<Self>, Fault> {
        let array = self.value.get_ref().as_array();
        let array = array.ok_or_else(|| self.fault("must be a list in brackets"))?;
        let value = |value| Self { text: self.text, value, place: self.place.clone() };
        Ok(array.iter().map(value).collect())
    }
}
