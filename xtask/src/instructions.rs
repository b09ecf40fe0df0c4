//! `cargo xtask instructions`: instruction counts of hot functions, compared with a stored baseline.
//!
//! Unlike time, the instruction count does not depend on the load of the machine, so a change of two percent is
//! visible. Each function runs twice under callgrind, with different numbers of calls. The difference of the counts is
//! the cost of the calls alone.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, bail, ensure};

use crate::house::root;

/// Number of calls of a function in the shorter run. The longer run has twice as many calls.
const CALLS: u32 = 1000;
/// Maximum accepted difference from the baseline, in percent.
const TOLERANCE: u64 = 2;

/// Instruction counts by the name of the function, and the compiler for which they are valid.
#[derive(Debug, Default, PartialEq, Eq)]
struct Counts {
    compiler: String,
    by_name: BTreeMap<String, u64>,
}

/// Measures, and compares the counts with the baseline. With `update`, replaces the baseline instead.
pub(crate) fn run(update: bool) -> anyhow::Result<()> {
    let baseline_path = root().join("bench/instructions.txt");
    let measured = measure()?;
    if update {
        return fs::write(&baseline_path, measured.to_text()).context("can't write the baseline");
    }
    let text = fs::read_to_string(&baseline_path).context("can't read the baseline")?;
    let baseline = Counts::parse(&text).context("the baseline is malformed")?;
    let (table, beyond) = compare(&baseline, &measured);
    print!("{table}");
    if baseline.compiler != measured.compiler {
        println!("not compared: the baseline is of '{}', this is '{}'", baseline.compiler, measured.compiler);
        return Ok(());
    }
    ensure!(
        beyond == 0,
        "{beyond} beyond {TOLERANCE} %; if that is meant: cargo xtask instructions --update"
    );
    Ok(())
}

/// Returns a table with a line for each function, and the number of functions whose counts differ by more than the
/// tolerance, in either direction.
fn compare(baseline: &Counts, measured: &Counts) -> (String, usize) {
    let (mut table, mut beyond) = (String::new(), 0);
    for (name, &count) in &measured.by_name {
        let remark = match baseline.by_name.get(name) {
            None => "new".to_owned(),
            Some(&before) => {
                let percent = (count as f64 / before as f64 - 1.0) * 100.0;
                let is_beyond = count.abs_diff(before) * 100 > before * TOLERANCE;
                beyond += usize::from(is_beyond);
                format!("{percent:+.1} %{}", if is_beyond { "  <--" } else { "" })
            }
        };
        // A write to a string can't fail.
        let _ = writeln!(table, "{name:<40} {count:>8}  {remark}");
    }
    (table, beyond)
}

impl Counts {
    fn to_text(&self) -> String {
        let lines = self.by_name.iter().map(|(name, count)| format!("{count}\t{name}\n"));
        format!("# {}\n{}", self.compiler, lines.collect::<String>())
    }

    fn parse(text: &str) -> Option<Self> {
        let (compiler, lines) = text.strip_prefix("# ")?.split_once('\n')?;
        let line = |line: &str| {
            let (count, name) = line.split_once('\t')?;
            Some((name.to_owned(), count.parse().ok()?))
        };
        Some(Self { compiler: compiler.to_owned(), by_name: lines.lines().map(line).collect::<Option<_>>()? })
    }
}

fn measure() -> anyhow::Result<Counts> {
    let compiler = output(Command::new("rustc").arg("--version"))?.trim().to_owned();
    let mut build = Command::new("cargo");
    build.args(["build", "--release", "-p", "instructions"]).current_dir(root());
    let built = build.status().context("can't run cargo")?;
    ensure!(built.success(), "the build failed: {built}");
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from);
    let program = target.join("release/instructions");
    let names = output(&mut Command::new(&program))?;
    let mut by_name = BTreeMap::new();
    for name in names.lines() {
        let run = |calls: u32| {
            let mut command = Command::new("valgrind");
            command.args(["--tool=callgrind", "--callgrind-out-file=/dev/null"]);
            instructions(command.arg(&program).args([name, &calls.to_string()]))
                .with_context(|| format!("can't count the instructions of '{name}'"))
        };
        let (short, long) = (run(CALLS)?, run(2 * CALLS)?);
        let count = long.saturating_sub(short) / u64::from(CALLS);
        by_name.insert(name.to_owned(), count);
    }
    Ok(Counts { compiler: format!("{compiler}, {}", std::env::consts::ARCH), by_name })
}

fn output(command: &mut Command) -> anyhow::Result<String> {
    let name = command.get_program().display().to_string();
    let output = command.output().with_context(|| format!("can't run {name}"))?;
    ensure!(output.status.success(), "{name} failed: {}", output.status);
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The number of instructions of a run under callgrind.
fn instructions(command: &mut Command) -> anyhow::Result<u64> {
    let output = command.output().context("can't run valgrind (package valgrind)")?;
    let report = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{}: {report}", output.status);
    match collected(&report) {
        Some(count) => Ok(count),
        None => bail!("no count in the report: {report}"),
    }
}

/// The count in a report of callgrind.
fn collected(report: &str) -> Option<u64> {
    let line = report.lines().find_map(|line| line.split_once("Collected :"))?;
    line.1.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(counts: &[(&str, u64)]) -> Counts {
        let by_name = counts.iter().map(|&(name, count)| (name.to_owned(), count)).collect();
        Counts { compiler: "rustc 1.2.3, x86_64".into(), by_name }
    }

    #[test]
    fn the_baseline_is_valid() {
        let text = fs::read_to_string(root().join("bench/instructions.txt")).unwrap();
        let baseline = Counts::parse(&text).unwrap();
        assert_eq!(baseline.to_text(), text);
        assert!(baseline.by_name.values().all(|&count| count > 0), "{baseline:?}");
    }

    #[test]
    fn differences_beyond_the_tolerance_are_counted() {
        let baseline = counts(&[("a", 1000), ("b", 1000), ("c", 1000)]);
        let measured = counts(&[("a", 1020), ("b", 1021), ("c", 979), ("d", 5)]);
        let (table, beyond) = compare(&baseline, &measured);
        assert_eq!(beyond, 2, "{table}");
        assert!(table.lines().any(|line| line.starts_with("d ") && line.ends_with("new")), "{table}");
    }

    #[test]
    fn the_count_is_found_in_a_report() {
        assert_eq!(collected("==1== Events    : Ir\n==1== Collected : 12345\n==1==\n"), Some(12345));
        assert_eq!(collected("==1== \n"), None);
    }
}
