//! Looks at what is attached and pinned, without changing anything: for `derpd check` and `derpd detach`.

use std::{
    fs, io,
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd},
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use aya::{
    maps::{HashMap, Map, MapData, MapInfo},
    programs::ProgramInfo,
};
use derp_common::{
    decide::StunBuckets,
    maps::{ADDRESSES, INTERFACES, SLOTS, SOURCES, STUN_BUCKETS},
};
use futures_util::TryStreamExt as _;
use rtnetlink::packet_route::link::{LinkAttribute, LinkXdp, XdpAttached};
use serde::Serialize;

use super::{
    AttachedMode, MapSizes, PinError, embedded_object,
    features::Features,
    layout::{Layout, short_hex},
    pin::{self, Generation, LinkPin, PinDirectory},
    pinned::network_namespace,
};

/// What is pinned in one directory.
#[derive(Clone, Debug, Serialize)]
pub struct Pins {
    /// The directory.
    pub directory: PathBuf,
    /// Whether it exists.
    pub exists: bool,
    /// Whether a daemon runs with it.
    pub in_use: bool,
    /// Links to interfaces.
    pub links: Vec<PinnedLink>,
    /// Maps and programs; one set of them, but for the moment of an upgrade.
    pub generations: Vec<PinnedMaps>,
}

/// A pinned link.
#[derive(Clone, Debug, Serialize)]
pub struct PinnedLink {
    /// The interface's name, if it has one in this network namespace.
    pub interface: Option<String>,
    /// Its index.
    pub index: u32,
    /// `native` or `generic`.
    pub mode: &'static str,
    /// The program, by the kernel's number.
    pub program_id: u32,
    /// Whether it still holds the interface.
    pub is_alive: bool,
}

/// A set of pinned maps, and the program that uses them.
#[derive(Clone, Debug, Serialize)]
pub struct PinnedMaps {
    /// Where they are.
    pub path: PathBuf,
    /// Version of the settings, if it is known.
    pub settings_version: Option<u32>,
    /// Why this derpd would replace them; `None` when it would adopt them.
    pub incompatible: Option<String>,
    /// The daemon that last used them.
    pub process: Option<u32>,
    /// Seconds since it took them.
    pub age_seconds: Option<u64>,
    /// The object the program came from, as `derpd -version` shows it.
    pub object: Option<String>,
    /// Whether that is the object in this derpd.
    pub is_same_object: bool,
    /// The program.
    pub program: Option<PinnedProgram>,
    /// The maps, by name.
    pub maps: Vec<PinnedMap>,
}

/// A pinned program.
#[derive(Clone, Debug, Serialize)]
pub struct PinnedProgram {
    /// The kernel's number.
    pub id: u32,
    /// The kernel's hash of its instructions.
    pub tag: String,
    /// Seconds since it was loaded.
    pub age_seconds: Option<u64>,
}

/// A pinned map.
#[derive(Clone, Debug, Serialize)]
pub struct PinnedMap {
    /// Its name.
    pub name: String,
    /// The kernel's number.
    pub id: u32,
    /// Its type, as the kernel's header names it.
    pub kind: String,
    /// Bytes of a key.
    pub key_size: u32,
    /// Bytes of a value.
    pub value_size: u32,
    /// Most entries.
    pub max_entries: u32,
    /// Entries there are, for hashes.
    pub entries: Option<usize>,
    /// Bytes of kernel memory.
    pub memory: Option<u64>,
}

impl Pins {
    /// Looks into a directory. One that does not exist has nothing in it.
    ///
    /// # Errors
    ///
    /// When something in it cannot be read.
    pub fn read(directory: &Path) -> Result<Self, PinError> {
        let mut pins = Self {
            directory: directory.to_owned(),
            exists: false,
            in_use: false,
            links: Vec::new(),
            generations: Vec::new(),
        };
        if !pin::exists(directory)? {
            return Ok(pins);
        }
        pins.exists = true;
        pins.in_use = pin::is_taken(directory).map_err(PinError::access("open", directory))?;
        let links = LinkPin::read_all(directory)?;
        pins.links = links.into_iter().map(PinnedLink::from).collect();
        let namespace = network_namespace(directory)?;
        let generations = Generation::read_all(directory)?;
        pins.generations =
            generations.iter().map(|generation| describe(generation, namespace)).collect();
        Ok(pins)
    }
}

