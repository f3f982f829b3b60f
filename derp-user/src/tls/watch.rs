//! Takes a new manual certificate into use when its files change.

use std::{
    fs, io,
    os::unix::fs::MetadataExt,
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime},
};

use parking_lot::Mutex;
use rustls::pki_types::CertificateDer;
use tokio::{task::spawn_blocking, time::sleep};

use super::{Certificates, FilePair, ServerCertificate, TlsError, load_or_create, manual};

/// How often the files are looked at. A change is taken once it has been the same twice, so that nobody reads a
/// new certificate with the old key.
const LOOK_AT_FILES: Duration = Duration::from_secs(2);

/// The certificate of `-certmode manual`.
pub struct ManualCertificate {
    hostname: String,
    files: FilePair,
    certificates: Arc<Certificates>,
    /// State of the files when they were last taken into use.
    state: Mutex<State>,
}

/// A certificate that was read and found good, to be used together with other files.
pub struct Fresh {
    certificate: ServerCertificate,
    state: State,
}

/// State of both files; `None` if one is not there.
type State = [Option<FileState>; 2];

/// What tells one state of a file from another: device, inode, size and time.
type FileState = (u64, u64, u64, i64, i64);

impl ManualCertificate {
    /// Loads the certificate of `hostname` from `directory`, as [`load_or_create`] does. `meta` goes last into
    /// the chain that is served.
    ///
    /// # Errors
    ///
    /// If there is none that can be used.
    pub fn load(
        directory: &Path,
        hostname: &str,
        meta: CertificateDer<'static>,
        now: SystemTime,
    ) -> Result<Self, TlsError> {
        let files = FilePair::new(directory, hostname);
        let before = state(&files)?;
        let certificate = load_or_create(directory, hostname, now)?;
        // Only files that were there are the ones that were read.
        let state = if before == State::default() { state(&files)? } else { before };
        announce(&certificate, now);
        let certificates = Certificates::new(hostname, meta);
        certificates.install(certificates.hostname(), certificate);
        let certificates = Arc::new(certificates);
        Ok(Self { hostname: hostname.to_owned(), files, certificates, state: Mutex::new(state) })
    }

    /// Where it is served from.
    pub fn certificates(&self) -> &Arc<Certificates> {
        &self.certificates
    }

    /// Reads the files again.
    ///
    /// # Errors
    ///
    /// If they hold no certificate that can be used.
    pub fn prepare(&self) -> Result<Fresh, TlsError> {
        let state = state(&self.files)?;
        Ok(Fresh { certificate: manual::load(&self.files, &self.hostname)?, state })
    }

    /// Serves `fresh` from now on, and says so if it is another one than before.
    pub fn apply(&self, fresh: Fresh) -> Option<String> {
        let Fresh { certificate, state } = fresh;
        *self.state.lock() = state;
        let name = self.certificates.hostname();
        if self.certificates.chain(name).as_ref() == Some(&certificate.key.cert) {
            return None;
        }
        announce(&certificate, SystemTime::now());
        self.certificates.install(name, certificate);
        self.certificates.count(true);
        Some(format!("certificate of {name}: {} taken into use", self.files.certificate.display()))
    }

    /// Takes new files into use when they come. Runs for ever.
    pub async fn watch(&self) {
        let mut last_seen = None;
        let mut settled = None;
        loop {
            sleep(LOOK_AT_FILES).await;
            let files = self.files.clone();
            let seen = match spawn_blocking(move || state(&files)).await {
                Ok(Ok(seen)) => Ok(seen),
                Ok(Err(error)) => Err(error.to_string()),
                Err(error) => Err(error.to_string()),
            };
            let unchanged = last_seen.as_ref() == Some(&seen);
            last_seen = Some(seen.clone());
            // Each state is judged once, when it has stood for one look.
            if !unchanged || settled.as_ref() == Some(&seen) {
                continue;
            }
            settled = Some(seen.clone());
            if seen == Ok(*self.state.lock()) {
                continue;
            }
            match seen.and_then(|_| self.prepare().map_err(|error| error.to_string())) {
                Ok(fresh) => {
                    if let Some(change) = self.apply(fresh) {
                        tracing::info!("{change}");
                    }
                }
                Err(error) => {
                    self.certificates.count(false);
                    tracing::error!("{error}: the certificate in use stays");
                }
            }
        }
    }
}

/// Says what an operator needs to know about a certificate.
fn announce(certificate: &ServerCertificate, now: SystemTime) {
    if let Some(hint) = certificate.pinning_hint() {
        tracing::info!("{hint}");
    }
    if certificate.lifetime.not_after < now {
        tracing::warn!(
            "the certificate of {} has expired: clients that do not pin it refuse it",
            certificate.hostname
        );
    }
}

fn state(files: &FilePair) -> Result<State, TlsError> {
    Ok([state_of(&files.certificate)?, state_of(&files.key)?])
}

fn state_of(path: &Path) -> Result<Option<FileState>, TlsError> {
    match fs::metadata(path) {
        Ok(data) => {
            Ok(Some((data.dev(), data.ino(), data.size(), data.mtime(), data.mtime_nsec())))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(TlsError::Read { path: path.to_owned(), source }),
    }
}
