//! The other servers of the region.

use super::Report;
use crate::metrics::families::Families;

impl Report {
    pub(super) fn mesh(&self, families: &mut Families) {
        let (totals, gauges) = (&self.totals, &self.gauges);
        for (name, help, value) in [
            (
                "derp_multiforwarder_created",
                "Times that a key was found behind a second mesh peer.",
                gauges.multi_forwarders_created,
            ),
            (
                "derp_multiforwarder_deleted",
                "Times that a key was left behind one mesh peer of several.",
                gauges.multi_forwarders_deleted,
            ),
            (
                "derp_packet_forwarder_delete_other_value",
                "Times that a mesh peer took back a key that is elsewhere.",
                gauges.forwarders_deleted_other,
            ),
            (
                "derpd_mesh_connects_total",
                "Links to mesh peers that came to stand.",
                totals.mesh_connects,
            ),
            (
                "derpd_mesh_failures_total",
                "Attempts to connect to a mesh peer that failed, and links that broke.",
                totals.mesh_failures,
            ),
            (
                "derpd_mesh_keys_refused_total",
                "Times that a mesh peer announced a key beyond the most that one may.",
                totals.mesh_keys_refused,
            ),
            (
                "derpd_mesh_packets_dropped_total",
                "Packets for mesh peers dropped because the link was full or had ended.",
                totals.forwards_dropped,
            ),
        ] {
            families.counter(name, help, value);
        }
        families.histogram(
            "derp_mesh_update_batch_size",
            "News in one batch for a watcher.",
            &totals.mesh_update_batch_size,
        );
        families.histogram(
            "derp_mesh_update_loop_count",
            "Batches that a watcher got in one go.",
            &totals.mesh_update_loop_count,
        );
        let help = "Links to mesh peers that stand.";
        families.gauge("derpd_mesh_links", help, gauges.mesh_links as f64);
        self.mesh.add_to(families);
    }
}
