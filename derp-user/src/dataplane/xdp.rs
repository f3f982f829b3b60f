//! Attaching the program where the options say, as the options say.

use aya::programs::ProgramInfo;
use derp_common::{Settings, maps::DEVICES};

use super::{
    AttachedMode, Count, DataplaneError, Kernel, MapSizes, Mode, Pin, embedded_object, fit,
    host::HostTables,
    kernel::interface_index,
    layout::Layout,
    pin::PinDirectory,
    pinned::{self, Pinned},
    self_test,
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
    /// Whether links and maps outlive this process, and where.
    pub pin: Pin,
    /// How large the maps are whose size can be chosen.
    pub sizes: MapSizes,
}

/// One interface the program runs on.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Attachment {
    /// The interface's name when the program was attached.
    pub interface: String,
    /// Its index, which stays if it is renamed.
    pub index: u32,
    /// How the program is attached.
    pub mode: AttachedMode,
}

/// An interface the program is to run on.
#[derive(Clone, Debug)]
pub(super) struct Target {
    pub(super) name: String,
    pub(super) index: u32,
}

/// The running kernel data plane. Dropping it detaches the program, unless it is pinned.
pub struct Xdp {
    kernel: Kernel,
    attachments: Vec<Attachment>,
    watcher: Option<Watcher>,
    pins: Option<PinDirectory>,
}

impl Xdp {
    /// Loads the program, has it answer STUN, and attaches it to the interfaces: [`Xdp::prepare`],
    /// [`Prepared::configure`] and [`Prepared::commit`] in one.
    ///
    /// Returns `None` when userspace is to serve alone: with [`Mode::Off`], or with [`Mode::Auto`] when
    /// nothing better works, which is then logged once.
    ///
    /// # Errors
    ///
    /// An interface that does not exist, in any mode but `off`; pins that another daemon uses; otherwise,
    /// in a mode that was asked for by name, whatever prevents it on any interface.
    pub fn attach(options: &XdpOptions) -> Result<Option<Self>, DataplaneError> {
        let attach = || -> Result<Option<Self>, DataplaneError> {
            let Some(mut prepared) = Self::prepare(options)? else { return Ok(None) };
            prepared.configure(Settings::new(options.stun_port))?;
            prepared.commit().map(Some)
        };
        options.degrade(attach())
    }

