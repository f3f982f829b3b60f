//! The companion of a tailscaled, in the Prometheus text.

use super::Report;
use crate::{
    companion::{CompanionView, Failure, Standing, Status},
    metrics::families::{Families, Sample},
};

impl Report {
    pub(super) fn companion(&self, families: &mut Families) {
        let Some(companion) = &self.companion else { return };
        let CompanionView { status, sessions, answers, failures, flushes, suspicions } = companion;
        families.gauge(
            "derpd_companion_accompanying",
            "1 while the kernel forwards what tailscaled's peer relay says it may, else 0.",
            f64::from(u8::from(matches!(status, Status::Accompanying { .. }))),
        );
        families.counter(
            "derpd_companion_answers_total",
            "Lists of sessions that tailscaled has given.",
            *answers,
        );
        families.counters(
            "derpd_companion_failures_total",
            "Questions after which everything was left to tailscaled, by why.",
            Failure::ALL.into_iter().zip(failures).map(|(failure, count)| Sample {
                labels: [("reason", failure.label())],
                value: *count as f64,
            }),
        );
        families.counter(
            "derpd_companion_flushes_total",
            "Times that all flows of tailscaled were taken from the kernel at once.",
            *flushes,
        );
        families.gauges(
            "derpd_companion_sessions",
            "Sessions of tailscaled's peer relay, by whether the kernel forwards them, or why not.",
            Standing::ALL.into_iter().zip(sessions).map(|(standing, count)| Sample {
                labels: [("state", standing.label())],
                value: *count as f64,
            }),
        );
        families.counter(
            "derpd_companion_suspicions_total",
            "Times that a flow was left to tailscaled for a while because a client bound anew.",
            *suspicions,
        );
    }
}
