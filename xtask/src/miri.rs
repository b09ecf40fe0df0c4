//! `cargo xtask miri`: tests under an interpreter that finds undefined behaviour. Needs a nightly toolchain with Miri.

use std::process::Command;

use anyhow::{Context, ensure};

use crate::house::root;

/// The tests to run: the tests of `wire`, the tests of `sys` without system calls that Miri lacks, and unit tests of
/// `engine`. The other tests of `engine` have no unsafe code either, and take hours in an interpreter.
const RUNS: [&str; 3] = [
    "test -p wire",
    "test -p sys --lib -- address:: cmsg:: iov:: tap::tests::a_refused tap::tests::all tap::tests::only",
    "test -p engine --lib -- --skip under_load --skip any_order --skip reserved_memory flow:: forward::ports idle:: nat:: share:: timer::",
];

/// Runs all commands of [`RUNS`]. Stops when a command fails.
pub(crate) fn run() -> anyhow::Result<()> {
    for run in RUNS {
        println!("\n== cargo +nightly miri {run}");
        let mut command = Command::new("cargo");
        // If cargo runs this task, cargo names its own toolchain in the environment. This toolchain would take
        // precedence over `+nightly`.
        command.env_remove("RUSTUP_TOOLCHAIN").env_remove("CARGO").env_remove("RUSTC");
        command
            .args(["+nightly", "miri"])
            .args(run.split(' '))
            .env("CARGO_TARGET_DIR", root().join("target/miri"));
        // The corpus of property tests is in files. Few cases are enough for an interpreter.
        command.env("MIRIFLAGS", "-Zmiri-disable-isolation").env("PROPTEST_CASES", "2");
        let status = command.current_dir(root()).status().context("can't run cargo")?;
        ensure!(
            status.success(),
            "Miri failed: {status} (missing? rustup toolchain install nightly --component miri,rust-src)"
        );
    }
    Ok(())
}
