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
    message: String,
    usage: Option<String>,
}

impl Error {
    fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), usage: None }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        match &self.usage {
            None => Ok(()),
            Some(usage) => write!(f, "\n{}", usage.trim_end()),
        }
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
    let invocation = read(args, ephemeral)?;
    if let Invocation::Run(config) = &invocation {
        later::refuse(config).map_err(Error::new)?;
    }
    Ok(invocation)
}

/// Like [`parse`], but accepts options that are not supported yet.
///
/// # Errors
/// The errors of [`parse`].
pub fn read(
    args: impl IntoIterator<Item = OsString>,
    ephemeral: impl FnOnce() -> RangeInclusive<u16>,
) -> Result<Invocation, Error> {
    let mut args = args.into_iter();
    let program = args.next().unwrap_or_default();
    let rest: Vec<OsString> = args.collect();

    let vhost_user = asks_for_vhost_user(&rest);
    let mode = match vhost_user {
        true => Mode::Passt,
        false => mode_of(&program).ok_or_else(|| {
            Error::new("Cannot determine mode from the program's name, invoke as \"passt\" or \"pasta\"")
        })?,
    };
    let name = program.to_string_lossy();

    let mut typed = Args::new(mode, vhost_user);
    let mut items = Getopt::new(rest);
    let operands = loop {
        let item = items.next().map_err(|error| Error {
            message: format!("{name}: {error}"),
            usage: Some(help::usage(&name, mode)),
        })?;
        match item {
            Item::Operands(operands) => break operands,
            Item::Option { opt, typed_as, value } => match opt.action {
                Action::Show(Show::Help) => return Ok(Invocation::Help(help::usage(&name, mode))),
                Action::Show(Show::Version) => return Ok(Invocation::Version(help::version(mode))),
                Action::Show(Show::Capabilities) => {
                    return Ok(Invocation::Capabilities(help::CAPABILITIES.into()));
                }
                _ => apply(opt, &typed_as, value.as_deref(), &mut typed)?,
            },
        }
    };
    let config = typed.finish(operands, ephemeral).map_err(Error::new)?;
    Ok(Invocation::Run(Box::new(config)))
}

/// Stores an option in `args`.
fn apply(opt: &Opt, typed_as: &str, value: Option<&OsStr>, args: &mut Args) -> Result<(), Error> {
    let wrong_mode = match (opt.modes, args.config.mode) {
        (Modes::Pasta, Mode::Passt) => Some("pasta"),
        (Modes::Passt, Mode::Pasta) => Some("passt"),
        (Modes::VhostUser, _) if !args.config.passt.vhost_user => Some("vhost-user"),
        _ => None,
    };
    if let Some(right) = wrong_mode {
        return Err(Error::new(format!("{typed_as} is for {right} mode only")));
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
    outcome.map_err(|message| Error::new(format!("{typed_as}: {message}")))
}

/// The mode that the program's name selects (behaviour §1.1). passt4netns is a former name of pasta.
fn mode_of(program: &OsStr) -> Option<Mode> {
    let base = Path::new(program).file_name()?.as_bytes();
    let contains = |name: &[u8]| base.windows(name.len()).any(|window| window == name);
    if contains(b"pasta") || contains(b"passt4netns") {
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
    let mut items = Getopt::new(args.to_vec());
    loop {
        match items.next() {
            Ok(Item::Option { opt, .. }) if opt.long.contains(&"vhost-user") => return true,
            Ok(Item::Option { .. }) => {}
            Ok(Item::Operands(_)) | Err(_) => return false,
        }
    }
}
