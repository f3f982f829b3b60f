//! What `/bootstrap-dns` was asked.

use super::Report;
use crate::metrics::families::Families;

impl Report {
    pub(super) fn bootstrap(&self, families: &mut Families) {
        let counts = &self.bootstrap;
        for (name, help, value) in [
            (
                "bootstrap_dns_published_hits",
                "Questions for a published name with addresses.",
                counts.published_hits,
            ),
            (
                "bootstrap_dns_published_misses",
                "Questions for a published name without addresses.",
                counts.published_misses,
            ),
            (
                "bootstrap_dns_queried_domains",
                "Distinct names asked for; begins anew beyond 500.",
                counts.queried_domains,
            ),
            ("bootstrap_dns_requests", "Requests for /bootstrap-dns.", counts.requests),
            (
                "bootstrap_dns_unpublished_hits",
                "Questions for an unpublished name with addresses.",
                counts.unpublished_hits,
            ),
            (
                "bootstrap_dns_unpublished_misses",
                "Questions for a name that is not published.",
                counts.unpublished_misses,
            ),
            (
                "bootstrap_dns_unpublished_percent_misses",
                "Questions for an unpublished name that its percentage held back.",
                counts.unpublished_percent_misses,
            ),
        ] {
            families.counter(name, help, value);
        }
    }
}
