//! Completion for zsh: arguments of `_arguments`.

use passt::cli::options::Opt;

use super::{Argument, Program, Rest, argument, argument_name, purpose, title};

/// The script for zsh.
pub(super) fn script(program: &Program) -> String {
    let options: String =
        program.options.iter().flat_map(|opt| specs(opt)).map(|spec| format!("    {spec} \\\n")).collect();
    let rest = match program.rest {
        Rest::Command => "'(-)1:command or PID:_command_names -e' '*::arguments:_normal'",
        Rest::File => "'*:file:_files'",
        Rest::Nothing => "'*::'",
    };
    format!(
        "#compdef {}\n{}\n\n_arguments -s -S \\\n{options}    {rest}\n",
        program.name,
        title(program, "zsh")
    )
}

/// One specification for each name of an option.
fn specs(opt: &Opt) -> Vec<String> {
    let purpose = escape(purpose(opt));
    let value = match argument(opt) {
        Argument::None => String::new(),
        Argument::Interface => format!(":{}:_net_interfaces", escape(argument_name(opt))),
        Argument::File => format!(":{}:_files", escape(argument_name(opt))),
        Argument::Words(words) => format!(":{}:({})", escape(argument_name(opt)), words.replace('|', " ")),
        Argument::Other => format!(":{}: ", escape(argument_name(opt))),
    };
    // A value may follow in the same word.
    let (short, long) = if value.is_empty() { ("", "") } else { ("+", "=") };
    let letter = opt.short.map(|letter| format!("'*-{letter}{short}[{purpose}]{value}'"));
    let names = opt.long.iter().map(|name| format!("'*--{name}{long}[{purpose}]{value}'"));
    letter.into_iter().chain(names).collect()
}

/// Escapes what has a meaning in a specification, or ends a quoted word.
fn escape(text: &str) -> String {
    let mut escaped = String::new();
    for c in text.chars() {
        match c {
            '\'' => escaped.push_str("'\\''"),
            '[' | ']' | ':' | '\\' => escaped.extend(['\\', c]),
            _ => escaped.push(c),
        }
    }
    escaped
}
