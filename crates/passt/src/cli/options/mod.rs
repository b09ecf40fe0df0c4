//! The table of all options (behaviour §2.2). Each group has a file, with the functions that store its options.

mod address;
mod dns;
mod guard;
mod link;
mod mapping;
mod namespace;
mod ports;
mod process;
mod protocol;
mod slirp4netns;

use std::ffi::OsStr;

use engine::forward::{Protocol, spec::Direction};

use super::finish::Args;
use crate::config::Mode;

/// Maximum MTU. A frame of this MTU, with its Ethernet header, is 65535 bytes long (behaviour §2.2).
const MTU_MAX: u16 = 65521;

/// A heading of the help text, and the options under it.
#[derive(Debug)]
pub struct Group {
    /// The heading.
    pub title: &'static str,
    /// The options, in the order of the help text.
    pub options: &'static [Opt],
}

/// One option.
#[derive(Debug)]
pub struct Opt {
    /// Long names, the preferred one first.
    pub long: &'static [&'static str],
    /// Short name.
    pub short: Option<char>,
    /// The option's argument, and the function that stores the argument.
    pub action: Action,
    /// The modes in which an option of passt or pasta may be used.
    pub modes: Modes,
    /// The option's help text, in lines of at most 50 characters.
    pub help: &'static str,
    /// The C programs do not have this option. An abbreviation that also matches an option of the C programs means that
    /// option.
    pub extension: bool,
}

/// The argument of an option, and the function that stores the argument.
#[derive(Clone, Copy, Debug)]
pub enum Action {
    /// No argument.
    Flag(fn(&mut Args)),
    /// One argument: its name in the help text, and the function that stores the argument.
    Value(&'static str, fn(&mut Args, &OsStr) -> Result<(), String>),
    /// A port specifier. Port specifiers are parsed last: they depend on other options.
    Ports(Direction, Protocol),
    /// The option prints a text, and the program exits.
    Show(Show),
}

/// The text to print.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Show {
    /// The help text of the mode.
    Help,
    /// Name, version and licence.
    Version,
    /// Capabilities of a vhost-user back-end, in JSON.
    Capabilities,
}

/// The modes in which an option may be used (behaviour §2.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Modes {
    /// Both modes.
    Both,
    /// Both modes, but pasta has no use for the option, or the option selects passt mode. Pasta's help leaves it out.
    MainlyPasst,
    /// passt mode, with or without vhost-user.
    Passt,
    /// passt mode with vhost-user.
    VhostUser,
    /// pasta mode.
    Pasta,
}

/// The options of passt and pasta, by group.
pub static GROUPS: [Group; 9] = [
    Group { title: "Process and output", options: process::OPTIONS },
    Group { title: "Connection to the guest", options: link::OPTIONS },
    Group { title: "Namespace", options: namespace::OPTIONS },
    Group { title: "Addresses and routes", options: address::OPTIONS },
    Group { title: "Address translation", options: mapping::OPTIONS },
    Group { title: "Names and DNS", options: dns::OPTIONS },
    Group { title: "Protocols and services", options: protocol::OPTIONS },
    Group { title: "Port forwarding", options: ports::OPTIONS },
    Group { title: "What the guest may reach", options: guard::OPTIONS },
];

/// The options of the program that has this mode, by group. passt and pasta share a table.
pub fn groups(mode: Mode) -> &'static [Group] {
    match mode {
        Mode::Passt | Mode::Pasta => &GROUPS,
        Mode::Slirp4netns => &slirp4netns::GROUPS,
    }
}

/// Iterates over all options of passt and pasta.
pub fn all() -> impl Iterator<Item = &'static Opt> {
    GROUPS.iter().flat_map(|group| group.options)
}

/// Returns the row of an option without argument.
const fn flag(long: &'static [&'static str], set: fn(&mut Args), help: &'static str) -> Opt {
    Opt { long, short: None, action: Action::Flag(set), modes: Modes::Both, help, extension: false }
}

/// Returns the row of an option that prints a text.
const fn show(long: &'static [&'static str], what: Show, help: &'static str) -> Opt {
    Opt { long, short: None, action: Action::Show(what), modes: Modes::Both, help, extension: false }
}

/// Returns the row of an option with an argument. The help text calls the argument `argument`.
const fn value(
    long: &'static [&'static str],
    argument: &'static str,
    set: fn(&mut Args, &OsStr) -> Result<(), String>,
    help: &'static str,
) -> Opt {
    Opt {
        long,
        short: None,
        action: Action::Value(argument, set),
        modes: Modes::Both,
        help,
        extension: false,
    }
}

impl Opt {
    /// Adds a short name to the option.
    const fn short(mut self, letter: char) -> Self {
        self.short = Some(letter);
        self
    }

    /// Marks an option that the C programs do not have.
    const fn extension(mut self) -> Self {
        self.extension = true;
        self
    }

    /// Limits the option to `modes`.
    const fn only(mut self, modes: Modes) -> Self {
        self.modes = modes;
        self
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    /// behaviour §2.2: the table has all the short letters, and no others.
    #[test]
    fn names_are_unique_and_complete() {
        let mut long = HashSet::new();
        let mut short = String::new();
        for opt in all() {
            assert!(!opt.long.is_empty());
            assert!(opt.long.iter().all(|name| long.insert(*name)), "{:?} twice", opt.long);
            short.extend(opt.short);
        }
        let sorted = |letters: &str| {
            let mut letters: Vec<char> = letters.chars().collect();
            letters.sort_unstable();
            letters
        };
        assert_eq!(sorted(&short), sorted("dqfelhscFIpPmanMgioDSH461tuTU"));
    }

    #[test]
    fn help_fits_a_terminal() {
        let all = [Mode::Pasta, Mode::Slirp4netns].into_iter().flat_map(groups);
        for opt in all.flat_map(|group| group.options) {
            for line in opt.help.lines() {
                assert!(line.chars().count() <= 50 && line == line.trim_end(), "{line:?}");
            }
        }
    }
}
