//! The proxies that tests put in front of the relay: HAProxy, and nginx with its stream module.

use anyhow::Result;

use crate::apt::{self, Program};

const PROGRAMS: [Program; 2] = [
    ("/usr/sbin/haproxy", &["haproxy"]),
    ("/usr/sbin/nginx", &["nginx-light", "libnginx-mod-stream"]),
];

/// Installs what is missing, or says what to type. Starts none of the services that the packages bring.
pub(crate) fn ensure_programs() -> Result<()> {
    apt::ensure_programs(&PROGRAMS, "tests with proxies in front of the relay need")
}
