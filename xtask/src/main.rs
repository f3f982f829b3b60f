//! Developer tasks of derpd: `cargo xtask <command>`.

mod apt;
mod bench;
mod browser;
mod check;
mod clock;
mod derp_map;
mod e2e;
mod ebpf;
mod fuzz;
mod go;
mod instructions;
mod interop;
mod miri;
mod monitoring;
mod namespaces;
mod package;
mod process;
mod proxies;
mod reproducible;
mod run;
mod sanitize;
mod scale;
mod soak;
mod test;
mod vendored;
mod wireguard;
mod workspace;

use std::process::ExitCode;

use clap::Parser;

#[derive(Parser)]
#[command(bin_name = "cargo xtask", about = "Developer tasks of derpd")]
enum Task {
    /// Build and run a development relay on this machine
    Run {
        /// Flags of derpd, which win over the development ones
        #[arg(last = true)]
        flags: Vec<String>,
    },
    /// Build the kernel program, installing its toolchain first where that is missing
    BuildEbpf,
    /// Run every test that this machine can run, and name each one skipped and why
    Test {
        /// Arguments of `cargo test`, such as `--package derp-common`
        #[arg(last = true)]
        arguments: Vec<String>,
    },
    /// Compare derpd with Tailscale's derper under the same load
    Bench(bench::Options),
    /// Copy a file between two real Tailscale clients through the relay, in network namespaces
    E2e(e2e::Options),
    /// Look for bytes and histories that break a parser or a state machine
    Fuzz(fuzz::Options),
    /// Run the protocol cases against derpd and against Tailscale's derper, and compare
    Interop(interop::Options),
    /// Count the instructions of the packet path and compare them with the committed ones
    Instructions(instructions::Options),
    /// Make what derpd is delivered as: static programs, the Debian package, the container image
    #[command(subcommand)]
    Package(package::Package),
    /// Run the tests of the code that the kernel program is made of under Miri, which finds undefined behaviour
    Miri,
    /// Build the daemon and the kernel program in two directories, and compare them byte by byte
    Reproducible(reproducible::Options),
    /// Run the library's unit tests with a sanitizer of the compiler
    Sanitize(sanitize::Options),
    /// Measure how far one region goes: the tables of docs/SCALE.md
    Scale,
    /// Run a relay at half load for an hour; nothing may grow, and every packet has to be accounted for
    Soak(soak::Options),
    /// Everything that CI runs: format, lints, licences, documentation, tests, instruction counts
    Check,
}

fn main() -> ExitCode {
    let result = match Task::parse() {
        Task::Run { flags } => run::command(&flags),
        Task::BuildEbpf => ebpf::command(),
        Task::Test { arguments } => test::command(&arguments),
        Task::Bench(options) => bench::command(&options),
        Task::E2e(options) => e2e::command(&options),
        Task::Fuzz(options) => fuzz::command(&options),
        Task::Interop(options) => interop::command(&options),
        Task::Instructions(options) => instructions::command(&options),
        Task::Package(package) => package::command(&package),
        Task::Miri => miri::command(),
        Task::Reproducible(options) => reproducible::command(&options),
        Task::Sanitize(options) => sanitize::command(&options),
        Task::Scale => scale::command(),
        Task::Soak(options) => soak::command(&options),
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
