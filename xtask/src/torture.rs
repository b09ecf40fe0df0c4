//! `cargo xtask torture`: builds the programs and the tool that makes their system calls fail, and runs it
//! (docs/design/torture.md).

use std::path::Path;
use std::process::Command;

use anyhow::{Context, ensure};

use crate::dist::programs;
use crate::house::root;

/// Builds and runs. With `--programs DIR`, the programs are not built.
pub(crate) fn run(arguments: &[&str]) -> anyhow::Result<()> {
    let own = std::env::current_exe()?;
    let target = own.parent().and_then(Path::parent).context("no target folder")?;
    let linked = tempfile::tempdir()?;
    let mut torture = Command::new("cargo");
    torture.args(["run", "--quiet", "-p", "torture", "--"]);
    torture.arg("--guest").arg(&own);
    if arguments.contains(&"--functions") {
        // Those of packages. Only these are built with the order of functions.
        let (folder, _) = programs::compile(&programs::native_target()?)?;
        for (name, program) in [("pasta", "passt"), ("passt", "passt"), ("pesto", "pesto")] {
            std::os::unix::fs::symlink(folder.join("release").join(program), linked.path().join(name))?;
        }
        torture.arg("--programs").arg(linked.path());
    } else if !arguments.contains(&"--programs") {
        cargo(&["build", "--release", "-p", "passt", "-p", "pesto"])?;
        torture.arg("--programs").arg(target.join("release"));
    }
    if arguments.is_empty() {
        torture.arg("--table").arg(root().join("docs/torture.md"));
    }
    let status = torture.args(arguments).current_dir(root()).status().context("can't run cargo")?;
    ensure!(status.success(), "torture: something was lost");
    Ok(())
}

fn cargo(arguments: &[&str]) -> anyhow::Result<()> {
    let status =
        Command::new("cargo").args(arguments).current_dir(root()).status().context("can't run cargo")?;
    ensure!(status.success(), "cargo {} failed", arguments.join(" "));
    Ok(())
}
