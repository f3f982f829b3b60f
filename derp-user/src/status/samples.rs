//! The last ten minutes, as a viewer who comes later finds them.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use serde::{Deserialize, Serialize};

use super::{Reading, SERIES, Since};

/// Time between two samples.
pub const PERIOD: Duration = Duration::from_secs(2);
/// Samples that are kept: ten minutes, in some 40 KiB.
pub const KEPT: usize = 300;

/// What became of the readings.
#[derive(Debug)]
pub struct Samples {
    /// When the process started, in milliseconds since the Unix epoch.
    run: u64,
    last: Option<Reading>,
    rows: VecDeque<Row>,
}

#[derive(Clone, Copy, Debug)]
struct Row {
    /// Milliseconds since the Unix epoch.
    time: u64,
    values: [f32; Reading::WIDTH],
}

/// Samples by series.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct History {
    /// Seconds between two samples.
    pub period_seconds: f64,
    /// When each sample was taken, in milliseconds since the Unix epoch; ascending.
    pub times: Vec<u64>,
    /// As many values for each series, by its name; rates are means over the time since the sample before.
    pub series: BTreeMap<String, Vec<f32>>,
}

impl Samples {
    /// No samples yet, of a process that started at `run`, in milliseconds since the Unix epoch.
    pub fn new(run: u64) -> Self {
        Self { run, last: None, rows: VecDeque::with_capacity(KEPT) }
    }

    /// Adds a sample. Of the first reading nothing comes but that later ones can be compared with it.
    pub fn add(&mut self, reading: Reading) {
        if let Some(before) = self.last.replace(reading) {
            if self.rows.len() == KEPT {
                self.rows.pop_front();
            }
            // By the clock that never jumps: a viewer asks for what came after a time.
            let since_start = u64::try_from(reading.at.as_millis()).unwrap_or(u64::MAX);
            let time = self.run.saturating_add(since_start);
            self.rows.push_back(Row { time, values: reading.since(&before) });
        }
    }

    /// The last reading.
    pub fn last(&self) -> Reading {
        self.last.unwrap_or_default()
    }

    /// When the process started, in milliseconds since the Unix epoch.
    pub fn run(&self) -> u64 {
        self.run
    }

    /// What the viewer does not have: everything, if it has seen another run of the process.
    pub fn history(&self, since: Since) -> History {
        let (from, most) = match since {
            Since::Everything => (0, KEPT),
            Since::Last => (0, 1),
            Since::After { run, time } if run == self.run => (time.saturating_add(1), KEPT),
            Since::After { .. } => (0, KEPT),
        };
        let first = self.rows.partition_point(|row| row.time < from);
        let first = first.max(self.rows.len().saturating_sub(most));
        let rows = || self.rows.iter().skip(first);
        let series = SERIES.iter().enumerate().map(|(index, series)| {
            (series.name.to_owned(), rows().map(|row| row.values[index]).collect())
        });
        History {
            period_seconds: PERIOD.as_secs_f64(),
            times: rows().map(|row| row.time).collect(),
            series: series.collect(),
        }
    }
}

impl History {
    /// The newest value of a series; 0 before there is any.
    pub fn newest(&self, series: &str) -> f32 {
        self.series.get(series).and_then(|values| values.last()).copied().unwrap_or_default()
    }

    /// Puts later samples behind these, and forgets the oldest beyond `most`.
    pub fn extend(&mut self, later: Self, most: usize) {
        let last = self.times.last().copied().unwrap_or_default();
        let known = later.times.partition_point(|time| *time <= last);
        let (before, added) = (self.times.len(), later.times.len() - known);
        self.times.extend(&later.times[known..]);
        let surplus = self.times.len().saturating_sub(most);
        self.times.drain(..surplus);
        for (name, values) in later.series {
            let series = self.series.entry(name).or_default();
            // A series that only one of the two versions of the daemon has.
            series.resize(before, f32::NAN);
            series.extend(values.into_iter().skip(known));
        }
        for series in self.series.values_mut() {
            series.resize(before + added, f32::NAN);
            series.drain(..surplus);
        }
        self.period_seconds = later.period_seconds;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reading(second: u64) -> Reading {
        Reading {
            at: Duration::from_secs(second),
            packets_sent: second * second,
            connections: second,
            ..Reading::default()
        }
    }

    fn samples(seconds: impl Iterator<Item = u64>) -> Samples {
        let mut samples = Samples::new(1_000_000);
        seconds.for_each(|second| samples.add(reading(second)));
        samples
    }

    #[test]
    fn a_sample_takes_two_readings_and_the_oldest_goes() {
        let history = samples(0..1).history(Since::Everything);
        assert!(history.times.is_empty() && history.series["packets_sent"].is_empty());
        assert_eq!(history.newest("packets_sent"), 0.0);

        let history = samples(0..3).history(Since::Everything);
        assert_eq!(history.times, [1_001_000, 1_002_000]);
        assert_eq!(history.series["packets_sent"], [1.0, 3.0]);
        assert_eq!(history.series.len(), Reading::WIDTH);

        let full = samples(0..KEPT as u64 + 10).history(Since::Everything);
        assert_eq!((full.times.len(), full.times[0]), (KEPT, 1_010_000));
        assert_eq!(full.newest("connections"), KEPT as f32 + 9.0);
    }

    #[test]
    fn who_has_seen_some_is_told_the_rest() {
        let samples = samples(0..5);
        let times = |since| samples.history(since).times;
        assert_eq!(times(Since::After { run: 1_000_000, time: 1_002_000 }), [1_003_000, 1_004_000]);
        assert_eq!(times(Since::After { run: 1_000_000, time: 1_004_000 }), [0; 0]);
        assert_eq!(times(Since::After { run: 1_000_000, time: u64::MAX }), [0; 0]);
        assert_eq!(times(Since::After { run: 7, time: 1_004_000 }).len(), 4);
        assert_eq!(times(Since::Last), [1_004_000]);
    }

    #[test]
    fn a_viewer_keeps_as_much_as_it_wants() {
        let mut kept = samples(0..4).history(Since::Everything);
        // Overlapping, as after an answer that got lost.
        kept.extend(samples(0..6).history(Since::Everything), 4);
        assert_eq!(kept.times, [1_002_000, 1_003_000, 1_004_000, 1_005_000]);
        assert_eq!(kept.series["connections"], [2.0, 3.0, 4.0, 5.0]);
        // The next version of the daemon counts something else.
        let mut later = samples(6..8).history(Since::Everything);
        let values = later.series.remove("connections").unwrap();
        later.series.insert("new".to_owned(), values);
        kept.extend(later, 4);
        let is_nan =
            |name: &str| kept.series[name].iter().map(|it| it.is_nan()).collect::<Vec<_>>();
        assert_eq!(is_nan("connections"), [false, false, false, true]);
        assert_eq!(is_nan("new"), [true, true, true, false]);
        assert!(kept.series.values().all(|series| series.len() == 4));
    }
}
