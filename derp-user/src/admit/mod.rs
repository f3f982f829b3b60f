//! Admission: who may use the relay.
//!
//! The rule, for a client that has proven its key:
//!
//! 1. Whoever proves the mesh key is admitted.
//! 2. Where nothing is configured, everybody is.
//! 3. A key on any allow list (`-allow-keys`, `-allow-from-api`) is admitted; lists are alternatives.
//! 4. Else those who are asked about every client (`-verify-clients`, `-verify-client-url`) must all
//!    agree, as in derper. If there are none, the client is refused.
//!
//! Lists are looked up on the worker that has the login. Questions run on the control runtime, with
//! a time limit and a limited number at once; the login waits for the answer, the worker does not.

mod cache;
mod control_server;
mod error;
#[cfg(any(test, feature = "fuzzing"))]
#[allow(clippy::unwrap_used, reason = "these are tests")]
pub(crate) mod fuzz;
mod keys;
mod lists;
mod question;
mod tailscaled;
mod verdict;
mod watch;
pub(crate) mod web;
mod webhook;

use std::{
    fmt,
    net::IpAddr,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

pub use error::AdmitError;
use hyper::Uri;
use parking_lot::{Mutex, RwLock};
use tokio::{runtime::Handle, sync::Notify};
pub use verdict::Verdict;
pub(crate) use web::in_words;

use self::{
    control_server::Token,
    keys::{Fingerprint, Keys},
    lists::{Change, ControlList, Lists},
    question::Questioner,
    verdict::Tally,
    web::Web,
};
use crate::{files, proto::keys::NodePublic};

/// Who decides. The default is nobody: the relay takes everybody.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Settings {
    /// File or directory of allowed keys.
    pub allow_keys: Option<PathBuf>,
    /// Control server that lists allowed keys.
    pub api: Option<ApiSettings>,
    /// Socket of the local tailscaled that is asked about every client.
    pub tailscaled: Option<PathBuf>,
    /// HTTP server that is asked about every client.
    pub url: Option<UrlSettings>,
    /// How long answers of the two are remembered; zero: not at all, as derper.
    pub cache: Duration,
}

/// A control server's list of nodes.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ApiSettings {
    /// Address of the list.
    pub uri: Uri,
    /// File with the token that opens it.
    pub token_file: PathBuf,
    /// How often it is fetched.
    pub interval: Duration,
    /// How long an answer counts while no newer one comes; `None`: for ever.
    pub lifetime: Option<Duration>,
}

/// An admission URL.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct UrlSettings {
    /// Its address.
    pub uri: Uri,
    /// Whether clients are admitted when it cannot be reached.
    pub fail_open: bool,
}

/// Whether an address can be one of a source: absolute, HTTP or HTTPS, with a host.
pub fn is_web_address(uri: &Uri) -> bool {
    web::is_web_address(uri)
}

/// A client that has proven its key.
#[derive(Clone, Copy, Debug)]
pub struct Applicant {
    /// The proven key.
    pub key: NodePublic,
    /// Where it connects from.
    pub address: IpAddr,
    /// Whether it proved the mesh key as well.
    pub trusted: bool,
}

/// Why a client may not stay, worded as derper does.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{words}")]
pub struct Refusal {
    /// Who refused it and why.
    pub verdict: Verdict,
    words: String,
}

/// What has been decided and from what.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct AdmissionFigures {
    /// Whether everybody may use the relay.
    pub open: bool,
    /// How often each verdict was given.
    pub verdicts: Vec<(Verdict, u64)>,
    /// Answers that were remembered instead of asked for.
    pub cache_hits: u64,
    /// For each list its source, as in [`Verdict::source`], its keys, and the time since it came from
    /// the control server.
    pub lists: Vec<(&'static str, usize, Option<Duration>)>,
}

