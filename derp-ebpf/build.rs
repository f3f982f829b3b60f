//! Options for bpf-linker, which generates the code.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    // Network headers are not aligned. Without this, LLVM reads a word as four bytes, which makes the
    // program a third longer and slower; the kernel allows it on every machine that has XDP drivers.
    println!("cargo::rustc-link-arg-bins=--cpu-features=+allows-misaligned-mem-access");
}
