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

use crate::house::{root, target};

/// Number of calls of a function in the shorter run. The longer run has twice as many calls.
const CALLS: u32 = 1000;

/// How the functions are built.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Build {
    /// As in packages. A build takes a minute or more.
    Release,
    /// As for tests, so that nothing is built only for this. Counts are higher, up to 3 times for most, and depend more on what
    /// the compiler inlines.
    Dev,
}

impl Build {
    const ALL: [Self; 2] = [Self::Release, Self::Dev];

    /// Maximum accepted difference from the baseline, in percent.
    fn tolerance(self) -> u64 {
        match self {
            Self::Release => 2,
            Self::Dev => 10,
        }
    }

    /// Builds the program. Returns its path.
    fn program(self) -> anyhow::Result<PathBuf> {
        // All of the workspace chooses the features of libraries, as for tests.
        let (arguments, path): (&[&str], _) = match self {
            Self::Release => (&["build", "--release", "-p", "instructions"], "release/instructions"),
            Self::Dev => (&["build", "--workspace", "--all-targets"], "debug/instructions"),
        };
        // A crate that is compiled incrementally is divided into other parts, so other functions are inlined: by up to 60 % more
        // instructions. CI compiles a clone once, and not incrementally.
        let built =
            Command::new("cargo").args(arguments).env("CARGO_INCREMENTAL", "0").current_dir(root()).status();
        let built = built.context("can't run cargo")?;
        ensure!(built.success(), "the build failed: {built}");
        Ok(target().join(path))
    }
}

/// Instruction counts of a call by the name of the function, for each build, and the machine for which they are valid.
#[derive(Debug, Default, PartialEq, Eq)]
struct Counts {
    machine: String,
    by_name: BTreeMap<String, [u64; Build::ALL.len()]>,
}

/// Measures a build, and compares the counts with the baseline.
pub(crate) fn run(build: Build) -> anyhow::Result<()> {
    let baseline = Counts::load()?;
    let (table, beyond) = compare(&baseline, &measure(build)?, build);
    print!("{table}");
    if let Some(why) = incomparable_with(&baseline)? {
        println!("not compared: {why}");
        return Ok(());
    }
    let tolerance = build.tolerance();
    ensure!(
        beyond == 0,
        "{beyond} beyond {tolerance} %; if that is meant: cargo xtask instructions --update"
    );
    Ok(())
}

/// Measures all builds, and replaces the baseline.
pub(crate) fn update() -> anyhow::Result<()> {
    let [release, dev] = [measure(Build::Release)?, measure(Build::Dev)?];
    let by_name = release.into_iter().map(|(name, count)| {
        let other = dev.get(&name).copied().unwrap_or_default();
        (name, [count, other])
    });
    let counts = Counts { machine: machine()?, by_name: by_name.collect() };
    fs::write(Counts::path(), counts.to_text()).context("can't write the baseline")
}

/// Why the counts of this machine can't be compared with the baseline, if so.
pub(crate) fn incomparable() -> anyhow::Result<Option<String>> {
    incomparable_with(&Counts::load()?)
}

fn incomparable_with(baseline: &Counts) -> anyhow::Result<Option<String>> {
    let machine = machine()?;
    Ok((baseline.machine != machine)
        .then(|| format!("the baseline is of '{}', this is '{machine}'", baseline.machine)))
}

