//! The process: what every Prometheus client tells of it, and its version.

use std::time::UNIX_EPOCH;

use super::Report;
use crate::metrics::{
    families::{Families, Sample},
    process::ProcessFigures,
};

impl Report {
    pub(super) fn process(&self, families: &mut Families) {
        let figures = match ProcessFigures::read() {
            Ok(figures) => figures,
            Err(error) => {
                tracing::debug!("metrics: process figures: {error}");
                return;
            }
        };
        for (name, help, value) in [
            (
                "process_cpu_seconds_total",
                "Total user and system CPU time spent in seconds.",
                figures.cpu_seconds,
            ),
            (
                "process_network_receive_bytes_total",
                "Bytes that this network namespace has received.",
                figures.received_bytes,
            ),
            (
                "process_network_transmit_bytes_total",
                "Bytes that this network namespace has sent.",
                figures.sent_bytes,
            ),
        ] {
            families.counters(name, help, [Sample { labels: [], value }]);
        }
        for (name, help, value) in [
            ("process_max_fds", "Maximum number of open file descriptors.", figures.max_files),
            ("process_open_fds", "Number of open file descriptors.", figures.open_files),
            (
                "process_resident_memory_bytes",
                "Resident memory size in bytes.",
                figures.resident_bytes,
            ),
            (
                "process_start_time_seconds",
                "Start time of the process since the Unix epoch in seconds.",
                figures.started,
            ),
            (
                "process_virtual_memory_bytes",
                "Virtual memory size in bytes.",
                figures.virtual_bytes,
            ),
            (
                "process_virtual_memory_max_bytes",
                "Maximum amount of virtual memory in bytes.",
                figures.max_virtual_bytes,
            ),
            (
                "node_boot_time_seconds",
                "Start time of the machine since the Unix epoch in seconds.",
                figures.booted,
            ),
            (
                "derp_current_file_descriptors",
                "Number of open file descriptors.",
                figures.open_files,
            ),
        ] {
            families.gauge(name, help, value);
        }
    }

    pub(super) fn program(&self, families: &mut Families) {
        let started = self.started.duration_since(UNIX_EPOCH).unwrap_or_default();
        families.gauge(
            "process_start_unix_time",
            "Start time of the process since the Unix epoch in seconds.",
            started.as_secs() as f64,
        );
        families.counter("uptime_sec", "Seconds since the process started.", self.uptime.as_secs());
        families.gauges(
            "version",
            "1, with the version of the program.",
            [Sample { labels: [("version", self.version), ("binary", "derpd")], value: 1.0 }],
        );
        families.gauges(
            "derpd_sandbox_in_force",
            "1 if a layer of the sandbox is in force.",
            self.sandbox.iter().map(|(layer, is_in_force)| Sample {
                labels: [("layer", *layer)],
                value: f64::from(u8::from(*is_in_force)),
            }),
        );
    }
}
