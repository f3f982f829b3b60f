//! The sections of a file as they are, for whoever shows them.

use toml::{
    Spanned,
    de::{DeArray, DeTable, DeValue},
};

use super::{
    ConfigFile,
    reader::{self, line_of},
};
use crate::config::{
    Origin,
    show::{Entry, Shown, Table},
};

impl ConfigFile {
    /// The sections in their order, with their values; none of a text that is no TOML.
    pub(in crate::config) fn tables(&self) -> Vec<Table> {
        let mut tables = Vec::new();
        if let Ok(document) = reader::parse(&self.text) {
            for (name, value) in in_order(document.get_ref()) {
                add(&self.text, name, value, &mut tables);
            }
        }
        tables
    }
}

fn in_order<'a>(table: &'a DeTable<'_>) -> Vec<(&'a str, &'a Spanned<DeValue<'a>>)> {
    let mut entries: Vec<_> = table.iter().collect();
    entries.sort_by_key(|(key, _)| key.span().start);
    entries.into_iter().map(|(key, value)| (key.get_ref().as_ref(), value)).collect()
}

/// Adds a section and those in it.
fn add(text: &str, name: &str, value: &Spanned<DeValue<'_>>, tables: &mut Vec<Table>) {
    if let Some(table) = value.get_ref().as_table() {
        add_table(text, name, false, table, tables);
    }
    for value in value.get_ref().as_array().into_iter().flatten() {
        if let Some(table) = value.get_ref().as_table() {
            add_table(text, name, true, table, tables);
        }
    }
}

fn add_table(
    text: &str,
    name: &str,
    is_repeated: bool,
    table: &DeTable<'_>,
    tables: &mut Vec<Table>,
) {
    let (inner, own): (Vec<_>, Vec<_>) =
        in_order(table).into_iter().partition(|(_, value)| is_section(value.get_ref()));
    let entry = |(key, value): (&str, &Spanned<DeValue<'_>>)| {
        let line = line_of(text, value.span().start);
        let shown = shown(value.get_ref());
        Entry {
            key: key.to_owned(),
            flag: None,
            is_secret: shown.has_secret(),
            value: Some(shown),
            origin: Some(Origin::File { line, place: format!("[{name}] {key}") }),
        }
    };
    let entries = own.into_iter().map(entry).collect();
    tables.push(Table { name: name.to_owned(), is_repeated, entries });
    for (key, value) in inner {
        add(text, &format!("{name}.{key}"), value, tables);
    }
}

/// Whether a value has a section of its own: a table, or a list of nothing but tables.
fn is_section(value: &DeValue<'_>) -> bool {
    let is_list = |array: &DeArray<'_>| {
        !array.is_empty() && array.iter().all(|value| value.get_ref().is_table())
    };
    value.is_table() || value.as_array().is_some_and(is_list)
}

fn shown(value: &DeValue<'_>) -> Shown {
    match value {
        DeValue::String(text) => Shown::Text(text.to_string()),
        DeValue::Integer(number) => {
            let decimal = i64::from_str_radix(number.as_str(), number.radix());
            Shown::Bare(decimal.map_or_else(|_| number.as_str().to_owned(), |it| it.to_string()))
        }
        DeValue::Float(number) => Shown::Bare(number.as_str().to_owned()),
        DeValue::Boolean(is_true) => Shown::Bare(is_true.to_string()),
        DeValue::Datetime(time) => Shown::Bare(time.to_string()),
        DeValue::Array(values) => {
            Shown::List(values.iter().map(|value| shown(value.get_ref())).collect())
        }
        DeValue::Table(table) => {
            let entries = in_order(table).into_iter();
            Shown::Table(
                entries.map(|(key, value)| (key.to_owned(), shown(value.get_ref()))).collect(),
            )
        }
    }
}
