//! The loaded program and its maps, typed.

use std::{borrow::Cow, io, path::Path};

use aya::{
    Ebpf, EbpfLoader, VerifierLogLevel,
    maps::{Array, Map, MapData, MapError, PerCpuArray, PerCpuValues},
    programs::{
        ProgramError, ProgramInfo, TestRun as _, TestRunAttrs, TestRunOptions, Xdp as XdpProgram,
        links::FdLink,
        xdp::{XdpLink, XdpLinkId},
    },
};
use aya_log::EbpfLogger;
use aya_obj::programs::XdpAttachType;
use derp_common::{
    Family, Reason, Settings,
    decide::StunBuckets,
    maps::{
        ADDRESS_PLACES, ADDRESSES, COUNTERS, COUNTERS_CAPACITY, Counter, INTERFACE_PLACES,
        INTERFACES, PROGRAM, SETTINGS, counter_index,
    },
};

use super::{
    AttachedMode, DataplaneError, MapSizes, embedded_object,
    error::os_error,
    fit,
    layout::Layout,
    pin::{Generation, LinkPin, PinError},
    tables::{Maps, Tables},
    xdp::Target,
};

/// The XDP program, in the kernel, with its maps.
///
/// Dropping it detaches it from every interface and frees program and maps, but for what is pinned.
pub struct Kernel {
    ebpf: Ebpf,
    /// The program of an earlier daemon, where it is used instead of the one in `ebpf`.
    kept: Option<XdpProgram>,
    sizes: MapSizes,
    settings: Array<MapData, Settings>,
    counters: PerCpuArray<MapData, Counter>,
    tables: Option<Tables>,
}

/// What the program has to say, which is only ever that it failed; it goes to the `log` crate.
pub(super) type KernelLog = EbpfLogger<&'static dyn log::Log>;

/// One counter of the kernel program, summed over the CPUs.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Count {
    /// What was found; gives the outcome and the labels.
    pub reason: Reason,
    /// The packets' IP version.
    pub family: Family,
    /// Packets since the program was loaded.
    pub packets: u64,
    /// Their bytes as they left the program, Ethernet header included.
    pub bytes: u64,
}

impl Kernel {
    /// Loads the embedded program, with maps of the usual sizes.
    ///
    /// # Errors
    ///
    /// When no object is embedded, privilege is missing, or the kernel refuses the program.
    pub fn load() -> Result<Self, DataplaneError> {
        Self::load_with(MapSizes::default())
    }

    /// Like [`Kernel::load`], with a flow table of this many slots.
    ///
    /// # Errors
    ///
    /// As [`Kernel::load_with`].
    pub fn load_sized(slots: u32) -> Result<Self, DataplaneError> {
        Self::load_with(MapSizes { slots, ..MapSizes::default() })
    }

    /// Like [`Kernel::load`], with maps of these sizes.
    ///
    /// # Errors
    ///
    /// Those of [`Kernel::load`], and [`DataplaneError::MapSize`].
    pub fn load_with(sizes: MapSizes) -> Result<Self, DataplaneError> {
        fit::check()?;
        sizes.check()?;
        let object = embedded_object().ok_or(DataplaneError::NoObject)?;
        let layout = Layout::of(object, sizes)?;
        let ebpf = loader(&layout).load(object).map_err(DataplaneError::from_load)?;
        let mut kernel = Self::new(ebpf, sizes)?;
        kernel.load_program()?;
        Ok(kernel)
    }

