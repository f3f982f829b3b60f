//! Starting a relay for one measurement.

use std::{
    fs::{self, File},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use crate::process;

/// How long a relay may take to listen, making its first key and certificate included.
const START_LIMIT: Duration = Duration::from_secs(20);

/// A relay binary and the directory of its key, certificate and log.
pub(super) struct Program {
    name: &'static str,
    binary: PathBuf,
    directory: PathBuf,
}

impl Program {
    pub(super) fn new(name: &'static str, binary: PathBuf, parent: &Path) -> Result<Self> {
        let directory = parent.join(name);
        fs::create_dir_all(&directory)
            .with_context(|| format!("creating {}", directory.display()))?;
        Ok(Self { name, binary, directory })
    }

    pub(super) fn binary(&self) -> &Path {
        &self.binary
    }

    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    /// Starts the relay on a free loopback port and waits until it listens. `workers` is for derpd
    /// alone: how many threads relay, if not its default.
    pub(super) fn start(&self, workers: Option<u32>) -> Result<Server> {
        let address = free_port().context("looking for a free port")?;
        let log_file = self.directory.join("log");
        let log =
            File::create(&log_file).with_context(|| format!("creating {}", log_file.display()))?;
        let child = process::command(&self.binary)
            .arg(format!("-a={address}"))
            .args(["-http-port=-1", "-stun=false", "-certmode=manual", "-hostname=127.0.0.1"])
            .arg(format!("-certdir={}", self.directory.join("certs").display()))
            .arg(format!("-c={}", self.directory.join("derper.key").display()))
            .args(workers.map(|count| format!("-workers={count}")))
            .stdin(Stdio::null())
            .stdout(log.try_clone().context("sharing the log file")?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("starting {}", self.binary.display()))?;
        let mut server = Server { child, address };
        server.wait_until_listening().with_context(|| {
            format!("{} did not start; its log is {}", self.name, log_file.display())
        })?;
        Ok(server)
    }
}

/// A running relay, ended on drop.
pub(super) struct Server {
    child: Child,
    address: SocketAddr,
}

impl Server {
    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(super) fn id(&self) -> u32 {
        self.child.id()
    }

    fn wait_until_listening(&mut self) -> Result<()> {
        let deadline = Instant::now() + START_LIMIT;
        while TcpStream::connect(self.address).is_err() {
            if let Some(status) = self.child.try_wait()? {
                bail!("it ended: {status}");
            }
            if Instant::now() > deadline {
                bail!("not listening on {} after {} s", self.address, START_LIMIT.as_secs());
            }
            thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Only fails when the process has ended by itself.
        self.child.kill().unwrap_or_default();
        drop(self.child.wait());
    }
}

fn free_port() -> std::io::Result<SocketAddr> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()
}
