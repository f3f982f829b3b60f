//! derpd as DERP server and peer relay of two clients that reach nothing else but another DERP server.
//!
//! The other server is the home of both clients, so it is where their traffic goes without the peer relay.

use std::{
    fs,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;
use serde_json::json;

use super::{
    CONTROL_PORT, MEGABYTE, PATIENCE, Programs, cpu_time,
    lab::{CONTROL, Daemon, Host, Lab, RELAYS, retry, say},
    node::{Device, Node},
    relay::{attach, certificate, page, prepare_links, relay_command},
    traffic::{Copy, Stream},
    translation::Translation,
};
use crate::{derp_map, namespaces};

/// UDP port of the peer relay.
pub(super) const PORT: u16 = 40_000;
/// How `tailscale ping` names it.
pub(super) const WAY: &str = "peer-relay(";
/// Most time without traffic when the port of a client changes: clients trust a way for 6.5 s.
const LONGEST_GAP: Duration = Duration::from_secs(7);
/// The same when the relay is killed.
const LONGEST_GAP_KILLED: Duration = Duration::from_secs(10);
/// What the copy beside a change of port takes.
const RATE: u64 = 2_000_000;
/// Of a processor, what the daemon may use while the kernel forwards.
const IDLE: f64 = 0.1;
/// Any number that the coordination server does not give to a client.
const NODE_ID: u16 = 0x1234;

impl Programs {
    /// Starts everything, has the clients use the peer relay, and disturbs them. Returns a report.
    pub(super) fn use_peer_relay(
        &self,
        derpd: &Path,
        xdp_mode: Option<&str>,
        megabytes: u64,
    ) -> Result<String> {
        namespaces::ensure_nft()?;
        let lab = Lab::build().context("building the network")?;
        let mut translation = Translation::install(&lab, Host::Left)?;
        let mut relay = PeerRelay::start(&lab, derpd, xdp_mode)?;
        let mut elsewhere = lab.start("elsewhere", &mut relay_command(&lab, derpd, RELAYS[1]))?;
        let map = retry("both certificates", PATIENCE, || {
            let server = |address: &str| Ok((address.parse()?, certificate(&lab, address)?));
            derp_map::of_regions(&RELAYS.map(server).into_iter().collect::<Result<Vec<_>>>()?)
        })?;
        let map_file = lab.directory().join("derpmap.json");
        fs::write(&map_file, map).context("writing the DERP map")?;
        let node = await_keys(&relay.daemon)?;
        let mut control = start_control(&lab, self, &map_file, true, Some(&node))?;
        say("logging two clients in");
        let left = Node::start(&lab, Host::Left, Device::Tun, self)?;
        let right = Node::start(&lab, Host::Right, Device::Tun, self)?;
        let mut test = Test { lab: &lab, left, right, report: Vec::new() };
        let result = test
            .copy(&relay, megabytes)
            .and_then(|()| test.change_port(&mut translation))
            .and_then(|()| test.kill(&mut relay));
        elsewhere.check()?;
        control.check()?;
        relay.daemon.check()?;
        result.with_context(|| format!("the relay's log ends:\n{}", relay.daemon.last_words()))?;
        Ok(test.report.join("\n"))
    }
}

/// Starts the coordination server, with the relay's node if it does not register by itself.
pub(super) fn start_control(
    lab: &Lab,
    programs: &Programs,
    map_file: &Path,
    is_relayed: bool,
    nodes: Option<&str>,
) -> Result<Daemon> {
    let mut command = lab.command(Host::Relay, &programs.control);
    command.arg(format!("-listen={CONTROL}:{CONTROL_PORT}")).arg("-derp-map").arg(map_file);
    if is_relayed {
        command.arg("-peer-relay");
    }
    if let Some(nodes) = nodes {
        let nodes_file = lab.directory().join("nodes.json");
        fs::write(&nodes_file, nodes).context("writing the relay's node")?;
        command.arg("-nodes").arg(&nodes_file);
    }
    lab.start("control", &mut command)
}

/// derpd as a peer relay, which can be started again.
struct PeerRelay<'a> {
    lab: &'a Lab,
    derpd: &'a Path,
    xdp_mode: Option<&'a str>,
    daemon: Daemon,
}