/// The gate that every login passes.
pub struct Admission {
    settings: Settings,
    lists: RwLock<Lists>,
    /// State of the files when they were last read well.
    files_state: Mutex<Fingerprint>,
    questioner: Option<Questioner>,
    /// What it takes to fetch the control server's list.
    control_server: Option<(Web, Mutex<Token>)>,
    /// Somebody came who is on no list: the control server may know more by now.
    stranger_came: Notify,
    tally: Tally,
}

/// Files that were read and found good, to be used together with others.
pub struct Prepared {
    files: Option<(Keys, Fingerprint)>,
    token: Option<Token>,
}

impl Admission {
    /// A gate that lets everybody through.
    pub fn open() -> Self {
        Self {
            settings: Settings::default(),
            lists: RwLock::default(),
            files_state: Mutex::default(),
            questioner: None,
            control_server: None,
            stranger_came: Notify::new(),
            tally: Tally::default(),
        }
    }

    /// Reads the files that `settings` name. Questions will run on `control`.
    ///
    /// # Errors
    ///
    /// If a file cannot be used.
    pub fn new(settings: Settings, control: Handle) -> Result<Self, AdmitError> {
        let Prepared { files, token } = Prepared::load(&settings)?;
        let (keys, state) = files.unzip();
        let control_list =
            settings.api.as_ref().map(|api| ControlList { lifetime: api.lifetime, answer: None });
        let control_server = match (&settings.api, token) {
            (Some(api), Some(token)) => {
                Some((Web::new("-allow-from-api", &api.uri)?, Mutex::new(token)))
            }
            _ => None,
        };
        Ok(Self {
            lists: RwLock::new(Lists::new(keys, control_list)),
            files_state: Mutex::new(state.unwrap_or_default()),
            questioner: Questioner::new(&settings, control)?,
            control_server,
            settings,
            ..Self::open()
        })
    }

    /// Whether everybody may use the relay.
    pub fn is_open(&self) -> bool {
        self.questioner.is_none() && !self.lists.read().exist()
    }

    /// Decides about one client. Waits for an answer at most a little over ten seconds.
    ///
    /// # Errors
    ///
    /// The refusal, for the log.
    pub async fn decide(&self, applicant: &Applicant) -> Result<(), Refusal> {
        let (verdict, words) = self.judge(applicant).await;
        self.tally.count(verdict);
        if verdict.is_admitted() { Ok(()) } else { Err(Refusal { verdict, words }) }
    }

    async fn judge(&self, applicant: &Applicant) -> (Verdict, String) {
        let Applicant { key, address, trusted } = *applicant;
        if trusted {
            return (Verdict::MeshKey, String::new());
        }
        let unlisted = {
            let lists = self.lists.read();
            if !lists.exist() && self.questioner.is_none() {
                return (Verdict::Open, String::new());
            }
            match lists.find(&key, Instant::now()) {
                Ok(verdict) => return (verdict, String::new()),
                Err(verdict) => verdict,
            }
        };
        self.stranger_came.notify_one();
        match &self.questioner {
            Some(questioner) => questioner.ask(key, address).await,
            None if unlisted == Verdict::ListMissing => (
                unlisted,
                format!("{key} is on no allow list, and the control server's has not come"),
            ),
            None => (unlisted, format!("{key} is on no allow list")),
        }
    }

    /// Reads every file again, and changes nothing.
    ///
    /// # Errors
    ///
    /// If a file cannot be used.
    pub fn prepare(&self) -> Result<Prepared, AdmitError> {
        Prepared::load(&self.settings)
    }

    /// Takes what [`Self::prepare`] read into use. Calls `disconnect` for keys that are on no list any
    /// more: their clients will be judged again when they come back. What changed, in words.
    pub fn apply(&self, prepared: Prepared, disconnect: &dyn Fn(&[NodePublic])) -> Vec<String> {
        let mut changes = Vec::new();
        if let (Some((keys, state)), Some(path)) = (prepared.files, &self.settings.allow_keys) {
            changes.push(self.use_files(path, keys, state, disconnect));
        }
        if let (Some(token), Some((_, current))) = (prepared.token, &self.control_server) {
            *current.lock() = token;
            self.stranger_came.notify_one();
            changes.push("API token read".to_owned());
        }
        changes
    }

