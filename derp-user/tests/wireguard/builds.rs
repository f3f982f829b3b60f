//! Other builds of derpd, which an upgrade leads from or back to.
//!
//! A build differs from the next one in the kernel program it brings, and in the maps of that program or not. Such a build
//! is made here by altering the object in a copy of this one; the kernel sees no difference to one that was compiled.
//! `DERPD_OLD_BINARY` names a real one, such as that of the last release.

use std::{
    env, fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use derp_common::maps::{COUNTERS_CAPACITY, Counter};
use derp_user::dataplane::embedded_object;

/// The build that is tested.
pub(crate) const THIS: &str = env!("CARGO_BIN_EXE_derpd");

/// What is different in another build.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Difference {
    /// The program, which can go on with the same maps.
    Program,
    /// The maps as well: they have to be made anew.
    Maps,
}

/// Makes a build, in a directory; `None` without a kernel program.
pub(crate) fn make(directory: &Path, difference: Difference) -> Option<PathBuf> {
    let object = embedded_object()?;
    let mut program = fs::read(THIS).expect("derpd");
    // Aligned in memory, so in the file.
    let mut places = (0..program.len()).step_by(8).filter(|at| program[*at..].starts_with(object));
    let at = places.next().expect("the object is in derpd");
    assert_eq!(places.next(), None, "it is there once");
    let object = &mut program[at..at + object.len()];
    match difference {
        // Padding of the ELF identification, which nobody reads.
        Difference::Program => object[15] ^= 1,
        // `struct bpf_map_def` of the counters, with one more of them.
        Difference::Maps => {
            let per_cpu_array = 6;
            let size = u32::try_from(size_of::<Counter>()).expect("small");
            let definition =
                |entries| [per_cpu_array, 4, size, entries].map(u32::to_le_bytes).concat();
            let (old, new) = (definition(COUNTERS_CAPACITY), definition(COUNTERS_CAPACITY + 1));
            let at =
                object.windows(old.len()).position(|bytes| bytes == old).expect("the counters");
            object[at..at + new.len()].copy_from_slice(&new);
        }
    }
    let path = directory.join(format!("derpd-{difference:?}"));
    fs::write(&path, program).expect("a copy of derpd");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("chmod");
    Some(path)
}

/// An older build, if the environment names one.
pub(crate) fn released() -> Option<PathBuf> {
    env::var_os("DERPD_OLD_BINARY").map(PathBuf::from)
}
