//! Developer tasks of derpd: `cargo xtask <command>`.

mod check;
mod ebpf;
mod process;
mod workspace;

use std::process::ExitCode;

use clap::Parser;

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Developer tasks of derpd")]
enum Task {
    /// Build the kernel program, installing its toolchain first where that is missing
    BuildEbpf,
    /// Everything that CI runs: format, lints, licences, documentation, tests
    Check,
}

fn main() -> ExitCode {
    let result = match Task::parse() {
        Task::BuildEbpf => ebpf::command(),
        Task::Check => check::command(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
