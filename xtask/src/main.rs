//! Tasks of the project: `cargo xtask help`.

mod completions;
mod house;
mod man;
mod source;
mod support;

use std::io::Write;
use std::path::PathBuf;

use anyhow::{Context, bail};
use lexopt::Arg;

const HELP: &str = "\
Usage: cargo xtask TASK

Tasks:
  man [DIR]          Write the manual page pasta.1, from the table of options
                     (default: target/man)
  completions [DIR]  Write the completion of bash, from the table of options
                     (default: target/completions)
  house              Draw the crates and modules with whom each names, and
                     check the rules for single files
  bench              Tell how to measure; see bench/README.md
  help               Show this help
";

fn main() -> anyhow::Result<()> {
    let mut parser = lexopt::Parser::from_env();
    let mut operands = Vec::new();
    while let Some(arg) = parser.next()? {
        match arg {
            Arg::Short('h') | Arg::Long("help") => return print(HELP),
            Arg::Value(value) => operands.push(value.to_string_lossy().into_owned()),
            _ => return Err(arg.unexpected().into()),
        }
    }
    let operands: Vec<&str> = operands.iter().map(String::as_str).collect();
    match operands[..] {
        [] | ["help"] => print(HELP),
        ["man"] => write("target/man", "pasta.1", &man::page()),
        ["man", folder] => write(folder, "pasta.1", &man::page()),
        ["completions"] => write("target/completions", "pasta", &completions::bash()),
        ["completions", folder] => write(folder, "pasta", &completions::bash()),
        ["house"] => house(),
        ["bench"] => print(&std::fs::read_to_string(house::root().join("bench/README.md"))?),
        _ => bail!("no such task: {} (see `cargo xtask help`)", operands.join(" ")),
    }
}

fn house() -> anyhow::Result<()> {
    print(&house::draw()?)?;
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
