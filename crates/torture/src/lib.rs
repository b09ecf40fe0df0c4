//! Makes every system call of the release binary fail once, from outside, and judges what happens
//! (docs/design/torture.md). It knows the registers of x86-64 only; elsewhere this crate is empty.
#![cfg(target_arch = "x86_64")]

mod errnos;
mod exceptions;
mod fault;
mod net;
mod script;
mod session;
mod start;
mod sweep;
mod table;
mod trace;
mod verdict;
mod way;

use std::io::Write;
use std::path::PathBuf;

use anyhow::{Context, bail, ensure};
use lexopt::{Arg, ValueExt};

const HELP: &str = "\
Usage: torture --programs DIR [OPTION]...

Makes every system call of the running phase of pasta and passt fail once, each
in a session of its own; and every one of their start. For root: the sessions
need namespaces, and ptrace.

  --programs DIR    The folder with pasta and pesto
  --sample          One cell of each call, in less than 40 seconds
  --guest PROGRAM   What connects a guest to passt: xtask
  --start           Only the start
  --running         Only the running phase
  --way TEXT        Only parts whose name contains this
  --only TEXT       Only cells whose text contains this
  --jobs N          Sessions at a time (default: 8; they wait most of the time)
  --beside DIR      Also a plain session, of this pasta and of the one in DIR
  --table FILE      Write the table of all cells to this file
  --list            Print the cells
  --functions FILE  No sweep: write a linker script with the functions that
                    the running phase calls, in the order of first calls
";

/// The options.
struct Options {
    programs: PathBuf,
    sweep: sweep::Options,
}

/// Runs the tool with these arguments.
///
/// # Errors
/// A session can't be made, or something was lost in one.
pub fn run(arguments: &[String]) -> anyhow::Result<()> {
    if let [first, request] = arguments
        && first == "--inside"
    {
        return print(&sweep::inside(request)?);
    }
    let Some(options) = parse(arguments)? else { return print(HELP) };
    let programs = options.programs.canonicalize();
    let programs = programs.with_context(|| format!("--programs {}", options.programs.display()))?;
    ensure!(
        rustix::process::geteuid().is_root(),
        "torture needs root: it makes namespaces, and traces processes"
    );
    if sweep::run(&programs, &options.sweep)? { Ok(()) } else { bail!("something was lost") }
}

fn parse(arguments: &[String]) -> anyhow::Result<Option<Options>> {
    let mut options =
        Options { programs: PathBuf::new(), sweep: sweep::Options { jobs: 8, ..Default::default() } };
    let mut parser = lexopt::Parser::from_args(arguments);
    while let Some(argument) = parser.next()? {
        match argument {
            Arg::Long("programs") => options.programs = parser.value()?.into(),
            Arg::Long("sample") => options.sweep.sample = true,
            Arg::Long("guest") => options.sweep.guest = parser.value()?.into(),
            Arg::Long("running") => options.sweep.running_only = true,
            Arg::Long("start") => options.sweep.start_only = true,
            Arg::Long("way") => options.sweep.way = parser.value()?.string()?,
            Arg::Long("beside") => options.sweep.beside = Some(parser.value()?.into()),
            Arg::Long("list") => options.sweep.list = true,
            Arg::Long("only") => options.sweep.only = parser.value()?.string()?,
            Arg::Long("jobs") => options.sweep.jobs = parser.value()?.parse()?,
            Arg::Long("table") => options.sweep.table = Some(parser.value()?.into()),
            Arg::Long("functions") => options.sweep.functions = Some(parser.value()?.into()),
            Arg::Long("help") | Arg::Short('h') => return Ok(None),
            _ => return Err(argument.unexpected().into()),
        }
    }
    ensure!(!options.programs.as_os_str().is_empty(), "no programs: --programs target/release");
    Ok(Some(options))
}

fn print(text: &str) -> anyhow::Result<()> {
    std::io::stdout().write_all(text.as_bytes()).context("can't write to standard output")
}