impl<'a> PeerRelay<'a> {
    fn start(lab: &'a Lab, derpd: &'a Path, xdp_mode: Option<&'a str>) -> Result<Self> {
        if xdp_mode.is_some() {
            prepare_links(lab)?;
        }
        let daemon = Self::start_daemon(lab, derpd, xdp_mode)?;
        Ok(Self { lab, derpd, xdp_mode, daemon })
    }

    fn start_daemon(lab: &Lab, derpd: &Path, xdp_mode: Option<&str>) -> Result<Daemon> {
        say(&format!("starting {}", derpd.display()));
        let mut command = relay_command(lab, derpd, RELAYS[0]);
        command.arg("-config").arg(config(lab)?);
        if let Some(mode) = xdp_mode {
            attach(&mut command, mode);
        }
        lab.start("peer-relay", &mut command)
    }

    fn kill(&mut self) -> Result<()> {
        self.daemon.kill()
    }

    fn start_again(&mut self) -> Result<()> {
        self.daemon = Self::start_daemon(self.lab, self.derpd, self.xdp_mode)?;
        Ok(())
    }
}

/// Writes the configuration file of derpd as a peer relay.
pub(super) fn config(lab: &Lab) -> Result<PathBuf> {
    let keys = lab.directory().join("peer-relay.keys");
    let text = format!("[peer_relay]\nport = {PORT}\nkey_file = {keys:?}\nallow = \"any\"\n");
    let file = lab.directory().join("derpd.toml");
    fs::write(&file, text).context("writing derpd.toml")?;
    Ok(file)
}

