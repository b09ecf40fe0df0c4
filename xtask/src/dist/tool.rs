//! Programs of the machine that make packages, and the time of a build.

use std::process::{Command, Stdio};

use anyhow::{Context, bail};

use crate::house::root;

/// Runs a command to its end.
///
/// # Errors
/// The program can't be started, or reports a failure.
pub(super) fn run(command: &mut Command) -> anyhow::Result<()> {
    let name = command.get_program().to_string_lossy().into_owned();
    let status = command.stdin(Stdio::null()).status().with_context(|| format!("can't run {name}"))?;
    if !status.success() {
        bail!("{name} failed: {status}");
    }
    Ok(())
}

/// Runs a command to its end. Returns what it prints on standard output.
///
/// # Errors
/// The errors of [`run`]; the output is not text.
pub(crate) fn output(command: &mut Command) -> anyhow::Result<String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("can't run {name}"))?;
    if !output.status.success() {
        bail!("{name} failed: {}", output.status);
    }
    String::from_utf8(output.stdout).with_context(|| format!("{name} prints what is not text"))
}

/// A time, in seconds since 1970, in a format of date(1), in UTC and English.
///
/// # Errors
/// The errors of [`output`].
pub(super) fn date(epoch: u64, format: &str) -> anyhow::Result<String> {
    let mut date = Command::new("date");
    date.args(["-u", "-d", &format!("@{epoch}"), format]).env("LC_ALL", "C");
    Ok(output(&mut date)?.trim_end().to_owned())
}

/// Cargo, for the workspace.
pub(super) fn cargo() -> Command {
    of_rust("CARGO", "cargo")
}

/// The compiler, as cargo would choose it for the workspace.
pub(super) fn rustc() -> Command {
    of_rust("RUSTC", "rustc")
}

fn of_rust(variable: &str, name: &str) -> Command {
    let mut command = Command::new(std::env::var_os(variable).unwrap_or_else(|| name.into()));
    command.current_dir(root());
    command
}

/// Checks that programs are installed.
///
/// # Errors
/// One is missing. The message says how to get it.
pub(crate) fn need(names: &[&str], how: &str) -> anyhow::Result<()> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let missing =
        names.iter().find(|name| !std::env::split_paths(&path).any(|folder| folder.join(name).is_file()));
    match missing {
        Some(name) => bail!("{name} is not installed ({how})"),
        None => Ok(()),
    }
}

/// The time that all files of the packages get, in seconds since 1970: `SOURCE_DATE_EPOCH`, else that of the commit.
///
/// # Errors
/// There is neither of them.
pub(super) fn epoch() -> anyhow::Result<u64> {
    let text = match std::env::var("SOURCE_DATE_EPOCH") {
        Ok(text) => text,
        Err(_) => output(Command::new("git").args(["log", "-1", "--format=%ct"]).current_dir(root()))
            .context(
                "the time of the packages is unknown: this is no git repository; set SOURCE_DATE_EPOCH",
            )?,
    };
    text.trim().parse().with_context(|| format!("SOURCE_DATE_EPOCH is no number of seconds: {}", text.trim()))
}
