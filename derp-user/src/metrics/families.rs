//! Short ways to build the metric families that the text encoder takes.

use prometheus::proto::{
    Bucket, Counter, Gauge, Histogram, LabelPair, Metric, MetricFamily, MetricType,
};

use super::HistogramTotals;

/// One value with its labels.
pub(super) struct Sample<'a, const LABELS: usize> {
    /// Label names and values.
    pub(super) labels: [(&'a str, &'a str); LABELS],
    /// The value.
    pub(super) value: f64,
}

/// Collects families in the order in which they are added.
#[derive(Default)]
pub(super) struct Families(Vec<MetricFamily>);

impl Families {
    /// The families, for the encoder.
    pub(super) fn as_slice(&self) -> &[MetricFamily] {
        &self.0
    }

    /// Adds a counter without labels.
    pub(super) fn counter(&mut self, name: &str, help: &str, value: u64) {
        self.counters(name, help, [Sample { labels: [], value: value as f64 }]);
    }

    /// Adds a counter with one value per label set.
    pub(super) fn counters<'a, const LABELS: usize>(
        &mut self,
        name: &str,
        help: &str,
        samples: impl IntoIterator<Item = Sample<'a, LABELS>>,
    ) {
        let metrics = samples.into_iter().map(|sample| {
            let mut counter = Counter::default();
            counter.set_value(sample.value);
            let mut metric = Metric::from_label(label_pairs(&sample.labels));
            metric.set_counter(counter);
            metric
        });
        self.push(name, help, MetricType::COUNTER, metrics.collect());
    }

    /// Adds a gauge without labels.
    pub(super) fn gauge(&mut self, name: &str, help: &str, value: f64) {
        self.gauges(name, help, [Sample { labels: [], value }]);
    }

    /// Adds a gauge with one value per label set.
    pub(super) fn gauges<'a, const LABELS: usize>(
        &mut self,
        name: &str,
        help: &str,
        samples: impl IntoIterator<Item = Sample<'a, LABELS>>,
    ) {
        let metrics = samples.into_iter().map(|sample| {
            let mut gauge = Gauge::default();
            gauge.set_value(sample.value);
            let mut metric = Metric::from_label(label_pairs(&sample.labels));
            metric.set_gauge(gauge);
            metric
        });
        self.push(name, help, MetricType::GAUGE, metrics.collect());
    }

    /// Adds a histogram.
    pub(super) fn histogram<const N: usize>(
        &mut self,
        name: &str,
        help: &str,
        totals: &HistogramTotals<N>,
    ) {
        let buckets = totals.cumulative().map(|(bound, count)| {
            let mut bucket = Bucket::default();
            bucket.set_upper_bound(bound as f64);
            bucket.set_cumulative_count(count);
            bucket
        });
        let mut histogram = Histogram::default();
        histogram.set_bucket(buckets.into());
        histogram.set_sample_count(totals.count());
        histogram.set_sample_sum(totals.sum as f64);
        let mut metric = Metric::default();
        metric.set_histogram(histogram);
        self.push(name, help, MetricType::HISTOGRAM, vec![metric]);
    }

    fn push(&mut self, name: &str, help: &str, kind: MetricType, metrics: Vec<Metric>) {
        // The encoder refuses a family without samples.
        if metrics.is_empty() {
            return;
        }
        let mut family = MetricFamily::default();
        family.set_name(name.to_owned());
        family.set_help(help.to_owned());
        family.set_field_type(kind);
        family.set_metric(metrics);
        self.0.push(family);
    }
}

fn label_pairs(labels: &[(&str, &str)]) -> Vec<LabelPair> {
    let pair = |&(name, value): &(&str, &str)| {
        let mut pair = LabelPair::default();
        pair.set_name(name.to_owned());
        pair.set_value(value.to_owned());
        pair
    };
    labels.iter().map(pair).collect()
}