    /// Takes the maps pinned in a generation, or creates and pins those that are missing. The program is
    /// the pinned one if `keep` says so, else it is loaded and pinned in its place.
    pub(super) fn load_pinned(
        layout: &Layout,
        sizes: MapSizes,
        generation: &mut Generation,
        keep: bool,
    ) -> Result<Self, DataplaneError> {
        let object = embedded_object().ok_or(DataplaneError::NoObject)?;
        let mut loader = loader(layout);
        for map in &layout.maps {
            loader.map_pin_path(map.name.as_str(), Cow::from(generation.map(&map.name)));
        }
        let ebpf = loader.load(object).map_err(DataplaneError::from_load)?;
        drop(loader);
        let mut kernel = Self::new(ebpf, sizes)?;
        if keep {
            let kept = XdpProgram::from_pin(generation.program(), XdpAttachType::Interface);
            kernel.kept = Some(kept.map_err(DataplaneError::from_program)?);
            return Ok(kernel);
        }
        kernel.load_program()?;
        // The pin goes before the description changes and comes after, so that a program is never taken
        // for another one, wherever this ends.
        generation.forget_program()?;
        if let Some(mut meta) = generation.meta.clone() {
            meta.object = layout.object;
            generation.write(meta)?;
        }
        let path = generation.program();
        let pinned = program_mut(&mut kernel.ebpf)?.pin(&path);
        pinned.map_err(|error| PinError::access("pin the program at", path)(os_io_error(error)))?;
        Ok(kernel)
    }

    fn new(mut ebpf: Ebpf, sizes: MapSizes) -> Result<Self, DataplaneError> {
        let settings = take(&mut ebpf, SETTINGS)?;
        let counters = take(&mut ebpf, COUNTERS)?;
        let tables = Some(Tables::adopt(Maps {
            addresses: take(&mut ebpf, ADDRESSES)?,
            address_places: take(&mut ebpf, ADDRESS_PLACES)?,
            interfaces: take(&mut ebpf, INTERFACES)?,
            interface_places: take(&mut ebpf, INTERFACE_PLACES)?,
        })?);
        Ok(Self { ebpf, kept: None, sizes, settings, counters, tables })
    }

    fn load_program(&mut self) -> Result<(), DataplaneError> {
        program_mut(&mut self.ebpf)?.load().map_err(DataplaneError::from_program)
    }

    /// Tells the program what to serve, with its masks set to the sizes of the tables. What is written
    /// already is not written again.
    ///
    /// # Errors
    ///
    /// When the map cannot be read or written.
    pub fn configure(&mut self, mut settings: Settings) -> Result<(), DataplaneError> {
        settings.slot_mask = self.sizes.slots - 1;
        settings.stun_mask = StunBuckets::count(self.sizes.stun_buckets) - 1;
        if self.settings()? == settings {
            return Ok(());
        }
        self.settings.set(0, settings, 0).map_err(DataplaneError::map(SETTINGS))
    }

    /// Returns what the program was told last; zeroes at first.
    ///
    /// # Errors
    ///
    /// When the map cannot be read.
    pub fn settings(&self) -> Result<Settings, DataplaneError> {
        self.settings.get(&0, 0).map_err(DataplaneError::map(SETTINGS))
    }

    /// Takes a map that nobody has taken yet, as the type it has in the object.
    ///
    /// # Errors
    ///
    /// When the object has no such map, it is taken, or it is of another type.
    pub fn take_map<M: TryFrom<Map, Error = MapError>>(
        &mut self,
        name: &'static str,
    ) -> Result<M, DataplaneError> {
        take(&mut self.ebpf, name)
    }

    /// Hands out the host tables, once; whoever has them keeps them current.
    pub fn take_tables(&mut self) -> Option<Tables> {
        self.tables.take()
    }

    /// Hands out the program's log, once.
    pub(super) fn take_log(&mut self) -> Option<KernelLog> {
        // A compiler that sees that the program cannot fail leaves the log out.
        EbpfLogger::init(&mut self.ebpf).ok()
    }

    /// Attaches the program to an interface until this value is dropped.
    ///
    /// # Errors
    ///
    /// When the interface does not exist, has another program, or its driver cannot do it.
    pub fn attach(&mut self, interface: &str, mode: AttachedMode) -> Result<(), DataplaneError> {
        let index = interface_index(interface)?;
        self.attach_index(index, mode)
            .map(|_link| ())
            .map_err(|source| DataplaneError::from_attach(interface, mode, source))
    }

