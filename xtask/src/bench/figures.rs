//! Medians over the rounds, ratios of them, and whether a bar is met.

use std::fmt;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use super::case::{Bar, Beside, Number, Reading, Row};

/// The answers of one round, by run and load; a run that was left out has none.
pub(super) type Round = Vec<Vec<Value>>;

/// One row of the report.
pub(super) struct Measured {
    pub(super) label: &'static str,
    pub(super) figure: Spread,
    pub(super) beside: Beside,
    /// The spread of `beside`, if there is such a thing.
    pub(super) other: Option<Spread>,
    pub(super) bar: Bar,
}

impl Measured {
    /// Reads a row from all rounds.
    ///
    /// # Errors
    ///
    /// If an answer lacks a number.
    pub(super) fn of(row: &Row, rounds: &[Round]) -> Result<Self> {
        let other = row.beside.reading().map(|reading| Spread::of(reading, rounds)).transpose()?;
        Ok(Self {
            label: row.label,
            figure: Spread::of(row.figure, rounds)?,
            beside: row.beside,
            other,
            bar: row.bar,
        })
    }

    /// Returns the median divided by the other side's, unless that is nothing.
    pub(super) fn ratio(&self) -> Option<f64> {
        let other = self.other?.median;
        (other != 0.0).then(|| self.figure.median / other)
    }

    /// Whether the bar is met; `None` where there is none.
    pub(super) fn is_met(&self) -> Option<bool> {
        match self.bar {
            Bar::Nothing => None,
            Bar::Value(limit) => Some(limit.allows(self.figure.median)),
            // Beside nothing at all, what is itself nothing is equal.
            Bar::Ratio(limit) => Some(match self.ratio() {
                Some(ratio) => limit.allows(ratio),
                None => limit.allows(if self.figure.median == 0.0 { 1.0 } else { f64::INFINITY }),
            }),
        }
    }
}

/// The middle and the extremes of one figure over the rounds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Spread {
    least: f64,
    median: f64,
    most: f64,
}

impl Spread {
    /// Median, least and most.
    pub(super) fn to_json(self) -> Value {
        json!({ "median": self.median, "least": self.least, "most": self.most })
    }

    fn of(reading: Reading, rounds: &[Round]) -> Result<Self> {
        let values = rounds.iter().map(|round| read(reading, round)).collect::<Result<_>>()?;
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
        let Self { least, median, most } = *self;
        let digits = decimals(median);
        write!(f, "{median:.digits$} ({least:.digits$} to {most:.digits$})")
    }
}

/// Returns how many decimals show three digits of a number.
pub(super) fn decimals(value: f64) -> usize {
    match value.abs() {
        0.0 | 10.0..100.0 => 1,
        0.0..0.1 => 4,
        0.1..1.0 => 3,
        1.0..10.0 => 2,
        _ => 0,
    }
}

fn read(reading: Reading, round: &Round) -> Result<f64> {
    let answer = round.get(reading.run).and_then(|loads| loads.get(reading.load));
    let answer = answer.with_context(|| format!("{reading:?} was not measured"))?;
    let number = |key: &str| {
        answer
            .pointer(&format!("/{key}"))
            .and_then(Value::as_f64)
            .with_context(|| format!("the load generator's answer has no number {key:?}: {answer}"))
    };
    match reading.number {
        Number::Of(key) => number(key),
        Number::Growth(before, after) => Ok(number(after)? - number(before)?),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{
        super::case::Limit::{AtLeast, AtMost, Under},
        *,
    };

    fn flat(median: f64) -> Spread {
        Spread { least: median, median, most: median }
    }

    fn measured(figure: f64, other: Option<f64>, bar: Bar) -> Measured {
        let beside = Beside::Nothing;
        Measured { label: "", figure: flat(figure), beside, other: other.map(flat), bar }
    }

    #[test]
    fn medians_of_odd_and_even_counts() {
        let odd = Spread::among(vec![5.0, 1.0, 2.0]);
        assert_eq!(odd, Some(Spread { least: 1.0, median: 2.0, most: 5.0 }));
        let even = Spread::among(vec![4.0, 1.0, 2.0, 3.0]).map(|spread| spread.median);
        assert_eq!(even, Some(2.5));
        assert_eq!(Spread::among(Vec::new()), None);
    }

    #[test]
    fn three_digits_are_shown() {
        let shown = |value: f64| format!("{value:.*}", decimals(value));
        let texts = [3052.4, 145.2, 21.5, 9.861, 0.4587, 0.02431, 0.0].map(shown);
        assert_eq!(texts, ["3052", "145", "21.5", "9.86", "0.459", "0.0243", "0.0"]);
        assert_eq!(flat(2.0).to_string(), "2.00 (2.00 to 2.00)");
    }

    #[test]
    fn bars_on_ratios() {
        let is_met =
            |figure, other, limit| measured(figure, Some(other), Bar::Ratio(limit)).is_met();
        assert_eq!(is_met(4.5, 10.0, AtMost(0.45)), Some(true));
        assert_eq!(is_met(4.6, 10.0, AtMost(0.45)), Some(false));
        assert_eq!(is_met(300.0, 10.0, AtLeast(30.0)), Some(true));
        assert_eq!(is_met(299.0, 10.0, AtLeast(30.0)), Some(false));
        assert_eq!(is_met(0.0, 0.0, AtMost(1.1)), Some(true));
        assert_eq!(is_met(1.0, 0.0, AtMost(1.1)), Some(false));
        assert_eq!(measured(2.0, Some(1.0), Bar::Nothing).ratio(), Some(2.0));
        assert_eq!(measured(2.0, Some(1.0), Bar::Nothing).is_met(), None);
    }

    #[test]
    fn bars_on_values() {
        let is_met = |figure, limit| measured(figure, None, Bar::Value(limit)).is_met();
        assert_eq!(is_met(0.0, AtMost(0.0)), Some(true));
        assert_eq!(is_met(0.001, AtMost(0.0)), Some(false));
        assert_eq!(is_met(1.0, Under(1.0)), Some(false));
        assert_eq!(measured(1.0, None, Bar::Nothing).ratio(), None);
    }

    #[test]
    fn numbers_are_found_by_run_load_and_key() {
        let round =
            vec![vec![], vec![json!({}), json!({ "a": { "b": 3 }, "before": 5, "after": 7.5 })]];
        let at = |run, load, number| read(Reading { run, load, number }, &round);
        assert_eq!(at(1, 1, Number::Of("a/b")).unwrap(), 3.0);
        assert_eq!(at(1, 1, Number::Growth("before", "after")).unwrap(), 2.5);
        let error = at(1, 0, Number::Of("p50_us")).expect_err("no such key");
        assert!(error.to_string().contains("p50_us"), "{error}");
        at(0, 0, Number::Of("a")).expect_err("no such answer");
    }
}
