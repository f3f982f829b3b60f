//! `cargo xtask bench`: Tailscale's derper and derpd under the same load, in turns.
//!
//! The machine may be shared and noisy, so only ratios of medians are worth reading: the two take
//! turns (A B A B ...), and every run starts a server process of its own.

mod case;
mod cases;
mod figures;
mod progress;
#[cfg(test)]
mod readme;
mod report;
mod results;
mod server;
mod setting;
mod witness;

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use clap::Args;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde_json::json;

use crate::{e2e, ebpf, go, process::CommandExt as _, wireguard, workspace};
use case::{Case, Reading, Row, Run, Subject};
use figures::{Measured, Round};
use progress::Progress;
use report::{Report, Table};
use results::Results;
use server::Program;
use witness::Witness;

/// The release of derper that derpd is measured against.
const DERPER_VERSION: &str = "v1.103.0-pre";
/// Files that a server or a generator opens beside its connections.
const OTHER_FILES: u64 = 200;

#[derive(Args)]
pub(crate) struct Options {
    /// A second load generator: a program with derpload's command line, one JSON object as output
    #[arg(long, value_name = "PATH")]
    load_generator: Option<PathBuf>,
    /// Leave out `derpd bench`
    #[arg(long, requires = "load_generator")]
    only_load_generator: bool,
    /// How often each case runs
    #[arg(long, default_value_t = 5)]
    rounds: u32,
    /// Seconds of load in each run
    #[arg(long, default_value_t = 5)]
    seconds: u64,
    /// Run only the cases whose name contains this; the report file is then left alone
    #[arg(long, value_name = "TEXT")]
    only: Option<String>,
    /// Print one JSON object instead of tables
    #[arg(long, conflicts_with_all = ["peer_relay", "wireguard"])]
    json: bool,
    /// Measure instead what relaying between two real clients costs: DERP, and peer relays in userspace and in the
    /// kernel. Prints the tables
    #[arg(long, conflicts_with = "load_generator")]
    peer_relay: bool,
    /// With --peer-relay: let the relay hand over packets that a network card would have to cut
    #[arg(long, requires = "peer_relay")]
    segmentation_offload: bool,
    /// Measure this binary instead of building derpd; the report file is then left alone
    #[arg(long, value_name = "PATH")]
    derpd: Option<PathBuf>,
    /// Measure what relaying WireGuard costs instead, as root; the report file is then left alone
    #[arg(long, conflicts_with_all = ["load_generator", "only", "derpd"])]
    wireguard: bool,
}

/// Runs the comparison, prints it, and writes `docs/BENCHMARKS.md`.
pub(crate) fn command(options: &Options) -> Result<()> {
    ensure!(options.rounds > 0 && options.seconds > 0, "--rounds and --seconds must be at least 1");
    if options.peer_relay {
        return peer_relay(options);
    }
    if options.wireguard {
        return wireguard::measure(options.rounds, options.seconds);
    }
    let mut cases = cases::cases();
    cases.retain(|case| options.only.as_ref().is_none_or(|text| case.name.contains(text.as_str())));
    ensure!(!cases.is_empty(), "no case has {:?} in its name", options.only);
    allow_open_files(&cases)?;

    let directory = workspace::target_dir()?.join("bench");
    let mut missing = Vec::new();
    let programs = Programs {
        derper: Program::new("derper", build_derper(&directory)?, &directory)?,
        derpd: Program::new("derpd", options.derpd()?, &directory)?,
    };
    let plans: Vec<_> = options
        .witnesses(&cases, &mut missing)?
        .into_iter()
        .map(|witness| Plan::new(witness, &cases))
        .filter(|plan| !plan.cases.is_empty())
        .collect();
    ensure!(!plans.is_empty(), "nothing to run: {}", missing.join("; "));
    let setting = setting::describe(options.rounds, options.seconds)?;
    let mut bench = Bench {
        options,
        programs,
        progress: Progress::start(
            plans.iter().map(|plan| plan.duration(options)).sum::<Duration>(),
        ),
        results: Results::open(&directory.join("results.jsonl"))?,
        failures: Vec::new(),
    };
    bench.results.add(&json!({ "setting": setting }))?;
    let tables = plans.iter().map(|plan| bench.run(plan)).collect();
    let report = Report { setting, tables, missing };
    if options.json {
        println!("{}", report.to_json());
    } else {
        print!("{report}");
    }
    if !bench.failures.is_empty() {
        bail!("failed: {}", bench.failures.join("; "));
    }
    if options.only.is_none() && options.derpd.is_none() {
        let file = workspace::root().join("docs").join("BENCHMARKS.md");
        report.write_into(&file)?;
        eprintln!("written to {}", file.display());
    }
    Ok(())
}

