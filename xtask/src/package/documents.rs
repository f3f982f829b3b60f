//! The manual and the completions, which derpd prints itself.

use std::{fs, path::Path};

use anyhow::{Context as _, Result};

use crate::{
    process::{self, CommandExt as _},
    workspace,
};

/// Shells and the names of the files with which they find a program's completions.
const COMPLETIONS: [(&str, &str); 3] =
    [("bash", "derpd.bash"), ("zsh", "_derpd"), ("fish", "derpd.fish")];

/// Has `derpd` write them where the Debian package expects them. Pages of the manual are compressed.
pub(crate) fn write(derpd: &Path) -> Result<()> {
    let directory = workspace::target_dir()?.join("release").join("package");
    fs::create_dir_all(&directory).with_context(|| format!("creating {}", directory.display()))?;
    process::command(derpd).arg("man").arg(&directory).run()?;
    let entries = fs::read_dir(&directory).context("looking for the manual")?;
    let paths = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    let pages = paths.into_iter().filter(|path| path.extension().is_some_and(|it| it == "8"));
    process::command("gzip").args(["--best", "--no-name", "--force"]).args(pages).run()?;
    for (shell, name) in COMPLETIONS {
        let text = process::command(derpd).args(["completions", shell]).read()?;
        fs::write(directory.join(name), text).with_context(|| format!("writing {name}"))?;
    }
    Ok(())
}
