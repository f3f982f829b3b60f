//! Embeds the kernel program when `cargo xtask build-ebpf` has left one in the target directory.
//!
//! A plain `cargo build` needs no eBPF toolchain: without an object the daemon serves from userspace.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

fn main() {
    println!("cargo::rustc-check-cfg=cfg(ebpf_object)");
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let directory = target_directory(&out).join("ebpf");
    // Cargo takes a missing file for a changed one and would rebuild every time, so the directory is
    // watched: an object that appears, changes or vanishes changes it.
    fs::create_dir_all(&directory).expect("the target directory is writable");
    println!("cargo::rerun-if-changed={}", directory.display());
    println!("cargo::rerun-if-changed=build.rs");
    let object = directory.join("derp-ebpf.o");
    if object.is_file() {
        println!("cargo::rustc-cfg=ebpf_object");
        println!("cargo::rustc-env=DERPD_EBPF_OBJECT={}", object.display());
    }
}

/// Returns the workspace's target directory: the outermost one that cargo has marked.
fn target_directory(out: &Path) -> &Path {
    let marked = |directory: &&Path| directory.join("CACHEDIR.TAG").is_file();
    out.ancestors().filter(marked).last().unwrap_or(out)
}
