//! The list of everything that is in derpd, in CycloneDX, for those who look for known faults.
//!
//! Made of what cargo says of the packages and of the lock file, without another tool: `cargo-cyclonedx` lists what is
//! in each package of the workspace, but not that the daemon has the kernel program in it, and names our packages by paths of
//! the machine.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::PathBuf,
};

use anyhow::{Context as _, Result, bail};
use serde::Deserialize;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::{
    process::{self, CommandExt as _},
    reproducible, workspace,
};

/// The version of the format.
const SPECIFICATION: &str = "1.5";
const FILE: &str = "derpd.cdx.json";
/// The daemon, and the kernel program that is in it.
const PROGRAMS: [&str; 2] = ["derp-user", "derp-ebpf"];

/// What `cargo metadata` says.
#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
    resolve: Resolve,
}

#[derive(Deserialize)]
struct Package {
    id: String,
    name: String,
    version: String,
    license: Option<String>,
    repository: Option<String>,
    source: Option<String>,
}

#[derive(Deserialize)]
struct Resolve {
    nodes: Vec<Node>,
}

#[derive(Deserialize)]
struct Node {
    id: String,
    deps: Vec<Dependency>,
}

#[derive(Deserialize)]
struct Dependency {
    pkg: String,
    dep_kinds: Vec<Kind>,
}

/// Without a name for what is there when the program runs, `build` or `dev` for the rest.
#[derive(Deserialize)]
struct Kind {
    kind: Option<String>,
}

/// `cargo xtask package sbom`.
pub(crate) fn command() -> Result<()> {
    println!("{}", write()?.display());
    Ok(())
}

/// Writes the list beside the documents of the package, and returns its path.
pub(crate) fn write() -> Result<PathBuf> {
    let text = process::cargo()
        .current_dir(workspace::root())
        .args([
            "metadata",
            "--locked",
            "--format-version=1",
            "--filter-platform",
            &process::rust_version("host")?,
        ])
        .read()?;
    let metadata: Metadata = serde_json::from_str(&text).context("reading `cargo metadata`")?;
    let lock = fs::read_to_string(workspace::root().join("Cargo.lock")).context("Cargo.lock")?;
    let seconds = reproducible::commit_time()?;
    let made = process::command("date")
        .args(["--utc", "+%Y-%m-%dT%H:%M:%SZ", "--date"])
        .arg(format!("@{}", seconds.to_string_lossy()))
        .read()?;
    let list = list(&metadata, &checksums(&lock), made.trim())?;
    let directory = workspace::target_dir()?.join("release").join("package");
    fs::create_dir_all(&directory).with_context(|| format!("creating {}", directory.display()))?;
    let path = directory.join(FILE);
    let text = serde_json::to_string_pretty(&list).context("writing JSON")?;
    fs::write(&path, text + "\n").with_context(|| format!("writing {}", path.display()))?;
    Ok(path)
}

/// SHA-256 of packages as the registry has them, by name and version.
fn checksums(lock: &str) -> BTreeMap<(String, String), String> {
    let mut found = BTreeMap::new();
    let (mut name, mut version) = (String::new(), String::new());
    for line in lock.lines() {
        let Some((key, value)) = line.split_once(" = ") else { continue };
        let value = value.trim_matches('"').to_owned();
        match key {
            "name" => name = value,
            "version" => version = value,
            "checksum" => {
                found.insert((name.clone(), version.clone()), value);
            }
            _ => {}
        }
    }
    found
}

fn list(
    metadata: &Metadata,
    checksums: &BTreeMap<(String, String), String>,
    made: &str,
) -> Result<Value> {
    let packages: BTreeMap<_, _> = metadata.packages.iter().map(|it| (&*it.id, it)).collect();
    let edges: BTreeMap<_, _> =
        metadata.resolve.nodes.iter().map(|node| (&*node.id, runtime(node))).collect();
    let of_name = |name: &str| metadata.packages.iter().find(|it| it.name == name);
    let mut open = Vec::new();
    for name in PROGRAMS {
        open.push(&*of_name(name).with_context(|| format!("there is no package {name}"))?.id);
    }
    let mut reached = BTreeSet::new();
    while let Some(id) = open.pop() {
        if reached.insert(id) {
            open.extend(edges.get(id).into_iter().flatten());
        }
    }
    let mut components = Vec::new();
    let mut dependencies = Vec::new();
    for id in &reached {
        let package = packages.get(id).with_context(|| format!("nothing is said of {id}"))?;
        let checksum = checksums.get(&(package.name.clone(), package.version.clone()));
        if package.source.is_some() && checksum.is_none() {
            bail!("Cargo.lock has no checksum of {} {}", package.name, package.version);
        }
        components.push(component(package, checksum));
        let needed = edges.get(id).into_iter().flatten();
        let needed: BTreeSet<_> =
            needed.filter_map(|id| packages.get(id)).map(|it| reference(it)).collect();
        dependencies.push(json!({"ref": reference(package), "dependsOn": needed}));
    }
    components.sort_by_key(|it| it["bom-ref"].to_string());
    dependencies.sort_by_key(|it| it["ref"].to_string());
    let daemon = of_name(PROGRAMS[0]).context("there is no daemon")?;
    let version = &daemon.version;
    let programs = PROGRAMS.map(|name| of_name(name).map(reference));
    dependencies.push(json!({"ref": "derpd", "dependsOn": programs}));
    Ok(json!({
        "bomFormat": "CycloneDX",
        "specVersion": SPECIFICATION,
        "serialNumber": serial(&json!([components, made]).to_string()),
        "version": 1,
        "metadata": {
            "timestamp": made,
            "component": {"type": "application", "bom-ref": "derpd", "name": "derpd", "version": version},
        },
        "components": components,
        "dependencies": dependencies,
    }))
}

