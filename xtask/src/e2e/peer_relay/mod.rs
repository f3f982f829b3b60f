//! derpd as DERP server and peer relay of two clients that reach nothing else but another DERP server.
//!
//! The other server is the home of both clients, so it is where their traffic goes without the peer relay.

mod counted;
mod daemon;

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};

pub(super) use self::daemon::{Join, PORT, await_keys, config, start_control};
use self::{
    counted::{Flow, endpoint},
    daemon::{NODE, PeerRelay},
};
use super::{
    MEGABYTE, PATIENCE, Programs, cpu_time, evidence,
    lab::{Host, Lab, RELAYS, retry, say},
    node::{Device, Node},
    relay::{certificate, relay_command},
    traffic::{Copy, Stream},
    translation::Translation,
};
use crate::{derp_map, namespaces};

/// How `tailscale ping` names it.
pub(super) const WAY: &str = "peer-relay(";
/// How many nodes may use it.
const CLIENTS: u64 = 2;
/// Most time without traffic when the port of a client changes or the relay is killed: clients trust a way for 6.5 s, and
/// all processors may be busy.
const LONGEST_GAP: Duration = Duration::from_secs(10);
/// Longest until what the relay has decided is in the tables of both data planes.
const SETTLING: Duration = Duration::from_millis(100);
/// What the copy beside a change of port takes.
const RATE: u64 = 2_000_000;
/// Of a processor, what the daemon may use while the kernel forwards.
const IDLE: f64 = 0.1;

impl Programs {
    /// Starts everything, has the clients use the peer relay, and disturbs them. Returns a report.
    ///
    /// # Errors
    ///
    /// With the place where logs and all that is needed to understand it are kept.
    pub(super) fn use_peer_relay(
        &self,
        derpd: &Path,
        xdp_mode: Option<&str>,
        join: Join,
        megabytes: u64,
    ) -> Result<String> {
        namespaces::ensure_nft()?;
        let lab = Lab::build().context("building the network")?;
        let name = format!("peer-relay-{}-{}", join.name(), xdp_mode.unwrap_or("userspace"));
        self.run_peer_relay(&lab, derpd, xdp_mode, join, megabytes)
            .map_err(|error| evidence::keep(&lab, self, &name, error))
    }

    fn run_peer_relay(
        &self,
        lab: &Lab,
        derpd: &Path,
        xdp_mode: Option<&str>,
        join: Join,
        megabytes: u64,
    ) -> Result<String> {
        let mut translation = Translation::install(lab, Host::Left)?;
        let mut relay = PeerRelay::start(lab, derpd, xdp_mode, join)?;
        let mut elsewhere = lab.start("elsewhere", &mut relay_command(lab, derpd, RELAYS[1]))?;
        let map = retry("both certificates", PATIENCE, || {
            relay.check()?;
            let server = |address: &str| Ok((address.parse()?, certificate(lab, address)?));
            derp_map::of_regions(&RELAYS.map(server).into_iter().collect::<Result<Vec<_>>>()?)
        })?;
        let map_file = lab.directory().join("derpmap.json");
        fs::write(&map_file, map).context("writing the DERP map")?;
        let mut control = relay.start_control(self, &map_file)?;
        say("logging two clients in");
        let left = Node::start(lab, Host::Left, Device::Tun, self)?;
        let right = Node::start(lab, Host::Right, Device::Tun, self)?;
        relay.await_membership()?;
        let mut test = Test { lab, left, right, report: Vec::new() };
        test.copy(&relay, megabytes)?;
        test.change_port(&relay, &mut translation)?;
        test.kill(&mut relay)?;
        elsewhere.check()?;
        control.check()?;
        relay.check()?;
        Ok(test.report.join("\n"))
    }
}

/// The clients, and what they have shown.
struct Test<'lab> {
    lab: &'lab Lab,
    left: Node<'lab>,
    right: Node<'lab>,
    report: Vec<String>,
}

