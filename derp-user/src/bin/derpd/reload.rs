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
    client::ClientError,
    config::{self, Config, MeshKeySource},
    metrics::Reloads,
    proto::keys::{MeshKey, NodePublic},
    relay::limit::RateLimit,
    server::{MeshReloader, MeshSecret, PreparedMesh, Rates, Statistics},
};

use crate::{certificates::Source, logging::Levels, udp_reload::UdpReloader};

/// Everything that can be reloaded.
pub(crate) struct Reloader {
    pub(crate) admission: Arc<Admission>,
    /// The certificates of the TLS listener, if it is one.
    pub(crate) certificates: Option<Arc<Source>>,
    /// The limits that clients follow and the file they are in.
    pub(crate) rates: Option<(Arc<Rates>, PathBuf)>,
    /// The configuration file, if there is one.
    pub(crate) udp: Option<UdpReloader>,
    pub(crate) mesh: MeshFiles,
    pub(crate) statistics: Arc<Statistics>,
    pub(crate) count: Arc<Counts>,
    pub(crate) levels: Levels,
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
        let mesh = self.mesh.prepare()?;
        let fresh = match &self.certificates {
            Some(source) => Some((source, source.prepare()?)),
            None => None,
        };
        let (log, mut changes) = match &self.udp {
            // The kernel can refuse, so this is taken into use first.
            Some(udp) => {
                let file = udp.prepare()?;
                (file.log(), udp.apply(file)?)
            }
            None => (None, Vec::new()),
        };
        // Nothing below can fail.
        changes.extend(self.levels.apply(log.as_deref()));
        if let Some((rates, limit)) = rates {
            rates.set(limit);
            changes.push(rate_line(limit));
            changes.push("derper: rate config reloaded successfully".to_owned());
        }
        changes.extend(self.mesh.apply(mesh));
        changes.extend(fresh.and_then(|(source, fresh)| source.apply(fresh)));
        changes.extend(self.admission.apply(prepared, &|keys| self.disconnect(keys)));
        Ok(changes)
    }

    /// Ends the connections of keys that have been taken off the lists.
    pub(crate) fn disconnect(&self, keys: &[NodePublic]) {
        self.statistics.disconnect(keys);
    }
}

/// Names the flag that is to blame for what cannot be used of the mesh.
pub(crate) fn mesh_fault(error: ClientError) -> anyhow::Error {
    let flag =
        if matches!(error, ClientError::Roots { .. }) { "-mesh-ca-file" } else { "-mesh-with" };
    anyhow::Error::new(error).context(flag)
}

/// The files of the mesh: its key, and the authorities of `-mesh-ca-file`.
pub(crate) struct MeshFiles {
    pub(crate) config: Arc<Config>,
    pub(crate) secret: Arc<MeshSecret>,
    /// What links are made with, where there are any.
    pub(crate) links: Option<MeshReloader>,
}

impl MeshFiles {
    /// Reads them; `None` if there are none.
    fn prepare(&self) -> Result<Option<(Option<MeshKey>, Option<PreparedMesh>)>> {
        if self.config.mesh_key == MeshKeySource::None {
            return Ok(None);
        }
        let key = config::load_mesh_key(&self.config.mesh_key)?;
        self.config.check_mesh_key(key.as_ref())?;
        let links = match (&self.links, &key) {
            (Some(links), Some(key)) => Some(links.prepare(key).map_err(mesh_fault)?),
            (Some(_), None) | (None, _) => None,
        };
        Ok(Some((key, links)))
    }

    fn apply(&self, prepared: Option<(Option<MeshKey>, Option<PreparedMesh>)>) -> Vec<String> {
        let Some((key, prepared)) = prepared else { return Vec::new() };
        let mut changes = Vec::new();
        if let (Some(links), Some(prepared)) = (&self.links, prepared) {
            links.apply(prepared);
            changes.push(
                "mesh: authorities read again, for links that are made from now on".to_owned(),
            );
        }
        let is_set = key.is_some();
        changes.push(match (self.secret.replace(key), is_set) {
            (false, _) => "mesh: the key is as it was".to_owned(),
            (true, true) => {
                "mesh: the key has changed; whoever has proven the old one stays".to_owned()
            }
            (true, false) => {
                "mesh: no key from now on; whoever has proven the old one stays".to_owned()
            }
        });
        changes
    }
}

/// Says which limit is in force, as derper does.
pub(crate) fn rate_line(limit: Option<RateLimit>) -> String {
    let (rate, burst) = limit.map_or((0, 0), |limit| (limit.bytes_per_second, limit.burst));
    format!("rate config applied: client-rate={rate} bytes/sec, client-burst={burst} bytes")
}