fn peer_relay(options: &Options) -> Result<()> {
    ebpf::build(&ebpf::Toolchain::find_or_install()?)?;
    let tables = e2e::cost::compare(&e2e::cost::Options {
        derpd: &options.derpd()?,
        derper: &build_derper(&workspace::target_dir()?.join("bench"))?,
        rounds: options.rounds,
        load: Duration::from_secs(options.seconds),
        segmentation_offload: options.segmentation_offload,
        only: options.only.as_deref(),
    })?;
    println!("{}\n\n{tables}", setting::describe(options.rounds, options.seconds)?);
    Ok(())
}

impl Options {
    fn derpd(&self) -> Result<PathBuf> {
        self.derpd.clone().map_or_else(workspace::build_derpd, Ok)
    }

    /// Returns who measures; `missing` gets the reason why somebody cannot.
    fn witnesses(&self, cases: &[Case], missing: &mut Vec<String>) -> Result<Vec<Witness>> {
        let mut witnesses = Vec::new();
        if !self.only_load_generator {
            witnesses.push(Witness::Own(workspace::build_derpd()?));
        }
        if let Some(path) = &self.load_generator {
            let path = path.canonicalize();
            witnesses.push(Witness::Derpload(path.context("looking for the load generator")?));
        }
        let is_tunnel =
            |case: &&Case| case.loads().any(|load| matches!(load, case::Load::Tunnel { .. }));
        if let Some(case) = cases.iter().find(is_tunnel) {
            match e2e::obstacle() {
                None => witnesses.push(Witness::Tailscaled(e2e::Programs::build()?)),
                Some(reason) => {
                    let what = format!("{}: {reason}", case.name);
                    eprintln!("skipped: {what}");
                    missing.push(what);
                }
            }
        }
        Ok(witnesses)
    }
}

/// What one witness measures.
struct Plan<'a> {
    witness: Witness,
    /// Cases with the rows that this witness has the figures of.
    cases: Vec<(&'a Case, Vec<&'a Row>)>,
}

impl<'a> Plan<'a> {
    fn new(witness: Witness, cases: &'a [Case]) -> Self {
        let cases = cases
            .iter()
            .map(|case| {
                let can_read = |reading: Reading| {
                    let loads = case.runs.get(reading.run).map(|run| &run.loads);
                    loads.is_some_and(|loads| loads.iter().all(|&load| witness.makes(load)))
                        && witness.reports(reading.number)
                };
                let readable = |row: &&Row| row.readings().all(can_read);
                (case, case.rows.iter().filter(readable).collect::<Vec<_>>())
            })
            .filter(|(_, rows)| !rows.is_empty())
            .collect();
        Self { witness, cases }
    }

    fn duration(&self, options: &Options) -> Duration {
        let runs = self.cases.iter().flat_map(|(case, rows)| {
            let wanted = |index: &usize| is_read(*index, rows);
            (0..case.runs.len()).filter(wanted).filter_map(|index| case.runs.get(index))
        });
        runs.map(|run| duration(run, options.seconds)).sum::<Duration>() * options.rounds
    }
}

/// Whether a row needs the answers of a run.
fn is_read(run: usize, rows: &[&Row]) -> bool {
    rows.iter().flat_map(|row| row.readings()).any(|reading| reading.run == run)
}

