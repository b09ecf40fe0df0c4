//! Completion for fish.

use pesto::options::{FLOW_CONDITIONS, FRAME_CONDITIONS, Syntax};

use super::{Argument, Flag, Program, Rest, Word, conditions, first_words, kinds, title, with_argument};

/// The script for fish.
pub(super) fn script(program: &Program) -> String {
    let name = program.name;
    let options: String = program.options.iter().map(|opt| line(name, opt)).collect();
    let rest = match program.rest {
        Rest::Command => format!("complete -c {name} -x -a '(__fish_complete_subcommand)'\n"),
        Rest::File => String::new(),
        Rest::Nothing => format!("complete -c {name} -f\n"),
        Rest::Commands(commands) => operands(commands, &with_argument(program, " ")),
    };
    format!("{}\n\n{rest}{options}", title(program, "fish"))
}

fn line(program: &str, opt: &Flag) -> String {
    let short = opt.short.map(|letter| format!(" -s {letter}")).unwrap_or_default();
    let long: String = opt.long.iter().map(|name| format!(" -l {name}")).collect();
    let value = match opt.argument {
        Argument::None => String::new(),
        Argument::Interface => " -x -a '(path basename /sys/class/net/*)'".into(),
        Argument::File => " -r -F".into(),
        Argument::Words(words) => format!(" -x -a '{}'", words.replace('|', " ")),
        Argument::Other => " -x".into(),
    };
    format!("complete -c {program}{short}{long}{value} -d '{}'\n", quoted(opt.purpose))
}

/// The text, for single quotes.
fn quoted(text: &str) -> String {
    text.replace('\\', "\\\\").replace('\'', "\\'")
}

/// Commands of `pesto`, and their operands. `options` are the names of options with an argument.
fn operands(commands: &[Syntax], options: &str) -> String {
    let (mut cases, mut words) = (String::new(), String::new());
    for command in commands {
        let (skip, pattern) = (command.words.len(), command.words.join(" "));
        let rest = if skip > 1 { "" } else { " *" };
        cases += &format!(
            "        case '{pattern}{rest}'\n            set skip {skip}\n            set kinds {}\n",
            kinds(command)
        );
    }
    for Word { word, help, seconds } in first_words(commands) {
        words += &format!("{WHEN} start' -a {word} -d '{}'\n", quoted(help));
        if !seconds.is_empty() {
            cases += &format!(
                "        case '{word} *'\n            set skip 1\n            set kinds {word} none\n"
            );
        }
        for second in seconds {
            words += &format!("{WHEN} {word}' -a {} -d '{}'\n", second.word, quoted(second.help));
        }
    }
    format!(
        r#"function __pesto_instances
    for path in $XDG_RUNTIME_DIR/passt/*.api
        test -S $path; and string match -rg '/([0-9]+)\.api$' -- $path
    end
end

# Prints the kind of the next operand.
function __pesto_next
    set -l operands
    set -l skip 0
    for word in (commandline -opc)[2..]
        if test $skip = 1
            set skip 0
        else if contains -- $word {options}
            set skip 1
        else if test "$operands[1] $word" = 'top -d'
            set skip 1
        else if not string match -q -- '-*' $word
            set -a operands $word
        end
    end
    set skip 0
    set -l kinds start none
    switch "$operands[1] $operands[2]"
{cases}    end
    set -l index (math (count $operands) - $skip + 1)
    if test $index -gt (count $kinds)
        set index -1
    end
    echo $kinds[$index]
end

complete -c pesto -f
{WHEN} start server file' -F
{WHEN} start server' -a '(__pesto_instances)' -d 'process ID'
{WHEN} flows' -a '{flows}'
{WHEN} frames' -a '{frames}'
{words}"#,
        flows = conditions(&FLOW_CONDITIONS),
        frames = conditions(&FRAME_CONDITIONS),
    )
}

/// The start of a line for some kinds of operands.
const WHEN: &str = "complete -c pesto -n 'contains (__pesto_next)";