    /// Does all that can be done before the program runs anywhere: takes the pins, loads the program or
    /// finds it, and fills the tables about this host. A program that an earlier daemon left goes on
    /// unchanged.
    ///
    /// Returns `None` with [`Mode::Off`], or with [`Mode::Auto`] when no interface is given.
    ///
    /// # Errors
    ///
    /// Whatever prevents it; [`XdpOptions::degrade`] knows what that means.
    pub fn prepare(options: &XdpOptions) -> Result<Option<Prepared>, DataplaneError> {
        match options.mode {
            Mode::Off => {
                pinned::leave(options.pin.directory(), true);
                return Ok(None);
            }
            Mode::Auto if options.interfaces.is_empty() => {
                pinned::leave(options.pin.directory(), false);
                tracing::info!("STUN is answered in userspace: no -xdp-interface is given");
                return Ok(None);
            }
            Mode::Native | Mode::Generic if options.interfaces.is_empty() => {
                return Err(DataplaneError::NoInterface(options.mode));
            }
            Mode::Native | Mode::Generic | Mode::Auto => {}
        }
        fit::check()?;
        options.sizes.check()?;
        // A misspelt name is a mistake, not a reason to degrade.
        let targets = options.targets()?;
        let (mut kernel, pinned) = match options.take_pins()? {
            Some(directory) => {
                let object = embedded_object().ok_or(DataplaneError::NoObject)?;
                let layout = Layout::of(object, options.sizes)?;
                let (kernel, pinned) = Pinned::load(directory, &layout, options.sizes)?;
                (kernel, Some(pinned))
            }
            None => (Kernel::load_with(options.sizes)?, None),
        };
        let tables = kernel.take_tables().ok_or(DataplaneError::NoObject)?;
        let attached = targets.iter().map(|target| (target.index, target.name.clone())).collect();
        let devices = kernel.take_map(DEVICES)?;
        let mut host = HostTables::adopt(tables, devices, attached)?;
        host.refresh()?;
        Ok(Some(Prepared { kernel, host, pinned, targets, mode: options.mode }))
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

    /// Tells whether the program stays attached when this value is dropped and the process ends.
    #[must_use]
    pub fn stays_attached(&self) -> bool {
        self.pins.is_some()
    }

    /// Returns the program and its maps.
    pub fn kernel_mut(&mut self) -> &mut Kernel {
        &mut self.kernel
    }

    /// Reads every counter of the program, summed over the CPUs. Those of an adopted program go on.
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

impl XdpOptions {
    /// Turns an error into "userspace serves alone", said once, where the options allow that.
    ///
    /// # Errors
    ///
    /// The error, where they do not: the mode was asked for by name, an interface does not exist, another
    /// daemon has the pins.
    pub fn degrade<T>(
        &self,
        result: Result<Option<T>, DataplaneError>,
    ) -> Result<Option<T>, DataplaneError> {
        match result {
            Err(error)
                if self.mode == Mode::Auto && !error.is_fatal() && !self.asks_for(&error) =>
            {
                tracing::warn!("STUN is answered in userspace: {error}");
                Ok(None)
            }
            other => other,
        }
    }

    /// Pins that were asked for by name are no matter of chance.
    fn asks_for(&self, error: &DataplaneError) -> bool {
        let is_required = matches!(self.pin, Pin::Directory { is_required: true, .. });
        is_required && matches!(error, DataplaneError::Pin(_))
    }

    /// Every interface once.
    fn targets(&self) -> Result<Vec<Target>, DataplaneError> {
        let mut targets: Vec<Target> = Vec::new();
        for name in &self.interfaces {
            let index = interface_index(name)?;
            if !targets.iter().any(|target| target.index == index) {
                targets.push(Target { name: name.clone(), index });
            }
        }
        Ok(targets)
    }

    /// Takes the directory of pins, or says once why the data plane will end with the process.
    fn take_pins(&self) -> Result<Option<PinDirectory>, DataplaneError> {
        let Pin::Directory { path, is_required } = &self.pin else { return Ok(None) };
        match PinDirectory::take(path) {
            Ok(directory) => Ok(Some(directory)),
            Err(error) if *is_required || error.is_conflict() => Err(error.into()),
            Err(error) => {
                tracing::warn!("the kernel data plane will end with this process: {error}");
                Ok(None)
            }
        }
    }
}

/// A program that is loaded and knows this host, but runs nowhere yet, or still on behalf of an earlier
/// daemon. Between [`Xdp::prepare`] and [`Prepared::commit`] the remaining tables are filled.
pub struct Prepared {
    kernel: Kernel,
    host: HostTables,
    pinned: Option<Pinned>,
    targets: Vec<Target>,
    mode: Mode,
}

impl Prepared {
    /// Tells whether the maps are those of an earlier daemon, with what it left in them, and may be in use.
    #[must_use]
    pub fn is_adopted(&self) -> bool {
        self.pinned.as_ref().is_some_and(Pinned::is_adopted)
    }

    /// Returns the program and its maps.
    pub fn kernel_mut(&mut self) -> &mut Kernel {
        &mut self.kernel
    }

    /// Tells the program what to serve. Of an adopted one this takes effect at once.
    ///
    /// # Errors
    ///
    /// When the map cannot be read or written.
    pub fn configure(&mut self, settings: Settings) -> Result<(), DataplaneError> {
        self.kernel.configure(settings)
    }

    /// Attaches the program, in the place of an earlier daemon's where there is one.
    ///
    /// # Errors
    ///
    /// In a mode that was asked for by name, whatever prevents it on any interface; otherwise what prevents
    /// it on all of them.
    pub fn commit(self) -> Result<Xdp, DataplaneError> {
        let is_adopted = self.is_adopted();
        let Self { mut kernel, host, pinned, targets, mode } = self;
        if !is_adopted {
            for target in &targets {
                self_test::rehearse(&mut kernel, target)?;
            }
        }
        let mut places = match pinned {
            Some(pinned) => Places::Pinned(Box::new(pinned.publish()?)),
            None => Places::OfThisProcess,
        };
        let mut attachments = Vec::new();
        let mut failure = None;
        for target in &targets {
            match places.attach(&mut kernel, target, mode) {
                Ok(mode) => attachments.push(Attachment {
                    interface: target.name.clone(),
                    index: target.index,
                    mode,
                }),
                // With several interfaces, one that cannot do it does not rob the others.
                Err(error) if mode == Mode::Auto => failure = Some(error),
                Err(error) => return Err(error),
            }
        }
        match failure {
            Some(error) if attachments.is_empty() => return Err(error),
            Some(error) => tracing::warn!("on one interface STUN is left to userspace: {error}"),
            None => {}
        }
        for Attachment { interface, mode, .. } in &attachments {
            tracing::info!(%interface, %mode, "XDP attached");
        }
        test(&kernel, &targets, &attachments, mode)?;
        let pins = match places {
            Places::Pinned(pinned) => Some(pinned.tidy(&targets)),
            Places::OfThisProcess => None,
        };
        let watcher = Some(Watcher::new(host, kernel.take_log()));
        Ok(Xdp { kernel, attachments, watcher, pins })
    }
}

/// Tests what is attached.
fn test(
    kernel: &Kernel,
    targets: &[Target],
    attachments: &[Attachment],
    wanted: Mode,
) -> Result<(), DataplaneError> {
    let settings = kernel.settings()?;
    for Attachment { index, mode, .. } in attachments {
        let Some(target) = targets.iter().find(|target| target.index == *index) else {
            continue;
        };
        match self_test::report(kernel, &settings, target, *mode) {
            // It would have been refused, had it been seen before it was attached.
            Err(error) if wanted == Mode::Auto => tracing::error!("{error}"),
            result => result?,
        }
    }
    Ok(())
}

/// Who holds the program on an interface.
enum Places {
    /// Links that end with the process.
    OfThisProcess,
    /// Pinned ones.
    Pinned(Box<pinned::Published>),
}

impl Places {
    /// Attaches to one interface in the first mode that works.
    fn attach(
        &mut self,
        kernel: &mut Kernel,
        target: &Target,
        mode: Mode,
    ) -> Result<AttachedMode, DataplaneError> {
        match self {
            Self::OfThisProcess => {
                try_modes(target, mode, |candidate| kernel.attach(&target.name, candidate))
            }
            Self::Pinned(pinned) => pinned.attach(kernel, target, mode),
        }
    }
}

/// Tries the modes that `mode` allows on an interface, and returns the first that works.
pub(super) fn try_modes(
    target: &Target,
    mode: Mode,
    mut attach: impl FnMut(AttachedMode) -> Result<(), DataplaneError>,
) -> Result<AttachedMode, DataplaneError> {
    let mut failure = DataplaneError::NoInterface(mode);
    for &candidate in mode.candidates() {
        let attached = self_test::refuse(target, candidate).and_then(|()| attach(candidate));
        match attached {
            Ok(()) => return Ok(candidate),
            // Another program is there in either mode, and it is not ours to push aside.
            Err(error @ DataplaneError::Occupied { .. }) => return Err(error),
            Err(error) => {
                if matches!(error, DataplaneError::Loses { .. }) && mode == Mode::Auto {
                    tracing::warn!("{error}");
                }
                tracing::debug!(%error, "trying the next mode");
                failure = error;
            }
        }
    }
    Err(failure)
}
