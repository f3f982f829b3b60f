//! Looks at an interface and what belongs to it, in other network namespaces, too.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io,
    os::{fd::AsRawFd as _, unix::fs::MetadataExt as _},
    path::PathBuf,
    thread,
};

use nix::sched::{CloneFlags, setns};
use rtnetlink::packet_route::{
    RouteNetlinkMessage,
    nsid::{NsidAttribute, NsidMessage},
};

use super::{
    super::{
        features::Features,
        link::{Link, link, links},
        netlink::Netlink,
    },
    trap::{Observed, OtherEnd},
};

/// Where `ip netns` keeps network namespaces that have names.
const NAMED: &str = "/run/netns";
/// Where the others are found, as long as a process is in them.
const PROCESSES: &str = "/proc";
/// Most entries of either that are looked at.
const MOST: usize = 4096;

/// Looks at interfaces of the thread's network namespace.
pub(super) struct Observer {
    netlink: Netlink,
    features: Features,
}

impl Observer {
    /// Opens what it needs.
    pub(super) fn open() -> io::Result<Self> {
        Ok(Self { netlink: Netlink::route()?, features: Features::open()? })
    }

    /// Looks at one interface.
    pub(super) fn observe(&mut self, index: u32) -> io::Result<Observed> {
        let mut links = links(&mut self.netlink)?;
        let link = links.remove(&index).ok_or(io::ErrorKind::NotFound)?;
        let is_on_it = |other: &&Link| {
            other.vlan.is_some() && other.lower == Some(index) && other.lower_namespace.is_none()
        };
        let vlans = links.values().filter(is_on_it).map(|vlan| vlan.name.clone()).collect();
        Ok(Observed {
            features: self.features_of(index),
            other_end: self.other_end(&link),
            master: link.master.and_then(|master| links.remove(&master)),
            vlans,
            link,
        })
    }

    fn other_end(&mut self, end: &Link) -> Option<OtherEnd> {
        let index = end.lower.filter(|_| end.kind == "veth")?;
        let namespace = end.lower_namespace;
        let link = link(&mut self.netlink, index, namespace)
            .inspect_err(|error| tracing::debug!(%error, "the other end cannot be looked at"))
            .ok()?;
        let features = match namespace {
            None => self.features_of(index),
            Some(number) => self.features_elsewhere(number, index).unwrap_or_default(),
        };
        Some(OtherEnd { link, features, namespace })
    }

    fn features_of(&mut self, index: u32) -> BTreeSet<String> {
        self.features
            .active(index)
            .inspect_err(|error| tracing::debug!(interface = index, %error, "no features"))
            .unwrap_or_default()
    }

    /// Returns the features of an interface of another network namespace, if that can be found and this
    /// process may enter it.
    fn features_elsewhere(&mut self, number: i32, index: u32) -> Option<BTreeSet<String>> {
        let namespace = self.find(number)?;
        let ask = move || {
            // This thread is for this alone.
            setns(namespace, CloneFlags::CLONE_NEWNET)?;
            Features::open()?.active(index)
        };
        match thread::Builder::new().name("netns".to_owned()).spawn(ask).ok()?.join() {
            Ok(Ok(features)) => Some(features),
            Ok(Err(error)) => {
                tracing::debug!(%error, "the other end's features cannot be asked for");
                None
            }
            Err(_panic) => None,
        }
    }

    /// Finds the network namespace with a number: one that has a name, or one that a process is in, as those
    /// of containers are.
    fn find(&mut self, number: i32) -> Option<File> {
        let paths = |directory| {
            let entries = fs::read_dir(directory).into_iter().flatten().take(MOST);
            entries.filter_map(|entry| Some(entry.ok()?.path()))
        };
        let of_process = |process: PathBuf| process.join("ns/net");
        let mut seen = BTreeSet::new();
        paths(NAMED).chain(paths(PROCESSES).map(of_process)).find_map(|path| {
            // Most processes are in one that was looked at already, and other entries of `/proc` in none.
            seen.insert(fs::metadata(&path).ok()?.ino()).then_some(())?;
            let namespace = File::open(path).ok()?;
            self.number(&namespace).is_ok_and(|found| found == Some(number)).then_some(namespace)
        })
    }

    /// Returns the number this network namespace has for another.
    fn number(&mut self, namespace: &File) -> io::Result<Option<i32>> {
        let descriptor = u32::try_from(namespace.as_raw_fd()).map_err(io::Error::other)?;
        let mut request = NsidMessage::default();
        request.attributes.push(NsidAttribute::Fd(descriptor));
        let messages = self.netlink.ask(RouteNetlinkMessage::GetNsId(request), 0)?;
        for message in messages {
            let RouteNetlinkMessage::NewNsId(message) = message else { continue };
            for attribute in message.attributes {
                if let NsidAttribute::Id(number) = attribute {
                    return Ok(Some(number));
                }
            }
        }
        Ok(None)
    }
}
