//! Completion for nushell: the signature of an external command.

use pesto::options::{Operand, Syntax};

use super::{Argument, Flag, Program, Rest, title};

/// The script for nushell.
pub(super) fn script(program: &Program) -> String {
    let name = program.name;
    let options: String = program.options.iter().map(|opt| lines(name, opt)).collect();
    let rest = match program.rest {
        Rest::Command => "    ...command: string # command and its arguments, or a PID\n",
        Rest::File => "    ...arguments: path\n",
        Rest::Nothing => "",
        Rest::Commands(_) => {
            "    server?: path@\"nu-complete pesto instances\" # process ID, or path of a socket\n"
        }
    };
    if let Rest::Commands(commands) = program.rest {
        return format!(
            "{}\n\n{INSTANCES}\nexport extern \"{name}\" [\n{options}{rest}]\n{}",
            title(program, "nushell"),
            commands.iter().map(command).collect::<String>()
        );
    }
    format!(
        "{title}\n\ndef \"nu-complete {name} interfaces\" [] {{ ls --short-names /sys/class/net | get name }}\n\n\
         export extern \"{name}\" [\n{options}{rest}]\n",
        title = title(program, "nushell"),
    )
}

/// One line for each long name. The short name belongs to the first one.
fn lines(program: &str, opt: &Flag) -> String {
    let value = match opt.argument {
        Argument::None => String::new(),
        Argument::Interface => format!(": string@\"nu-complete {program} interfaces\""),
        Argument::File => ": path".into(),
        Argument::Words(_) | Argument::Other => ": string".into(),
    };
    let mut letter = opt.short.map(|letter| format!("(-{letter})")).unwrap_or_default();
    let line =
        |name: &&str| format!("    --{name}{}{value} # {}\n", std::mem::take(&mut letter), opt.purpose);
    opt.long.iter().map(line).collect()
}

/// The process IDs of instances.
const INSTANCES: &str = r#"def "nu-complete pesto instances" [] {
    let folder = $env.XDG_RUNTIME_DIR? | default "/nonexistent" | path join passt
    if not ($folder | path exists) { return [] }
    ls --short-names $folder | get name | where $it =~ '^[0-9]+\.api$' | str replace '.api' ''
}
"#;

/// A command of `pesto`.
fn command(command: &Syntax) -> String {
    let operands: String = command
        .operands
        .iter()
        .map(|operand| match operand {
            Operand::Server => "    server?: path@\"nu-complete pesto instances\"\n",
            Operand::File => "    file: path\n",
            Operand::Destination => "    destination: string\n",
            Operand::Filter => "    ...filter: string\n",
            Operand::FlowConditions | Operand::FrameConditions => "    ...conditions: string\n",
        })
        .collect();
    let options = match command.words[0] {
        "policy" => "    --debug(-d) # Print the tables as they are received\n",
        "top" => "    --interval(-d): string # Seconds from one list to the next\n",
        "capture" => "",
        _ => "    --json # Print JSON\n",
    };
    let (words, help) = (command.words.join(" "), command.help);
    format!("\n# pesto: {help}\nexport extern \"pesto {words}\" [\n{options}{operands}]\n")
}
