//! What the relay says of itself, read once and asked several times.

use crate::lab::Daemon;

/// One reading of `/debug/varz`.
pub(crate) struct Metrics(Vec<(String, f64)>);

impl Metrics {
    pub(crate) fn read(daemon: &Daemon) -> Self {
        let text = daemon.get("/debug/varz").expect("metrics");
        let sample = |line: &str| {
            let (name, value) = line.rsplit_once(' ')?;
            Some((name.to_owned(), value.parse().ok()?))
        };
        Self(text.lines().filter(|line| !line.starts_with('#')).filter_map(sample).collect())
    }

    /// The sum over the label sets of a metric that contain all of `labels`.
    pub(crate) fn sum(&self, name: &str, labels: &[&str]) -> u64 {
        let is_meant = |sample: &str| {
            sample.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with('{'))
                && labels.iter().all(|label| sample.contains(label))
        };
        let sum: f64 = self.0.iter().filter(|(it, _)| is_meant(it)).map(|(_, value)| value).sum();
        sum as u64
    }

    /// The same for several label sets, added up.
    pub(crate) fn sum_any(&self, name: &str, labels: &[&str]) -> u64 {
        labels.iter().map(|label| self.sum(name, &[label])).sum()
    }

    /// The label sets of a metric that are not 0, with their values.
    pub(crate) fn each(&self, name: &str) -> Vec<(String, u64)> {
        let labels = |(sample, value): &(String, f64)| {
            let labels = sample.strip_prefix(name)?.strip_prefix('{')?.strip_suffix('}')?;
            (*value != 0.0).then(|| (labels.to_owned(), *value as u64))
        };
        self.0.iter().filter_map(labels).collect()
    }
}
