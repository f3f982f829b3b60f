//! What SIGHUP does: reads every file that may change again, and takes all of it into use or nothing.

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use anyhow::Result;
use derp_user::{
    admit::Admission,
    config,
    metrics::Reloads,
    proto::keys::NodePublic,
    relay::limit::RateLimit,
    server::{Rates, Statistics},
};

use crate::{certificates::Source, udp::UdpReloader};

/// Everything that can be reloaded.
pub(crate) struct Reloader {
    pub(crate) admission: Arc<Admission>,
    /// The certificates of the TLS listener, if it is one.
    pub(crate) certificates: Option<Arc<Source>>,
    /// The limits that clients follow and the file they are in.
    pub(crate) rates: Option<(Arc<Rates>, PathBuf)>,
    /// The configuration file, if there is one.
    pub(crate) udp: Option<UdpReloader>,
    pub(crate) statistics: Arc<Statistics>,
    pub(crate) count: Arc<Counts>,
}

/// How reloading went.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    good: AtomicU64,
    bad: AtomicU64,
}

impl Counts {
    pub(crate) fn read(&self) -> Reloads {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Reloads { good: read(&self.good), bad: read(&self.bad) }
    }
}

impl Reloader {
    /// Reloads everything, and logs what came of it. Lines about the rate file are worded as derper's.
    pub(crate) fn reload(&self) {
        match &self.rates {
            Some((_, path)) => tracing::info!(
                "derper: received SIGHUP, reloading rate config from {}",
                path.display()
            ),
            None => tracing::info!("derper: received SIGHUP, reloading"),
        }
        match self.try_reload() {
            Ok(changes) => {
                self.count.good.fetch_add(1, Ordering::Relaxed);
                for change in &changes {
                    tracing::info!("{change}");
                }
                if changes.is_empty() {
                    tracing::info!("derper: nothing to reload: no file that may change is in use");
                }
            }
            Err(error) => {
                self.count.bad.fetch_add(1, Ordering::Relaxed);
                let error = crate::in_words(&error);
                tracing::error!("derper: reload failed, nothing has changed: {error}");
            }
        }
    }

    fn try_reload(&self) -> Result<Vec<String>> {
        let rates = match &self.rates {
            Some((rates, path)) => Some((rates, config::load_rate_limit(path)?)),
            None => None,
        };
        let prepared = self.admission.prepare()?;
        let fresh = match &self.certificates {
            Some(source) => Some((source, source.prepare()?)),
            None => None,
        };
        let mut changes = match &self.udp {
            // The kernel can refuse, so this is taken into use first.
            Some(udp) => udp.apply(udp.prepare()?)?,
            None => Vec::new(),
        };
        // Nothing below can fail.
        if let Some((rates, limit)) = rates {
            rates.set(limit);
            changes.push(rate_line(limit));
            changes.push("derper: rate config reloaded successfully".to_owned());
        }
        changes.extend(fresh.and_then(|(source, fresh)| source.apply(fresh)));
        changes.extend(self.admission.apply(prepared, &|keys| self.disconnect(keys)));
        Ok(changes)
    }

    /// Ends the connections of keys that have been taken off the lists.
    pub(crate) fn disconnect(&self, keys: &[NodePublic]) {
        self.statistics.disconnect(keys);
    }
}

/// Says which limit is in force, as derper does.
pub(crate) fn rate_line(limit: Option<RateLimit>) -> String {
    let (rate, burst) = limit.map_or((0, 0), |limit| (limit.bytes_per_second, limit.burst));
    format!("rate config applied: client-rate={rate} bytes/sec, client-burst={burst} bytes")
}
