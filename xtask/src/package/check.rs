//! Whether what is delivered is sound, by the tools of those who take it.

use anyhow::{Result, bail};

use super::{helm, unit};

/// `cargo xtask package check`: says what it has done, and why not the rest.
pub(crate) fn command() -> Result<()> {
    let mut failed = Vec::new();
    for (name, check) in [
        ("systemd unit", unit::check as fn() -> Result<Result<(), String>>),
        ("Helm chart", helm::check),
    ] {
        match check() {
            Ok(Ok(())) => println!("ok: {name}"),
            Ok(Err(reason)) => println!("skipped: {name}: {reason}"),
            Err(error) => {
                eprintln!("{name}: {error:#}");
                failed.push(name);
            }
        }
    }
    if !failed.is_empty() {
        bail!("not sound: {}", failed.join(", "));
    }
    Ok(())
}

/// The same without what takes minutes to install. Returns why something was left out, if it was.
pub(crate) fn quick() -> Result<Result<(), String>> {
    if let Err(reason) = unit::check()? {
        return Ok(Err(reason));
    }
    if !helm::is_installed()? {
        return Ok(Err(
            "the Helm chart: run `cargo xtask package check`, which builds Helm".to_owned()
        ));
    }
    helm::check()
}
