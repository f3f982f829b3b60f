//! Other builds of derpd.

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path};

/// Writes a copy of a program into the place of another one, as a package manager does. The copies of different
/// builds hold different kernel programs: a byte that nobody reads is another one.
pub(crate) fn write_build(program: &Path, place: &Path, build: u8) {
    let mut bytes = fs::read(program).expect("the program");
    let object = kernel_program(&bytes).expect("a kernel program in the program");
    bytes[object + LAST_OF_PADDING] = build;
    let beside = place.with_extension("new");
    fs::write(&beside, bytes).expect("a copy");
    fs::set_permissions(&beside, fs::Permissions::from_mode(0o755)).expect("chmod");
    fs::rename(&beside, place).expect("replaced");
}

/// The end of `e_ident` in the header of an ELF file, which is not used.
const LAST_OF_PADDING: usize = 15;

/// Where the ELF file for BPF (machine 247) begins.
fn kernel_program(bytes: &[u8]) -> Option<usize> {
    // Magic, 64 bit, little endian, version; then what nobody reads; a relocatable file for the machine.
    let (ident, rest) = (b"\x7fELF\x02\x01\x01\x00", [1, 0, 247, 0]);
    let is_one = |window: &[u8]| window.starts_with(ident) && window[16..] == rest;
    bytes.windows(20).position(is_one)
}
