//! Completion for nushell: the signature of an external command.

use passt::cli::options::Opt;

use super::{Argument, Program, Rest, argument, purpose, title};

/// The script for nushell.
pub(super) fn script(program: &Program) -> String {
    let name = program.name;
    let options: String = program.options.iter().map(|opt| lines(name, opt)).collect();
    let rest = match program.rest {
        Rest::Command => "    ...command: string # command and its arguments, or a PID\n",
        Rest::File => "    ...arguments: path\n",
        Rest::Nothing => "",
    };
    format!(
        "{title}\n\ndef \"nu-complete {name} interfaces\" [] {{ ls --short-names /sys/class/net | get name }}\n\n\
         export extern \"{name}\" [\n{options}{rest}]\n",
        title = title(program, "nushell"),
    )
}

/// One line for each long name. The short name belongs to the first one.
fn lines(program: &str, opt: &Opt) -> String {
    let value = match argument(opt) {
        Argument::None => String::new(),
        Argument::Interface => format!(": string@\"nu-complete {program} interfaces\""),
        Argument::File => ": path".into(),
        Argument::Words(_) | Argument::Other => ": string".into(),
    };
    let mut letter = opt.short.map(|letter| format!("(-{letter})")).unwrap_or_default();
    let line =
        |name: &&str| format!("    --{name}{}{value} # {}\n", std::mem::take(&mut letter), purpose(opt));
    opt.long.iter().map(line).collect()
}