    /// Attaches the program to an interface until the link that is pinned at `path` is removed.
    pub(super) fn attach_pinned(
        &mut self,
        target: &Target,
        mode: AttachedMode,
        path: &Path,
    ) -> Result<(), DataplaneError> {
        let id = self
            .attach_index(target.index, mode)
            .map_err(|source| DataplaneError::from_attach(&target.name, mode, source))?;
        let link = self.active_mut()?.take_link(id).map_err(DataplaneError::from_program)?;
        let link = FdLink::try_from(link).map_err(|_| PinError::NoLinks)?;
        let pinned = link.pin(path);
        pinned.map_err(|error| PinError::access("pin a link at", path)(os_io_error(error)))?;
        Ok(())
    }

    /// Puts the program into a pinned link in the place of the one that is there, between two packets.
    pub(super) fn replace_in(&mut self, pin: &LinkPin) -> Result<(), DataplaneError> {
        let refused = |error| PinError::access("put the program into", &pin.path)(error);
        let link = XdpLink::try_from(pin.open()?).map_err(|error| refused(os_io_error(error)))?;
        let replaced = self.active_mut()?.attach_to_link(link);
        replaced.map_err(|error| refused(os_io_error(error)))?;
        Ok(())
    }

    fn attach_index(&mut self, index: u32, mode: AttachedMode) -> Result<XdpLinkId, ProgramError> {
        self.active_mut()
            .map_err(|_| ProgramError::NotLoaded)?
            .attach_to_if_index(index, mode.flag())
    }

    /// Reads every counter, summed over the CPUs.
    ///
    /// # Errors
    ///
    /// When the map cannot be read.
    pub fn counters(&self) -> Result<Vec<Count>, DataplaneError> {
        let mut counts = Vec::with_capacity(Family::ALL.len() * Reason::COUNT);
        for family in Family::ALL {
            for &reason in Reason::ALL {
                let per_cpu = self
                    .counters
                    .get(&counter_index(family, reason), 0)
                    .map_err(DataplaneError::map(COUNTERS))?;
                let mut count = Count { reason, family, packets: 0, bytes: 0 };
                for cpu in per_cpu.iter() {
                    count.packets += cpu.packets;
                    count.bytes += cpu.bytes;
                }
                counts.push(count);
            }
        }
        Ok(counts)
    }

    /// Zeroes every counter, of a program that runs nowhere.
    pub(super) fn clear_counters(&mut self) -> Result<(), DataplaneError> {
        let cpus = aya::util::nr_cpus()
            .map_err(|(_, error)| DataplaneError::map(COUNTERS)(MapError::IoError(error)))?;
        let none = || PerCpuValues::try_from(vec![Counter::default(); cpus]);
        for index in 0..COUNTERS_CAPACITY {
            let cleared = none().map_err(MapError::IoError);
            let cleared = cleared.and_then(|none| self.counters.set(index, none, 0));
            cleared.map_err(DataplaneError::map(COUNTERS))?;
        }
        Ok(())
    }

    /// Returns what the kernel says about the program: its id, size and run time statistics.
    ///
    /// # Errors
    ///
    /// When the kernel cannot be asked.
    pub fn program_info(&self) -> Result<ProgramInfo, DataplaneError> {
        self.active()?.info().map_err(DataplaneError::from_program)
    }

    /// Runs the program once on `frame` as if it had come in by interface 1, without a network.
    ///
    /// Returns the XDP action, and the frame as the program left it.
    ///
    /// # Errors
    ///
    /// When the kernel cannot run it.
    pub fn test_run(&self, frame: &[u8]) -> Result<(u32, Vec<u8>), DataplaneError> {
        self.run_with(frame, None)
    }

    /// Like [`Kernel::test_run`], as if the frame had come in by another interface of this namespace.
    ///
    /// # Errors
    ///
    /// When the kernel cannot run it, or there is no such interface.
    pub fn test_run_on(
        &self,
        frame: &[u8],
        interface: u32,
    ) -> Result<(u32, Vec<u8>), DataplaneError> {
        self.run_with(frame, Some(&context(interface, frame)))
    }

    fn run_with(
        &self,
        frame: &[u8],
        context: Option<&[u8]>,
    ) -> Result<(u32, Vec<u8>), DataplaneError> {
        // An answer is at most 32 bytes longer than the request.
        let mut out = vec![0; frame.len() + 64];
        let mut options = TestRunOptions::new();
        options.ctx_in = context;
        options.data_in = Some(frame);
        options.data_out = Some(&mut out);
        let result = self.active()?.test_run(options).map_err(DataplaneError::from_program)?;
        out.truncate(usize::try_from(result.data_size_out).unwrap_or(usize::MAX));
        Ok((result.return_value, out))
    }

