//! The Markdown page.

use std::{fmt, fs, path::Path};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use super::{
    case::{Bar, Beside, Limit},
    figures::{Measured, Spread, decimals},
};

const BEGIN: &str = "<!-- bench: begin, written by `cargo xtask bench` -->";
const END: &str = "<!-- bench: end -->";

/// The comparison as Markdown.
pub(super) struct Report {
    /// How, when, on what and with which versions the figures were taken.
    pub(super) setting: String,
    pub(super) tables: Vec<Table>,
    /// What was left out, and why.
    pub(super) missing: Vec<String>,
}

/// What one witness has measured.
pub(super) struct Table {
    pub(super) title: &'static str,
    /// The rows of each case.
    pub(super) cases: Vec<(&'static str, Vec<Measured>)>,
}

impl Report {
    /// The same as one JSON object.
    pub(super) fn to_json(&self) -> Value {
        let rows = self.tables.iter().flat_map(|table| {
            let rows = table.cases.iter().flat_map(|(case, rows)| {
                rows.iter().map(move |row| {
                    json!({
                        "measured_by": table.title,
                        "case": case,
                        "figure": row.label,
                        "derpd": row.figure.to_json(),
                        "other": row.other.map(Spread::to_json),
                        "ratio": row.ratio(),
                        "bar": row.bar.to_string(),
                        "is_met": row.is_met(),
                    })
                })
            });
            rows.collect::<Vec<_>>()
        });
        let rows: Vec<_> = rows.collect();
        json!({ "setting": self.setting, "rows": rows, "not_measured": self.missing })
    }

    /// Replaces what is between the markers of `file`, or adds it at the end.
    pub(super) fn write_into(&self, file: &Path) -> Result<()> {
        let page = fs::read_to_string(file).unwrap_or_else(|_| "# Benchmarks\n\n".to_owned());
        fs::write(file, replaced(&page, &self.to_string()))
            .with_context(|| format!("writing {}", file.display()))
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.setting)?;
        self.tables.iter().try_for_each(|table| write!(f, "\n{table}"))?;
        self.missing.iter().try_for_each(|what| writeln!(f, "\nNot measured: {what}"))
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdicts = || self.cases.iter().flat_map(|(_, rows)| rows).filter_map(Measured::is_met);
        let (met, all) = (verdicts().filter(|&is_met| is_met).count(), verdicts().count());
        writeln!(f, "### {}\n\nBars met: {met} of {all}.\n", self.title)?;
        writeln!(f, "| Case | Figure | derper, or as named | derpd | ratio | bar | |")?;
        writeln!(f, "| --- | --- | ---: | ---: | ---: | ---: | --- |")?;
        for (name, rows) in &self.cases {
            rows.iter().try_for_each(|row| writeln!(f, "| {name} {row}"))?;
        }
        Ok(())
    }
}

/// A row from its second column on.
impl fmt::Display for Measured {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let other = match (self.beside, self.other) {
            (Beside::Itself(circumstances, _), Some(spread)) => {
                format!("{circumstances}: {spread}")
            }
            (Beside::Derper(_), Some(spread)) => spread.to_string(),
            (_, None) | (Beside::Nothing, _) => String::new(),
        };
        let ratio = match (self.ratio(), self.other) {
            (Some(ratio), _) => format!("{ratio:.*}", decimals(ratio)),
            (None, Some(_)) => "-".to_owned(),
            (None, None) => String::new(),
        };
        let verdict = match self.is_met() {
            Some(true) => "met",
            Some(false) => "**missed**",
            None => "",
        };
        let Self { label, figure, bar, .. } = self;
        write!(f, "| {label} | {other} | {figure} | {ratio} | {bar} | {verdict} |")
    }
}

impl fmt::Display for Bar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nothing => Ok(()),
            Self::Value(limit) => write!(f, "{limit}"),
            Self::Ratio(limit) => write!(f, "ratio {limit}"),
        }
    }
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AtLeast(limit) => write!(f, "at least {limit}"),
            Self::AtMost(limit) => write!(f, "at most {limit}"),
            Self::Under(limit) => write!(f, "under {limit}"),
        }
    }
}

fn replaced(page: &str, report: &str) -> String {
    let section = format!("{BEGIN}\n\n{report}\n{END}\n");
    let parts = page.split_once(BEGIN).and_then(|(before, rest)| {
        Some((before, rest.split_once(END)?.1.trim_start_matches('\n')))
    });
    match parts {
        Some((before, "")) => format!("{before}{section}"),
        Some((before, after)) => format!("{before}{section}\n{after}"),
        None => format!("{}\n\n{section}", page.trim_end()),
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{
            case::{Number, Reading, Row},
            figures::Round,
        },
        *,
    };

    fn reading(run: usize) -> Reading {
        Reading { run, load: 0, number: Number::Of("n") }
    }

    #[test]
    fn the_whole_page() {
        let rounds: Vec<Round> = [(10.0, 4.0), (12.0, 5.0), (11.0, 6.0)]
            .map(|(a, b)| vec![vec![json!({ "n": a })], vec![json!({ "n": b })]])
            .into();
        let row = |label, beside, bar| {
            Measured::of(&Row { label, figure: reading(1), beside, bar }, &rounds).unwrap()
        };
        let rows = vec![
            row("CPU", Beside::Derper(reading(0)), Bar::Ratio(Limit::AtMost(0.45))),
            row("lost", Beside::Nothing, Bar::Value(Limit::Under(5.0))),
            row("again", Beside::Itself("alone", reading(1)), Bar::Nothing),
        ];
        let report = Report {
            setting: "How.\n".to_owned(),
            tables: vec![Table { title: "Some load", cases: vec![("10 pairs", rows)] }],
            missing: vec!["the tunnel: no root".to_owned()],
        };
        assert_eq!(
            report.to_string(),
            "How.\n\n\
             ### Some load\n\n\
             Bars met: 0 of 2.\n\n\
             | Case | Figure | derper, or as named | derpd | ratio | bar | |\n\
             | --- | --- | ---: | ---: | ---: | ---: | --- |\n\
             | 10 pairs | CPU | 11.0 (10.0 to 12.0) | 5.00 (4.00 to 6.00) | 0.455 | ratio at most 0.45 | **missed** |\n\
             | 10 pairs | lost |  | 5.00 (4.00 to 6.00) |  | under 5 | **missed** |\n\
             | 10 pairs | again | alone: 5.00 (4.00 to 6.00) | 5.00 (4.00 to 6.00) | 1.00 |  |  |\n\n\
             Not measured: the tunnel: no root\n"
        );
        let rows = &report.to_json()["rows"];
        assert_eq!(rows[0]["derpd"], json!({ "median": 5.0, "least": 4.0, "most": 6.0 }));
        assert_eq!((&rows[1]["is_met"], &rows[1]["other"]), (&json!(false), &Value::Null));
    }

    #[test]
    fn the_page_around_the_report_stays() {
        let first = replaced("# Benchmarks\n\nintro\n", "one\n");
        let page = format!("{first}\nafter\n");
        let second = replaced(&page, "two\n");
        assert!(second.starts_with("# Benchmarks\n\nintro\n\n"), "{second}");
        assert!(second.ends_with(&format!("{END}\n\nafter\n")), "{second}");
        assert!(second.contains("two") && !second.contains("one"));
        assert_eq!(replaced(&second, "two\n"), second);
    }
}
