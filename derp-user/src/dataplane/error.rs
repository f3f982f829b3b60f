//! Why there is no XDP data plane, and what would mend it.

use std::io;

use aya::{
    EbpfError,
    maps::MapError,
    programs::{ProgramError, xdp::XdpError},
};

use super::{Mode, mode::AttachedMode, pin::PinError};
use crate::privilege::Held;

/// Why the kernel data plane cannot be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DataplaneError {
    /// The binary holds no kernel program.
    #[error(
        "this derpd was built without its XDP program; build it again after \
         `cargo xtask build-ebpf`, or use -xdp-mode off"
    )]
    NoObject,
    /// The program was not built for this machine.
    #[error("the XDP program is not loaded: {reason}")]
    Unfit {
        /// What it was built for.
        reason: String,
    },
    /// A mode was asked for by name, but no interface.
    #[error("-xdp-mode {0} needs an interface; name one with -xdp-interface")]
    NoInterface(Mode),
    /// No interface has this name.
    #[error("network interface {name:?} does not exist; `ip -br link` lists those that do")]
    UnknownInterface {
        /// The name that was given.
        name: String,
    },
    /// The kernel refused for want of privilege.
    #[error(
        "not allowed to {operation}: this process lacks {missing}; run it as root, or give it \
         CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON (systemd: AmbientCapabilities=)"
    )]
    MissingCapability {
        /// What was being done.
        operation: &'static str,
        /// The capabilities that are missing, or that could be.
        missing: String,
    },
    /// The kernel's verifier refused the program.
    #[error(
        "the kernel refused the XDP program: {source}; the verifier's log is at debug level \
         (RUST_LOG=derp_user=debug)"
    )]
    Refused {
        /// What the kernel said.
        source: io::Error,
    },
    /// The embedded object could not be turned into a program and maps.
    #[error("cannot load the XDP program: {0}")]
    Load(#[source] EbpfError),
    /// The object lacks a program or map of this name, or it has another type.
    #[error("the embedded XDP program has no usable {name}; build it again with this derpd")]
    Mismatch {
        /// The program's or map's name.
        name: &'static str,
    },
    /// Another XDP program has the interface.
    #[error(
        "interface {interface} already has an XDP program; `bpftool net show dev {interface}` \
         names it; `ip link set dev {interface} xdp off` removes it, or `derpd detach` if it is one that a \
         derpd left behind"
    )]
    Occupied {
        /// The interface.
        interface: String,
    },
    /// The driver cannot do it.
    #[error("the driver of {interface} has no {mode} XDP; use -xdp-mode generic or auto")]
    Unsupported {
        /// The interface.
        interface: String,
        /// The mode that was tried.
        mode: AttachedMode,
    },
    /// Frames would be lost, or are.
    #[error("XDP in {mode} mode does not work on {interface}: {reason}")]
    Loses {
        /// The interface.
        interface: String,
        /// The mode.
        mode: AttachedMode,
        /// What loses them, and what mends it.
        reason: String,
    },
    /// Attaching failed in another way.
    #[error("cannot attach to {interface} in {mode} mode: {source}")]
    Attach {
        /// The interface.
        interface: String,
        /// The mode that was tried.
        mode: AttachedMode,
        /// What the kernel said.
        source: ProgramError,
    },
    /// A map could not be read or written.
    #[error("cannot access the kernel map {map}: {source}{}", cause(source))]
    Map {
        /// The map's name.
        map: &'static str,
        /// What the kernel said.
        source: MapError,
    },
    /// A map cannot have this size.
    #[error("{value} {what} are not possible: {allowed}")]
    MapSize {
        /// What is counted.
        what: &'static str,
        /// The number that was given.
        value: u32,
        /// What may be given.
        allowed: String,
    },
    /// Nothing can be pinned, or what is pinned cannot be used.
    #[error(transparent)]
    Pin(#[from] PinError),
    /// The host's addresses could not be read.
    #[error("cannot read this host's addresses: {0}")]
    Addresses(#[source] io::Error),
    /// Changes of the host's addresses cannot be followed.
    #[error("cannot follow changes of this host's addresses over netlink: {0}")]
    Netlink(#[source] io::Error),
    /// The program's reports cannot be waited for.
    #[error("cannot wait for what the kernel program reports: {0}")]
    Events(#[source] io::Error),
}

impl DataplaneError {
    /// Sorts out why loading failed; the verifier's log, if any, is logged at debug level.
    pub(super) fn from_load(error: EbpfError) -> Self {
        if let EbpfError::ProgramError(error) = error {
            return Self::from_program(error);
        }
        match os_error(&error) {
            Some(libc::EPERM | libc::EACCES) => Self::not_permitted("create BPF maps"),
            _ => Self::Load(error),
        }
    }

    /// Like [`Self::from_load`], for the program itself.
    pub(super) fn from_program(error: ProgramError) -> Self {
        let code = os_error(&error);
        if let ProgramError::LoadError { io_error, verifier_log } = error {
            // A program that the verifier dislikes fails with EACCES, too.
            if code == Some(libc::EPERM) {
                return Self::not_permitted("load a BPF program");
            }
            tracing::debug!(%verifier_log, "verifier");
            return Self::Refused { source: io_error };
        }
        Self::Load(EbpfError::ProgramError(error))
    }

    /// Sorts out why attaching failed.
    pub(super) fn from_attach(interface: &str, mode: AttachedMode, source: ProgramError) -> Self {
        let interface = interface.to_owned();
        match attach_errno(&source) {
            Some(libc::EBUSY | libc::EEXIST) => Self::Occupied { interface },
            Some(libc::EOPNOTSUPP) => Self::Unsupported { interface, mode },
            Some(libc::ENODEV) => Self::UnknownInterface { name: interface },
            Some(libc::EPERM | libc::EACCES) => Self::not_permitted("attach an XDP program"),
            _ => Self::Attach { interface, mode, source },
        }
    }

    /// Tells whether going on without the kernel would disturb somebody else, or hide a mistake.
    pub(super) fn is_fatal(&self) -> bool {
        match self {
            Self::Pin(error) => error.is_conflict(),
            Self::UnknownInterface { .. } | Self::MapSize { .. } => true,
            Self::NoObject
            | Self::Unfit { .. }
            | Self::NoInterface(_)
            | Self::MissingCapability { .. }
            | Self::Refused { .. }
            | Self::Load(_)
            | Self::Mismatch { .. }
            | Self::Occupied { .. }
            | Self::Unsupported { .. }
            | Self::Attach { .. }
            | Self::Map { .. }
            | Self::Addresses(_)
            | Self::Netlink(_)
            | Self::Events(_)
            | Self::Loses { .. } => false,
        }
    }

    pub(super) fn map(map: &'static str) -> impl Fn(MapError) -> Self {
        move |source| Self::Map { map, source }
    }

    fn not_permitted(operation: &'static str) -> Self {
        Self::MissingCapability { operation, missing: Held::read().missing() }
    }
}

/// What the system said, which a map's error leaves out.
fn cause(error: &MapError) -> String {
    let code = os_error(error);
    code.map_or_else(String::new, |code| format!(": {}", io::Error::from_raw_os_error(code)))
}

/// Returns the errno of a failed attachment.
fn attach_errno(error: &ProgramError) -> Option<i32> {
    if let ProgramError::XdpError(XdpError::NetlinkError(error)) = error {
        return error.raw_os_error();
    }
    os_error(error)
}

/// Returns the first errno in the chain of sources.
pub(super) fn os_error(error: &(dyn std::error::Error + 'static)) -> Option<i32> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(code) = error.downcast_ref::<io::Error>().and_then(io::Error::raw_os_error) {
            return Some(code);
        }
        next = error.source();
    }
    None
}