impl From<LinkPin> for PinnedLink {
    fn from(link: LinkPin) -> Self {
        let LinkPin { path: _, mode, index, program, is_alive } = link;
        let interface = nix::net::if_::if_indextoname(index).ok();
        let interface = interface.and_then(|name| name.into_string().ok()).filter(|_| is_alive);
        Self { interface, index, mode: mode.as_str(), program_id: program, is_alive }
    }
}

fn describe(generation: &Generation, namespace: u64) -> PinnedMaps {
    let meta = generation.meta.as_ref();
    // Sizes are a matter of configuration, which is not known here: those that are there are right.
    let sizes = sizes_of(generation);
    let layout = embedded_object().map(|object| Layout::of(object, sizes));
    let (incompatible, is_same_object) = match &layout {
        Some(Ok(layout)) => (
            generation.mismatch(layout, namespace),
            meta.is_some_and(|meta| meta.object == layout.object),
        ),
        Some(Err(error)) => (Some(error.to_string()), false),
        None => (Some("this derpd was built without its XDP program".to_owned()), false),
    };
    PinnedMaps {
        path: generation.path.clone(),
        settings_version: meta.map(|meta| meta.settings_version),
        incompatible,
        process: meta.map(|meta| meta.process),
        age_seconds: meta
            .and_then(|meta| age(UNIX_EPOCH.checked_add(Duration::from_secs(meta.taken)))),
        object: meta.map(|meta| short_hex(&meta.object)),
        is_same_object,
        program: ProgramInfo::from_pin(generation.program()).ok().map(|info| PinnedProgram {
            id: info.id(),
            tag: format!("{:016x}", info.tag()),
            age_seconds: age(info.loaded_at()),
        }),
        maps: read_maps(generation),
    }
}

fn age(since: Option<SystemTime>) -> Option<u64> {
    SystemTime::now().duration_since(since?).ok().map(|age| age.as_secs())
}

fn sizes_of(generation: &Generation) -> MapSizes {
    let entries = |name| MapInfo::from_pin(generation.map(name)).ok().map(|it| it.max_entries());
    let usual = MapSizes::default();
    MapSizes {
        slots: entries(SLOTS).unwrap_or(usual.slots),
        stun_buckets: entries(STUN_BUCKETS).map_or(usual.stun_buckets, StunBuckets::sources),
    }
}

fn read_maps(generation: &Generation) -> Vec<PinnedMap> {
    let entries = fs::read_dir(&generation.path).into_iter().flatten().flatten();
    let mut names: Vec<_> =
        entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort_unstable();
    names.into_iter().filter_map(|name| read_map(generation, name)).collect()
}

/// Returns `None` for what is no map: the program.
fn read_map(generation: &Generation, name: String) -> Option<PinnedMap> {
    if !generation.has_map(&name) {
        return None;
    }
    let path = generation.map(&name);
    let info = MapInfo::from_pin(&path).ok()?;
    let data = MapData::from_pin(&path).ok()?;
    let memory = memory_of(data.fd().as_fd()).ok().flatten();
    let entries = count_entries(&name, data);
    Some(PinnedMap {
        id: info.id(),
        kind: info.map_type().map_or_else(|_| "unknown".to_owned(), |kind| format!("{kind:?}")),
        key_size: info.key_size(),
        value_size: info.value_size(),
        max_entries: info.max_entries(),
        entries,
        memory,
        name,
    })
}

/// Counts the entries of those hashes that tell something by their number.
fn count_entries(name: &str, data: MapData) -> Option<usize> {
    let map = Map::from_map_data(data).ok()?;
    match name {
        ADDRESSES => count::<[u8; 16], [u8; 4]>(map),
        INTERFACES => count::<[u8; 4], [u8; 8]>(map),
        SOURCES => count::<[u8; 24], [u8; 4]>(map),
        _ => None,
    }
}

