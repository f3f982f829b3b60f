//! Asking those who decide about every client anew: the local tailscaled and the admission URL.

use std::{
    net::IpAddr,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use hyper::Uri;
use parking_lot::Mutex;
use tokio::{runtime::Handle, sync::Semaphore, task::JoinHandle, time::timeout};

use super::{AdmitError, Settings, Verdict, cache::Cache, tailscaled, web::Web, webhook};
use crate::{proto::keys::NodePublic, quiet::Quiet};

/// Longest that one of the two may take; derper's limit for the URL.
const TIME_LIMIT: Duration = Duration::from_secs(5);
/// Most questions that are open at once; more wait, within the time limit.
const MAX_OPEN: usize = 256;

/// Who is asked, and how.
pub(super) struct Questioner {
    shared: Arc<Shared>,
    /// Where questions run: beside the workers, not on them.
    control: Handle,
    cache: Option<Mutex<Cache>>,
    cache_hits: AtomicU64,
}

struct Shared {
    tailscaled: Option<PathBuf>,
    url: Option<Url>,
    open: Semaphore,
    quiet: Quiet,
    /// What was wrong with tailscaled when it was last asked.
    tailscaled_fault: Mutex<Option<String>>,
}

struct Url {
    uri: Uri,
    fail_open: bool,
    web: Web,
}

/// A task that ends when nobody waits for it any more.
struct Asked(JoinHandle<(Verdict, String)>);

impl Drop for Asked {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Questioner {
    /// `None` if nobody is to be asked.
    pub(super) fn new(settings: &Settings, control: Handle) -> Result<Option<Self>, AdmitError> {
        if settings.tailscaled.is_none() && settings.url.is_none() {
            return Ok(None);
        }
        let url = settings.url.as_ref().map(|url| {
            let web = Web::new("-verify-client-url", &url.uri)?;
            Ok(Url { uri: url.uri.clone(), fail_open: url.fail_open, web })
        });
        let cache = (!settings.cache.is_zero()).then(|| Mutex::new(Cache::new(settings.cache)));
        Ok(Some(Self {
            shared: Arc::new(Shared {
                tailscaled: settings.tailscaled.clone(),
                url: url.transpose()?,
                open: Semaphore::new(MAX_OPEN),
                quiet: Quiet::default(),
                tailscaled_fault: Mutex::default(),
            }),
            control,
            cache,
            cache_hits: AtomicU64::new(0),
        }))
    }

    /// The verdict on one client, and why in words if it is refused.
    pub(super) async fn ask(&self, key: NodePublic, address: IpAddr) -> (Verdict, String) {
        let subject = (key, address);
        if let Some(cache) = &self.cache
            && let Some(verdict) = cache.lock().get(&subject, Instant::now())
        {
            self.cache_hits.fetch_add(1, Ordering::Relaxed);
            return (verdict, format!("{key} not allowed, as remembered from a moment ago"));
        }
        let shared = Arc::clone(&self.shared);
        let mut asked = Asked(self.control.spawn(async move { shared.ask(key, address).await }));
        let (verdict, words) = (&mut asked.0).await.unwrap_or_else(|error| {
            let verdict = match self.shared.url {
                Some(_) => Verdict::UrlUnreachable,
                None => Verdict::TailscaledUnreachable,
            };
            (verdict, format!("the question got lost: {error}"))
        });
        if let Some(cache) = &self.cache
            && verdict.is_answer()
        {
            cache.lock().put(subject, verdict, Instant::now());
        }
        (verdict, words)
    }

    /// What was wrong with tailscaled when it was last asked, if anything was.
    pub(super) fn tailscaled_fault(&self) -> Option<String> {
        self.shared.tailscaled_fault.lock().clone()
    }

    /// Answers that were remembered.
    pub(super) fn cache_hits(&self) -> u64 {
        self.cache_hits.load(Ordering::Relaxed)
    }
}

impl Shared {
    /// As derper: whoever is configured must agree, tailscaled is asked first.
    async fn ask(&self, key: NodePublic, address: IpAddr) -> (Verdict, String) {
        let mut agreed = None;
        if let Some(socket) = &self.tailscaled {
            let asked = self.in_time(tailscaled::ask(socket, &key)).await;
            let (verdict, words) = asked.unwrap_or_else(|late| {
                let words = format!("failed to query local tailscaled status for {key}: {late}");
                (Verdict::TailscaledUnreachable, words)
            });
            *self.tailscaled_fault.lock() = (!verdict.is_answer()).then(|| words.clone());
            if !verdict.is_admitted() {
                return (verdict, words);
            }
            agreed = Some(verdict);
        }
        if let Some(url) = &self.url {
            return self.ask_url(url, key, address).await;
        }
        (agreed.unwrap_or(Verdict::Open), String::new())
    }

    async fn ask_url(&self, url: &Url, key: NodePublic, address: IpAddr) -> (Verdict, String) {
        let question = webhook::ask(&url.web, &url.uri, &key, address);
        let unreachable = match self.in_time(question).await {
            Ok(Ok(answer)) => return answer,
            Ok(Err(reason)) => reason,
            Err(late) => late,
        };
        if url.fail_open {
            if let Some(suffix) = self.quiet.suffix(Instant::now()) {
                tracing::warn!(
                    "admission controller unreachable; allowing client {key}: {unreachable}{suffix}"
                );
            }
            return (Verdict::FailOpen, String::new());
        }
        (Verdict::UrlUnreachable, format!("admission controller unreachable: {unreachable}"))
    }

    /// Asks as soon as not too many others do, within the time limit.
    async fn in_time<T>(&self, question: impl Future<Output = T>) -> Result<T, String> {
        let asked = timeout(TIME_LIMIT, async {
            // The semaphore is never closed.
            let _permit = self.open.acquire().await;
            question.await
        });
        asked.await.map_err(|_| format!("no answer within {} s", TIME_LIMIT.as_secs()))
    }
}
