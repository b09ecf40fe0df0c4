//! Implements the conventions of GNU getopt, on which clients rely. lexopt is the basis.
//!
//! lexopt splits the arguments: bundled short options, `--option=value`, `-t -1`, `--`. This module looks up options in
//! the table by unique prefixes, stops at the first operand, and produces getopt's error messages: podman expects
//! `unrecognized option '--map-guest-addr` (behaviour §1.8). One difference remains: here, `-t=22` means `-t 22`. In
//! getopt, the argument would be `=22`.

use std::ffi::OsString;

use lexopt::{Arg, Parser};

use super::options::{self, Action, Group, Opt};
use crate::config::Mode;

/// Reads the options in the order of the command line.
pub(super) struct Getopt {
    parser: Parser,
    groups: &'static [Group],
    /// Operands before options. `None`: options end at the first operand.
    operands: Option<Vec<OsString>>,
}

/// An option, or the operands.
pub(super) enum Item {
    /// An option of the table.
    Option {
        /// The option's row in the table.
        opt: &'static Opt,
        /// The option's name for messages: the name that the user typed. An abbreviated name is completed.
        typed_as: String,
        /// The option's argument, if the option takes an argument.
        value: Option<OsString>,
    },
    /// Everything after the options.
    Operands(Vec<OsString>),
}

impl Getopt {
    /// Reads `args`, without the program's name. slirp4netns accepts operands before options; passt and pasta do not,
    /// since the arguments of a command are not theirs.
    pub(super) fn new(args: Vec<OsString>, mode: Mode) -> Self {
        Self {
            parser: Parser::from_args(args),
            groups: options::groups(mode),
            operands: (mode == Mode::Slirp4netns).then(Vec::new),
        }
    }

    /// Returns the next option, or the operands after the last option.
    ///
    /// # Errors
    /// The message of GNU getopt, without the program's name.
    pub(super) fn next(&mut self) -> Result<Item, String> {
        let arg = loop {
            match (self.parser.next(), &mut self.operands) {
                (Ok(Some(Arg::Value(operand))), Some(operands)) => operands.push(operand),
                (Ok(arg), _) => break arg,
                // For `-d=x`, getopt treats `=` as the next option of the bundle.
                (Err(_), _) => return Err(invalid_short('=')),
            }
        };
        let (opt, typed_as) = match arg {
            None => return Ok(Item::Operands(self.operands.take().unwrap_or_default())),
            Some(Arg::Value(first)) => {
                let rest = self.parser.raw_args().map_err(|error| error.to_string())?;
                return Ok(Item::Operands(std::iter::once(first).chain(rest).collect()));
            }
            Some(Arg::Short(letter)) => {
                let opt = all(self.groups).find(|opt| opt.short == Some(letter));
                (opt.ok_or_else(|| invalid_short(letter))?, format!("-{letter}"))
            }
            Some(Arg::Long(name)) => {
                let (opt, name) = find_long(name, self.groups)?;
                (opt, format!("--{name}"))
            }
        };
        let value = match opt.action {
            Action::Value(..) | Action::Ports(..) => {
                Some(self.parser.value().map_err(|_| missing_argument(&typed_as))?)
            }
            Action::Flag(_) | Action::Show(_) => {
                // Letters that follow a short option are separate options.
                if typed_as.starts_with("--") && self.parser.optional_value().is_some() {
                    return Err(format!("option '{typed_as}' doesn't allow an argument"));
                }
                None
            }
        };
        Ok(Item::Option { opt, typed_as, value })
    }
}

/// Finds the option with this name. If there is none, finds the option with the only name that starts with `name`. If
/// several names start with `name`, names of the C programs' options take precedence over names of our own options.
/// Also returns the full name.
fn find_long(name: &str, groups: &'static [Group]) -> Result<(&'static Opt, &'static str), String> {
    let names = || all(groups).flat_map(|opt| opt.long.iter().map(move |long| (opt, *long)));
    if let Some(exact) = names().find(|(_, long)| *long == name) {
        return Ok(exact);
    }
    let mut candidates: Vec<_> = names().filter(|(_, long)| long.starts_with(name)).collect();
    if candidates.iter().any(|(opt, _)| !opt.extension) {
        candidates.retain(|(opt, _)| !opt.extension);
    }
    match candidates.as_slice() {
        [] => Err(format!("unrecognized option '--{name}'")),
        // If all names belong to the same option, the abbreviation is not ambiguous.
        [first, others @ ..] if others.iter().all(|(opt, _)| std::ptr::eq(*opt, first.0)) => Ok(*first),
        _ => {
            let names: String = candidates.iter().map(|(_, long)| format!(" '--{long}'")).collect();
            Err(format!("option '--{name}' is ambiguous; possibilities:{names}"))
        }
    }
}

fn all(groups: &'static [Group]) -> impl Iterator<Item = &'static Opt> {
    groups.iter().flat_map(|group| group.options)
}

fn invalid_short(letter: char) -> String {
    format!("invalid option -- '{letter}'")
}

fn missing_argument(typed_as: &str) -> String {
    match typed_as.strip_prefix("--") {
        Some(_) => format!("option '{typed_as}' requires an argument"),
        None => format!("option requires an argument -- '{}'", typed_as.trim_start_matches('-')),
    }
}
