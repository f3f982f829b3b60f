//! The section `[companion]`.

use std::{path::PathBuf, time::Duration};

use super::reader::{Fault, Section};
use crate::local_api::DEFAULT_SOCKET;

/// The section `[companion]`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct CompanionSettings {
    /// Where the tailscaled listens that is a peer relay.
    pub socket: PathBuf,
    /// How often it is asked for its sessions.
    pub poll: Duration,
    /// How often a packet of each end is left to it, so that it knows the session to be in use.
    pub sample: Duration,
}

const POLL: Duration = Duration::from_millis(250);
const POLLS: [(&str, Duration); 2] =
    [("50ms", Duration::from_millis(50)), ("5s", Duration::from_secs(5))];
const SAMPLE: Duration = Duration::from_secs(30);
/// tailscaled forgets a session when one end has been silent for five minutes.
const SAMPLES: [(&str, Duration); 2] =
    [("1s", Duration::from_secs(1)), ("2m", Duration::from_secs(120))];

/// Reads the section; `None` when it is switched off.
pub(super) fn read(section: &Section<'_>) -> Result<Option<CompanionSettings>, Fault> {
    section.expect_only(&["enabled", "socket", "poll", "sample"])?;
    let socket = match section.value("socket") {
        Some(value) => {
            let path = PathBuf::from(value.text()?);
            if !path.is_absolute() {
                return Err(value.fault("must be an absolute path"));
            }
            path
        }
        None => PathBuf::from(DEFAULT_SOCKET),
    };
    let duration =
        |key, range, default| section.value(key).map_or(Ok(default), |value| value.duration(range));
    let settings = CompanionSettings {
        socket,
        poll: duration("poll", POLLS, POLL)?,
        sample: duration("sample", SAMPLES, SAMPLE)?,
    };
    let enabled = section.value("enabled").map_or(Ok(true), |value| value.boolean())?;
    Ok(enabled.then_some(settings))
}
