//! `qrap`: starts a QEMU with a descriptor that is connected to a passt (behaviour §9.6). A QEMU older than 7.2 cannot
//! connect to a UNIX socket itself.
#![forbid(unsafe_code)]

mod command;
mod probe;

use std::convert::Infallible;
use std::env;
use std::ffi::{OsStr, OsString};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::process::ExitCode;

use anyhow::{Context, bail};

use self::command::{Network, Start};

const USAGE: &str = "\
Usage: qrap FD QEMU ARGUMENT...    run QEMU, unchanged, with a socket of passt as descriptor FD
       qrap ARGUMENT...            run this machine's QEMU with its network replaced by passt

Start passt first, without a socket path: qrap tries its default paths. QEMU 7.2 and later need no qrap: see passt(1).
";

/// Replaces this process by QEMU; returns only on failure, or after the help text. With `-help`, or among other
/// arguments, QEMU's help is shown.
fn main() -> ExitCode {
    let arguments: Vec<OsString> = env::args_os().skip(1).collect();
    if arguments.as_slice() == ["--help"] {
        return io::stdout().write_all(USAGE.as_bytes()).map_or(ExitCode::FAILURE, |()| ExitCode::SUCCESS);
    }
    let Err(error) = run(arguments);
    // An error of this write is ignored: the exit status reports the failure.
    drop(writeln!(io::stderr(), "qrap: {error:#}"));
    ExitCode::FAILURE
}

fn run(arguments: Vec<OsString>) -> anyhow::Result<Infallible> {
    if arguments.is_empty() {
        bail!("nothing to run\n{USAGE}");
    }
    let Start { programs, arguments, network } =
        command::read(arguments).map_err(|error| error.context(USAGE))?;
    let socket = match network {
        Network::None => None,
        Network::At(number) => Some((probe::find()?, number)),
    };
    let given = socket.as_ref().map(|(socket, number)| (socket.as_fd(), *number));
    let mut error = None;
    for program in &programs {
        let mut line = vec![program.clone()];
        line.extend_from_slice(&arguments);
        let failed = sys::spawn::exec(program, &line, given);
        if failed.kind() != io::ErrorKind::NotFound {
            return Err(failed).with_context(|| format!("can't run {}", program.display()));
        }
        error = Some(failed);
    }
    let names: Vec<_> = programs.iter().map(|program| OsStr::to_string_lossy(program)).collect();
    Err(error.unwrap_or_else(|| io::ErrorKind::NotFound.into()))
        .with_context(|| format!("can't run {}", names.join(" or ")))
}
