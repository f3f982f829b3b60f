//! The proxies that tests put in front of the relay: HAProxy, and nginx with its stream module.

use std::{
    fs::{self, OpenOptions},
    io::Write as _,
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
};

use anyhow::{Context as _, Result};

use crate::apt;

/// Program and the Debian packages that bring it.
const PROGRAMS: [(&str, &[&str]); 2] = [
    ("/usr/sbin/haproxy", &["haproxy"]),
    ("/usr/sbin/nginx", &["nginx-light", "libnginx-mod-stream"]),
];
/// Debian asks this program whether it may start the services of new packages.
const POLICY: &str = "/usr/sbin/policy-rc.d";
/// What it ends with for "no".
const FORBIDDEN: &str = "#!/bin/sh\nexit 101\n";

/// Installs what is missing, or says what to type. Starts none of the services that the packages bring.
pub(crate) fn ensure_programs() -> Result<()> {
    let missing: Vec<_> = PROGRAMS
        .iter()
        .filter(|(program, _)| !Path::new(program).exists())
        .flat_map(|(_, packages)| packages.iter().copied())
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let _quiet = NoServices::new()?;
    apt::ensure(&missing, "tests with proxies in front of the relay need")
}

/// Keeps packages from starting services, as long as it lives. A web server on port 80 is not what
/// somebody expects who runs tests.
struct NoServices {
    ours: bool,
}

impl NoServices {
    fn new() -> Result<Self> {
        // Whoever has a policy of their own keeps it, and others could not install anyway.
        if Path::new(POLICY).exists() || !nix::unistd::geteuid().is_root() {
            return Ok(Self { ours: false });
        }
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o755)
            .open(POLICY)
            .with_context(|| format!("creating {POLICY} for the time of the installation"))?;
        let guard = Self { ours: true };
        file.write_all(FORBIDDEN.as_bytes()).with_context(|| format!("writing {POLICY}"))?;
        Ok(guard)
    }
}

impl Drop for NoServices {
    fn drop(&mut self) {
        if self.ours
            && let Err(error) = fs::remove_file(POLICY)
        {
            eprintln!("{POLICY} could not be removed, please do: {error}");
        }
    }
}
