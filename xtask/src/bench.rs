//! Compares the speed of programs with pasta's command line, and slirp4netns, in namespaces that it creates.

pub(crate) mod bridge;
pub(crate) mod chart;
mod figures;
mod lab;
mod machine;
mod process;
mod program;
mod row;

use std::fmt::Write;
use std::fs;
use std::process::Command;

use anyhow::{Context, bail, ensure};
use figures::{Figure, LIMIT};
use lab::Lab;
use lexopt::{Arg, ValueExt};
use program::Program;
use row::{Row, Task};

use crate::load::{Quantity, Sample};

/// The parameters of a measurement.
pub(crate) struct Options {
    /// Programs, each with its name in the output.
    programs: Vec<(String, Program)>,
    /// Measure virtual machines instead of namespaces.
    machines: bool,
    /// Duration of each client, in seconds.
    seconds: f64,
    /// Number of measurements for each figure.
    rounds: usize,
    /// Measure only rows whose names contain one of these texts. All, if there are none.
    only: Vec<String>,
    /// The file to write figures to.
    out: Option<String>,
}

impl Options {
    pub(crate) fn parse(arguments: &[String]) -> anyhow::Result<Self> {
        let mut options = Self {
            programs: Vec::new(),
            machines: false,
            seconds: 2.5,
            rounds: 5,
            only: Vec::new(),
            out: None,
        };
        let mut parser = lexopt::Parser::from_args(arguments);
        while let Some(arg) = parser.next()? {
            match arg {
                Arg::Long(name @ ("a" | "b" | "c" | "d")) => {
                    let letter = name.to_uppercase();
                    let value = parser.value()?.string()?;
                    let (name, path) = match value.split_once('=') {
                        Some((name, path)) if !name.contains('/') => (name, path),
                        _ => (&*letter, &*value),
                    };
                    options.programs.push((name.to_owned(), Program::new(path)));
                }
                Arg::Long("vm") => options.machines = true,
                Arg::Long("seconds") => options.seconds = parser.value()?.parse()?,
                Arg::Long("rounds") => options.rounds = parser.value()?.parse()?,
                Arg::Long("only") => options.only.push(parser.value()?.string()?),
                Arg::Long("out") => options.out = Some(parser.value()?.string()?),
                _ => return Err(arg.unexpected().into()),
            }
        }
        ensure!(options.seconds > 0.0 && options.seconds < 3600.0, "bench: --seconds must be above 0");
        if options.programs.is_empty() {
            bail!("bench: nothing to measure: --a target/release/pasta");
        }
        let mut names = vec![LIMIT];
        for (name, program) in &options.programs {
            ensure!(
                !names.contains(&&**name),
                "bench: two programs have the name '{name}': --b NAME=PROGRAM"
            );
            names.push(name);
            let takes_part = options.machines == matches!(program, Program::Passt(_));
            ensure!(takes_part, "bench: {}: passt is measured with --vm, others without", program.path());
        }
        Ok(options)
    }

    /// The rows to measure.
    fn rows(&self) -> Vec<Row> {
        let mut rows = if self.machines { row::machine_rows() } else { row::rows() };
        rows.retain(|row| self.only.is_empty() || self.only.iter().any(|only| row.name.contains(&**only)));
        rows
    }
}

/// Starts this program again as root of a new user namespace. This needs no privilege, and the kernel removes the
/// namespaces at the end.
pub(crate) fn enter(arguments: &[String]) -> anyhow::Result<()> {
    let unshare = ["--user", "--map-root-user", "--net", "--mount", "--fork", "--kill-child"];
    let status = Command::new("unshare")
        .args(unshare)
        .arg("--")
        .arg(std::env::current_exe()?)
        .args(["bench", "--inside"])
        .args(arguments)
        .status()
        .context("can't run unshare (util-linux)")?;
    ensure!(status.success(), "the measurement failed: {status}");
    Ok(())
}

