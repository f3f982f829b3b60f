//! Where the certificates of the TLS listener come from.

use std::{sync::Arc, time::SystemTime};

use derp_user::{
    acme::Acme,
    config::Config,
    proto::keys::NodePublic,
    tls::{self, Certificates, Fresh, ManualCertificate, TlsError},
};

/// One of the two ways.
pub(crate) enum Source {
    /// Files that somebody else puts there.
    Manual(ManualCertificate),
    /// Orders of our own.
    Acme(Box<Acme>),
}

impl Source {
    /// Loads what there is already; nothing without TLS.
    pub(crate) fn load(config: &Config, own_key: &NodePublic) -> anyhow::Result<Option<Self>> {
        let Some(settings) = &config.tls else { return Ok(None) };
        let (directory, now) = (&settings.certificate_directory, SystemTime::now());
        let meta = tls::meta_certificate(own_key, now)?;
        Ok(Some(match &settings.acme {
            None => Self::Manual(ManualCertificate::load(directory, &config.hostname, meta, now)?),
            Some(acme) => {
                let acme = Acme::new(acme.clone(), directory, &config.hostname, meta)?;
                Self::Acme(Box::new(acme))
            }
        }))
    }

    /// Where they are served from.
    pub(crate) fn certificates(&self) -> &Arc<Certificates> {
        match self {
            Self::Manual(manual) => manual.certificates(),
            Self::Acme(acme) => acme.certificates(),
        }
    }

    /// Keeps them current. Runs for ever.
    pub(crate) async fn run(&self) {
        match self {
            Self::Manual(manual) => manual.watch().await,
            Self::Acme(acme) => acme.run().await,
        }
    }

    /// Reads files again that somebody else may have changed.
    pub(crate) fn prepare(&self) -> Result<Option<Fresh>, TlsError> {
        match self {
            Self::Manual(manual) => manual.prepare().map(Some),
            Self::Acme(_) => Ok(None),
        }
    }

    /// Takes them into use, and says what came of it.
    pub(crate) fn apply(&self, fresh: Option<Fresh>) -> Option<String> {
        match (self, fresh) {
            (Self::Manual(manual), Some(fresh)) => {
                let unchanged =
                    || format!("certificate of {}: unchanged", self.certificates().hostname());
                Some(manual.apply(fresh).unwrap_or_else(unchanged))
            }
            (Self::Manual(_), None) | (Self::Acme(_), _) => None,
        }
    }
}
