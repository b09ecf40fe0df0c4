//! Tests of the program itself.

use std::process::{Command, Stdio};

/// QEMU spells its options with one dash, so `--help` alone asks for the help text of qrap.
#[test]
fn help_goes_to_standard_output() {
    let qrap = || Command::new(env!("CARGO_BIN_EXE_qrap"));
    let output = qrap().arg("--help").stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success());
    assert!(output.stdout.starts_with(b"Usage: qrap "));
    assert_eq!(output.stderr, b"");
}