/// What a package needs when it runs.
fn runtime(node: &Node) -> Vec<&str> {
    let runs = |it: &&Dependency| it.dep_kinds.iter().any(|kind| kind.kind.is_none());
    node.deps.iter().filter(runs).map(|it| &*it.pkg).collect()
}

/// The package's address (package-url).
fn reference(package: &Package) -> String {
    // A plus stands for itself only when encoded.
    format!("pkg:cargo/{}@{}", package.name, package.version.replace('+', "%2B"))
}

fn component(package: &Package, checksum: Option<&String>) -> Value {
    let reference = reference(package);
    let mut component = json!({
        "type": "library",
        "bom-ref": reference,
        "name": package.name,
        "version": package.version,
        "purl": reference,
    });
    if let Some(license) = &package.license {
        // Older packages write a slash for "or".
        component["licenses"] = json!([{"expression": license.replace('/', " OR ")}]);
    }
    if let Some(checksum) = checksum {
        component["hashes"] = json!([{"alg": "SHA-256", "content": checksum}]);
    }
    if let Some(repository) = &package.repository {
        component["externalReferences"] = json!([{"type": "vcs", "url": repository}]);
    }
    component
}

/// A UUID that is the same for the same list (RFC 9562 version 8).
fn serial(text: &str) -> String {
    let hash = Sha256::digest(text);
    let mut digits: Vec<char> = hash
        .iter()
        .take(16)
        .flat_map(|byte| format!("{byte:02x}").chars().collect::<Vec<_>>())
        .collect();
    digits[12] = '8';
    digits[16] = 'a';
    let part = |from: usize, to: usize| digits[from..to].iter().collect::<String>();
    format!(
        "urn:uuid:{}-{}-{}-{}-{}",
        part(0, 8),
        part(8, 12),
        part(12, 16),
        part(16, 20),
        part(20, 32)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metadata() -> Metadata {
        let package = |name: &str, source: Option<&str>| {
            json!({"id": name, "name": name, "version": "1.0.0+x", "license": "MIT/Apache-2.0",
                   "repository": null, "source": source})
        };
        let needs =
            |name: &str, kind: Option<&str>| json!({"pkg": name, "dep_kinds": [{"kind": kind}]});
        let value = json!({
            "packages": [package("derp-user", None), package("derp-ebpf", None),
                package("tls", Some("registry")), package("bits", Some("registry")),
                package("build", Some("registry")), package("other", Some("registry"))],
            "resolve": {"nodes": [
                {"id": "derp-user", "deps": [needs("tls", None), needs("build", Some("build"))]},
                {"id": "derp-ebpf", "deps": [needs("bits", None)]},
                {"id": "tls", "deps": [needs("bits", None)]},
                {"id": "bits", "deps": []},
                {"id": "other", "deps": []},
            ]},
        });
        serde_json::from_value(value).expect("metadata")
    }

    #[test]
    fn what_runs_is_listed_once_with_its_checksum_and_nothing_else() {
        let lock = "[[package]]\nname = \"tls\"\nversion = \"1.0.0+x\"\nchecksum = \"ab\"\n\n\
                    [[package]]\nname = \"bits\"\nversion = \"1.0.0+x\"\nchecksum = \"cd\"\n";
        let list = |lock: &str| list(&metadata(), &checksums(lock), "2026-01-01T00:00:00Z");
        let made = list(lock).expect("a list");
        let components = made["components"].as_array().expect("components");
        let names: Vec<_> = components.iter().map(|it| it["name"].as_str().unwrap()).collect();
        assert_eq!(names, ["bits", "derp-ebpf", "derp-user", "tls"]);
        assert_eq!(components[0]["hashes"][0]["content"], "cd");
        assert_eq!(components[0]["purl"], "pkg:cargo/bits@1.0.0%2Bx");
        assert_eq!(components[0]["licenses"][0]["expression"], "MIT OR Apache-2.0");
        assert_eq!(made["dependencies"][3]["dependsOn"], json!(["pkg:cargo/bits@1.0.0%2Bx"]));
        assert_eq!(made, list(lock).expect("a list"), "the same sources, the same list");
        let error = list(&lock.replace("ab", "").replace("checksum = \"\"", "")).expect_err("none");
        assert_eq!(error.to_string(), "Cargo.lock has no checksum of tls 1.0.0+x");
        let serial = made["serialNumber"].as_str().expect("a number");
        assert_eq!((serial.len(), &serial[23..24], &serial[28..29]), (45, "8", "a"), "{serial}");
    }
}
