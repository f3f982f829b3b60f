//! Keeps the allow lists current: files are read when they change, the control server is asked in turn.

use std::{
    collections::HashSet,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use hyper::StatusCode;
use tokio::{
    task::spawn_blocking,
    time::{sleep, timeout},
};

use super::{
    Admission, ApiSettings,
    control_server::{self, Token},
    keys::{self, Fingerprint},
    lists::Change,
    web::{Question, Web},
};
use crate::proto::keys::NodePublic;

/// How often files are looked at. A change is taken once it has been the same twice, so that nobody
/// reads half of what is being written.
const LOOK_AT_FILES: Duration = Duration::from_secs(2);
/// Longest that fetching the control server's list may take.
const FETCH_TIMEOUT: Duration = Duration::from_secs(60);
/// A stranger makes the list be fetched early, but not more often than this; neither is a fetch that
/// failed repeated sooner.
const SOONEST: Duration = Duration::from_secs(10);

impl Admission {
    /// Keeps the lists current. Calls `disconnect` for keys that are on no list any more. Runs for
    /// ever, on the control runtime.
    pub async fn run(&self, disconnect: &dyn Fn(&[NodePublic])) {
        tokio::join!(self.watch_files(disconnect), self.poll_control_server(disconnect));
    }

    async fn watch_files(&self, disconnect: &dyn Fn(&[NodePublic])) {
        let Some(path) = &self.settings.allow_keys else { return };
        let mut last_seen: Option<Result<Fingerprint, String>> = None;
        let mut settled = None;
        loop {
            sleep(LOOK_AT_FILES).await;
            let seen = on_files(path, keys::fingerprint).await;
            let unchanged = last_seen.as_ref() == Some(&seen);
            last_seen = Some(seen.clone());
            // Each state is judged once, when it has stood for one look.
            if !unchanged || settled.as_ref() == Some(&seen) {
                continue;
            }
            settled = Some(seen.clone());
            match seen {
                Err(error) => tracing::error!(
                    "-allow-keys: {}: {error}: the list stays as it is",
                    path.display()
                ),
                Ok(state) if state == *self.files_state.lock() => {}
                Ok(_) => match on_files(path, keys::load).await {
                    Ok((keys, state)) => {
                        tracing::info!("{}", self.use_files(path, keys, state, disconnect));
                    }
                    Err(error) => tracing::error!("{error}: the list stays as it is"),
                },
            }
        }
    }

    async fn poll_control_server(&self, disconnect: &dyn Fn(&[NodePublic])) {
        let (Some(api), Some((web, token))) = (&self.settings.api, &self.control_server) else {
            return;
        };
        let mut last_fault = None;
        loop {
            let token = token.lock().clone();
            match timeout(FETCH_TIMEOUT, fetch(web, api, &token))
                .await
                .unwrap_or_else(|_| Err(format!("no answer within {} s", FETCH_TIMEOUT.as_secs())))
            {
                Ok(keys) => {
                    let (count, first) = (keys.len(), self.lists.read().keys_by_control());
                    let Change { added, gone } =
                        self.lists.write().replace_answer(Arc::new(keys), Instant::now());
                    disconnect(&gone);
                    let news = added + gone.len() > 0 || last_fault.is_some();
                    if news || matches!(first, Some(None)) {
                        let gone = gone.len();
                        tracing::info!("-allow-from-api: {count} keys ({added} new, {gone} gone)");
                    }
                    last_fault = None;
                }
                // Said once, not at every attempt.
                Err(fault) if last_fault.as_ref() == Some(&fault) => {
                    tracing::debug!("-allow-from-api: {fault}");
                }
                Err(fault) => {
                    tracing::error!("-allow-from-api: {fault}: {}", self.consequence(api));
                    last_fault = Some(fault);
                }
            }
            let pause = if last_fault.is_some() { SOONEST.min(api.interval) } else { api.interval };
            let soonest = SOONEST.min(pause);
            sleep(soonest).await;
            tokio::select! {
                () = sleep(pause - soonest) => {}
                () = self.stranger_came.notified() => {}
            }
        }
    }

    /// What it means that the control server's list could not be fetched.
    fn consequence(&self, api: &ApiSettings) -> String {
        match self.lists.read().keys_by_control().flatten() {
            None => "nobody is admitted by it until it can be fetched".to_owned(),
            Some((keys, at)) => {
                let age = at.elapsed().as_secs();
                let until = match api.lifetime {
                    Some(lifetime) => format!("for {} s in all", lifetime.as_secs()),
                    None => "until the next".to_owned(),
                };
                format!("the last one ({keys} keys, {age} s old) counts {until}")
            }
        }
    }
}

/// Runs `work` where it may block. Errors are in words.
async fn on_files<T, E>(path: &Path, work: fn(&Path) -> Result<T, E>) -> Result<T, String>
where
    T: Send + 'static,
    E: ToString + Send + 'static,
{
    let path = path.to_owned();
    match spawn_blocking(move || work(&path)).await {
        Ok(result) => result.map_err(|error| error.to_string()),
        Err(error) => Err(error.to_string()),
    }
}

async fn fetch(web: &Web, api: &ApiSettings, token: &Token) -> Result<HashSet<NodePublic>, String> {
    if token.is_client_secret() {
        let body = good_body(web, control_server::exchange(&api.uri, token)?).await?;
        let token = control_server::exchanged(&body)?;
        return list(web, api, &token).await;
    }
    list(web, api, token).await
}

async fn list(web: &Web, api: &ApiSettings, token: &Token) -> Result<HashSet<NodePublic>, String> {
    let body = good_body(web, control_server::question(&api.uri, token)).await?;
    control_server::parse(&body).map_err(|error| error.to_string())
}

/// The body of an answer that is what was asked for.
async fn good_body(web: &Web, question: Question) -> Result<Vec<u8>, String> {
    let answer = web.ask(question).await?;
    let status = answer.status();
    let (body, complete) = answer.body(control_server::MAX_BODY).await?;
    if status != StatusCode::OK {
        let shown: String = String::from_utf8_lossy(&body).trim().chars().take(200).collect();
        return Err(format!("{status}: {shown}"));
    }
    if !complete {
        return Err(format!("the answer is longer than {} MiB", control_server::MAX_BODY >> 20));
    }
    Ok(body)
}
