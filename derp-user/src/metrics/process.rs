//! What the kernel knows about this process, under the names every Prometheus client library uses.

use std::{fs, io, time::Duration};

use nix::{
    sys::resource::{Resource, getrlimit},
    time::{ClockId, clock_gettime},
    unistd::{SysconfVar, sysconf},
};

/// Ticks per second in `/proc/<pid>/stat`: fixed by the kernel's interface, whatever its timer does.
pub(crate) const TICKS_PER_SECOND: f64 = 100.0;

/// Figures of `/proc/self` at one moment.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct ProcessFigures {
    pub(super) cpu_seconds: f64,
    /// Seconds since the Unix epoch.
    pub(super) started: f64,
    pub(super) virtual_bytes: f64,
    pub(super) resident_bytes: f64,
    pub(super) open_files: f64,
    pub(super) max_files: f64,
    pub(super) max_virtual_bytes: f64,
    /// When the machine started, in seconds since the Unix epoch.
    pub(super) booted: f64,
    /// Bytes that the network namespace has received and sent.
    pub(super) received_bytes: f64,
    pub(super) sent_bytes: f64,
}

impl ProcessFigures {
    /// Reads the figures, or says which file could not be read.
    pub(super) fn read() -> io::Result<Self> {
        let page_bytes = sysconf(SysconfVar::PAGE_SIZE)?.unwrap_or(4096) as f64;
        let stat = Stat::parse(&fs::read_to_string("/proc/self/stat")?)
            .ok_or_else(|| io::Error::other("/proc/self/stat has an unknown form"))?;
        let booted = boot_time(&fs::read_to_string("/proc/stat")?)
            .ok_or_else(|| io::Error::other("/proc/stat has no btime line"))?;
        // Listing the directory opens one descriptor more.
        let open_files = fs::read_dir("/proc/self/fd")?.count().saturating_sub(1);
        let (max_files, _hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
        let (max_virtual, _hard) = getrlimit(Resource::RLIMIT_AS)?;
        let (received, sent) = network_bytes(&fs::read_to_string("/proc/self/net/netstat")?)
            .ok_or_else(|| io::Error::other("/proc/self/net/netstat has no InOctets"))?;
        Ok(Self {
            cpu_seconds: stat.cpu_ticks as f64 / TICKS_PER_SECOND,
            started: booted as f64 + stat.start_ticks as f64 / TICKS_PER_SECOND,
            virtual_bytes: stat.virtual_bytes as f64,
            resident_bytes: stat.resident_pages as f64 * page_bytes,
            open_files: open_files as f64,
            max_files: max_files as f64,
            max_virtual_bytes: max_virtual as f64,
            booted: booted as f64,
            received_bytes: received as f64,
            sent_bytes: sent as f64,
        })
    }
}

/// What this process has used: processor time to the nanosecond, resident memory. Of all figures, those that can be
/// read every two seconds: to count open files takes the longer, the more there are.
///
/// # Errors
///
/// If the kernel does not tell, or in another form.
pub fn usage() -> io::Result<Usage> {
    let time = clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID)?;
    let page_bytes = u64::try_from(sysconf(SysconfVar::PAGE_SIZE)?.unwrap_or(4096)).unwrap_or(4096);
    let statm = fs::read_to_string("/proc/self/statm")?;
    let resident =
        statm.split_ascii_whitespace().nth(1).and_then(|pages| pages.parse::<u64>().ok());
    let resident =
        resident.ok_or_else(|| io::Error::other("/proc/self/statm has an unknown form"))?;
    Ok(Usage { processor_time: Duration::from(time), memory: resident.saturating_mul(page_bytes) })
}

/// What a process has used.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Usage {
    /// Processor time since its start.
    pub processor_time: Duration,
    /// Resident memory in bytes.
    pub memory: u64,
}

/// The fields of proc_pid_stat(5) that are exported.
#[derive(Debug, Eq, PartialEq)]
pub(crate) struct Stat {
    /// Processor time in user and kernel mode, in ticks.
    pub(crate) cpu_ticks: u64,
    start_ticks: u64,
    virtual_bytes: u64,
    resident_pages: u64,
}

impl Stat {
    /// Reads the one line of the file.
    pub(crate) fn parse(line: &str) -> Option<Self> {
        // The command name in parentheses may hold spaces and parentheses itself; what follows is field 3.
        let (_, rest) = line.rsplit_once(')')?;
        let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
        let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
        Some(Self {
            cpu_ticks: field(14)?.checked_add(field(15)?)?,
            start_ticks: field(22)?,
            virtual_bytes: field(23)?,
            resident_pages: field(24)?,
        })
    }
}

fn boot_time(stat: &str) -> Option<u64> {
    stat.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()
}

/// Reads how many bytes came and went: the columns of the two lines that begin with `IpExt:`.
fn network_bytes(netstat: &str) -> Option<(u64, u64)> {
    let mut lines = netstat.lines().filter_map(|line| line.strip_prefix("IpExt:"));
    let (names, values) = (lines.next()?.split_whitespace(), lines.next()?.split_whitespace());
    let columns: Vec<_> = names.zip(values).collect();
    let column = |wanted| {
        let (_, value) = columns.iter().find(|(name, _)| *name == wanted)?;
        value.parse().ok()
    };
    Some((column("InOctets")?, column("OutOctets")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_stat_with_an_odd_command_name() {
        let line =
            "42 (a) b) S 1 42 42 0 -1 4194560 1 2 3 4 250 50 5 6 20 0 3 0 12345 1000000 77 18";
        let expected = Stat {
            cpu_ticks: 300,
            start_ticks: 12345,
            virtual_bytes: 1_000_000,
            resident_pages: 77,
        };
        assert_eq!(Stat::parse(line), Some(expected));
        assert_eq!(Stat::parse("42 (a) S 1"), None);
        assert_eq!(Stat::parse(""), None);
    }

    #[test]
    fn finds_the_boot_time() {
        assert_eq!(boot_time("cpu 1 2\nbtime 1700000000\n"), Some(1_700_000_000));
        assert_eq!(boot_time("cpu 1 2\n"), None);
    }

    #[test]
    fn finds_the_bytes_of_the_network() {
        let text = "TcpExt: A B\nTcpExt: 1 2\nIpExt: X InOctets OutOctets\nIpExt: 5 700 800\n";
        assert_eq!(network_bytes(text), Some((700, 800)));
        assert_eq!(network_bytes("IpExt: InOctets OutOctets\n"), None);
        assert_eq!(network_bytes("IpExt: InOctets\nIpExt: 5\n"), None);
    }

    #[test]
    fn this_process_has_plausible_figures() {
        let figures = ProcessFigures::read().unwrap();
        assert!(figures.open_files >= 3.0, "{figures:?}");
        assert!(figures.resident_bytes > 0.0 && figures.resident_bytes <= figures.virtual_bytes);
        assert!(figures.started > 1_000_000_000.0);

        let usage = usage().unwrap();
        assert!(!usage.processor_time.is_zero(), "{usage:?}");
        assert!(usage.memory > 1 << 20 && (usage.memory as f64) < figures.virtual_bytes);
    }
}
