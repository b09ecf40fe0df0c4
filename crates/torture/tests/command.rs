//! The command line. The sessions themselves run in `cargo xtask ci`, which needs root for them.
#![cfg(target_arch = "x86_64")]
#![allow(clippy::unwrap_used)]

use std::process::{Command, Output};

fn torture(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_torture")).args(arguments).output().unwrap()
}

#[test]
fn the_help_has_the_options() {
    let output = torture(&["--help"]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success());
    for option in ["--programs DIR", "--sample", "--only TEXT", "--jobs N", "--table FILE", "--list"] {
        assert!(text.contains(option), "{option}: {text}");
    }
}

/// A run that makes no session must not look like one in which nothing was lost.
#[test]
fn a_run_without_programs_fails() {
    for (arguments, reason) in [
        (&["--sample"][..], "no programs"),
        (&["--programs", "/nowhere/at/all"], "--programs /nowhere/at/all"),
        (&["--simple"], "--simple"),
    ] {
        let output = torture(arguments);
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{arguments:?}");
        assert!(output.stdout.is_empty() && text.contains(reason), "{arguments:?}: {text}");
    }
}
