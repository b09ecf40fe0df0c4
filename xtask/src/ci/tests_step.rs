//! The step that runs the tests. A test that fails beside others is run once more, alone.
//!
//! The end-to-end tests share a machine with each other. A test that fails in such company and passes alone is a fault
//! in the test or in the program, but says little about the change under test. It is reported and does not fail the
//! step. A test that also fails alone does.

use std::io::{BufRead, BufReader};
use std::process::{Command, ExitStatus, Stdio};
use std::time::Instant;

use anyhow::{Context, bail};

use super::{passed, prepare};

/// More failures than these are not due to the company of other tests.
const MAX_REPEATED: usize = 5;

/// What a run of the tests said.
#[derive(Debug, Default)]
struct Outcome {
    passed: Vec<String>,
    failed: Vec<String>,
}

impl Outcome {
    /// Reads a line that the test harness has printed. Other lines are of no interest.
    fn read(&mut self, line: &str) {
        let Some((name, result)) = line.strip_prefix("test ").and_then(|rest| rest.rsplit_once(" ... "))
        else {
            return;
        };
        match result {
            "ok" => self.passed.push(name.into()),
            "FAILED" => self.failed.push(name.into()),
            _ => {}
        }
    }

    /// The tests of `expected` that did not pass.
    fn missing<'a>(&self, expected: &'a [String]) -> Vec<&'a str> {
        expected.iter().filter(|name| !self.passed.contains(name)).map(String::as_str).collect()
    }
}

/// Runs `command`, and the tests that fail once more.
///
/// # Errors
/// A test failed twice, too many tests failed, or they could not be run.
pub(super) fn run(name: &str, command: &str, variables: &[(&str, &str)]) -> anyhow::Result<()> {
    let start = Instant::now();
    // The other tests are of interest, too, if one fails.
    let all = format!("{command} --no-fail-fast");
    println!("\n== {name}: {all}");
    let (status, outcome) = read(prepare(&all, variables))?;
    if !status.success() {
        repeat(name, &all, status, &outcome.failed)?;
    }
    passed(name, start);
    Ok(())
}

/// Runs the tests that `failed` again, one at a time.
fn repeat(name: &str, command: &str, status: ExitStatus, failed: &[String]) -> anyhow::Result<()> {
    if failed.is_empty() || failed.len() > MAX_REPEATED {
        bail!("step '{name}' failed: {status}, {} failed tests", failed.len());
    }
    // The name of a documentation test has spaces, and a part of it is enough as a filter.
    let filters: Vec<&str> = failed.iter().filter_map(|name| name.split(' ').next()).collect();
    println!("\n== {name}: again, alone: {}", failed.join(", "));
    let alone = format!("{command} -- --test-threads=1 {}", filters.join(" "));
    // Without backtraces, the messages of the tests are the last lines.
    let (status, outcome) = read(prepare(&alone, &[("RUST_BACKTRACE", "0")]))?;
    let missing = outcome.missing(failed);
    if !status.success() || !missing.is_empty() {
        bail!("step '{name}' failed twice: {status}: {}", missing.join(", "));
    }
    println!("\n!!! FAILED BESIDE OTHERS, PASSED ALONE: {}", failed.join(", "));
    Ok(())
}

/// Runs a command, and passes on what it prints.
fn read(mut command: Command) -> anyhow::Result<(ExitStatus, Outcome)> {
    let mut child = command.stdout(Stdio::piped()).spawn().context("cannot run the tests")?;
    let mut outcome = Outcome::default();
    let mut lines = BufReader::new(child.stdout.take().context("the tests have no output")?);
    let mut line = Vec::new();
    while lines.read_until(b'\n', &mut line)? > 0 {
        let text = String::from_utf8_lossy(&line);
        print!("{text}");
        outcome.read(text.trim_end());
        line.clear();
    }
    Ok((child.wait()?, outcome))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_harness() {
        let mut outcome = Outcome::default();
        for line in [
            "running 4 tests",
            "test auto::a_service ... ok",
            "test crates/wire/src/lib.rs - frame (line 3) ... FAILED",
            "test slirp::ports ... FAILED",
            "test harness::opener ... ignored, the entry point of a helper process",
            "test result: FAILED. 1 passed; 2 failed",
        ] {
            outcome.read(line);
        }
        assert_eq!(outcome.passed, ["auto::a_service"]);
        assert_eq!(outcome.failed, ["crates/wire/src/lib.rs - frame (line 3)", "slirp::ports"]);
        assert_eq!(outcome.missing(&["auto::a_service".into(), "slirp::ports".into()]), ["slirp::ports"]);
    }

    /// A failure that a repetition does not repeat is no error; one that it repeats is.
    #[test]
    fn failures_are_repeated_alone() {
        let folder = std::env::temp_dir().join(format!("xtask-tests-step-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let script = folder.join("tests");
        let run = |body: &str| {
            std::fs::write(&script, body).unwrap();
            super::run("tests", &format!("sh {}", script.display()), &[])
        };
        run("echo 'test a ... ok'").unwrap();
        run("[ \"$2\" = -- ] && echo 'test a ... ok' && exit; echo 'test a ... FAILED'; exit 1").unwrap();
        let error = run("echo 'test a ... FAILED'; exit 1").unwrap_err().to_string();
        assert!(error.contains("failed twice") && error.ends_with(" a"), "{error}");
        let error = run("[ \"$2\" = -- ] || { echo 'test a ... FAILED'; exit 1; }").unwrap_err();
        assert!(error.to_string().ends_with(" a"), "a test that does not run has not passed: {error}");
        let error = run("for i in 1 2 3 4 5 6; do echo \"test $i ... FAILED\"; done; exit 1").unwrap_err();
        assert!(error.to_string().ends_with("6 failed tests"), "{error}");
        let error = run("exit 101").unwrap_err().to_string();
        assert!(error.ends_with(" 0 failed tests"), "{error}");
        std::fs::remove_dir_all(folder).unwrap();
    }
}
