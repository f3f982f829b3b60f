//! Attaching the program where the options say, as the options say.

use aya::programs::ProgramInfo;
use derp_common::Settings;

use super::{
    AttachedMode, Count, DataplaneError, Kernel, Mode, host::HostTables, kernel::interface_index,
    watch::Watcher,
};

/// What the command line says about XDP.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct XdpOptions {
    /// Names of the interfaces to attach to.
    pub interfaces: Vec<String>,
    /// How to attach.
    pub mode: Mode,
    /// The UDP port STUN is answered on.
    pub stun_port: u16,
}

/// One interface the program runs on.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Attachment {
    /// The interface's name.
    pub interface: String,
    /// How the program is attached.
    pub mode: AttachedMode,
}

/// The running kernel data plane. Dropping it detaches the program.
pub struct Xdp {
    kernel: Kernel,
    attachments: Vec<Attachment>,
    watcher: Option<Watcher>,
}

impl Xdp {
    /// Loads the program and attaches it to the interfaces.
    ///
    /// Returns `None` when userspace is to serve alone: with [`Mode::Off`], or with [`Mode::Auto`] when
    /// nothing better works, which is then logged once.
    ///
    /// # Errors
    ///
    /// An interface that does not exist, in any mode but `off`; otherwise, in a mode that was asked for
    /// by name, whatever prevents it on any interface.
    pub fn attach(options: &XdpOptions) -> Result<Option<Self>, DataplaneError> {
        match options.mode {
            Mode::Off => return Ok(None),
            Mode::Auto if options.interfaces.is_empty() => {
                tracing::info!("STUN is answered in userspace: no --xdp-interface is given");
                return Ok(None);
            }
            Mode::Native | Mode::Generic if options.interfaces.is_empty() => {
                return Err(DataplaneError::NoInterface(options.mode));
            }
            Mode::Native | Mode::Generic | Mode::Auto => {}
        }
        // A misspelt name is a mistake, not a reason to degrade.
        let indexes = options.interfaces.iter().map(|name| interface_index(name));
        let indexes = indexes.collect::<Result<Vec<_>, _>>()?;
        match Self::attach_all(options, indexes) {
            Ok(xdp) => Ok(Some(xdp)),
            Err(error) if options.mode == Mode::Auto => {
                tracing::warn!("STUN is answered in userspace: {error}");
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    fn attach_all(options: &XdpOptions, indexes: Vec<u32>) -> Result<Self, DataplaneError> {
        let mut kernel = Kernel::load()?;
        let tables = kernel.take_tables().ok_or(DataplaneError::NoObject)?;
        let mut tables = HostTables::new(tables, indexes);
        tables.refresh()?;
        kernel.configure(Settings::new(options.stun_port))?;

        let mut attachments: Vec<Attachment> = Vec::new();
        let mut failure = None;
        for interface in &options.interfaces {
            if attachments.iter().any(|it| it.interface == *interface) {
                continue;
            }
            match attach_one(&mut kernel, interface, options.mode) {
                Ok(mode) => attachments.push(Attachment { interface: interface.clone(), mode }),
                // With several interfaces, one that cannot do it does not rob the others.
                Err(error) if options.mode == Mode::Auto => failure = Some(error),
                Err(error) => return Err(error),
            }
        }
        match failure {
            Some(error) if attachments.is_empty() => return Err(error),
            Some(error) => tracing::warn!("on one interface STUN is left to userspace: {error}"),
            None => {}
        }
        for Attachment { interface, mode } in &attachments {
            tracing::info!(%interface, %mode, "XDP attached");
        }
        let watcher = Some(Watcher::new(tables, kernel.take_log()));
        Ok(Self { kernel, attachments, watcher })
    }

    /// Returns where the program runs, and how.
    #[must_use]
    pub fn attachments(&self) -> &[Attachment] {
        &self.attachments
    }

    /// Hands out the task that keeps the kernel's view of this host current, once.
    pub fn take_watcher(&mut self) -> Option<Watcher> {
        self.watcher.take()
    }

    /// Reads every counter of the program, summed over the CPUs.
    ///
    /// # Errors
    ///
    /// When the map cannot be read.
    pub fn counters(&self) -> Result<Vec<Count>, DataplaneError> {
        self.kernel.counters()
    }

    /// Returns what the kernel says about the program: its id, size and run time statistics.
    ///
    /// # Errors
    ///
    /// When the kernel cannot be asked.
    pub fn program_info(&self) -> Result<ProgramInfo, DataplaneError> {
        self.kernel.program_info()
    }
}

/// Attaches to one interface in the first mode that works.
fn attach_one(
    kernel: &mut Kernel,
    interface: &str,
    mode: Mode,
) -> Result<AttachedMode, DataplaneError> {
    let mut failure = DataplaneError::NoInterface(mode);
    for &candidate in mode.candidates() {
        match kernel.attach(interface, candidate) {
            Ok(()) => return Ok(candidate),
            // Another program is there in either mode, and it is not ours to push aside.
            Err(error @ DataplaneError::Occupied { .. }) => return Err(error),
            Err(error) => {
                tracing::debug!(%error, "trying the next mode");
                failure = error;
            }
        }
    }
    Err(failure)
}
