//! `cargo xtask ci`: every check that a change must pass, step by step.

mod tests_step;

use std::env;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, bail};

use crate::house::{root, target};
use crate::instructions;

/// The test command. The README must contain the same command.
pub(crate) const TEST_COMMAND: &str = "cargo test --workspace";

/// The name of each step, and its command.
const STEPS: [(&str, &str); 4] = [
    ("formatting", "cargo fmt --check"),
    // The same libraries with the same features for all steps, so that they are built once.
    ("build", "cargo build --workspace --all-targets"),
    ("lints", "cargo clippy --workspace --all-targets -- -D warnings"),
    // The documentation includes private items: developers read it, too.
    ("documentation", "cargo doc --workspace --no-deps --document-private-items"),
];

/// Runs all steps. Stops when a step fails.
pub(crate) fn run() -> anyhow::Result<()> {
    // Most end-to-end tests wait for other processes most of the time.
    let threads = (4 * std::thread::available_parallelism().map_or(1, usize::from)).to_string();
    for (name, command) in STEPS {
        step(name, command, &[])?;
    }
    tests_step::run("tests", TEST_COMMAND, &[("RUST_TEST_THREADS", &threads)])?;
    fault_sweep()?;
    instruction_counts()?;
    virtual_machine()?;
    if has("cargo", &["deny", "--version"]) {
        step("dependencies", "cargo deny check", &[])?;
    } else {
        skipped("dependencies", "cargo-deny is not installed (cargo install cargo-deny)");
    }
    Ok(())
}

/// Makes one call of each kind fail in the programs that the tests have built (docs/design/torture.md).
fn fault_sweep() -> anyhow::Result<()> {
    const NAME: &str = "fault sweep";
    if !cfg!(target_arch = "x86_64") {
        skipped(NAME, "it knows the registers of x86-64 only");
        return Ok(());
    }
    if !rustix::process::geteuid().is_root() {
        skipped(NAME, "it needs root");
        return Ok(());
    }
    let built = programs().display().to_string();
    step(NAME, &format!("{built}/torture --programs {built} --guest {built}/xtask --sample"), &[])
}

/// Compares the instruction counts of hot functions, if this machine can.
fn instruction_counts() -> anyhow::Result<()> {
    const NAME: &str = "instruction counts";
    if !has("valgrind", &["--version"]) {
        skipped(NAME, "valgrind is not installed");
        return Ok(());
    }
    match instructions::incomparable()? {
        Some(why) => skipped(NAME, &why),
        None => {
            println!("\n== {NAME}");
            let start = Instant::now();
            instructions::run(instructions::Build::Dev)?;
            passed(NAME, start);
        }
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
        // For the whole workspace, as in the step before: with other features, all would be built again.
        let command = "cargo test --workspace --test e2e vm:: -- --ignored";
        step(NAME, command, &[("E2E_GUEST", &folder.to_string_lossy())]).and_then(|()| demonstrations())
    } else {
        skipped(NAME, "its kernel or programs cannot be installed here (.ci/guest)");
        Ok(())
    };
    // An error means that the folder does not exist.
    drop(std::fs::remove_dir_all(&folder));
    outcome
}

/// Runs the demonstrations that an ordinary user can run. They need the same packages as the guest.
fn demonstrations() -> anyhow::Result<()> {
    step("demonstrations", &format!(".ci/demonstrations {}", programs().display()), &[])
}

/// The folder of the programs that step "build" has made.
fn programs() -> PathBuf {
    target().join("debug")
}

fn step(name: &str, command: &str, variables: &[(&str, &str)]) -> anyhow::Result<()> {
    println!("\n== {name}: {command}");
    let start = Instant::now();
    let status = prepare(command, variables).status().with_context(|| format!("cannot run step '{name}'"))?;
    if !status.success() {
        bail!("step '{name}' failed: {status}");
    }
    passed(name, start);
    Ok(())
}

/// A command of words without quotes.
fn prepare(command: &str, variables: &[(&str, &str)]) -> Command {
    let mut words = command.split(' ');
    let mut command = Command::new(words.next().unwrap_or_default());
    command.args(words).current_dir(root()).stdin(Stdio::null());
    // With CI=1, a test that can't run on this machine fails instead of being skipped.
    command.env("CI", "1").env("RUSTDOCFLAGS", "-D warnings -A rustdoc::private-intra-doc-links");
    command.env("E2E_COMPANIONS", programs());
    command.envs(variables.iter().copied());
    command
}

fn passed(name: &str, start: Instant) {
    println!("== {name}: passed after {} s", start.elapsed().as_secs());
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
