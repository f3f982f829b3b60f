//! The list of everything that is in derpd, for those who look for known faults (CycloneDX).

use std::{fs, path::PathBuf};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::{
    process::{self, CommandExt as _},
    reproducible, workspace,
};

const CARGO_CYCLONEDX: &str = "0.5.9";
/// The version of the format.
const SPECIFICATION: &str = "1.5";
/// What has to be in it: the program's own package, TLS, and something that only it depends on.
const CONTENTS: [&str; 3] = ["derp-common", "rustls", "aws-lc-sys"];

/// `cargo xtask package sbom`.
pub(crate) fn command() -> Result<()> {
    println!("{}", write()?.display());
    Ok(())
}

/// Writes the list beside the documents of the package, looks into it, and returns its path.
pub(crate) fn write() -> Result<PathBuf> {
    let tool = workspace::pinned_tool(
        "cargo-cyclonedx",
        CARGO_CYCLONEDX,
        "it lists what is in derpd",
        |_| Ok(()),
    )?;
    let package = workspace::root().join("derp-user");
    process::command(tool)
        .current_dir(&package)
        .env("SOURCE_DATE_EPOCH", reproducible::commit_time()?)
        .args(["cyclonedx", "--format=json", "--spec-version", SPECIFICATION, "--describe=crate"])
        .args(["--no-build-deps", "--override-filename=derpd.cdx", "--manifest-path"])
        .arg(package.join("Cargo.toml"))
        .run()?;
    let directory = workspace::target_dir()?.join("release").join("package");
    fs::create_dir_all(&directory).with_context(|| format!("creating {}", directory.display()))?;
    let list = directory.join("derpd.cdx.json");
    let made = package.join("derpd.cdx.json");
    let text = fs::read_to_string(&made).with_context(|| format!("reading {}", made.display()))?;
    fs::remove_file(&made).with_context(|| format!("removing {}", made.display()))?;
    check(&text)?;
    fs::write(&list, text).with_context(|| format!("writing {}", list.display()))?;
    Ok(list)
}

/// Checks that the list is one, and whole.
fn check(text: &str) -> Result<()> {
    let list: Value = serde_json::from_str(text).context("the list is no JSON")?;
    if list["bomFormat"] != "CycloneDX" || list["specVersion"] != SPECIFICATION {
        bail!("not CycloneDX {SPECIFICATION}: {} {}", list["bomFormat"], list["specVersion"]);
    }
    let components = list["components"].as_array().map(Vec::as_slice).unwrap_or_default();
    for name in CONTENTS {
        let Some(component) = components.iter().find(|it| it["name"] == name) else {
            bail!("the list lacks {name}");
        };
        if component["version"].as_str().is_none_or(str::is_empty) {
            bail!("the list has no version of {name}");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_that_is_not_whole_is_found_out() {
        let component = |name: &str| format!("{{\"name\":\"{name}\",\"version\":\"1.0.0\"}}");
        let list = |names: &[&str]| {
            let components: Vec<_> = names.iter().map(|name| component(name)).collect();
            format!(
                "{{\"bomFormat\":\"CycloneDX\",\"specVersion\":\"{SPECIFICATION}\",\"components\":[{}]}}",
                components.join(",")
            )
        };
        check(&list(&CONTENTS)).expect("whole");
        let error = check(&list(&CONTENTS[1..])).expect_err("not whole").to_string();
        assert_eq!(error, "the list lacks derp-common");
        assert!(check("{}").is_err() && check("").is_err());
        assert!(check(&list(&CONTENTS).replace("1.0.0", "")).is_err());
    }
}
