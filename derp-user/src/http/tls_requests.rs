//! Requests by version of TLS.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

/// The version of TLS that a request came over.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum TlsVersion {
    /// TLS 1.2.
    V12,
    /// TLS 1.3.
    V13,
    /// Something else, which the server does not offer.
    Unknown,
}

impl TlsVersion {
    /// Every version.
    pub const ALL: [Self; 3] = [Self::V12, Self::V13, Self::Unknown];

    /// Returns the metric label.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::V12 => "1.2",
            Self::V13 => "1.3",
            Self::Unknown => "unknown",
        }
    }
}

impl From<Option<rustls::ProtocolVersion>> for TlsVersion {
    fn from(version: Option<rustls::ProtocolVersion>) -> Self {
        if version == Some(rustls::ProtocolVersion::TLSv1_2) {
            Self::V12
        } else if version == Some(rustls::ProtocolVersion::TLSv1_3) {
            Self::V13
        } else {
            Self::Unknown
        }
    }
}

#[derive(Debug, Default)]
struct Counts {
    requests: AtomicU64,
    active: AtomicU64,
}

/// How many requests came over each version of TLS, and how many of them are still being served. A DERP session is one
/// request.
#[derive(Clone, Debug, Default)]
pub struct TlsRequests(Arc<[Counts; TlsVersion::ALL.len()]>);

impl TlsRequests {
    /// Counts a request, which is served as long as the result lives.
    #[must_use]
    pub(super) fn begin(&self, version: TlsVersion) -> TlsRequest {
        let counts = &self.0[version as usize];
        counts.requests.fetch_add(1, Ordering::Relaxed);
        counts.active.fetch_add(1, Ordering::Relaxed);
        TlsRequest { counts: Arc::clone(&self.0), version }
    }

    /// Returns each version with its requests so far, and those being served.
    #[must_use]
    pub fn counts(&self) -> [(TlsVersion, u64, u64); TlsVersion::ALL.len()] {
        TlsVersion::ALL.map(|version| {
            let Counts { requests, active } = &self.0[version as usize];
            (version, requests.load(Ordering::Relaxed), active.load(Ordering::Relaxed))
        })
    }
}

/// A request that is being served.
#[derive(Debug)]
pub struct TlsRequest {
    counts: Arc<[Counts; TlsVersion::ALL.len()]>,
    version: TlsVersion,
}

impl Drop for TlsRequest {
    fn drop(&mut self) {
        self.counts[self.version as usize].active.fetch_sub(1, Ordering::Relaxed);
    }
}
