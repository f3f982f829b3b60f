//! The file of `-rate-config`.

use std::path::Path;

use serde_json::{Map, Value};

use super::ConfigError;
use crate::{
    files,
    relay::limit::{LEAST_BURST, RateLimit},
};

const FLAG: &str = "-rate-config";
const RATE: &str = "PerClientRateLimitBytesPerSec";
const BURST: &str = "PerClientRateBurstBytes";
const ANNOUNCE: &str = "AnnounceToClients";

/// Loads the limit of each client; `None` if there is to be none.
///
/// # Errors
///
/// If the file cannot be read, or holds anything but such a limit.
pub fn load_rate_limit(path: &Path) -> Result<Option<RateLimit>, ConfigError> {
    let contents = files::read_bounded(path).map_err(|source| ConfigError::Read {
        flag: FLAG,
        path: path.to_owned(),
        source,
    })?;
    parse_rate_limit(&contents).map_err(|reason| ConfigError::Malformed {
        flag: FLAG,
        path: path.to_owned(),
        reason,
    })
}

/// Reads the file as Go does: names match in any case, unknown ones are ignored, null is nothing.
pub(super) fn parse_rate_limit(contents: &[u8]) -> Result<Option<RateLimit>, String> {
    let object: Option<Map<String, Value>> = serde_json::from_slice(contents)
        .map_err(|error| format!("not a JSON object of rate limits: {error}"))?;
    let (mut bytes_per_second, mut burst, mut announced) = (0, 0, false);
    for (name, value) in object.unwrap_or_default() {
        if value.is_null() {
            continue;
        }
        let number = || {
            let bytes = value.as_u64();
            bytes.ok_or_else(|| format!("{name:?} is {value}, not a whole number of bytes"))
        };
        if name.eq_ignore_ascii_case(RATE) {
            bytes_per_second = number()?;
        } else if name.eq_ignore_ascii_case(BURST) {
            burst = number()?;
        } else if name.eq_ignore_ascii_case(ANNOUNCE) {
            let answer = value.as_bool();
            announced = answer.ok_or_else(|| format!("{name:?} is {value}, not true or false"))?;
        }
    }
    let limit = RateLimit { bytes_per_second, burst: burst.max(LEAST_BURST), announced };
    Ok((bytes_per_second > 0).then_some(limit))
}
