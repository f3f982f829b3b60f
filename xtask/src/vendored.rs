//! The files that are in the program and come from a registry: unchanged, and what the registry has.

use std::{fs, path::Path};

use anyhow::{Context as _, Result, bail};
use serde::Deserialize;
use sha2::{Digest as _, Sha256};

use crate::{
    process::{self, CommandExt as _},
    workspace,
};

/// One package of the npm registry.
#[derive(Debug, Deserialize)]
struct Package {
    package: String,
    version: String,
    /// Of the package's archive, as `npm` shows it.
    integrity: String,
    /// Where its files are here.
    directory: String,
    files: Vec<File>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    /// Here.
    name: String,
    /// In the archive.
    from: String,
    /// In hex digits.
    sha256: String,
}

/// Compares the files with what was noted when they were taken, and with the registry.
///
/// # Errors
///
/// If something differs. If the registry cannot be asked, the inner error says why.
pub(crate) fn check() -> Result<std::result::Result<(), String>> {
    let root = workspace::root().join("derp-user").join("vendor");
    let list = root.join("vendored.json");
    let text = fs::read(&list).with_context(|| format!("reading {}", list.display()))?;
    let packages: Vec<Package> =
        serde_json::from_slice(&text).with_context(|| format!("reading {}", list.display()))?;
    for package in &packages {
        compare(&root.join(&package.directory), package, |file| &file.name)?;
    }
    for package in &packages {
        let scratch = workspace::target_dir()?.join("vendored");
        fs::create_dir_all(&scratch).with_context(|| format!("making {}", scratch.display()))?;
        let Some(archive) = download(package, &scratch)? else {
            let (name, version) = (&package.package, &package.version);
            return Ok(Err(format!("npm cannot fetch {name} {version}; the files are as noted")));
        };
        process::command("tar").arg("-xzf").arg(&archive).arg("-C").arg(&scratch).read()?;
        compare(&scratch, package, |file| &file.from)?;
    }
    Ok(Ok(()))
}

/// Fetches the package's archive with npm; `None` if there is no npm, or no registry for it.
fn download(package: &Package, scratch: &Path) -> Result<Option<std::path::PathBuf>> {
    #[derive(Deserialize)]
    struct Packed {
        filename: String,
        integrity: String,
    }
    let wanted = format!("{}@{}", package.package, package.version);
    let packed = process::command("npm")
        .args(["pack", "--json", "--ignore-scripts", "--fetch-retries=1", &wanted])
        .current_dir(scratch)
        .read();
    let Ok(packed) = packed else { return Ok(None) };
    let packed: Vec<Packed> = serde_json::from_str(&packed).context("reading what npm says")?;
    let [packed] = &packed[..] else { bail!("npm packs {} archives of {wanted}", packed.len()) };
    if packed.integrity != package.integrity {
        bail!("the registry's {wanted} is {}, not {}", packed.integrity, package.integrity);
    }
    Ok(Some(scratch.join(&packed.filename)))
}

/// Compares the files in `directory` with what was noted.
fn compare(directory: &Path, package: &Package, name: impl Fn(&File) -> &String) -> Result<()> {
    for file in &package.files {
        let path = directory.join(name(file));
        let bytes = fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
        let digest: String =
            Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
        if digest != file.sha256 {
            let (name, version) = (&package.package, &package.version);
            bail!("{} is not that of {name} {version}: SHA-256 {digest}", path.display());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_file_is_named() {
        let directory = workspace::root().join("derp-user/vendor/uplot");
        let package = |sha256: &str| Package {
            package: "uplot".to_owned(),
            version: "1".to_owned(),
            integrity: String::new(),
            directory: String::new(),
            files: vec![File {
                name: "LICENSE".to_owned(),
                from: String::new(),
                sha256: sha256.to_owned(),
            }],
        };
        let error = compare(&directory, &package("00"), |file| &file.name).unwrap_err();
        assert!(error.to_string().contains("LICENSE is not that of uplot 1"), "{error}");
        let good = "8f989229699b4fe2f1a0432d0e9edc338a8a911e250e2d1b01ecd770a5f5b1bd";
        assert!(compare(&directory, &package(good), |file| &file.name).is_ok());
    }
}