fn duration(run: &Run, seconds: u64) -> Duration {
    run.loads.iter().map(|&load| witness::duration(load, seconds)).sum()
}

struct Programs {
    derper: Program,
    derpd: Program,
}

/// A comparison that is running.
struct Bench<'a> {
    options: &'a Options,
    programs: Programs,
    progress: Progress,
    results: Results,
    /// Cases that failed, and why.
    failures: Vec<String>,
}

impl Bench<'_> {
    /// Measures one witness's cases. One that fails is noted, and the others go on.
    fn run(&mut self, plan: &Plan<'_>) -> Table {
        let mut table = Table { title: plan.witness.title(), cases: Vec::new() };
        for (case, rows) in &plan.cases {
            match self.case(&plan.witness, case, rows) {
                Ok(measured) => table.cases.push((case.name, measured)),
                Err(error) => {
                    eprintln!("{}: {error:#}", case.name);
                    self.failures.push(format!("{}: {error:#}", case.name));
                }
            }
        }
        table
    }

    fn case(&mut self, witness: &Witness, case: &Case, rows: &[&Row]) -> Result<Vec<Measured>> {
        let rounds = (1..=self.options.rounds)
            .map(|round| self.round(witness, case, rows, round))
            .collect::<Result<Vec<_>>>()?;
        rows.iter().map(|row| Measured::of(row, &rounds)).collect()
    }

    fn round(
        &mut self,
        witness: &Witness,
        case: &Case,
        rows: &[&Row],
        number: u32,
    ) -> Result<Round> {
        let Self { options, programs, progress, results, .. } = self;
        let mut round = Round::new();
        for (index, run) in case.runs.iter().enumerate() {
            if !is_read(index, rows) {
                round.push(Vec::new());
                continue;
            }
            let (program, workers) = match run.subject {
                Subject::Derper => (&programs.derper, None),
                Subject::Derpd => (&programs.derpd, None),
                Subject::DerpdWithWorkers(count) => (&programs.derpd, Some(count)),
            };
            let what =
                format!("{}: round {number} of {}, {}", case.name, options.rounds, run.subject);
            progress.begin(&what, duration(run, options.seconds));
            let answers = witness.measure(program, workers, &run.loads, options.seconds);
            let answers = answers.with_context(|| what.clone())?;
            for (load, answer) in run.loads.iter().zip(&answers) {
                results.add(&json!({
                    "witness": witness.title(),
                    "case": case.name,
                    "round": number,
                    "server": run.subject.to_string(),
                    "load": format!("{load:?}"),
                    "answer": answer,
                }))?;
            }
            round.push(answers);
        }
        Ok(round)
    }
}

/// Raises the limit of open files, which children inherit, to what the cases need.
fn allow_open_files(cases: &[Case]) -> Result<()> {
    let most = cases.iter().flat_map(Case::loads).map(case::Load::connections).max().unwrap_or(0);
    let needed = u64::from(most) + OTHER_FILES;
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).context("reading the limit of files")?;
    if soft >= needed {
        return Ok(());
    }
    setrlimit(Resource::RLIMIT_NOFILE, needed, hard.max(needed)).with_context(|| {
        format!(
            "{most} connections need {needed} open files, and the limit of this shell is {hard}"
        )
    })
}

/// Builds derper from its Go module, once.
fn build_derper(directory: &Path) -> Result<PathBuf> {
    let program = directory.join("bin").join("derper");
    let built = || go::command().args(["version", "-m"]).arg(&program).read();
    if built().is_ok_and(|text| text.contains(DERPER_VERSION)) {
        return Ok(program);
    }
    go::check_version().context("building derper, which derpd is compared with")?;
    eprintln!("building derper {DERPER_VERSION} from its Go module; this takes minutes");
    go::command()
        .env("GOBIN", directory.join("bin"))
        .args(["install", &format!("tailscale.com/cmd/derper@{DERPER_VERSION}")])
        .run()?;
    Ok(program)
}