/// Returns a table with a line for each function, and the number of functions whose counts differ by more than the
/// tolerance, in either direction.
fn compare(baseline: &Counts, measured: &BTreeMap<String, u64>, build: Build) -> (String, usize) {
    let (mut table, mut beyond) = (String::new(), 0);
    for (name, &count) in measured {
        let remark = match baseline.by_name.get(name).map(|counts| counts[build as usize]) {
            None => "new".to_owned(),
            Some(before) => {
                let percent = (count as f64 / before as f64 - 1.0) * 100.0;
                let is_beyond = count.abs_diff(before) * 100 > before * build.tolerance();
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
    fn path() -> PathBuf {
        root().join("bench/instructions.txt")
    }

    fn load() -> anyhow::Result<Self> {
        let text = fs::read_to_string(Self::path()).context("can't read the baseline")?;
        Self::parse(&text).context("the baseline is malformed")
    }

    fn to_text(&self) -> String {
        let lines = self.by_name.iter().map(|(name, [release, dev])| format!("{release}\t{dev}\t{name}\n"));
        format!("# {}\n{}", self.machine, lines.collect::<String>())
    }

    fn parse(text: &str) -> Option<Self> {
        let (machine, lines) = text.strip_prefix("# ")?.split_once('\n')?;
        let line = |line: &str| {
            let mut fields = line.splitn(3, '\t');
            let counts = [fields.next()?.parse().ok()?, fields.next()?.parse().ok()?];
            Some((fields.next()?.to_owned(), counts))
        };
        Some(Self { machine: machine.to_owned(), by_name: lines.lines().map(line).collect::<Option<_>>()? })
    }
}

/// What the counts depend on: the compiler, and instructions of the processor that libraries choose at run time.
fn machine() -> anyhow::Result<String> {
    let compiler = output(Command::new("rustc").arg("--version"))?;
    let mut machine = format!("{}, {}", compiler.trim(), std::env::consts::ARCH);
    #[cfg(target_arch = "x86_64")]
    for (name, present) in [
        ("avx2", std::arch::is_x86_feature_detected!("avx2")),
        ("aes", std::arch::is_x86_feature_detected!("aes")),
    ] {
        let _ = write!(machine, "{}{name}", if present { " +" } else { " -" });
    }
    Ok(machine)
}

fn measure(build: Build) -> anyhow::Result<BTreeMap<String, u64>> {
    let program = build.program()?;
    let names = output(&mut Command::new(&program))?;
    let mut by_name = BTreeMap::new();
    for name in names.lines() {
        let run = |calls: u32| {
            let mut command = Command::new("valgrind");
            command.args(["--tool=callgrind", "--callgrind-out-file=/dev/null"]);
            instructions(command.arg(&program).args([name, &calls.to_string()]))
                .with_context(|| format!("can't count the instructions of '{name}'"))
        };
        // Side by side: the load of the machine does not change the counts.
        let (short, long) = std::thread::scope(|scope| {
            let short = scope.spawn(|| run(CALLS));
            let long = run(2 * CALLS);
            (short.join(), long)
        });
        let Ok(short) = short else { bail!("a thread panicked") };
        by_name.insert(name.to_owned(), long?.saturating_sub(short?) / u64::from(CALLS));
    }
    Ok(by_name)
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

    #[test]
    fn the_baseline_is_valid() {
        let text = fs::read_to_string(Counts::path()).unwrap();
        let baseline = Counts::parse(&text).unwrap();
        assert_eq!(baseline.to_text(), text);
        assert!(baseline.by_name.values().flatten().all(|&count| count > 0), "{baseline:?}");
    }

    #[test]
    fn differences_beyond_the_tolerance_are_counted() {
        let by_name = ["a", "b", "c"].map(|name| (name.to_owned(), [1000, 2000]));
        let baseline = Counts { machine: "rustc 1.2.3, x86_64".into(), by_name: by_name.into() };
        let of = |counts: [(&str, u64); 4]| counts.map(|(name, count)| (name.to_owned(), count)).into();
        let release = of([("a", 1020), ("b", 1021), ("c", 979), ("d", 5)]);
        let (table, beyond) = compare(&baseline, &release, Build::Release);
        assert_eq!(beyond, 2, "{table}");
        assert!(table.lines().any(|line| line.starts_with("d ") && line.ends_with("new")), "{table}");
        let dev = of([("a", 2200), ("b", 2201), ("c", 1800), ("d", 5)]);
        assert_eq!(compare(&baseline, &dev, Build::Dev).1, 1);
    }

    #[test]
    fn the_count_is_found_in_a_report() {
        assert_eq!(collected("==1== Events    : Ir\n==1== Collected : 12345\n==1==\n"), Some(12345));
        assert_eq!(collected("==1== \n"), None);
    }
}
