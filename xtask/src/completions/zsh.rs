//! Completion for zsh: arguments of `_arguments`.

use pesto::options::{FLOW_CONDITIONS, FRAME_CONDITIONS, Syntax};

use super::{Argument, Flag, Program, Rest, Word, cases, conditions, first_words, title, with_argument};

/// The script for zsh.
pub(super) fn script(program: &Program) -> String {
    let options: String =
        program.options.iter().flat_map(specs).map(|spec| format!("    {spec} \\\n")).collect();
    let rest = match program.rest {
        Rest::Command => "'(-)1:command or PID:_command_names -e' '*::arguments:_normal'",
        Rest::File => "'*:file:_files'",
        Rest::Nothing => "'*::'",
        Rest::Commands(_) => "'*: :_pesto_operand'",
    };
    let operands = match program.rest {
        Rest::Commands(commands) => operands(commands, &with_argument(program, "|")),
        _ => String::new(),
    };
    format!(
        "#compdef {}\n{}\n{operands}\n_arguments -s -S \\\n{options}    {rest}\n",
        program.name,
        title(program, "zsh")
    )
}

/// One specification for each name of an option.
fn specs(opt: &Flag) -> Vec<String> {
    let purpose = escape(opt.purpose);
    let value = match opt.argument {
        Argument::None => String::new(),
        Argument::Interface => format!(":{}:_net_interfaces", escape(opt.argument_name)),
        Argument::File => format!(":{}:_files", escape(opt.argument_name)),
        Argument::Words(words) => format!(":{}:({})", escape(opt.argument_name), words.replace('|', " ")),
        Argument::Other => format!(":{}: ", escape(opt.argument_name)),
    };
    // A value may follow in the same word.
    let (short, long) = if value.is_empty() { ("", "") } else { ("+", "=") };
    let letter = opt.short.map(|letter| format!("'*-{letter}{short}[{purpose}]{value}'"));
    let names = opt.long.iter().map(|name| format!("'*--{name}{long}[{purpose}]{value}'"));
    letter.into_iter().chain(names).collect()
}

/// The functions that complete an operand of `pesto`. `options` are the names of options with an argument.
fn operands(commands: &[Syntax], options: &str) -> String {
    let described = |word: &Word| format!("'{}:{}'", word.word, escape(word.help));
    let (mut cases, firsts) = (cases(commands), first_words(commands));
    let starts: Vec<String> = firsts.iter().map(described).collect();
    let mut lists = String::new();
    for Word { word, seconds, .. } in firsts.iter().filter(|first| !first.seconds.is_empty()) {
        cases += &format!("        '{word} '*) skip=1 kinds=({word} none) ;;\n");
        let seconds: Vec<String> = seconds.iter().map(described).collect();
        lists += &format!(
            "        {word}) commands=({}); _describe command commands && ret=0 ;;\n",
            seconds.join(" ")
        );
    }
    format!(
        r#"
_pesto_operand() {{
    local index skip=0 ret=1
    local -a operands commands instances kinds=(start none)
    for ((index = 2; index < CURRENT; index++)); do
        case $words[index] in
            ({options}) ((index++)) ;;
            (-d) [[ $operands[1] == top ]] && ((index++)) ;;
            (-*) ;;
            (*) operands+=($words[index]) ;;
        esac
    done
    case "$operands[1] $operands[2]" in
{cases}    esac
    index=$(($#operands - skip + 1))
    case ${{kinds[index]:-$kinds[-1]}} in
        start) commands=({starts}); _describe command commands && ret=0 ;|
        start|server)
            instances=(${{XDG_RUNTIME_DIR:-/nonexistent}}/passt/<->.api(N=:t:r))
            _describe 'process ID' instances && ret=0 ;|
        start|server|file) _files && ret=0 ;;
{lists}        flows) compadd -S '' -- {flows} && ret=0 ;;
        frames) compadd -S '' -- {frames} && ret=0 ;;
    esac
    return ret
}}
"#,
        starts = starts.join(" "),
        flows = conditions(&FLOW_CONDITIONS),
        frames = conditions(&FRAME_CONDITIONS),
    )
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
