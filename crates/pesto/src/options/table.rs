//! The options and commands, from which parsing, the help text and completions follow.

use engine::forward::Protocol;
use engine::forward::spec::Direction;

use super::Request;
use control::edit::Change;

/// One option.
pub struct Opt {
    /// Its long name.
    pub long: &'static str,
    /// Its short name.
    pub short: Option<char>,
    pub(super) action: Action,
    /// Description, in lines of at most 50 characters.
    pub help: &'static str,
}

#[derive(Clone, Copy)]
pub(super) enum Action {
    Flag(fn(&mut Request)),
    Clear,
    Ports(Direction, Protocol),
    Interval,
    Help,
    Version,
}

impl Opt {
    /// The name of its argument in the help text, if it has one.
    #[must_use]
    pub const fn argument(&self) -> Option<&'static str> {
        match self.action {
            Action::Clear => Some("TABLE"),
            Action::Ports(..) => Some("SPEC"),
            Action::Interval => Some("SECONDS"),
            Action::Flag(_) | Action::Help | Action::Version => None,
        }
    }
}

static OPTIONS: [Opt; 12] = [
    Opt {
        long: "add",
        short: Some('A'),
        action: Action::Flag(|request| request.changes.push(Change::Add)),
        help: "Add the rules of options that follow",
    },
    Opt {
        long: "delete",
        short: Some('D'),
        action: Action::Flag(|request| request.changes.push(Change::Delete)),
        help: "Delete the rules of options that follow",
    },
    Opt {
        long: "clear",
        short: Some('C'),
        action: Action::Clear,
        help: "Delete all rules of HOST (those of -t and -u)\nor of SPLICE (those of -T and -U)",
    },
    Opt {
        long: "tcp-ports",
        short: Some('t'),
        action: Action::Ports(Direction::Inbound, Protocol::Tcp),
        help: "TCP ports to forward to the guest or namespace,\nas for passt and pasta; may be repeated. Without\n\
               -A or -D before it, the rules replace all rules\nof HOST",
    },
    Opt {
        long: "udp-ports",
        short: Some('u'),
        action: Action::Ports(Direction::Inbound, Protocol::Udp),
        help: "The same for UDP",
    },
    Opt {
        long: "tcp-ns",
        short: Some('T'),
        action: Action::Ports(Direction::Outbound, Protocol::Tcp),
        help: "TCP ports of the namespace to forward to the host;\nwith SPLICE in place of HOST",
    },
    Opt {
        long: "udp-ns",
        short: Some('U'),
        action: Action::Ports(Direction::Outbound, Protocol::Udp),
        help: "The same for UDP",
    },
    Opt {
        long: "show",
        short: Some('s'),
        action: Action::Flag(|request| request.show = true),
        help: "Show the rules before and after a change",
    },
    Opt {
        long: "json",
        short: None,
        action: Action::Flag(|request| request.json = true),
        help: "Print JSON",
    },
    Opt {
        long: "debug",
        short: Some('d'),
        action: Action::Flag(|request| request.debug = true),
        help: "Print the tables as they are received",
    },
    Opt {
        long: "interval",
        short: None,
        action: Action::Interval,
        help: "Seconds from one list of top to the next (1);\nafter the word top also -d",
    },
    Opt { long: "help", short: Some('h'), action: Action::Help, help: "Show this text and exit" },
];

/// This option has no short name, and comes last in the help text.
static VERSION: Opt =
    Opt { long: "version", short: None, action: Action::Version, help: "Show name and version and exit" };

/// All options, in the order of the help text.
pub fn all() -> impl Iterator<Item = &'static Opt> {
    OPTIONS.iter().chain([&VERSION])
}

/// The syntax of a command: the words that begin the command line, and its operands.
pub struct Syntax {
    /// The words.
    pub words: &'static [&'static str],
    /// Its operands in the help text.
    pub usage: &'static str,
    /// What its operands are. Any number of them may be missing at the end, except for those that it needs.
    pub operands: &'static [Operand],
    /// What it does, in a few words.
    pub help: &'static str,
}

/// What an operand of a command is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operand {
    /// A server: a process ID, or the path of its socket.
    Server,
    /// A file.
    File,
    /// A destination of the guest.
    Destination,
    /// Conditions for flows, `NAME=VALUE`.
    FlowConditions,
    /// Conditions for frames, `NAME=VALUE`.
    FrameConditions,
    /// Words of a filter.
    Filter,
}

/// The names of conditions for flows, and those of their order and number.
pub const FLOW_CONDITIONS: [&str; 11] = [
    "flow",
    "protocol",
    "direction",
    "bypass",
    "address",
    "port",
    "name",
    "state",
    "sort",
    "ascending",
    "limit",
];
/// The names of conditions for frames.
pub const FRAME_CONDITIONS: [&str; 3] = ["protocol", "address", "port"];

/// The commands, in the order of the help text.
pub static COMMANDS: [Syntax; 9] = [
    Syntax {
        words: &["policy", "show"],
        usage: "[PATH]",
        operands: &[Operand::Server],
        help: "show the rules for what the guest may reach",
    },
    Syntax {
        words: &["policy", "replace"],
        usage: "FILE [PATH]",
        operands: &[Operand::File, Operand::Server],
        help: "replace these rules by those of a file",
    },
    Syntax {
        words: &["policy", "suggest"],
        usage: "LOG",
        operands: &[Operand::File],
        help: "print rules for what a log says was refused",
    },
    Syntax {
        words: &["flows"],
        usage: "[PATH [NAME=VALUE]...]",
        operands: &[Operand::Server, Operand::FlowConditions],
        help: "list flows",
    },
    Syntax {
        words: &["top"],
        usage: "[-d SECONDS] [PATH [FILTER]...]",
        operands: &[Operand::Server, Operand::Filter],
        help: "show flows with their rates on the whole screen",
    },
    Syntax {
        words: &["log"],
        usage: "[PATH]",
        operands: &[Operand::Server],
        help: "print events as they happen",
    },
    Syntax { words: &["metrics"], usage: "[PATH]", operands: &[Operand::Server], help: "print metrics" },
    Syntax {
        words: &["why"],
        usage: "[PROTOCOL/]HOST[:PORT] [PATH]",
        operands: &[Operand::Destination, Operand::Server],
        help: "say what would happen to a flow to an address or a name",
    },
    Syntax {
        words: &["capture"],
        usage: "FILE [PATH] [NAME=VALUE]...",
        operands: &[Operand::File, Operand::Server, Operand::FrameConditions],
        help: "capture frames until Ctrl-C",
    },
];
