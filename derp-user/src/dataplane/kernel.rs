//! The loaded program and its maps, typed.

use aya::{
    Ebpf, EbpfLoader, VerifierLogLevel,
    maps::{Array, HashMap, Map, MapData, MapError, PerCpuArray},
    programs::{ProgramInfo, TestRun as _, TestRunOptions, Xdp as XdpProgram},
};
use aya_log::EbpfLogger;
use derp_common::{
    Address, Family, Interface, Reason, Settings,
    maps::{
        ADDRESSES, COUNTERS, Counter, DEFAULT_SLOTS, INTERFACES, LEG_STATISTICS, LEGS, PROGRAM,
        SENDERS, SETTINGS, SLOTS, SOURCES, counter_index,
    },
};

use super::{AttachedMode, DataplaneError, embedded_object};

/// The XDP program, loaded into the kernel, attached to nothing yet.
///
/// Dropping it detaches it from every interface and frees program and maps.
pub struct Kernel {
    ebpf: Ebpf,
    settings: Array<MapData, Settings>,
    counters: PerCpuArray<MapData, Counter>,
    tables: Option<Tables>,
    log: Option<KernelLog>,
}

/// What the program has to say, which is only ever that it failed; it goes to the `log` crate.
pub(super) type KernelLog = EbpfLogger<&'static dyn log::Log>;

/// What the kernel knows of this host: its addresses and the MACs of its interfaces.
#[derive(Debug)]
pub struct Tables {
    /// Addresses of this host, and what kind each is (`AddressKind`).
    pub addresses: HashMap<MapData, Address, u32>,
    /// Interfaces the program is attached to, by index.
    pub interfaces: HashMap<MapData, u32, Interface>,
}

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
    /// Loads the embedded program with [`DEFAULT_SLOTS`].
    ///
    /// # Errors
    ///
    /// As [`Kernel::load_sized`].
    pub fn load() -> Result<Self, DataplaneError> {
        Self::load_sized(DEFAULT_SLOTS)
    }

    /// Loads the embedded program with a flow table of `slots`, a power of two of at most
    /// [`MAX_SLOTS`](derp_common::flow::table::MAX_SLOTS).
    ///
    /// # Errors
    ///
    /// When no object is embedded, privilege is missing, or the kernel refuses the program.
    pub fn load_sized(slots: u32) -> Result<Self, DataplaneError> {
        let object = embedded_object().ok_or(DataplaneError::NoObject)?;
        let mut ebpf = EbpfLoader::new()
            .map_max_entries(SLOTS, slots)
            .map_max_entries(LEGS, 4 * slots)
            .map_max_entries(LEG_STATISTICS, 2 * slots)
            .map_max_entries(SENDERS, slots)
            .map_max_entries(SOURCES, 2 * slots)
            .verifier_log_level(VerifierLogLevel::DEBUG | VerifierLogLevel::STATS)
            .load(object)
            .map_err(DataplaneError::from_load)?;
        program_mut(&mut ebpf)?.load().map_err(DataplaneError::from_program)?;
        let settings = take(&mut ebpf, SETTINGS)?;
        let counters = take(&mut ebpf, COUNTERS)?;
        let addresses = take(&mut ebpf, ADDRESSES)?;
        let interfaces = take(&mut ebpf, INTERFACES)?;
        let tables = Some(Tables { addresses, interfaces });
        // A compiler that sees that the program cannot fail leaves the log out.
        let log = EbpfLogger::init(&mut ebpf).ok();
        Ok(Self { ebpf, settings, counters, tables, log })
    }

    /// Tells the program what to answer. Until then it passes everything.
    ///
    /// # Errors
    ///
    /// When the map cannot be written.
    pub fn configure(&mut self, settings: Settings) -> Result<(), DataplaneError> {
        self.settings.set(0, settings, 0).map_err(DataplaneError::map(SETTINGS))
    }

    /// Hands out the host tables, once; whoever has them keeps them current.
    pub fn take_tables(&mut self) -> Option<Tables> {
        self.tables.take()
    }

    /// Hands out a map ([`derp_common::maps`]) as the type it must have, once.
    ///
    /// # Errors
    ///
    /// When there is no such map, or it is of another type.
    pub fn take_map<M: TryFrom<Map, Error = MapError>>(
        &mut self,
        name: &'static str,
    ) -> Result<M, DataplaneError> {
        take(&mut self.ebpf, name)
    }

    /// Hands out the program's log, once.
    pub(super) fn take_log(&mut self) -> Option<KernelLog> {
        self.log.take()
    }

    /// Attaches the program to an interface until this value is dropped.
    ///
    /// # Errors
    ///
    /// When the interface does not exist, has another program, or its driver cannot do it.
    pub fn attach(&mut self, interface: &str, mode: AttachedMode) -> Result<(), DataplaneError> {
        let index = interface_index(interface)?;
        program_mut(&mut self.ebpf)?
            .attach_to_if_index(index, mode.flag())
            .map(|_link| ())
            .map_err(|source| DataplaneError::from_attach(interface, mode, source))
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

    /// Returns what the kernel says about the program: its id, size and run time statistics.
    ///
    /// # Errors
    ///
    /// When the kernel cannot be asked.
    pub fn program_info(&self) -> Result<ProgramInfo, DataplaneError> {
        program(&self.ebpf)?.info().map_err(DataplaneError::from_program)
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
        // `struct xdp_md`: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex.
        let length = u32::try_from(frame.len()).unwrap_or(u32::MAX);
        let context = [0, length, 0, interface, 0, 0].map(u32::to_ne_bytes).concat();
        self.run_with(frame, Some(&context))
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
        let result =
            program(&self.ebpf)?.test_run(options).map_err(DataplaneError::from_program)?;
        out.truncate(usize::try_from(result.data_size_out).unwrap_or(usize::MAX));
        Ok((result.return_value, out))
    }
}

/// Returns the index of an interface.
pub(super) fn interface_index(name: &str) -> Result<u32, DataplaneError> {
    nix::net::if_::if_nametoindex(name)
        .map_err(|_errno| DataplaneError::UnknownInterface { name: name.to_owned() })
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
