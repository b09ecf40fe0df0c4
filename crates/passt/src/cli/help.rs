//! Help and version texts. The help text is generated from the table of options.

use super::options::{Action, Modes, Opt, groups};
use crate::config::Mode;

/// The capabilities of a vhost-user back-end, in the format that front-ends expect (behaviour §2.2).
pub(super) const CAPABILITIES: &str = "{\n  \"type\": \"net\"\n}\n";

/// Column at which descriptions start.
const COLUMN: usize = 28;

/// The help text of a mode.
pub(super) fn usage(program: &str, mode: Mode) -> String {
    let mut text = match mode {
        Mode::Pasta => format!(
            "Usage: {program} [OPTION]... [COMMAND [ARGUMENT]...]\n       \
             {program} [OPTION]... PID\n       \
             {program} [OPTION]... --netns PATH|NAME\n\n\
             Connect a network namespace to the host's network: a new one for COMMAND or a\n\
             shell, that of the process PID, or the one with this PATH or NAME.\n"
        ),
        Mode::Slirp4netns => format!(
            "Usage: {program} [OPTION]... PID|PATH TAPNAME\n\n\
             Connect the network namespace of the process PID, or the one with this PATH, to\n\
             the host's network, through a virtual network on the interface TAPNAME.\n"
        ),
        Mode::Passt => {
            format!("Usage: {program} [OPTION]...\n\nConnect a virtual machine to the host's network.\n")
        }
    };
    for group in groups(mode) {
        let mut options = group.options.iter().filter(|opt| in_mode(opt, mode)).peekable();
        if options.peek().is_some() {
            text.push_str(&format!("\n{}:\n", group.title));
        }
        for opt in options {
            push_option(&mut text, opt);
        }
    }
    text
}

/// The program's name, version and licence.
pub(super) fn version(mode: Mode) -> String {
    format!(
        "{} {}\npasst-rs, free software: you may change and redistribute it under the terms of the\n\
         Apache License 2.0 or of the MIT licence, as you choose. There is no warranty, to\n\
         the extent permitted by law.\n",
        mode.name(),
        crate::version::VERSION
    )
}

fn in_mode(opt: &Opt, mode: Mode) -> bool {
    match opt.modes {
        // slirp4netns has a table of its own.
        _ if mode == Mode::Slirp4netns => true,
        Modes::Both => true,
        Modes::MainlyPasst | Modes::Passt | Modes::VhostUser => mode == Mode::Passt,
        Modes::Pasta => mode == Mode::Pasta,
    }
}

fn push_option(text: &mut String, opt: &Opt) {
    let short = opt.short.map_or("    ".into(), |letter| format!("-{letter}, "));
    let long: Vec<String> = opt.long.iter().map(|name| format!("--{name}")).collect();
    let argument = match opt.action {
        Action::Value(name, _) => format!(" {name}"),
        Action::Ports(..) => " SPEC".into(),
        Action::Flag(_) | Action::Show(_) => String::new(),
    };
    let mut left = format!("  {short}{}{argument}", long.join(", "));
    if left.len() + 2 > COLUMN {
        text.push_str(&left);
        text.push('\n');
        left.clear();
    }
    for line in opt.help.lines() {
        text.push_str(&format!("{left:COLUMN$}{line}\n"));
        left.clear();
    }
}
