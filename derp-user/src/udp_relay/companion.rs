//! The companion at work: asks tailscaled, and has the kernel forward what it says.

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use hyper::StatusCode;
use parking_lot::Mutex;
use tokio::time::{sleep_until, timeout};

use super::Keeper;
use crate::{
    companion::{
        Companion, CompanionOptions, CompanionView, Failure, MAX_ANSWER, Observation, Report,
        Serving, Status,
    },
    dataplane::DataplaneError,
    local_api::LocalApi,
    udp::now,
};

const PATH: &str = "/localapi/v0/debug-peer-relay-sessions";
/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(1);
/// How much later than expected the next answer may be asked for, for the kernel to go on.
const SLACK: Duration = Duration::from_millis(250);
/// Longest pause between questions that fail.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// How soon after a question the next one may be asked because the connection has ended.
const SHORTEST_PAUSE: Duration = Duration::from_millis(20);

/// Tells the kernel program what to serve for tailscaled, if anything.
pub type Serve = Box<dyn FnMut(Option<Serving>) -> Result<(), DataplaneError> + Send>;

/// What a companion is run with.
pub struct CompanionServiceOptions {
    /// Where tailscaled listens.
    pub socket: PathBuf,
    /// How often it is asked.
    pub poll: Duration,
    /// UDP ports that this daemon serves itself.
    pub own_ports: Vec<u16>,
    /// Keeps the flows, in the kernel too.
    pub keeper: Keeper,
    /// Tells the kernel program.
    pub serve: Serve,
}

/// A companion with everything it is connected to.
///
/// When it is dropped, the kernel forwards no more for tailscaled.
pub struct CompanionService {
    companion: Companion,
    api: LocalApi,
    poll: Duration,
    /// Where tailscaled listens, for the log.
    socket: PathBuf,
    keeper: Keeper,
    serve: Serve,
    /// What has last been said of the status.
    said: Status,
    shown: Arc<Mutex<CompanionView>>,
}

/// Reads what a companion knows and has done; cheap to clone.
#[derive(Clone)]
pub struct CompanionReader(Arc<Mutex<CompanionView>>);

impl CompanionReader {
    /// Returns what was so after the last question.
    #[must_use]
    pub fn view(&self) -> CompanionView {
        *self.0.lock()
    }
}

/// Why there is no report.
struct Fault {
    failure: Failure,
    words: String,
}

impl CompanionService {
    /// Makes a companion that has not asked yet.
    #[must_use]
    pub fn new(options: CompanionServiceOptions) -> Self {
        let CompanionServiceOptions { socket, poll, own_ports, keeper, serve } = options;
        let lease = poll + PATIENCE + SLACK;
        let lease = u64::try_from(lease.as_nanos()).unwrap_or(u64::MAX);
        Self {
            companion: Companion::new(CompanionOptions { lease, own_ports }),
            api: LocalApi::new(socket.clone()),
            poll,
            socket,
            keeper,
            serve,
            said: Status::default(),
            shown: Arc::default(),
        }
    }

    /// Returns who reads what the companion knows.
    #[must_use]
    pub fn reader(&self) -> CompanionReader {
        CompanionReader(Arc::clone(&self.shown))
    }

    /// Goes on until dropped; on a Tokio runtime with I/O and time.
    pub async fn run(mut self) {
        let mut failures = 0;
        let mut is_early = false;
        loop {
            let asked = Instant::now();
            let result = self.ask_once().await;
            let is_kernels = matches!(&result, Err(fault) if fault.failure == Failure::Kernel);
            failures = if result.is_ok() || is_kernels { 0 } else { failures + 1 };
            self.tell(result.err());
            let due = asked + pause(self.poll, failures);
            is_early = tokio::select! {
                () = sleep_until(due.into()) => false,
                // The next question tells whether it is there. But not for ever, if it ends every connection.
                () = self.api.closed(), if !is_early => true,
            };
            if is_early {
                sleep_until((asked + SHORTEST_PAUSE).into()).await;
            }
        }
    }

    /// Asks, and does what follows from the answer.
    async fn ask_once(&mut self) -> Result<(), Fault> {
        let asked = now();
        let result = match self.report().await {
            Ok(report) => self.follow(asked, &report),
            Err(fault) => Err(fault),
        };
        if let Err(fault) = &result {
            // The kernel first: it stops with this one write.
            self.stop();
            self.keeper.update(|table| self.companion.fail(table, fault.failure));
        }
        *self.shown.lock() = *self.companion.view();
        result
    }

