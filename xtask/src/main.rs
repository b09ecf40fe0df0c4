//! Tasks of the project: `cargo xtask help`.

mod bench;
mod book;
mod ci;
#[cfg(test)]
mod citations;
mod completions;
mod dist;
mod guests;
mod house;
mod imports;
mod instructions;
mod load;
mod man;
mod miri;
mod panics;
mod reach;
mod source;
mod support;
mod torture;
#[cfg(test)]
mod walks;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, bail, ensure};
use instructions::Build;
use lexopt::{Arg, ValueExt};

const HELP: &str = "\
Usage: cargo xtask TASK

Tasks:
  ci                 Everything that a change has to pass: formatting, lints,
                     documentation, tests, instruction counts, a virtual
                     machine, dependencies
  bench --a [NAME=]PROGRAM [--b [NAME=]PROGRAM]... [--seconds N] [--rounds N]
        [--only TEXT]... [--out FILE]
                     Measure programs with pasta's command line, and
                     slirp4netns, side by side; see bench/README.md
  bench --vm --a [NAME=]PASST [--b [NAME=]PASST]...
                     The same for virtual machines: synthetic guests of passt
  bench --chart FILE...
                     Draw charts of such files in docs/charts
  dist [DIR] [--only deb,rpm,static] [--target TARGET] [--twice]
                     Make packages (default: in target/dist): for Debian, for
                     RPM, an archive of static programs, debug symbols,
                     checksums; for another TARGET (*-musl), the archive.
                     --twice: make those of the last commit in two clean clones,
                     and compare them
  book [DIR]         Write the pages as a book in HTML (default: target/book);
                     needs mdbook
  clients [--root DIR] [--only TEXT]
                     Run podman, libvirt and other programs that start ours, with
                     the packages in target/dist, on a fresh Debian. For root;
                     needs mmdebstrap
  install --prefix DIR
                     Build and install programs, manual pages, completions
  man [DIR]          Write the manual pages of pasta, passt and slirp4netns, from
                     the tables of options (default: target/man)
  completions [DIR]  Write the completions of shells, from the tables of options
                     (default: target/completions)
  guests [--programs DIR] [--only TEXT]
                     Connect real DHCP clients and firmware, those that are
                     installed, and print a table. For root; DIR has pasta and
                     passt (default: target/debug)
  house [files]      List the crates and their top-level modules, or all files,
                     each with its imports; check single files
  instructions [--dev|--update]
                     Count the instructions of hot functions under valgrind,
                     and compare with the baseline (--dev: of the build for
                     tests) or replace it; see bench/README.md
  miri               Run tests under Miri (nightly Rust), which finds undefined
                     behaviour
  panics [--write]   List where `engine` and `wire` of the release program can
                     panic, and compare with docs/design/panics.md
  reach PID          Show what an attacker inside a running process could use:
                     system calls of each thread, by its loaded filters;
                     capabilities, namespaces, descriptors. For root
  torture [--sample] [--start|--running] [--way TEXT] [--only TEXT] [--jobs N]
          [--programs DIR] [--beside DIR] [--table FILE]
                     Make every system call of pasta and passt (--start: only of
                     their start) fail once, and judge what happens. Without
                     options, all cells are run and the table in docs/torture.md
                     is written. --beside: compare with another pasta. For root;
                     see docs/design/torture.md
  torture --functions FILE
                     Record the functions that the running phase calls, and write
                     their order for the linker (crates/passt/running.ld)
  help               Show this help
";

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Without a backtrace: the last lines of a log should say what failed.
            eprintln!("Error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> anyhow::Result<()> {
    let arguments: Vec<String> =
        std::env::args_os().skip(1).map(|argument| argument.to_string_lossy().into_owned()).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words[..] {
        [] | ["help" | "--help" | "-h"] => print(HELP),
        ["dist", ref rest @ ..] => dist::run(&dist::options(rest)?),
        ["install", "--prefix", prefix] => dist::install(prefix),
        ["install", ..] => bail!("install needs a prefix and nothing else: --prefix ~/.local"),
        ["man"] => manual("target/man"),
        ["man", folder] => manual(folder),
        ["completions"] => write_completions("target/completions"),
        ["completions", folder] => write_completions(folder),
        ["book"] => book::run(Path::new("target/book")),
        ["book", folder] => book::run(Path::new(folder)),
        ["ci"] => ci::run(),
        ["clients", ref rest @ ..] => clients(rest),
        ["house"] => house(false),
        ["house", "files"] => house(true),
        ["instructions"] => instructions::run(Build::Release),
        ["instructions", "--dev"] => instructions::run(Build::Dev),
        ["instructions", "--update"] => instructions::update(),
        ["miri"] => miri::run(),
        ["torture", ref rest @ ..] => torture::run(rest),
        ["panics"] => panics::run(false),
        ["panics", "--write"] => panics::run(true),
        ["reach", pid] => print(&reach::report(pid)?),
        ["bench", "--inside", ..] => bench::run(&bench::Options::parse(&arguments[2..])?),
        ["bench", "--chart", ..] => draw(&arguments[2..]),
        ["bench", ..] => {
            bench::Options::parse(&arguments[1..])?;
            bench::enter(&arguments[1..])
        }
        ["guests", "--inside", ..] => guests::run(&guest_options(&arguments[2..])?),
        ["guests", ..] => {
            guest_options(&arguments[1..])?;
            guests::enter(&arguments[1..])
        }
        ["load", ref load @ ..] => load::main(load),
        ["bridge", ref bridge @ ..] => bench::bridge::main(bridge),
        _ => bail!("no such task: {} (see `cargo xtask help`)", words.join(" ")),
    }
}

/// Runs `packaging/clients` with the packages that `dist` has made.
fn clients(arguments: &[&str]) -> anyhow::Result<()> {
    let root = house::root();
    let mut packages: Vec<PathBuf> = std::fs::read_dir(root.join("target/dist"))
        .context("there are no packages: run `cargo xtask dist` first")?
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .filter(|path| path.extension().is_some_and(|extension| extension == "deb"))
        .collect();
    packages.sort();
    let status = Command::new(root.join("packaging/clients")).args(arguments).args(packages).status();
    ensure!(status.context("can't run packaging/clients")?.success(), "clients failed");
    Ok(())
}

fn write_completions(folder: &str) -> anyhow::Result<()> {
    completions::scripts().try_for_each(|(_, path, script)| write(folder, &path, &script))
}

fn draw(files: &[String]) -> anyhow::Result<()> {
    let paths = bench::chart::write(&house::root().join("docs/charts").to_string_lossy(), files)?;
    if paths.is_empty() {
        bail!("bench: no charts: --chart bench/results/FILE.tsv...")
    }
    print(&format!("{}\n", paths.join("\n")))
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

fn manual(folder: &str) -> anyhow::Result<()> {
    write(folder, "pasta.1", &man::page(man::PASTA))?;
    write(folder, "passt.1", &man::page(man::PASST))?;
    write(folder, "slirp4netns.1", &man::page(man::SLIRP4NETNS))
}

/// Writes a file below `folder`, and prints its path.
fn write(folder: &str, name: &str, text: &str) -> anyhow::Result<()> {
    let path = PathBuf::from(folder).join(name);
    let folder = path.parent().context("a file without a folder")?;
    std::fs::create_dir_all(folder).with_context(|| format!("can't create {}", folder.display()))?;
    std::fs::write(&path, text).with_context(|| format!("can't write {}", path.display()))?;
    print(&format!("{}\n", path.display()))
}
