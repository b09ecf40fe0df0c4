//! Tasks of the project: `cargo xtask help`.

mod bench;
mod ci;
#[cfg(test)]
mod citations;
mod completions;
mod guests;
mod house;
mod imports;
mod instructions;
mod load;
mod man;
mod miri;
mod reach;
mod source;
mod support;
#[cfg(test)]
mod walks;

use std::io::Write;
use std::path::PathBuf;

use anyhow::{Context, bail};
use lexopt::{Arg, ValueExt};

const HELP: &str = "\
Usage: cargo xtask TASK

Tasks:
  ci                 Everything that a change has to pass: formatting, lints,
                     documentation, tests, a virtual machine, dependencies
  bench --a PROGRAM [--b PROGRAM]... [--seconds N] [--rounds N] [--only TEXT]
                     Measure programs with pasta's command line side by side;
                     see bench/README.md
  man [DIR]          Write the manual page pasta.1, from the table of options
                     (default: target/man)
  completions [DIR]  Write the completion of bash, from the table of options
                     (default: target/completions)
  guests [--programs DIR] [--only TEXT]
                     Connect real DHCP clients and firmware, those that are
                     installed, and print a table. For root; DIR has pasta and
                     passt (default: target/debug)
  house [files]      List the crates and their top-level modules, or all files,
                     each with its imports; check single files
  instructions [--update]
                     Count the instructions of hot functions under valgrind,
                     and compare with the baseline or replace it; see
                     bench/README.md
  miri               Run tests under Miri (nightly Rust), which finds undefined
                     behaviour
  reach PID          Show what an attacker inside a running process could use:
                     system calls of each thread, by its loaded filters;
                     capabilities, namespaces, descriptors. For root
  help               Show this help
";

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> =
        std::env::args_os().skip(1).map(|argument| argument.to_string_lossy().into_owned()).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words[..] {
        [] | ["help" | "--help" | "-h"] => print(HELP),
        ["man"] => write("target/man", "pasta.1", &man::page()),
        ["man", folder] => write(folder, "pasta.1", &man::page()),
        ["completions"] => write("target/completions", "pasta", &completions::bash()),
        ["completions", folder] => write(folder, "pasta", &completions::bash()),
        ["ci"] => ci::run(),
        ["house"] => house(false),
        ["house", "files"] => house(true),
        ["instructions"] => instructions::run(false),
        ["instructions", "--update"] => instructions::run(true),
        ["miri"] => miri::run(),
        ["reach", pid] => print(&reach::report(pid)?),
        ["bench", "--inside", ..] => bench::run(&bench_options(&arguments[2..])?),
        ["bench", ..] => {
            bench_options(&arguments[1..])?;
            bench::enter(&arguments[1..])
        }
        ["guests", "--inside", ..] => guests::run(&guest_options(&arguments[2..])?),
        ["guests", ..] => {
            guest_options(&arguments[1..])?;
            guests::enter(&arguments[1..])
        }
        ["load", ref load @ ..] => load::main(load),
        _ => bail!("no such task: {} (see `cargo xtask help`)", words.join(" ")),
    }
}

fn bench_options(arguments: &[String]) -> anyhow::Result<bench::Options> {
    let mut options = bench::Options { programs: Vec::new(), seconds: 2.5, rounds: 5, only: None };
    let mut parser = lexopt::Parser::from_args(arguments);
    while let Some(arg) = parser.next()? {
        match arg {
            Arg::Long(name @ ("a" | "b" | "c")) => {
                let letter = name.to_uppercase().chars().next().unwrap_or('?');
                options.programs.push((letter, parser.value()?.string()?));
            }
            Arg::Long("seconds") => options.seconds = parser.value()?.parse()?,
            Arg::Long("rounds") => options.rounds = parser.value()?.parse()?,
            Arg::Long("only") => options.only = Some(parser.value()?.string()?),
            _ => return Err(arg.unexpected().into()),
        }
    }
    if options.programs.is_empty() {
        bail!("bench: nothing to measure: --a target/release/pasta");
    }
    Ok(options)
}

fn guest_options(arguments: &[String]) -> anyhow::Result<guests::Options> {
    let mut options = guests::Options { programs: "target/debug".into(), only: String::new() };
    let mut parser = lexopt::Parser::from_args(arguments);
    while let Some(arg) = parser.next()? {
        match arg {
            Arg::Long("programs") => options.programs = parser.value()?.string()?,
            Arg::Long("only") => options.only = parser.value()?.string()?,
            _ => return Err(arg.unexpected().into()),
        }
    }
    Ok(options)
}

fn house(with_files: bool) -> anyhow::Result<()> {
    print(&house::draw(with_files)?)?;
    let faults = house::faults()?;
    if faults.is_empty() { Ok(()) } else { bail!("{}", faults.join("\n")) }
}

fn print(text: &str) -> anyhow::Result<()> {
    std::io::stdout().write_all(text.as_bytes()).context("can't write to standard output")
}

fn write(folder: &str, name: &str, text: &str) -> anyhow::Result<()> {
    let folder = PathBuf::from(folder);
    std::fs::create_dir_all(&folder).with_context(|| format!("can't create {}", folder.display()))?;
    let path = folder.join(name);
    std::fs::write(&path, text).with_context(|| format!("can't write {}", path.display()))?;
    print(&format!("{}\n", path.display()))
}