    async fn report(&mut self) -> Result<Report, Fault> {
        let unreachable = |words| Fault { failure: Failure::Unreachable, words };
        let malformed = |words| Fault { failure: Failure::Malformed, words };
        let answer = timeout(PATIENCE, self.api.get(PATH, MAX_ANSWER)).await;
        let late = |_| unreachable(format!("no answer within {} s", PATIENCE.as_secs()));
        let (status, body) = answer.map_err(late)?.map_err(unreachable)?;
        if status != StatusCode::OK {
            let text = String::from_utf8_lossy(&body);
            let shown: String = text.trim().chars().take(200).collect();
            return Err(malformed(format!("{status}: {shown}")));
        }
        Report::parse(&body).map_err(|error| malformed(error.to_string()))
    }

    fn follow(&mut self, asked: u64, report: &Report) -> Result<(), Fault> {
        let in_kernel = |words: String| Fault { failure: Failure::Kernel, words };
        let suspects = self.keeper.suspects(self.companion.slots());
        let suspects = suspects.map_err(|error| in_kernel(error.to_string()))?;
        let before = self.companion.serving();
        let companion = &mut self.companion;
        let trusted = self.keeper.update(|table| {
            let observation = Observation { asked, report, suspects: &suspects, now: now() };
            companion.poll(table, &observation)
        });
        self.keeper.trust(&trusted).map_err(|error| in_kernel(error.to_string()))?;
        if !self.keeper.kernel_is_current() {
            return Err(in_kernel("its flow tables are being made anew".to_owned()));
        }
        let serving = self.companion.serving();
        if serving.is_none() && before.is_none() {
            return Ok(());
        }
        (self.serve)(serving).map_err(|error| in_kernel(error.to_string()))
    }

    fn stop(&mut self) {
        if self.companion.serving().is_some()
            && let Err(error) = (self.serve)(None)
        {
            tracing::error!("{error}: the kernel forwards for tailscaled until its lease ends");
        }
    }

    /// Says once what is so now.
    fn tell(&mut self, fault: Option<Fault>) {
        let status = self.companion.view().status;
        if status == self.said {
            return;
        }
        self.said = status;
        let socket = self.socket.display();
        let words = fault.map(|fault| fault.words).unwrap_or_default();
        match status {
            Status::Starting => {}
            Status::Accompanying { port } => {
                tracing::info!(
                    "companion: the kernel forwards for tailscaled's peer relay, UDP port {port}"
                );
            }
            Status::NoRelay => tracing::warn!(
                "companion: tailscaled at {socket} is no peer relay: nothing is done \
                 (tailscale set --relay-server-port=PORT makes it one)"
            ),
            Status::RandomPort => tracing::warn!(
                "companion: tailscaled has chosen its relay port itself and does not say which it is: nothing is \
                 done (tailscale set --relay-server-port=PORT, other than 0)"
            ),
            Status::OwnPort { port } => tracing::warn!(
                "companion: tailscaled's relay port {port} is this daemon's own: nothing is done"
            ),
            Status::Failed(Failure::Unreachable) => {
                tracing::warn!(
                    "companion: tailscaled cannot be asked, its packets are left to it: {words}"
                );
            }
            Status::Failed(Failure::Malformed) => tracing::warn!(
                "companion: tailscaled's answer is not understood, its packets are left to it: {words}"
            ),
            Status::Failed(Failure::Kernel) => {
                tracing::error!(
                    "companion: the kernel cannot be used, packets are left to tailscaled: {words}"
                );
            }
        }
    }
}

impl Drop for CompanionService {
    fn drop(&mut self) {
        self.stop();
    }
}

/// How long after a question the next one is due, after this many in a row that failed.
fn pause(poll: Duration, failures: u32) -> Duration {
    let factor = 1_u32.checked_shl(failures).unwrap_or(u32::MAX);
    poll.saturating_mul(factor).min(LONGEST_PAUSE.max(poll))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_does_not_answer_is_asked_less_often() {
        let poll = Duration::from_millis(250);
        let milliseconds = |failures| pause(poll, failures).as_millis();
        let pauses = [0, 1, 2, 4, 5, 31, 32, u32::MAX].map(milliseconds);
        assert_eq!(pauses, [250, 500, 1000, 4000, 5000, 5000, 5000, 5000]);
        assert_eq!(pause(Duration::from_secs(7), 3), Duration::from_secs(7));
    }
}
