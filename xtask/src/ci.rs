//! `cargo xtask ci`: every check that a change must pass, step by step.

use std::env;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, bail};

use crate::house::root;

/// The test command. The README must contain the same command.
pub(crate) const TEST_COMMAND: &str = "cargo test --workspace";

/// The name of each step, and its command.
const STEPS: [(&str, &str); 4] = [
    ("formatting", "cargo fmt --check"),
    ("lints", "cargo clippy --workspace --all-targets -- -D warnings"),
    // The documentation includes private items: developers read it, too.
    ("documentation", "cargo doc --workspace --no-deps --document-private-items"),
    ("tests", TEST_COMMAND),
];

/// Runs all steps. Stops when a step fails.
pub(crate) fn run() -> anyhow::Result<()> {
    for (name, command) in STEPS {
        step(name, command, &[])?;
    }
    virtual_machine()?;
    if has("cargo", &["deny", "--version"]) {
        step("dependencies", "cargo deny check", &[])?;
    } else {
        skipped("dependencies", "cargo-deny is not installed (cargo install cargo-deny)");
    }
    Ok(())
}

/// Boots a guest under QEMU, if QEMU is installed.
fn virtual_machine() -> anyhow::Result<()> {
    const NAME: &str = "virtual machine";
    if !has("qemu-system-x86_64", &["--version"]) {
        skipped(NAME, "qemu-system-x86_64 is not installed");
        return Ok(());
    }
    let folder = env::temp_dir().join(format!("passt-rs-guest-{}", std::process::id()));
    let made = Command::new(root().join(".ci/guest")).arg(&folder).stdout(Stdio::null()).status();
    let outcome = if made.is_ok_and(|status| status.success()) {
        let command = "cargo test -p passt --test e2e vm:: -- --ignored";
        step(NAME, command, &[("E2E_GUEST", &folder.to_string_lossy())])
    } else {
        skipped(NAME, "its kernel or programs cannot be installed here (.ci/guest)");
        Ok(())
    };
    // An error means that the folder does not exist.
    drop(std::fs::remove_dir_all(&folder));
    outcome
}

fn step(name: &str, command: &str, variables: &[(&str, &str)]) -> anyhow::Result<()> {
    println!("\n== {name}: {command}");
    let start = Instant::now();
    let mut words = command.split(' ');
    let mut command = Command::new(words.next().unwrap_or_default());
    command.args(words).current_dir(root()).stdin(Stdio::null());
    // With CI=1, a test that can't run on this machine fails instead of being skipped.
    command.env("CI", "1").env("RUSTDOCFLAGS", "-D warnings -A rustdoc::private-intra-doc-links");
    command.envs(variables.iter().copied());
    let status = command.status().with_context(|| format!("cannot run step '{name}'"))?;
    if !status.success() {
        bail!("step '{name}' failed: {status}");
    }
    println!("== {name}: passed after {} s", start.elapsed().as_secs());
    Ok(())
}

fn skipped(name: &str, why: &str) {
    println!("\n!!! NOT TESTED: {name}: {why}");
}

fn has(program: &str, arguments: &[&str]) -> bool {
    let status = Command::new(program).args(arguments).stdout(Stdio::null()).stderr(Stdio::null()).status();
    status.is_ok_and(|status| status.success())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The README documents the command that a change must pass.
    #[test]
    fn readme_has_the_test_command() {
        let readme = std::fs::read_to_string(root().join("README.md")).unwrap();
        assert!(readme.lines().any(|line| line.trim() == TEST_COMMAND), "README.md lacks '{TEST_COMMAND}'");
    }
}