/// Runs the measurement inside the namespace.
pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    let head = head(options)?;
    print!("{head}");
    let lab = Lab::new()?;
    let mut all = Vec::new();
    for row in options.rows() {
        println!("\n{}", row.name);
        all.extend(measure(&lab, &row, options)?);
        if let Some(out) = &options.out {
            let text = figures::to_file(&head, &all);
            fs::write(out, text).with_context(|| format!("can't write {out}"))?;
        }
    }
    Ok(())
}

/// What a reader needs to repeat the measurement.
fn head(options: &Options) -> anyhow::Result<String> {
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let cpuinfo = fs::read_to_string("/proc/cpuinfo")?;
    let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let model = model.map_or("unknown processor", |(_, model)| model);
    let processors = std::thread::available_parallelism()?;
    let mut head = format!("Linux {}, {model}, {processors} processors\n", kernel.trim());
    let Options { rounds, seconds, .. } = options;
    let _ = writeln!(head, "{rounds} rounds of {seconds} s each; median [lowest, highest]");
    for (name, program) in &options.programs {
        let version = Command::new(program.path()).arg("--version").output();
        let version = version.with_context(|| format!("can't run {}", program.path()))?;
        let version = String::from_utf8_lossy(&version.stdout);
        let _ = writeln!(head, "{name}: {}: {}", program.path(), version.lines().next().unwrap_or("?"));
    }
    Ok(head)
}

/// Measures a row: the candidates take turns, and another one begins in each round.
fn measure(lab: &Lab, row: &Row, options: &Options) -> anyhow::Result<Vec<Figure>> {
    let pace = match row.task {
        Task::Paced(way, part) => Some(part * lab.limit_of_flood(way, options.seconds)?),
        _ => None,
    };
    if let Some(pace) = pace {
        println!("  {:.0} k/s are sent", pace / 1000.0);
    }
    let mut candidates: Vec<(String, Option<&Program>, Vec<Sample>)> = Vec::new();
    if row.has_limit() {
        candidates.push((LIMIT.to_owned(), None, Vec::new()));
    }
    for (name, program) in &options.programs {
        if row.is_for(program) {
            candidates.push((name.clone(), Some(program), Vec::new()));
        }
    }
    let count = candidates.len();
    for round in 0..options.rounds {
        for turn in 0..count {
            let (name, program, samples) = &mut candidates[(round + turn) % count];
            match lab.measure(row, *program, options.seconds, pace) {
                Ok(sample) => samples.push(sample),
                Err(error) => println!("  {name}: round {}: {error:#}", round + 1),
            }
        }
    }
    let (mut all, mut limit) = (Vec::new(), None);
    for (name, _, samples) in &candidates {
        let figures = figures::figures(row, name, samples);
        println!("  {}", figures::text(name, &figures, limit));
        if name == LIMIT {
            limit = figures.iter().find(|figure| figure.quantity == Quantity::Rate).map(|rate| rate.median);
        }
        all.extend(figures);
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(line: &str) -> anyhow::Result<Options> {
        Options::parse(&line.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn options_choose_programs_and_rows() {
        let options =
            options("--a x=y/pasta --b slirp4netns --only rr --only command --seconds 0.5").unwrap();
        assert_eq!(options.programs.len(), 2);
        assert_eq!(options.programs[0], ("x".to_owned(), Program::Pasta("y/pasta".into())));
        assert_eq!(options.programs[1], ("B".to_owned(), Program::Slirp4netns("slirp4netns".into())));
        let wanted = options.rows();
        assert!(wanted.iter().all(|row| row.name.contains("rr") || row.name == "command"));
        assert!(wanted.iter().any(|row| row.name == "local in, udp rr"));
        assert!(wanted.iter().any(|row| row.name == "command"));
    }

    #[test]
    fn wrong_options_are_refused() {
        for line in ["", "--seconds 2", "--a pasta --seconds 0", "--a pasta --seconds NaN", "--a pasta extra"]
        {
            assert!(options(line).is_err(), "{line}");
        }
    }
}
