//! Tests of the programs themselves: the exit status, and the stream that gets the output (behaviour §1.4).

use std::{
    io::Read,
    os::unix::process::CommandExt,
    process::{Command, Output, Stdio},
};

use passt::cli;

use crate::golden::split;

fn run(name: &str, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_pasta")).arg0(name).args(args).stdin(Stdio::null()).output().unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

/// Q1: the capabilities go to standard output, too.
#[test]
fn help_version_and_capabilities_go_to_standard_output() {
    for (name, option, begins) in [
        ("pasta", "--help", "Usage: pasta [OPTION]... [COMMAND"),
        ("pasta", "-h", "Usage: pasta "),
        ("passt", "--help", "Usage: passt [OPTION]...\n"),
        ("pasta", "--version", concat!("pasta ", env!("CARGO_PKG_VERSION"), "\n")),
        ("passt", "--version", concat!("passt ", env!("CARGO_PKG_VERSION"), "\n")),
        ("passt4netns", "--version", concat!("pasta ", env!("CARGO_PKG_VERSION"), "\n")),
        ("passt", "--print-capabilities", "{\n  \"type\": \"net\"\n}\n"),
        ("pasta", "--print-capabilities", "{\n  \"type\": \"net\"\n}\n"),
    ] {
        let output = run(name, &[option]);
        assert_eq!(output.status.code(), Some(0), "{name} {option}");
        assert!(text(&output.stdout).starts_with(begins), "{name} {option}: {}", text(&output.stdout));
        assert_eq!(text(&output.stderr), "", "{name} {option}");
    }
}

/// The mode follows the name of the program.
#[test]
fn the_installed_passt_runs_as_passt() {
    let output = Command::new(env!("CARGO_BIN_EXE_passt")).arg("--version").output().unwrap();
    assert!(text(&output.stdout).starts_with("passt "));
}

#[test]
fn errors_go_to_standard_error_with_status_1() {
    for (name, args, message) in [
        ("pasta", "--foo", "pasta: unrecognized option '--foo'\nSee 'pasta --help'.\n"),
        ("pasta", "--no-", "pasta: option '--no-' is ambiguous; possibilities: '--no-"),
        ("pasta", "-m", "pasta: option requires an argument -- 'm'\nSee 'pasta --help'.\n"),
        ("pasta", "-m x", "pasta: -m: Invalid MTU: x\n"),
        ("pasta", "-s x", "pasta: -s is for passt mode only\n"),
        ("passt", "extra", "passt: Extra non-option argument: extra\n"),
        ("passt", "--vhost-user --repair-path x", "passt: --repair-path is not supported yet\n"),
        ("pasta", "--no-copy-routes", "pasta: --no-copy-routes needs --config-net\n"),
        ("other", "", "other: Cannot determine mode "),
    ] {
        let args: Vec<&str> = args.split_whitespace().collect();
        let output = run(name, &args);
        assert_eq!(output.status.code(), Some(1), "{name} {args:?}");
        assert_eq!(text(&output.stdout), "", "{name} {args:?}");
        assert!(text(&output.stderr).starts_with(message), "{name} {args:?}: {}", text(&output.stderr));
    }
}

/// this also applies if standard output is a pipe that is read only after the exit.
#[test]
fn help_is_written_completely_before_the_exit_r14() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_pasta"))
        .arg0("pasta")
        .arg("--help")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let status = child.wait().unwrap();
    let mut help = String::new();
    child.stdout.take().unwrap().read_to_string(&mut help).unwrap();
    assert!(status.success());
    assert_eq!(Ok(cli::Invocation::Help(help)), cli::parse(split("pasta --help"), || 1..=1));
}

/// An option that is not supported yet is an error; it is never silently ignored.
#[test]
fn options_not_supported_yet_are_refused() {
    let parse = |line: &str| cli::parse(split(line), || 32768..=60999);
    for (line, what) in [("passt --help-me-not -f", ""), ("pasta --fd 3", "--fd")] {
        let error = parse(line).map(|_| line).unwrap_err().to_string();
        if what.is_empty() {
            assert!(!error.contains("not supported yet"), "{line}: {error}");
        } else {
            assert_eq!(error, format!("pasta: {what} is not supported yet"), "{line}");
        }
    }
    for line in [
        "passt",
        "passt -s x -1 -t 22",
        "pasta --vhost-user --fd 3",
        "passt -F 0",
        "pasta -t none -u none -T none -U none --repair-path none --no-splice --freebind",
        "pasta --netns x --userns y --no-netns-quit -P a -p b --runas 0 -t 22 -u all",
        "pasta --netns-only --no-pidns -c x true",
        "pasta -T 22,80:8080 --host-lo-to-ns-lo",
        "pasta --splice-only -u none -T 22",
    ] {
        assert!(matches!(parse(line), Ok(cli::Invocation::Run(_))), "{line}");
    }
}