/// Waits for derpd's keys; returns what clients have to know of the relay, in the words of the coordination server.
pub(super) fn await_keys(derpd: &Daemon) -> Result<String> {
    let [key, disco] = retry("the relay's keys", PATIENCE, || {
        let log = derpd.log();
        let key = |prefix| {
            let mut words = log.split([' ', ',', '\n']);
            words.find(|word| word.starts_with(prefix)).map(str::to_owned).context("not in the log")
        };
        Ok([key("nodekey:")?, key("discokey:")?])
    })?;
    let [high, low] = NODE_ID.to_be_bytes();
    let address = format!("100.64.{high}.{low}/32");
    let node = json!([{
        "ID": NODE_ID,
        "StableID": "relay",
        "Name": "relay.",
        "Key": key,
        "DiscoKey": disco,
        "HomeDERP": derp_map::REGION,
        "Cap": 130,
        "Addresses": [address],
        "AllowedIPs": [address],
        "MachineAuthorized": true,
        // Without this, clients cannot answer `tailscale status`.
        "Hostinfo": { "Hostname": "relay" },
    }]);
    Ok(node.to_string())
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

    /// Waits until a ping comes by a way, at most so long; returns its answer.
    fn await_way(&self, way: &str, limit: Duration) -> Result<String> {
        retry(&format!("a ping via {way}"), limit, || self.left.ping_by(&self.right, way))
    }

    /// Case 42, first part: the clients use the relay, and the kernel does the work.
    fn copy(&mut self, relay: &PeerRelay<'_>, megabytes: u64) -> Result<()> {
        // A client that looks for a way before it knows of the relay looks again after half a minute only.
        self.left.await_peer_relay()?;
        self.right.await_peer_relay()?;
        let start = Instant::now();
        let pong = self.await_way(WAY, PATIENCE)?;
        self.say(format!("ping:       {pong}, after {:.1} s", start.elapsed().as_secs_f64()));
        let (address, vni) = endpoint(&pong)?;
        ensure!(
            address == format!("{}:{PORT}", RELAYS[0]),
            "the ping came via {address}, which is not the relay's"
        );
        let before = Counted::read(self.lab, vni)?;
        let id = relay.daemon.id();
        let (bytes, cpu) = (megabytes * MEGABYTE, cpu_time(id)?);
        let (elapsed, digest) =
            Copy::start(self.lab, &self.right, &self.left, bytes, None)?.finish()?;
        let cpu = cpu_time(id)?.saturating_sub(cpu);
        let counted = retry("the relay to count", PATIENCE, || {
            let counted = Counted::read(self.lab, vni)?.since(&before);
            ensure!(counted.kernel + counted.userspace >= bytes, "it counts {counted:?}");
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
        if relay.xdp_mode.is_some() {
            ensure!(counted.userspace < bytes / 100, "the daemon forwards: {counted:?}");
            ensure!(share < IDLE, "the daemon is not idle");
        }
        Ok(())
    }

    /// Case 43: the port of a client changes in the midst of a copy.
    fn change_port(&mut self, translation: &mut Translation<'_>) -> Result<()> {
        let copy = Copy::start(self.lab, &self.right, &self.left, 20 * RATE, Some(RATE))?;
        let streams = self.start_streams()?;
        std::thread::sleep(Duration::from_secs(3));
        translation.change_port()?;
        let start = Instant::now();
        // It first stays with the old way, which does not answer, and then goes by DERP.
        let pong = self.await_way(WAY, PATIENCE)?;
        let back = start.elapsed().as_secs_f64();
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

    /// Case 42, second part: the relay is killed and comes back.
    fn kill(&mut self, relay: &mut PeerRelay<'_>) -> Result<()> {
        let streams = self.start_streams()?;
        relay.kill()?;
        let start = Instant::now();
        let pong = self.await_way("DERP(", PATIENCE)?;
        let gone = start.elapsed().as_secs_f64();
        std::thread::sleep(Duration::from_secs(1));
        let gaps = finish_streams(streams)?;
        self.say(format!(
            "killed:     longest silence {}; after {gone:.1} s: {pong}",
            in_seconds(gaps)
        ));
        ensure!(gaps.iter().all(|gap| *gap < LONGEST_GAP_KILLED), "silent for too long: {gaps:?}");
        let streams = self.start_streams()?;
        relay.start_again()?;
        let start = Instant::now();
        let pong = self.await_way(WAY, PATIENCE)?;
        let back = start.elapsed().as_secs_f64();
        let gaps = finish_streams(streams)?;
        self.say(format!(
            "restarted:  longest silence {}; after {back:.1} s: {pong}",
            in_seconds(gaps)
        ));
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

/// Finds address and VNI in the answer to a ping.
fn endpoint(pong: &str) -> Result<(String, u32)> {
    let parts = pong
        .split_once(WAY)
        .and_then(|(_, rest)| rest.split_once(')'))
        .and_then(|(way, _)| way.split_once(":vni:"))
        .with_context(|| format!("no address and VNI: {pong}"))?;
    let vni = parts.1.parse().with_context(|| format!("a VNI: {pong}"))?;
    Ok((parts.0.to_owned(), vni))
}

/// Bytes that the relay has forwarded for one endpoint.
#[derive(Clone, Copy, Debug)]
struct Counted {
    kernel: u64,
    userspace: u64,
}

impl Counted {
    fn read(lab: &Lab, vni: u32) -> Result<Self> {
        #[derive(Deserialize)]
        struct Flows {
            flows: Vec<Flow>,
        }
        #[derive(Deserialize)]
        struct Flow {
            vni: Option<u32>,
            ends: [End; 2],
        }
        #[derive(Deserialize)]
        struct End {
            kernel: Count,
            userspace: Count,
        }
        #[derive(Deserialize)]
        struct Count {
            bytes: u64,
        }
        let address: Ipv4Addr = RELAYS[0].parse().context("parsing our own address")?;
        let text = page(lab, address, "/debug/flows?format=json")?;
        let Flows { flows } = serde_json::from_str(&text).context("reading /debug/flows")?;
        let flow = flows.into_iter().find(|flow| flow.vni == Some(vni));
        let [a, b] = flow.with_context(|| format!("no flow has VNI {vni}: {text}"))?.ends;
        Ok(Self {
            kernel: a.kernel.bytes + b.kernel.bytes,
            userspace: a.userspace.bytes + b.userspace.bytes,
        })
    }

    fn since(self, before: &Self) -> Self {
        Self { kernel: self.kernel - before.kernel, userspace: self.userspace - before.userspace }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn address_and_vni_are_found_in_a_pong() {
        let pong = "pong from right (100.64.0.2) via peer-relay(10.77.0.1:40000:vni:4711) in 1ms";
        assert_eq!(endpoint(pong).unwrap(), ("10.77.0.1:40000".to_owned(), 4711));
        assert!(endpoint("pong from right (100.64.0.2) via DERP(dev) in 1ms").is_err());
    }
}
