//! The README quotes measurements: what it says must be in the report.

use std::{collections::BTreeSet, fs};

use crate::workspace;

/// The numbers in a text, as they are written.
fn numbers(text: &str) -> BTreeSet<&str> {
    text.split(|letter: char| !(letter.is_ascii_digit() || letter == '.' || letter == ','))
        .map(|word| word.trim_matches(['.', ',']))
        .filter(|word| word.starts_with(|letter: char| letter.is_ascii_digit()))
        .collect()
}

#[test]
fn the_readme_quotes_what_was_measured() {
    let root = workspace::root();
    let read = |name: &str| fs::read_to_string(root.join(name)).expect("it is there");
    let (readme, report) = (read("README.md"), read("docs/BENCHMARKS.md"));
    let known = numbers(&report);
    let table = readme
        .split_once("<!-- measured: begin")
        .and_then(|(_, rest)| rest.split_once("<!-- measured: end -->"))
        .map(|(table, _)| table)
        .expect("the table is marked");
    let rows: Vec<_> = table.lines().filter(|line| line.starts_with('|')).skip(2).collect();
    assert!(rows.len() > 3, "{table}");
    for row in rows {
        let figures = row.split('|').skip(2).collect::<Vec<_>>().join("|");
        let figures = numbers(&figures);
        assert!(figures.len() >= 2, "{row}");
        let unknown: Vec<_> = figures.difference(&known).collect();
        assert!(
            unknown.is_empty(),
            "docs/BENCHMARKS.md has no {unknown:?}, which README.md claims: {row}"
        );
    }
}
