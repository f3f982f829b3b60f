//! Medians, ratios and the Markdown page.

use std::{fmt, fmt::Write as _, fs, path::Path, time::Duration};

use anyhow::{Context as _, Result};
use serde_json::Value;

use super::{
    DERPER_VERSION,
    cases::{Better, Case, Figure},
};
use crate::{
    go,
    process::{self, CommandExt as _},
    workspace,
};

const BEGIN: &str = "<!-- bench: begin, written by `cargo xtask bench` -->";
const END: &str = "<!-- bench: end -->";

/// The generator's answers for one case, one per round.
#[derive(Default)]
pub(super) struct Samples {
    pub(super) derper: Vec<Value>,
    pub(super) derpd: Vec<Value>,
}

/// The comparison as Markdown.
pub(super) struct Report {
    setting: String,
    rows: Vec<Row>,
}

struct Row {
    case: &'static str,
    figure: &'static str,
    better: Better,
    derper: Spread,
    derpd: Spread,
}

/// The middle and the extremes of one figure over the rounds.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Spread {
    least: f64,
    median: f64,
    most: f64,
}

impl Report {
    pub(super) fn new(
        rounds: u32,
        duration: Duration,
        results: &[(&'static Case, Samples)],
    ) -> Result<Self> {
        let mut rows = Vec::new();
        for (case, samples) in results {
            for figure in case.figures {
                rows.push(Row {
                    case: case.name,
                    figure: figure.label,
                    better: figure.better,
                    derper: Spread::of(&samples.derper, figure)?,
                    derpd: Spread::of(&samples.derpd, figure)?,
                });
            }
        }
        Ok(Self { setting: setting(rounds, duration)?, rows })
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
        writeln!(f, "{}\n", self.setting)?;
        writeln!(f, "| Load | Figure | derper | derpd | derpd : derper | |")?;
        writeln!(f, "| --- | --- | ---: | ---: | ---: | --- |")?;
        for row in &self.rows {
            let verdict = if row.is_worse() { "worse" } else { "" };
            writeln!(
                f,
                "| {} | {} | {} | {} | {} | {verdict} |",
                row.case,
                row.figure,
                row.derper,
                row.derpd,
                row.ratio()
            )?;
        }
        Ok(())
    }
}

impl Row {
    fn ratio(&self) -> String {
        if self.derper.median == 0.0 {
            "-".to_owned()
        } else {
            format!("{:.2}", self.derpd.median / self.derper.median)
        }
    }

    fn is_worse(&self) -> bool {
        match self.better {
            Better::Less => self.derpd.median > self.derper.median,
            Better::More => self.derpd.median < self.derper.median,
        }
    }
}

impl Spread {
    fn of(samples: &[Value], figure: &Figure) -> Result<Self> {
        let values: Vec<f64> = samples
            .iter()
            .map(|sample| {
                sample.get(figure.key).and_then(Value::as_f64).with_context(|| {
                    format!("the load generator's answer has no number {:?}: {sample}", figure.key)
                })
            })
            .collect::<Result<_>>()?;
        Self::among(values).context("no round was run")
    }

    fn among(mut values: Vec<f64>) -> Option<Self> {
        values.sort_by(f64::total_cmp);
        let (least, most) = (*values.first()?, *values.last()?);
        let above = *values.get(values.len() / 2)?;
        let below = *values.get((values.len() - 1) / 2)?;
        Some(Self { least, median: f64::midpoint(below, above), most })
    }
}

impl fmt::Display for Spread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = |value: f64| if value.abs() < 100.0 { 2 } else { 0 };
        let Self { least, median, most } = *self;
        let precision = digits(median);
        write!(f, "{median:.precision$} ({least:.precision$} to {most:.precision$})")
    }
}

/// Says when, on what and with which versions the figures were taken.
fn setting(rounds: u32, duration: Duration) -> Result<String> {
    let date = process::command("date").args(["-u", "+%Y-%m-%d"]).read()?;
    let commit = process::command("git")
        .current_dir(workspace::root())
        .args(["describe", "--always", "--dirty"])
        .read()
        .unwrap_or_else(|_| "unknown".to_owned());
    let rust = process::command("rustc").arg("--version").read()?;
    let go = go::check_version().unwrap_or_else(|_| "unknown".to_owned());
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let cpus = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    let mut text = String::new();
    write!(
        text,
        "{}: derper {DERPER_VERSION} ({go}) and derpd {} ({}) on {cpus} CPUs of {}, Linux {}. \
         Rounds in turns: {rounds}, {} s of load each, on loopback, with a new server process per \
         run; the load generator shares the CPUs. Median (least to most).",
        date.trim(),
        commit.trim(),
        rust.trim(),
        cpu_model(),
        kernel.trim(),
        duration.as_secs()
    )?;
    Ok(text)
}

fn cpu_model() -> String {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = text.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    model.map_or_else(|| "unknown model".to_owned(), |(_, name)| name.to_owned())
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
    use super::*;

    #[test]
    fn medians_of_odd_and_even_counts() {
        let odd = Spread::among(vec![5.0, 1.0, 2.0]);
        assert_eq!(odd, Some(Spread { least: 1.0, median: 2.0, most: 5.0 }));
        let even = Spread::among(vec![4.0, 1.0, 2.0, 3.0]).map(|spread| spread.median);
        assert_eq!(even, Some(2.5));
        assert_eq!(Spread::among(Vec::new()), None);
    }

    #[test]
    fn worse_depends_on_the_figure() {
        let flat = |median| Spread { least: median, median, most: median };
        let row =
            |better| Row { case: "c", figure: "f", better, derper: flat(1.0), derpd: flat(2.0) };
        assert!(row(Better::Less).is_worse());
        assert!(!row(Better::More).is_worse());
        assert_eq!(row(Better::More).ratio(), "2.00");
    }

    #[test]
    fn a_missing_figure_is_an_error() {
        let figure = Figure { key: "p50_us", label: "median", better: Better::Less };
        let error = Spread::of(&[serde_json::json!({})], &figure).expect_err("no such key");
        assert!(error.to_string().contains("p50_us"), "{error}");
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