fn count<K: aya::Pod, V: aya::Pod>(map: Map) -> Option<usize> {
    let map: HashMap<MapData, K, V> = map.try_into().ok()?;
    // An entry that goes away meanwhile can send the walk back to the start.
    let most = usize::try_from(1_u32 << 20).ok()?;
    Some(map.keys().take(most).filter(Result::is_ok).count())
}

/// Returns the kernel memory of a map, as `/proc` tells it.
fn memory_of(map: BorrowedFd<'_>) -> io::Result<Option<u64>> {
    let text = fs::read_to_string(format!("/proc/self/fdinfo/{}", map.as_raw_fd()))?;
    let line = text.lines().find_map(|line| line.strip_prefix("memlock:"));
    Ok(line.and_then(|value| value.trim().parse().ok()))
}

/// An interface of this network namespace that has an XDP program, anybody's.
#[derive(Clone, Debug, Serialize)]
pub struct Occupied {
    /// The interface's name.
    pub interface: String,
    /// Its index.
    pub index: u32,
    /// `native`, `generic`, or `other` (in hardware, or several).
    pub mode: &'static str,
    /// The program, by the kernel's number, where the kernel says.
    pub program_id: Option<u32>,
}

/// Lists the interfaces that have an XDP program. Needs no rights; a Tokio runtime with I/O.
///
/// # Errors
///
/// When netlink cannot be asked.
pub async fn occupied_interfaces() -> io::Result<Vec<Occupied>> {
    let (connection, handle, _) = rtnetlink::new_connection()?;
    let links = handle.link().get().execute().try_collect::<Vec<_>>();
    let links = tokio::select! {
        links = links => links.map_err(io::Error::other)?,
        () = connection => return Err(io::Error::other("the netlink socket was closed")),
    };
    Ok(links.into_iter().filter_map(|link| occupied(link.header.index, &link.attributes)).collect())
}

/// Tells whether the driver of an interface, by index, takes XDP programs.
///
/// # Errors
///
/// When the kernel does not say; before Linux 6.3 it never does.
pub fn has_native_xdp(interface: u32) -> io::Result<bool> {
    Features::open()?.has_native_xdp(interface)
}

fn occupied(index: u32, attributes: &[LinkAttribute]) -> Option<Occupied> {
    let (mut interface, mut mode, mut program_id) = (None, None, None);
    for attribute in attributes {
        if let LinkAttribute::IfName(name) = attribute {
            interface = Some(name.clone());
        }
        let LinkAttribute::Xdp(about) = attribute else { continue };
        for fact in about {
            if let LinkXdp::Attached(attached) = fact {
                mode = mode_of(attached);
            }
            if let LinkXdp::ProgId(id) = fact {
                program_id = Some(*id);
            }
        }
    }
    Some(Occupied { interface: interface?, index, mode: mode?, program_id })
}

fn mode_of(attached: &XdpAttached) -> Option<&'static str> {
    if matches!(attached, XdpAttached::None) {
        None
    } else if matches!(attached, XdpAttached::Driver) {
        Some(AttachedMode::Native.as_str())
    } else if matches!(attached, XdpAttached::SocketBuffer) {
        Some(AttachedMode::Generic.as_str())
    } else {
        Some("other")
    }
}

/// What [`detach`] has removed.
#[derive(Clone, Debug, Serialize)]
pub struct Detached {
    /// The links, as they were.
    pub links: Vec<PinnedLink>,
    /// How many sets of maps.
    pub generations: usize,
    /// Whether the directory is gone, too.
    pub directory: bool,
}

/// Removes the links and maps that are pinned in a directory, which detaches the program. Does nothing where
/// nothing is. With `force` also while a daemon runs, which then goes on in userspace.
///
/// # Errors
///
/// When a daemon uses them, or they cannot be removed.
pub fn detach(directory: &Path, force: bool) -> Result<Detached, PinError> {
    let removed = match PinDirectory::take_existing(directory) {
        Ok(Some(taken)) => taken.clear()?,
        Ok(None) => return Ok(Detached { links: Vec::new(), generations: 0, directory: false }),
        Err(PinError::InUse { .. }) if force => pin::clear(directory)?,
        Err(error) => return Err(error),
    };
    Ok(Detached {
        links: removed.links.into_iter().map(PinnedLink::from).collect(),
        generations: removed.generations,
        directory: removed.directory,
    })
}