impl Test<'_> {
    fn say(&mut self, line: String) {
        say(&line);
        self.report.push(line);
    }

    /// Waits until a ping comes by a way; returns its answer.
    fn await_way(&self, way: &str) -> Result<String> {
        retry(&format!("a ping via {way}"), PATIENCE, || self.left.ping_by(&self.right, way))
    }

    /// Waits until an endpoint is forwarded by whom it should be, with an end at this address if there is one.
    fn await_forwarder(&self, relay: &PeerRelay<'_>, vni: u32, remote: Option<&str>) -> Result<()> {
        retry("the endpoint to be forwarded", PATIENCE, || {
            let Flow { ends, .. } = Flow::read(self.lab, vni)?;
            let is_there =
                remote.is_none() || ends.iter().any(|end| end.remote.as_deref() == remote);
            ensure!(is_there, "nobody is at {remote:?}");
            for end in &ends {
                let is_kernel = end.forwarder == "kernel";
                ensure!(is_kernel || !relay.has_kernel(), "by the daemon: {}", end.forwarder);
            }
            Ok(())
        })?;
        std::thread::sleep(SETTLING);
        Ok(())
    }

    /// Case 42, first part: the clients use the relay, and the kernel does the work.
    fn copy(&mut self, relay: &PeerRelay<'_>, megabytes: u64) -> Result<()> {
        // A client that looks for a way before it knows of the relay looks again after half a minute only.
        self.left.await_peer_relay()?;
        self.right.await_peer_relay()?;
        let start = Instant::now();
        let pong = self.await_way(WAY)?;
        self.say(format!("ping:       {pong}, after {:.1} s", start.elapsed().as_secs_f64()));
        let (address, vni) = endpoint(&pong)?;
        ensure!(
            address == format!("{}:{PORT}", RELAYS[0]),
            "the ping came via {address}, which is not the relay's"
        );
        self.await_forwarder(relay, vni, None)?;
        let before = Flow::read(self.lab, vni)?.counted();
        let id = relay.id();
        let (bytes, cpu) = (megabytes * MEGABYTE, cpu_time(id)?);
        let (elapsed, digest) =
            Copy::start(self.lab, &self.right, &self.left, bytes, None)?.finish()?;
        let cpu = cpu_time(id)?.saturating_sub(cpu);
        let counted = retry("the relay to count", PATIENCE, || {
            let counted = Flow::read(self.lab, vni)?.counted().since(before);
            ensure!(counted.sum() >= bytes, "it counts {counted:?}");
            Ok(counted)
        })?;
        let (seconds, cpu) = (elapsed.as_secs_f64(), cpu.as_secs_f64());
        self.say(format!(
            "copy:       {megabytes} MB in {seconds:.2} s, {:.0} Mbit/s, SHA-256 {digest}",
            bytes as f64 * 8e-6 / seconds
        ));
        self.say(format!(
            "relayed:    {:.1} MB by the kernel, {:.1} MB by the daemon, VNI {vni}",
            counted.kernel as f64 / MEGABYTE as f64,
            counted.userspace as f64 / MEGABYTE as f64
        ));
        let share = cpu / seconds;
        self.say(format!("relay CPU:  {:.1} ms, {:.2} % of one", cpu * 1e3, share * 100.0));
        if relay.has_kernel() {
            ensure!(counted.userspace < bytes / 100, "the daemon forwards: {counted:?}");
            ensure!(share < IDLE, "the daemon is not idle");
        }
        Ok(())
    }

    /// Case 43: the port of a client changes in the midst of a copy.
    fn change_port(
        &mut self,
        relay: &PeerRelay<'_>,
        translation: &mut Translation<'_>,
    ) -> Result<()> {
        let copy = Copy::start(self.lab, &self.right, &self.left, 20 * RATE, Some(RATE))?;
        let streams = self.start_streams()?;
        std::thread::sleep(Duration::from_secs(3));
        translation.change_port()?;
        let start = Instant::now();
        // It first stays with the old way, which does not answer, and then goes by DERP.
        let pong = self.await_way(WAY)?;
        let back = start.elapsed().as_secs_f64();
        let (_, vni) = endpoint(&pong)?;
        self.await_forwarder(relay, vni, Some(&translation.outside()))?;
        let strays = translation.strays()?;
        let (elapsed, _) = copy.finish()?;
        let gaps = finish_streams(streams)?;
        let late = translation.strays()? - strays;
        self.say(format!(
            "new port:   longest silence {}; by the relay again after {back:.1} s: {pong}",
            in_seconds(gaps)
        ));
        self.say(format!(
            "            a copy at {} Mbit/s meanwhile whole after {:.1} s; packets to the old port: {strays} before, {late} after",
            RATE * 8 / MEGABYTE,
            elapsed.as_secs_f64()
        ));
        ensure!(gaps.iter().all(|gap| *gap < LONGEST_GAP), "silent for too long: {gaps:?}");
        ensure!(late == 0, "{late} packets went to the old port after the relay knew the new one");
        Ok(())
    }

    /// Case 42, second part: the relay is killed and comes back as who it was.
    fn kill(&mut self, relay: &mut PeerRelay<'_>) -> Result<()> {
        let known = self.left.peers(NODE)?;
        ensure!(known.len() == 1, "a client knows these relays: {known:?}");
        let streams = self.start_streams()?;
        relay.kill()?;
        let start = Instant::now();
        let pong = self.await_way("DERP(")?;
        let gone = start.elapsed().as_secs_f64();
        std::thread::sleep(Duration::from_secs(1));
        let gaps = finish_streams(streams)?;
        self.say(format!(
            "killed:     longest silence {}; after {gone:.1} s: {pong}",
            in_seconds(gaps)
        ));
        ensure!(gaps.iter().all(|gap| *gap < LONGEST_GAP), "silent for too long: {gaps:?}");
        let streams = self.start_streams()?;
        relay.start_again()?;
        let start = Instant::now();
        let pong = self.await_way(WAY)?;
        let back = start.elapsed().as_secs_f64();
        let gaps = finish_streams(streams)?;
        self.say(format!(
            "restarted:  longest silence {}; after {back:.1} s: {pong}",
            in_seconds(gaps)
        ));
        relay.await_membership()?;
        let again = self.left.peers(NODE)?;
        ensure!(again == known, "it was {known:?}, and has come back as {again:?}");
        Ok(())
    }

    fn start_streams(&self) -> Result<[Stream; 2]> {
        let (left, right) = (&self.left, &self.right);
        Ok([Stream::start(self.lab, left, right)?, Stream::start(self.lab, right, left)?])
    }
}

fn finish_streams([there, back]: [Stream; 2]) -> Result<[Duration; 2]> {
    Ok([there.finish()?, back.finish()?])
}

fn in_seconds([there, back]: [Duration; 2]) -> String {
    format!("{:.2} s from left, {:.2} s from right", there.as_secs_f64(), back.as_secs_f64())
}
