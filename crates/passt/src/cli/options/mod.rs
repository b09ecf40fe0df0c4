//! The table of all options (behaviour §2.2), by group, each group in a file with what its options do.

mod address;
mod dns;
mod link;
mod mapping;
mod namespace;
mod ports;
mod process;
mod protocol;

use std::ffi::OsStr;

use engine::forward::{Protocol, spec::Direction};

use super::finish::Args;

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
    /// What it takes and does.
    pub action: Action,
    /// Where it may be used.
    pub modes: Modes,
    /// What the help text says, in lines of at most 50 characters.
    pub help: &'static str,
}

/// What an option takes and does.
#[derive(Clone, Copy, Debug)]
pub enum Action {
    /// No argument.
    Flag(fn(&mut Args)),
    /// An argument: its name in the help text, and what takes it.
    Value(&'static str, fn(&mut Args, &OsStr) -> Result<(), String>),
    /// A port specifier. They are read last, as they depend on other options.
    Ports(Direction, Protocol),
    /// Show something instead of doing anything.
    Show(Show),
}

/// What to show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Show {
    /// The help text.
    Help,
    /// Name, version and licence.
    Version,
    /// Capabilities of a vhost-user back-end, in JSON.
    Capabilities,
}

/// The modes in which an option may be used (behaviour §2.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Modes {
    /// All.
    Both,
    /// passt, with or without vhost-user.
    Passt,
    /// passt with vhost-user.
    VhostUser,
    /// pasta.
    Pasta,
}

/// Every option, by group.
pub static GROUPS: [Group; 8] = [
    Group { title: "Process and output", options: process::OPTIONS },
    Group { title: "Connection to the guest", options: link::OPTIONS },
    Group { title: "Namespace", options: namespace::OPTIONS },
    Group { title: "Addresses and routes", options: address::OPTIONS },
    Group { title: "Address translation", options: mapping::OPTIONS },
    Group { title: "Names and DNS", options: dns::OPTIONS },
    Group { title: "Protocols and services", options: protocol::OPTIONS },
    Group { title: "Port forwarding", options: ports::OPTIONS },
];

/// Every option.
pub fn all() -> impl Iterator<Item = &'static Opt> {
    GROUPS.iter().flat_map(|group| group.options)
}

/// A row of an option that takes no argument.
const fn flag(long: &'static [&'static str], set: fn(&mut Args), help: &'static str) -> Opt {
    Opt { long, short: None, action: Action::Flag(set), modes: Modes::Both, help }
}

/// A row of an option with an argument of that name.
const fn value(
    long: &'static [&'static str],
    argument: &'static str,
    set: fn(&mut Args, &OsStr) -> Result<(), String>,
    help: &'static str,
) -> Opt {
    Opt { long, short: None, action: Action::Value(argument, set), modes: Modes::Both, help }
}

impl Opt {
    /// The row with a short name.
    const fn short(mut self, letter: char) -> Self {
        self.short = Some(letter);
        self
    }

    /// The row for some modes only.
    const fn only(mut self, modes: Modes) -> Self {
        self.modes = modes;
        self
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    /// behaviour §2.2: the short letters, all of them and no other.
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
        for opt in all() {
            for line in opt.help.lines() {
                assert!(line.chars().count() <= 50 && line == line.trim_end(), "{line:?}");
            }
        }
    }
}