    /// Has the program decide about `count` copies of a frame that come in by an interface, for good: what it
    /// sends back leaves (Linux 5.18).
    pub(super) fn inject(
        &self,
        interface: u32,
        frame: &[u8],
        count: u32,
    ) -> Result<(), DataplaneError> {
        let context = context(interface, frame);
        let mut options = TestRunOptions::new();
        options.data_in = Some(frame);
        options.ctx_in = Some(&context);
        options.repeat = count;
        options.attrs = TestRunAttrs::new().xdp_live_frames(count);
        self.active()?.test_run(options).map(|_| ()).map_err(DataplaneError::from_program)
    }

    /// The program that is attached.
    fn active(&self) -> Result<&XdpProgram, DataplaneError> {
        match &self.kept {
            Some(kept) => Ok(kept),
            None => program(&self.ebpf),
        }
    }

    fn active_mut(&mut self) -> Result<&mut XdpProgram, DataplaneError> {
        match &mut self.kept {
            Some(kept) => Ok(kept),
            None => program_mut(&mut self.ebpf),
        }
    }
}

/// The `struct xdp_md` of a frame that comes in by an interface: data, its end, metadata, interface, queue,
/// interface out.
fn context(interface: u32, frame: &[u8]) -> Vec<u8> {
    let end = u32::try_from(frame.len()).unwrap_or(u32::MAX);
    [0, end, 0, interface, 0, 0].into_iter().flat_map(u32::to_ne_bytes).collect()
}

/// Returns the name of an interface, if it still exists.
#[must_use]
pub fn interface_name(index: u32) -> Option<String> {
    let name = nix::net::if_::if_indextoname(index).ok()?.into_string().ok()?;
    // nix takes the null pointer of a failure for a success.
    (!name.is_empty()).then_some(name)
}

/// Returns the index of an interface.
pub(super) fn interface_index(name: &str) -> Result<u32, DataplaneError> {
    nix::net::if_::if_nametoindex(name)
        .map_err(|_errno| DataplaneError::UnknownInterface { name: name.to_owned() })
}

/// A loader that gives the maps their sizes.
fn loader(layout: &Layout) -> EbpfLoader<'_> {
    let mut loader = EbpfLoader::new();
    loader.verifier_log_level(VerifierLogLevel::DEBUG | VerifierLogLevel::STATS);
    for map in &layout.maps {
        loader.map_max_entries(&map.name, map.max_entries);
    }
    loader
}

fn os_io_error(error: impl std::error::Error + Send + Sync + 'static) -> io::Error {
    match os_error(&error) {
        Some(code) => io::Error::from_raw_os_error(code),
        None => io::Error::other(error),
    }
}

fn program(ebpf: &Ebpf) -> Result<&XdpProgram, DataplaneError> {
    let program = ebpf.program(PROGRAM).and_then(|program| program.try_into().ok());
    program.ok_or(DataplaneError::Mismatch { name: PROGRAM })
}

fn program_mut(ebpf: &mut Ebpf) -> Result<&mut XdpProgram, DataplaneError> {
    let program = ebpf.program_mut(PROGRAM).and_then(|program| program.try_into().ok());
    program.ok_or(DataplaneError::Mismatch { name: PROGRAM })
}

/// Takes a map out of the object as the type it must have.
fn take<M: TryFrom<Map, Error = MapError>>(
    ebpf: &mut Ebpf,
    name: &'static str,
) -> Result<M, DataplaneError> {
    let map = ebpf.take_map(name).ok_or(DataplaneError::Mismatch { name })?;
    M::try_from(map).map_err(DataplaneError::map(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regression_an_interface_that_is_gone_has_no_name() {
        assert_eq!(interface_name(1).as_deref(), Some("lo"));
        assert_eq!(interface_name(0x7fff_fff0), None);
    }
}
