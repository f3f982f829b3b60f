//! Who may connect, how fast, and through which proxies.

use std::sync::Arc;

use derp_user::{
    admit::Admission,
    config::{self, Config},
    proxy_protocol::TrustedProxies,
    server::Rates,
};

use crate::reload::rate_line;

/// What decides which connections are served, and how fast.
pub(crate) struct Gate {
    pub(crate) admission: Arc<Admission>,
    pub(crate) rates: Option<Arc<Rates>>,
    pub(crate) proxies: Arc<TrustedProxies>,
}

impl Gate {
    pub(crate) fn load(config: &Config, control: &tokio::runtime::Handle) -> anyhow::Result<Self> {
        let rates = match &config.rate_config {
            Some(path) => {
                let limit = config::load_rate_limit(path)?;
                tracing::info!("{}", rate_line(limit));
                Some(Arc::new(Rates::new(limit)))
            }
            None => None,
        };
        let admission = Admission::new(config.admission.clone(), control.clone())?;
        Ok(Self {
            admission: Arc::new(admission),
            rates,
            proxies: Arc::new(TrustedProxies::new(config.proxies.clone())),
        })
    }
}
