//! Completion for fish.

use passt::cli::options::Opt;

use super::{Argument, Program, Rest, argument, purpose, title};

/// The script for fish.
pub(super) fn script(program: &Program) -> String {
    let name = program.name;
    let options: String = program.options.iter().map(|opt| line(name, opt)).collect();
    let rest = match program.rest {
        Rest::Command => format!("complete -c {name} -x -a '(__fish_complete_subcommand)'\n"),
        Rest::File => String::new(),
        Rest::Nothing => format!("complete -c {name} -f\n"),
    };
    format!("{}\n\n{rest}{options}", title(program, "fish"))
}

fn line(program: &str, opt: &Opt) -> String {
    let short = opt.short.map(|letter| format!(" -s {letter}")).unwrap_or_default();
    let long: String = opt.long.iter().map(|name| format!(" -l {name}")).collect();
    let value = match argument(opt) {
        Argument::None => String::new(),
        Argument::Interface => " -x -a '(path basename /sys/class/net/*)'".into(),
        Argument::File => " -r -F".into(),
        Argument::Words(words) => format!(" -x -a '{}'", words.replace('|', " ")),
        Argument::Other => " -x".into(),
    };
    let purpose = purpose(opt).replace('\\', "\\\\").replace('\'', "\\'");
    format!("complete -c {program}{short}{long}{value} -d '{purpose}'\n")
}
