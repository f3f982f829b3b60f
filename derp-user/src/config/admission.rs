//! What the flags of admission mean.

use std::{path::PathBuf, time::Duration};

use hyper::Uri;

use super::{ConfigError, GoDuration, Options};
use crate::{
    admit::{self, ApiSettings, UrlSettings},
    local_api::DEFAULT_SOCKET,
};

/// The control server is asked no more often than this.
const SHORTEST_INTERVAL: Duration = Duration::from_secs(1);

/// Checks the flags of admission. Reads no file.
pub(super) fn settings(options: &Options) -> Result<admit::Settings, ConfigError> {
    let path = |text: &String| (!text.is_empty()).then(|| PathBuf::from(text));
    let tailscaled = options.verify_clients.then(|| {
        let socket = if options.socket.is_empty() { DEFAULT_SOCKET } else { &options.socket };
        PathBuf::from(socket)
    });
    let url = address("verify-client-url", &options.verify_client_url)?
        .map(|uri| UrlSettings { uri, fail_open: options.verify_client_url_fail_open });
    let cache = duration("verify-cache", options.verify_cache)?;
    if !cache.is_zero() && tailscaled.is_none() && url.is_none() {
        let reason = "there is nothing to remember without -verify-clients or -verify-client-url";
        return Err(fault("verify-cache", options.verify_cache, reason));
    }
    Ok(admit::Settings {
        allow_keys: path(&options.allow_keys),
        api: api(options)?,
        tailscaled,
        url,
        cache,
    })
}

fn api(options: &Options) -> Result<Option<ApiSettings>, ConfigError> {
    let Some(uri) = address("allow-from-api", &options.allow_from_api)? else {
        if !options.api_token_file.is_empty() {
            let reason = "a token is of no use without -allow-from-api";
            return Err(fault("api-token-file", &options.api_token_file, reason));
        }
        return Ok(None);
    };
    if options.api_token_file.is_empty() {
        let reason = "needs -api-token-file, a file with the API key";
        return Err(fault("allow-from-api", &options.allow_from_api, reason));
    }
    let interval = duration("api-interval", options.api_interval)?;
    if interval < SHORTEST_INTERVAL {
        return Err(fault("api-interval", options.api_interval, "must be at least 1s"));
    }
    let lifetime = duration("api-lifetime", options.api_lifetime)?;
    if !lifetime.is_zero() && lifetime < interval {
        let reason = "must not be shorter than -api-interval";
        return Err(fault("api-lifetime", options.api_lifetime, reason));
    }
    Ok(Some(ApiSettings {
        uri,
        token_file: PathBuf::from(&options.api_token_file),
        interval,
        lifetime: (!lifetime.is_zero()).then_some(lifetime),
    }))
}

/// A web address; none if the text is empty.
fn address(flag: &'static str, text: &str) -> Result<Option<Uri>, ConfigError> {
    if text.is_empty() {
        return Ok(None);
    }
    let uri = text.parse::<Uri>().ok().filter(admit::is_web_address);
    let uri =
        uri.ok_or_else(|| fault(flag, text, "write http://host/path or https://host/path"))?;
    // The message must not repeat it.
    if uri.authority().is_some_and(|authority| authority.as_str().contains('@')) {
        let reason = "a user name or password in the address is not supported";
        return Err(fault(flag, "...", reason));
    }
    Ok(Some(uri))
}

fn duration(flag: &'static str, setting: GoDuration) -> Result<Duration, ConfigError> {
    setting.to_duration().ok_or_else(|| fault(flag, setting, "must not be negative"))
}

fn fault(flag: &'static str, value: impl ToString, reason: &str) -> ConfigError {
    ConfigError::Flag { flag, value: value.to_string(), reason: reason.to_owned() }
}
