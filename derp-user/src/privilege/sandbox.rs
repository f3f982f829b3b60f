//! What the process gives up once it serves, in layers: each is applied where the kernel can, and says why where it
//! cannot.

use std::fs;

use nix::{
    sys::{
        prctl,
        resource::{Resource, setrlimit},
    },
    unistd::geteuid,
};

use super::{Capability, Files, calls, files, reduce};

/// One layer.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Layer {
    /// No core dumps, and no other process of the same user looks into the memory.
    Memory,
    /// Capabilities that are not needed are given up, and none can be gained.
    Capabilities,
    /// Landlock: only the files that are needed can be opened.
    Files,
    /// seccomp: only the system calls that are needed can be made.
    Calls,
}

impl Layer {
    /// Every layer, from the first that is applied to the last.
    pub const ALL: [Self; 4] = [Self::Memory, Self::Capabilities, Self::Files, Self::Calls];

    /// Returns its name in metrics and the log.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Capabilities => "capabilities",
            Self::Files => "landlock",
            Self::Calls => "seccomp",
        }
    }
}

/// What has become of the layers.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Sandbox {
    /// The capabilities that are kept.
    pub kept: Vec<Capability>,
    /// Files that cannot be let through, since not even their directories are there.
    pub missing: Vec<std::path::PathBuf>,
    faults: Vec<(Layer, String)>,
}

impl Sandbox {
    /// Tells whether a layer is applied in full.
    #[must_use]
    pub fn has(&self, layer: Layer) -> bool {
        !self.faults.iter().any(|(faulty, _)| *faulty == layer)
    }

    /// The layers that are not, and why.
    pub fn faults(&self) -> impl Iterator<Item = (Layer, &str)> {
        self.faults.iter().map(|(layer, reason)| (*layer, reason.as_str()))
    }

    fn note(&mut self, layer: Layer, result: Result<(), String>) {
        self.faults.extend(result.err().map(|reason| (layer, reason)));
    }
}

/// Keeps secrets in the memory of this process: there is no core dump, and only root can attach to it or read its
/// memory. Call it before the first key is read.
///
/// # Errors
///
/// What the kernel says.
pub fn seal_memory() -> nix::Result<()> {
    setrlimit(Resource::RLIMIT_CORE, 0, 0)?;
    prctl::set_dumpable(false)
}

/// What the process goes on needing.
#[derive(Clone, Debug, Default)]
pub struct Needs {
    /// The capabilities.
    pub capabilities: Vec<Capability>,
    /// The files.
    pub files: Files,
    /// Whether there are maps of a kernel data plane.
    pub kernel_maps: bool,
}

/// Gives up all that is not needed, for good, in the calling thread and all it will start. Call it when everything is
/// bound, attached and open, and before there are other threads.
///
/// [`seal_memory`] is expected to have been called.
#[must_use]
pub fn enter(needs: &Needs) -> Sandbox {
    let mut sandbox = Sandbox::default();
    let sealed = match prctl::get_dumpable() {
        Ok(false) => Ok(()),
        Ok(true) => Err("core dumps are not switched off".to_owned()),
        Err(error) => Err(error.to_string()),
    };
    sandbox.note(Layer::Memory, sealed);
    match reduce(&needs.capabilities) {
        Ok(kept) => sandbox.kept = kept,
        Err(error) => sandbox.note(Layer::Capabilities, Err(error.to_string())),
    }
    // Landlock is for one thread and what comes of it.
    let others = fs::read_dir("/proc/self/task").map_or(0, |tasks| tasks.count().saturating_sub(1));
    let early = if others == 0 {
        Ok(())
    } else {
        Err(format!("{others} threads were there before it, and are not confined"))
    };
    sandbox.missing = files::missing(&needs.files);
    sandbox.note(Layer::Files, files::confine(&needs.files, geteuid().is_root()).and(early));
    sandbox.note(Layer::Calls, calls::confine(needs.kernel_maps));
    sandbox
}
