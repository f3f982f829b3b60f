//! What SIGHUP does: reads every file that may change again, and takes all of it into use or nothing.

use std::{
    ffi::OsString,
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Result, bail};
use clap::CommandFactory as _;
use derp_user::{
    admit::Admission,
    client::ClientError,
    config::{self, Config, FileSettings, Invocation, Key, MeshKeySource, Options},
    http::Site,
    metrics::Reloads,
    proto::keys::{MeshKey, NodePublic},
    proxy_protocol::TrustedProxies,
    relay::limit::RateLimit,
    server::{MeshReloader, MeshSecret, PreparedMesh, Rates, Statistics},
};

use parking_lot::Mutex;

use crate::{
    around::{resolve, surroundings},
    certificates::Source,
    logging::Levels,
    udp::UdpReloader,
};

/// Flags whose values in the file are taken into use while the relay runs; `rate-config` only where there is one.
const LIVE: [&str; 5] = ["drain-timeout", "home", "log", "proxy-protocol-from", "rate-config"];

/// What of the configuration is read again.
pub(crate) struct Settings {
    /// As given to this process.
    pub(crate) arguments: Vec<OsString>,
    /// What the relay was started with.
    pub(crate) started: Arc<Config>,
    /// How long clients may stay after SIGTERM, now.
    pub(crate) drain: Arc<Mutex<Option<Duration>>>,
    pub(crate) site: Arc<Site>,
    pub(crate) proxies: Arc<TrustedProxies>,
}

impl Settings {
    /// Reads the configuration again, as at a start.
    fn prepare(&self) -> Result<(Config, FileSettings)> {
        let options = match config::parse(self.arguments.iter().cloned(), &surroundings())? {
            Invocation::Run(options) => *options,
            Invocation::Help(_) => bail!("the command line asks for help"),
        };
        let config = resolve(options)?;
        let file = config.file_settings()?;
        Ok((config, file))
    }

    /// Names the keys of the file that only a start brings into force.
    fn late(&self, new: &Config) -> Vec<String> {
        let command = Options::command();
        let changed = self.started.layers.changed(&new.layers);
        let had_rates = self.started.rate_config.is_some();
        let is_late = |flag: &&String| match flag.as_str() {
            "rate-config" => !had_rates,
            flag => !LIVE.contains(&flag),
        };
        let key = |flag: &String| {
            let flag = command.get_arguments().find(|it| it.get_id() == flag.as_str())?;
            Key::of(flag).map(|key| key.to_string())
        };
        changed.iter().filter(is_late).filter_map(key).collect()
    }

    /// Takes into use what cannot fail.
    fn apply(&self, new: Config) -> Vec<String> {
        let mut changes = Vec::new();
        if self.site.set_home(new.home) {
            changes.push("another home page from now on".to_owned());
        }
        if self.proxies.replace(new.proxies.clone()) {
            let proxies: Vec<_> = new.proxies.iter().map(ToString::to_string).collect();
            let list = if proxies.is_empty() { "nobody".to_owned() } else { proxies.join(", ") };
            changes.push(format!("PROXY protocol from {list}"));
        }
        let before = std::mem::replace(&mut *self.drain.lock(), new.drain_timeout);
        if before != new.drain_timeout {
            let timeout = new.drain_timeout.unwrap_or_default();
            changes.push(format!("clients may stay {timeout:?} after SIGTERM"));
        }
        changes
    }
}

/// Everything that can be reloaded.
pub(crate) struct Reloader {
    pub(crate) admission: Arc<Admission>,
    /// The certificates of the TLS listener, if it is one.
    pub(crate) certificates: Option<Arc<Source>>,
    pub(crate) settings: Settings,
    /// The limits that clients follow, if any.
    pub(crate) rates: Option<Arc<Rates>>,
    pub(crate) udp: UdpReloader,
    pub(crate) mesh: MeshFiles,
    pub(crate) statistics: Arc<Statistics>,
    pub(crate) count: Arc<Counts>,
    pub(crate) levels: Levels,
    /// Whether only the files that were named at the start can be opened.
    pub(crate) is_confined: bool,
}

