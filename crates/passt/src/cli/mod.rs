//! The command line. One table of options defines both parsing and the help text (behaviour §2).
//!
//! The result of [`parse`] depends on its arguments only. The function prints nothing and does not exit. A row in
//! [`options`] names the function that stores the option's value. `finish` then makes the [`Config`]: some options
//! depend on other options.

mod finish;
mod getopt;
mod help;
mod later;
pub mod options;
mod slirp4netns;
mod value;

use std::{
    ffi::{OsStr, OsString},
    fmt,
    ops::RangeInclusive,
    os::unix::ffi::OsStrExt,
    path::Path,
};

use self::{
    finish::Args,
    getopt::{Getopt, Item},
    options::{Action, Modes, Opt, Show},
};
use crate::config::{Config, Mode};

/// What the command line requests.
#[derive(Clone, Debug, PartialEq)]
pub enum Invocation {
    /// Print this help text on standard output and exit with status 0.
    Help(String),
    /// Print this version text on standard output and exit with status 0.
    Version(String),
    /// Print these capabilities on standard output and exit with status 0 (Q1).
    Capabilities(String),
    /// Connect a guest.
    Run(Box<Config>),
}

/// An invalid command line. The caller prints it on standard error and exits with status 1 (behaviour §1.4).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    /// The program's name, as the caller gave it.
    program: String,
    message: String,
    /// Whether the help text would tell what is right.
    see_help: bool,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { program, message, see_help } = self;
        write!(f, "{program}: {message}")?;
        if *see_help { write!(f, "\nSee '{program} --help'.") } else { Ok(()) }
    }
}

impl std::error::Error for Error {}

/// Parses a command line. The first argument is the program's name. Refuses options that are not implemented yet.
///
/// `ephemeral` returns the host's ephemeral port range. It is called only if a port specifier is present (behaviour
/// §8.7).
///
/// # Errors
/// An option is unknown, has no argument but needs one, has an invalid argument, contradicts another option, or is not
/// supported yet.
pub fn parse(
    args: impl IntoIterator<Item = OsString>,
    ephemeral: impl FnOnce() -> RangeInclusive<u16>,
) -> Result<Invocation, Error> {
    read_then(args, ephemeral, later::refuse)
}

/// Like [`parse`], but accepts options that are not supported yet.
///
/// # Errors
/// The errors of [`parse`].
pub fn read(
    args: impl IntoIterator<Item = OsString>,
    ephemeral: impl FnOnce() -> RangeInclusive<u16>,
) -> Result<Invocation, Error> {
    read_then(args, ephemeral, |_| Ok(()))
}

/// Reads a command line, and passes its configuration to `check`.
fn read_then(
    args: impl IntoIterator<Item = OsString>,
    ephemeral: impl FnOnce() -> RangeInclusive<u16>,
    check: impl FnOnce(&Config) -> Result<(), String>,
) -> Result<Invocation, Error> {
    let mut args = args.into_iter();
    let program = args.next().unwrap_or_default();
    let name = program.to_string_lossy();
    let error = |message: String, see_help| Error { program: name.clone().into(), message, see_help };
    let plain = |message| error(message, false);
    let rest: Vec<OsString> = args.collect();

    let named = mode_of(&program);
    let vhost_user = named != Some(Mode::Slirp4netns) && asks_for_vhost_user(&rest);
    let mode = match vhost_user {
        true => Mode::Passt,
        false => named.ok_or_else(|| {
            plain(
                "Cannot determine mode from the program's name, invoke as \"passt\", \"pasta\" or \"slirp4netns\"".into(),
            )
        })?,
    };

    let mut typed = Args::new(mode, vhost_user);
    let mut items = Getopt::new(rest, mode);
    let operands = loop {
        match items.next().map_err(|message| error(message, true))? {
            Item::Operands(operands) => break operands,
            Item::Option { opt, typed_as, value } => match opt.action {
                Action::Show(Show::Help) => return Ok(Invocation::Help(help::usage(&name, mode))),
                Action::Show(Show::Version) => return Ok(Invocation::Version(help::version(mode))),
                Action::Show(Show::Capabilities) => {
                    return Ok(Invocation::Capabilities(help::CAPABILITIES.into()));
                }
                _ => apply(opt, &typed_as, value.as_deref(), &mut typed).map_err(plain)?,
            },
        }
    };
    // The caller of slirp4netns may have expected the options of pasta.
    let config =
        typed.finish(operands, ephemeral).map_err(|message| error(message, mode == Mode::Slirp4netns))?;
    check(&config).map_err(plain)?;
    Ok(Invocation::Run(Box::new(config)))
}

/// Stores an option in `args`.
fn apply(opt: &Opt, typed_as: &str, value: Option<&OsStr>, args: &mut Args) -> Result<(), String> {
    let wrong_mode = match (opt.modes, args.config.mode) {
        (Modes::Pasta, Mode::Passt) => Some("pasta"),
        (Modes::Passt, Mode::Pasta) => Some("passt"),
        (Modes::VhostUser, _) if !args.config.passt.vhost_user => Some("vhost-user"),
        _ => None,
    };
    if let Some(right) = wrong_mode {
        return Err(format!("{typed_as} is for {right} mode only"));
    }
    let outcome = match (opt.action, value) {
        (Action::Flag(set), _) => {
            set(args);
            Ok(())
        }
        (Action::Value(_, set), Some(value)) => set(args, value),
        (Action::Ports(direction, protocol), Some(value)) => {
            args.add_ports(typed_as, direction, protocol, value)
        }
        (Action::Value(..) | Action::Ports(..), None) | (Action::Show(_), _) => Ok(()),
    };
    outcome.map_err(|message| format!("{typed_as}: {message}"))
}

/// The mode that the program's name selects (behaviour §1.1.2). passt4netns is a former name of pasta.
fn mode_of(program: &OsStr) -> Option<Mode> {
    let base = Path::new(program).file_name()?.as_bytes();
    let contains = |name: &[u8]| base.windows(name.len()).any(|window| window == name);
    if contains(b"slirp4netns") {
        Some(Mode::Slirp4netns)
    } else if contains(b"pasta") || contains(b"passt4netns") {
        Some(Mode::Pasta)
    } else if contains(b"passt") {
        Some(Mode::Passt)
    } else {
        None
    }
}

/// Whether `--vhost-user` is among the options. The option selects passt mode, even if the program's name selects pasta
/// (behaviour §1.1.1). Arguments of a command are not options. Errors are ignored here: [`read`] reports them.
fn asks_for_vhost_user(args: &[OsString]) -> bool {
    let mut items = Getopt::new(args.to_vec(), Mode::Passt);
    loop {
        match items.next() {
            Ok(Item::Option { opt, .. }) if opt.long.contains(&"vhost-user") => return true,
            Ok(Item::Option { .. }) => {}
            Ok(Item::Operands(_)) | Err(_) => return false,
        }
    }
}