    fn use_files(
        &self,
        path: &Path,
        keys: Keys,
        state: Fingerprint,
        disconnect: &dyn Fn(&[NodePublic]),
    ) -> String {
        let count = keys.len();
        *self.files_state.lock() = state;
        let Change { added, gone } = self.lists.write().replace_files(keys);
        disconnect(&gone);
        let warning = if count == 0 { ": nobody is on it" } else { "" };
        let gone = gone.len();
        format!("allow list {}: {count} keys ({added} new, {gone} gone){warning}", path.display())
    }

    /// Whether those who decide could be asked when they last were.
    ///
    /// # Errors
    ///
    /// In words, if the local tailscaled could not.
    pub fn check(&self) -> Result<(), String> {
        let fault = self.questioner.as_ref().and_then(Questioner::tailscaled_fault);
        fault.map_or(Ok(()), Err)
    }

    /// What the counters and lists say now.
    pub fn figures(&self) -> AdmissionFigures {
        let lists = self.lists.read();
        let files = lists.keys_in_files().map(|keys| (Verdict::ListedInFile.source(), keys, None));
        let control = lists.keys_by_control().map(|answer| {
            let (keys, at) = answer.map_or((0, None), |(keys, at)| (keys, Some(at)));
            (Verdict::ListedByApi.source(), keys, at.map(|at| at.elapsed()))
        });
        AdmissionFigures {
            open: self.questioner.is_none() && !lists.exist(),
            verdicts: self.tally.read(),
            cache_hits: self.questioner.as_ref().map(Questioner::cache_hits).unwrap_or_default(),
            lists: files.into_iter().chain(control).collect(),
        }
    }
}

/// Who decides, for the log and the status page. Shows no address beyond the host: there may be
/// secrets in it.
impl fmt::Display for Admission {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lists = self.lists.read();
        let host = |uri: &Uri| uri.host().unwrap_or_default().to_owned();
        let mut parts = Vec::new();
        if let (Some(path), Some(keys)) = (&self.settings.allow_keys, lists.keys_in_files()) {
            parts.push(format!("allow list {} ({keys} keys)", path.display()));
        }
        if let (Some(api), Some(answer)) = (&self.settings.api, lists.keys_by_control()) {
            let keys = match answer {
                Some((keys, at)) => format!("{keys} keys, {} s old", at.elapsed().as_secs()),
                None => "not yet fetched".to_owned(),
            };
            parts.push(format!("nodes of {} ({keys})", host(&api.uri)));
        }
        let mut asked = Vec::new();
        if self.settings.tailscaled.is_some() {
            asked.push("the local tailscaled".to_owned());
        }
        if let Some(url) = &self.settings.url {
            let open = if url.fail_open { ", open if unreachable" } else { "" };
            asked.push(format!("the admission URL at {}{open}", host(&url.uri)));
        }
        if !asked.is_empty() {
            parts.push(asked.join(" and "));
        }
        if parts.is_empty() {
            return formatter.write_str("open: anybody may use this relay");
        }
        formatter.write_str(&parts.join(", or "))
    }
}

impl Prepared {
    fn load(settings: &Settings) -> Result<Self, AdmitError> {
        let files = settings.allow_keys.as_deref().map(keys::load).transpose()?;
        let token = settings.api.as_ref().map(|api| load_token(&api.token_file)).transpose()?;
        Ok(Self { files, token })
    }
}

fn load_token(path: &Path) -> Result<Token, AdmitError> {
    let text = files::read_bounded(path).map(zeroize::Zeroizing::new).map_err(|source| {
        AdmitError::Read { flag: "-api-token-file", path: path.to_owned(), source }
    })?;
    Token::parse(&text).map_err(|reason| AdmitError::Token { path: path.to_owned(), reason })
}