/// What may be behind a refused access.
const OUT_OF_REACH: &str =
    " (files in directories that were not in use at the start need a restart, or -sandbox=false)";

/// Whether an error is about a file that could not be accessed. Of ports that is said in other words
/// ([`ForwardError::Denied`](derp_user::forward::ForwardError)).
fn is_denied(error: &anyhow::Error) -> bool {
    let mut causes = error.chain().filter_map(|cause| cause.downcast_ref::<io::Error>());
    causes.any(|cause| cause.kind() == io::ErrorKind::PermissionDenied)
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
        match &self.settings.started.rate_config {
            Some(path) => tracing::info!(
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
                    let why = match self.settings.started.layers.path() {
                        Some(path) => format!("{} says what it said before", path.display()),
                        None => "no file that may change is in use".to_owned(),
                    };
                    tracing::info!("derper: nothing to reload: {why}");
                }
            }
            Err(error) => {
                self.count.bad.fetch_add(1, Ordering::Relaxed);
                let hint = if self.is_confined && is_denied(&error) { OUT_OF_REACH } else { "" };
                let error = crate::in_words(&error);
                tracing::error!("derper: reload failed, nothing has changed: {error}{hint}");
            }
        }
    }

    fn try_reload(&self) -> Result<Vec<String>> {
        let (config, file) = self.settings.prepare()?;
        let limit = config.rate_config.as_deref().map(config::load_rate_limit).transpose()?;
        let limit = limit.flatten();
        let prepared = self.admission.prepare()?;
        let mesh = self.mesh.prepare()?;
        let fresh = match &self.certificates {
            Some(source) => Some((source, source.prepare()?)),
            None => None,
        };
        let udp = self.udp.prepare(file)?;
        // The kernel can refuse, so this is taken into use first.
        let (mut changes, late_sections) = self.udp.apply(udp)?;
        // Nothing below can fail.
        let mut late = self.settings.late(&config);
        late.extend(late_sections.into_iter().map(str::to_owned));
        if !late.is_empty() {
            changes.push(format!("not before the next start: {}", late.join(", ")));
        }
        changes.extend(self.levels.apply(&config.log));
        changes.extend(self.settings.apply(config));
        if let Some(rates) = &self.rates {
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
    let flag = if error.is_about_authorities() { "-mesh-ca-file" } else { "-mesh-with" };
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

#[cfg(test)]
mod tests {
    use std::{net::SocketAddr, path::PathBuf};

    use derp_user::{admit::AdmitError, config::UsageError, forward::ForwardError, tls::TlsError};

    use super::*;

    #[test]
    fn a_file_out_of_reach_is_told_from_other_faults_whatever_the_error() {
        let denied = || io::Error::from_raw_os_error(libc::EACCES);
        let path = || PathBuf::from("/f");
        let errors: [anyhow::Error; 5] = [
            UsageError::FileRead { path: path(), source: denied() }.into(),
            config::ConfigError::Read { flag: "-c", path: path(), source: denied() }.into(),
            AdmitError::Read { flag: "-allow-keys", path: path(), source: denied() }.into(),
            TlsError::Read { path: path(), source: denied() }.into(),
            mesh_fault(ClientError::RootsRead { path: path(), source: denied() }),
        ];
        for error in errors {
            assert!(is_denied(&error), "{error:#}");
            assert!(crate::in_words(&error).ends_with("/f: Permission denied (os error 13)"));
        }
        let reason = "Permission denied (os error 13), it says".to_owned();
        let port = ForwardError::Denied { address: SocketAddr::from(([127, 0, 0, 1], 80)) };
        let others: [anyhow::Error; 3] = [
            UsageError::File { path: path(), reason }.into(),
            TlsError::Read { path: path(), source: io::ErrorKind::NotFound.into() }.into(),
            port.into(),
        ];
        for error in others {
            assert!(!is_denied(&error), "{error:#}");
        }
    }
}
