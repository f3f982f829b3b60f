//! The STUN half of the daemon, as the binary runs it, on a thread of its own in a namespace.
#![allow(dead_code, reason = "each test program uses a part of it")]

use std::{
    fs,
    sync::Arc,
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use derp_common::{Family, Reason};
use derp_user::{
    dataplane::{DataplaneError, Mode, Xdp, XdpOptions},
    stun::{StunCounters, StunServer},
};
use tokio::{runtime, sync::oneshot};

use crate::{
    netns::{Namespaces, SERVER_INTERFACE, spawn_in},
    packets::STUN_PORT,
};

/// A running STUN server with its kernel program.
pub(crate) struct Daemon {
    pub(crate) xdp: Option<Xdp>,
    pub(crate) userspace: Arc<StunCounters>,
    thread_id: i32,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// Options for the server's end of the veth pair.
pub(crate) fn options(mode: Mode) -> XdpOptions {
    XdpOptions {
        interfaces: vec![SERVER_INTERFACE.to_owned()],
        mode,
        stun_port: STUN_PORT,
        ..XdpOptions::default()
    }
}

impl Daemon {
    /// Starts it in the server's namespace.
    pub(crate) fn start(namespaces: &Namespaces, mode: Mode) -> Result<Self, DataplaneError> {
        let (stop, stopped) = oneshot::channel();
        let (started, start) = std::sync::mpsc::channel();
        let thread = spawn_in(&namespaces.server, move || {
            let runtime = runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("runtime").block_on(async move {
                let server = StunServer::bind(None, STUN_PORT).expect("STUN server");
                let mut xdp = Xdp::attach(&options(mode));
                let watcher = match &mut xdp {
                    Ok(Some(xdp)) => xdp.take_watcher(),
                    Ok(None) | Err(_) => None,
                };
                let thread_id = nix::unistd::gettid().as_raw();
                let failed = xdp.is_err();
                started.send((xdp, server.counters(), thread_id)).expect("test waits");
                let watch = async {
                    match watcher {
                        Some(watcher) => watcher.run().await.expect("watcher"),
                        None => std::future::pending().await,
                    }
                };
                if !failed {
                    tokio::select! {
                        () = server.run() => {}
                        () = watch => {}
                        _ = stopped => {}
                    }
                }
            });
        });
        let (xdp, userspace, thread_id) = start.recv().expect("the daemon starts");
        let xdp = xdp?;
        Ok(Self { xdp, userspace, thread_id, stop: Some(stop), thread: Some(thread) })
    }

    /// Requests the kernel has answered.
    pub(crate) fn answered_in_kernel(&self, family: Family) -> u64 {
        let counters = self.xdp.as_ref().expect("attached").counters().expect("counters");
        let found = counters
            .into_iter()
            .find(|it| it.family == family && it.reason == Reason::StunAnswered);
        found.expect("a counter").packets
    }

    /// Datagrams userspace has seen.
    pub(crate) fn seen_in_userspace(&self) -> u64 {
        self.userspace.requests().iter().map(|(_, count)| count).sum()
    }

    /// Waits until userspace has seen this many. (It counts an answer after sending it.)
    pub(crate) fn wait_for_userspace(&self, expected: u64) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while self.seen_in_userspace() < expected && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(self.seen_in_userspace(), expected);
    }

    /// Nanoseconds of CPU the daemon's thread has used.
    pub(crate) fn cpu_nanoseconds(&self) -> u64 {
        let path = format!("/proc/self/task/{}/schedstat", self.thread_id);
        let text = fs::read_to_string(path).expect("schedstat");
        text.split(' ').next().and_then(|first| first.parse().ok()).expect("a number")
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
