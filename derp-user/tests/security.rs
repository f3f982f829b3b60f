//! What SECURITY.md and docs/HARDENING.md say is held against the sources.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn read(path: &str) -> String {
    let path = root().join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The rows of the table that has this heading, without the line below it.
fn rows(text: &str, heading: &str) -> Vec<Vec<String>> {
    let lines = text.lines().skip_while(|line| !line.starts_with(heading)).skip(2);
    let rows: Vec<_> = lines
        .take_while(|line| line.starts_with('|'))
        .map(|line| line.trim_matches('|').split(" | ").map(|it| it.trim().to_owned()).collect())
        .collect();
    assert!(!rows.is_empty(), "no table {heading:?}");
    rows
}

fn add_sources(directory: &Path, sources: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            add_sources(&path, sources);
        } else if path.extension().is_some_and(|it| it == "rs") {
            sources.push(path);
        }
    }
}

#[test]
fn each_line_of_the_threat_model_names_tests_that_exist() {
    let packages = ["derp-user", "derp-common"].map(|package| root().join(package));
    for row in rows(&read("SECURITY.md"), "| Who | At most |") {
        let shown = row.last().expect("a column");
        for name in shown.split(", ") {
            let name = name.trim_matches('`');
            let (module, test) =
                name.split_once("::").unwrap_or_else(|| panic!("{name} is not file::test"));
            let mut sources = Vec::new();
            for directory in packages.iter().flat_map(|it| [it.join("tests"), it.join("src")]) {
                sources.push(directory.join(module).with_extension("rs"));
                add_sources(&directory.join(module), &mut sources);
            }
            let definition = format!("fn {test}(");
            let exists = sources.iter().any(|source| {
                fs::read_to_string(source).is_ok_and(|text| text.contains(&definition))
            });
            assert!(exists, "there is no test {name}");
        }
    }
}

/// Counts lines with an unsafe block, function, implementation or foreign block, comments left out.
fn unsafe_lines(text: &str) -> usize {
    let has = |line: &str| {
        let code = line.split("//").next().unwrap_or_default();
        ["unsafe {", "unsafe impl ", "unsafe fn ", "unsafe extern ", "unsafe trait "]
            .iter()
            .any(|form| code.contains(form))
    };
    text.lines().filter(|line| has(line)).count()
}

#[test]
fn unsafe_code_is_where_the_table_says_and_nowhere_else() {
    let mut sources = Vec::new();
    for package in ["derp-common", "derp-ebpf", "derp-user", "xtask"] {
        add_sources(&root().join(package).join("src"), &mut sources);
    }
    let mut found = BTreeMap::new();
    for source in sources {
        let count = unsafe_lines(&fs::read_to_string(&source).expect("readable"));
        if count > 0 {
            let path = source.strip_prefix(root()).expect("below the root").display().to_string();
            found.insert(path, count);
        }
    }
    let table = rows(&read("docs/HARDENING.md"), "| File | Count |");
    let named: BTreeMap<_, _> = table
        .iter()
        .map(|row| (row[0].trim_matches('`').to_owned(), row[1].parse().expect("a count")))
        .collect();
    assert_eq!(found, named, "found in the sources, and as docs/HARDENING.md has it");
}

/// The versions of a crate in the lock file.
fn locked() -> BTreeMap<String, BTreeSet<String>> {
    let mut versions: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let text = read("Cargo.lock");
    let value = |line: &str, key: &str| {
        line.strip_prefix(key).map(|value| value.trim_matches('"').to_owned())
    };
    let mut name = String::new();
    for line in text.lines() {
        if let Some(value) = value(line, "name = ") {
            name = value;
        } else if let Some(version) = value(line, "version = ") {
            // What is behind the plus says what standard it follows.
            let version = version.split('+').next().unwrap_or_default().to_owned();
            versions.entry(name.clone()).or_default().insert(version);
        }
    }
    versions
}

/// The crates that a package depends on when it runs.
fn dependencies(manifest: &str) -> BTreeSet<String> {
    let text = read(manifest);
    let mut section = String::new();
    let mut found = BTreeSet::new();
    for line in text.lines() {
        if line.starts_with('[') {
            section = line.trim_matches(['[', ']']).to_owned();
        } else if let Some((name, _)) = line.split_once('=')
            && (section == "dependencies" || section.ends_with(".dependencies"))
        {
            found.insert(name.trim().split('.').next().unwrap_or_default().to_owned());
        }
    }
    found
}

#[test]
fn every_crate_was_looked_at_in_the_version_that_is_used() {
    let text = read("docs/HARDENING.md");
    let locked = locked();
    let looked_at = |heading: &str| -> BTreeSet<String> {
        let name = |row: Vec<String>| {
            let name = row[0].trim_matches('`');
            let versions =
                locked.get(name).unwrap_or_else(|| panic!("{name} is not in Cargo.lock"));
            assert!(versions.contains(&row[1]), "{name} {} was looked at: {versions:?}", row[1]);
            name.to_owned()
        };
        rows(&text, heading).into_iter().map(name).collect()
    };
    looked_at("| Brought along | Version |");
    let mut named = looked_at("| Crate | Version |");
    let others = text.split("at run time: ").nth(1).expect("the rest").trim().trim_end_matches('.');
    named.extend(others.split(", ").map(|name| name.trim().trim_matches('`').to_owned()));
    let manifests = ["derp-user/Cargo.toml", "derp-common/Cargo.toml", "derp-ebpf/Cargo.toml"];
    let mut used: BTreeSet<_> = manifests.into_iter().flat_map(dependencies).collect();
    used.remove("derp-common");
    assert_eq!(used, named, "in the manifests, and in docs/HARDENING.md");
}
