//! `cargo xtask scale`: how far one region goes, as measured tables.

use anyhow::Result;

use crate::{
    process::{self, CommandExt as _},
    workspace,
};

/// The measurements, each a test that only this runs: simulated regions, and real servers.
const MEASUREMENTS: [(&str, &str); 2] =
    [("mesh_simulation", "tables::scale_tables"), ("mesh_scale", "keys_at_a_mesh_peer")];

/// Prints the tables of `docs/SCALE.md` as this machine measures them.
pub(crate) fn command() -> Result<()> {
    for (program, name) in MEASUREMENTS {
        process::cargo()
            .current_dir(workspace::root())
            .args(["test", "--release", "--locked", "--package", "derp-user", "--test", program])
            .args(["--", "--ignored", "--exact", "--nocapture", name])
            .run()?;
    }
    Ok(())
}
