//! The Helm chart: the real Helm renders it, and what comes of that is held against Kubernetes' schemas.

use std::{fs, path::PathBuf};

use anyhow::{Context as _, Result, bail};

use crate::{
    go,
    process::{self, CommandExt as _},
    workspace,
};

const HELM: &str = "v3.19.0";
/// Kubernetes' schemas of several versions, and a program that applies them.
const KUBERNETES_VALIDATE: &str = "1.37.0";
/// The oldest and the newest Kubernetes that the chart is checked for.
const KUBERNETES: [&str; 2] = ["1.31", "1.37"];
/// Values that make every template render something.
const EVERYTHING: &str = "\
config: |
  [stun]
  rate = 100
env:
  DERP_VERIFY_CLIENT_URL: https://headscale.example.com/verify
mesh:
  authorityConfigMap: authority
metrics:
  trustedNetworks: [10.0.0.0/8]
  serviceMonitor: {enabled: true, labels: {release: prometheus}}
service:
  annotations: {example.com/a: b}
networkPolicy:
  extraEgress: [{ports: [{port: 443}]}]
persistence: {storageClass: fast}
";
const NOTHING: &str = "\
persistence: {enabled: false}
podDisruptionBudget: {enabled: false}
networkPolicy: {enabled: false}
service: {type: ClusterIP}
";
/// Kinds that everything renders. There is no schema for the last one, which is the Prometheus operator's.
const KINDS: [&str; 6] = [
    "ConfigMap",
    "NetworkPolicy",
    "PodDisruptionBudget",
    "Service",
    "StatefulSet",
    "ServiceMonitor",
];
/// Values that the chart has to refuse, and what it says.
const REFUSED: [(&str, &str); 3] = [
    ("hostnam: relay.example.com\n", "hostnam"),
    ("replicas: 0\n", "replicas"),
    ("metrics: {serviceMonitor: {enabled: true}}\n", "trustedNetworks"),
];

/// Checks the chart; with a reason if this machine cannot.
pub(crate) fn check() -> Result<Result<(), String>> {
    let helm = match helm() {
        Ok(helm) => helm,
        Err(reason) => return Ok(Err(format!("{reason:#}"))),
    };
    let validator = workspace::python_package(
        "kubernetes-validate",
        KUBERNETES_VALIDATE,
        "it has Kubernetes' schemas",
    );
    let validator = match validator {
        Ok(directory) => directory,
        Err(reason) => return Ok(Err(format!("{reason:#}"))),
    };
    let chart = workspace::root().join("deploy").join("helm").join("derpd");
    let directory = workspace::target_dir()?.join("package").join("helm");
    fs::create_dir_all(&directory).with_context(|| format!("creating {}", directory.display()))?;
    process::command(&helm).args(["lint", "--strict", "--quiet"]).arg(&chart).run()?;
    let template = |values: &str| -> Result<String> {
        let file = directory.join("values.yaml");
        fs::write(&file, values).context("writing values")?;
        let kubernetes = format!("{}.0", KUBERNETES[0]);
        process::command(&helm)
            .args(["template", "release", "--namespace=relays", "--kube-version", &kubernetes])
            .arg("--values")
            .args([&file, &chart])
            .read()
    };
    for (name, values) in [("everything", EVERYTHING), ("defaults", ""), ("nothing", NOTHING)] {
        let rendered = template(values)?;
        if name == "everything" {
            let lacks = |kind: &&str| !rendered.contains(&format!("\nkind: {kind}\n"));
            let missing: Vec<_> = KINDS.into_iter().filter(lacks).collect();
            if !missing.is_empty() {
                bail!("the chart renders no {}:\n{rendered}", missing.join(", "));
            }
        }
        let file = directory.join(format!("{name}.yaml"));
        fs::write(&file, rendered).context("writing what Helm rendered")?;
        for version in KUBERNETES {
            process::command("python3")
                .env("PYTHONPATH", &validator)
                .args(["-m", "kubernetes_validate", "--strict", "--quiet", "-k", version])
                .arg(&file)
                .run()?;
        }
    }
    for (values, reason) in REFUSED {
        match template(values) {
            Err(error) if error.to_string().contains(reason) => {}
            Err(error) => bail!("the chart does not say why it refuses {values:?}: {error:#}"),
            Ok(_) => bail!("the chart accepts {values:?}"),
        }
    }
    Ok(Ok(()))
}

/// Whether Helm and the schemas are there.
pub(crate) fn is_installed() -> Result<bool> {
    let schemas = workspace::is_python_package_there("kubernetes-validate", KUBERNETES_VALIDATE)?;
    Ok(schemas && directory()?.join("helm").exists())
}

fn directory() -> Result<PathBuf> {
    Ok(workspace::tools_dir()?.join(format!("helm-{HELM}")))
}

/// Builds Helm from its source, which the Go module proxy has, unless that version is there.
fn helm() -> Result<PathBuf> {
    let directory = directory()?;
    let helm = directory.join("helm");
    if helm.exists() {
        return Ok(helm);
    }
    eprintln!("building Helm {HELM} into {}; this takes minutes", directory.display());
    go::command()
        .env("GOBIN", &directory)
        .args(["install", &format!("helm.sh/helm/v3/cmd/helm@{HELM}")])
        .run()
        .context("Helm could not be built: Go and network access are needed")?;
    Ok(helm)
}
