//! What processes have used: the server's from `/proc`, our own.

use std::fs;

use nix::sys::resource::{UsageWho, getrusage};

use super::BenchError;
use crate::metrics::process::{Stat, TICKS_PER_SECOND};

/// A process on this machine that is measured from outside.
#[derive(Clone, Copy, Debug)]
pub(super) struct ServerProcess {
    pid: u32,
}

impl ServerProcess {
    /// Checks that the process can be measured.
    pub(super) fn new(pid: u32) -> Result<Self, BenchError> {
        let process = Self { pid };
        process.cpu_seconds()?;
        process.resident_kib()?;
        Ok(process)
    }

    /// Seconds that it has spent on processors, in user and kernel mode.
    pub(super) fn cpu_seconds(&self) -> Result<f64, BenchError> {
        let stat = Stat::parse(&self.read("stat")?).ok_or_else(|| self.fault("stat"))?;
        Ok(stat.cpu_ticks as f64 / TICKS_PER_SECOND)
    }

    /// Resident memory in KiB.
    pub(super) fn resident_kib(&self) -> Result<u64, BenchError> {
        resident_kib(&self.read("status")?).ok_or_else(|| self.fault("status"))
    }

    fn read(&self, file: &str) -> Result<String, BenchError> {
        fs::read_to_string(format!("/proc/{}/{file}", self.pid)).map_err(|error| {
            let reason = if error.kind() == std::io::ErrorKind::NotFound {
                "there is no such process".to_owned()
            } else {
                format!("cannot read /proc/{}/{file}: {error}", self.pid)
            };
            BenchError::Process { pid: self.pid, reason }
        })
    }

    fn fault(&self, file: &str) -> BenchError {
        let reason = format!("/proc/{}/{file} does not have the usual form", self.pid);
        BenchError::Process { pid: self.pid, reason }
    }
}

/// VmRSS of `/proc/<pid>/status`. A process that has ended but was not waited for has none.
fn resident_kib(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.split_whitespace().next()?.parse().ok()
}

/// Seconds that this process has spent on processors, in user and kernel mode.
pub(super) fn own_cpu_seconds() -> Result<f64, BenchError> {
    let usage = getrusage(UsageWho::RUSAGE_SELF)
        .map_err(BenchError::system("cannot read the generator's own use of processors"))?;
    let seconds =
        |time: nix::sys::time::TimeVal| time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6;
    Ok(seconds(usage.user_time()) + seconds(usage.system_time()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_resident_memory() {
        assert_eq!(resident_kib("Name:\tx\nVmRSS:\t    1234 kB\nVmData: 1 kB\n"), Some(1234));
        assert_eq!(resident_kib("Name:\tx\nState:\tZ (zombie)\n"), None);
    }

    #[test]
    fn this_process_can_be_measured_and_no_other_can() {
        let process = ServerProcess::new(std::process::id()).unwrap();
        assert!(process.resident_kib().unwrap() > 100);
        assert!(own_cpu_seconds().unwrap() > 0.0);
        let error = ServerProcess::new(u32::MAX).unwrap_err().to_string();
        assert!(error.contains("4294967295") && error.contains("no such process"), "{error}");
    }
}
