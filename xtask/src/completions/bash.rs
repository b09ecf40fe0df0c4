//! Completion for bash.

use pesto::options::{FLOW_CONDITIONS, FRAME_CONDITIONS, Syntax};

use super::{Argument, Flag, Program, Rest, Word, cases, conditions, first_words, title, with_argument};

/// The script for bash.
pub(super) fn script(program: &Program) -> String {
    let names = |wanted: &dyn Fn(&Flag) -> bool, separator: &str| -> String {
        let wanted = program.options.iter().filter(|opt| wanted(opt));
        wanted.flat_map(Flag::names).collect::<Vec<_>>().join(separator)
    };
    let takes = |wanted: Argument| move |opt: &Flag| opt.argument == wanted;
    let cases = [
        (
            names(&takes(Argument::File), "|"),
            "mapfile -t COMPREPLY < <(compgen -f -- \"$current\")\n            ",
        ),
        (
            names(&takes(Argument::Interface), "|"),
            "mapfile -t COMPREPLY < <(cd /sys/class/net && compgen -G \"$current*\")\n            ",
        ),
        (names(&takes(Argument::Other), "|"), ""),
    ];
    let words = program.options.iter().filter_map(|opt| match opt.argument {
        Argument::Words(words) => Some((words, names(&takes(opt.argument), "|"))),
        _ => None,
    });
    let words: String = words
        .map(|(words, names)| {
            let words = words.replace('|', " ");
            format!(
                "        {names})\n            mapfile -t COMPREPLY < <(compgen -W '{words}' -- \"$current\")\n            \
                 return ;;\n"
            )
        })
        .collect();
    let cases: String = cases
        .iter()
        .filter(|(names, _)| !names.is_empty())
        .map(|(names, action)| format!("        {names})\n            {action}return ;;\n"))
        .collect();
    let rest = match program.rest {
        Rest::Command => "mapfile -t COMPREPLY < <(compgen -c -- \"$current\")",
        Rest::File => "mapfile -t COMPREPLY < <(compgen -f -- \"$current\")",
        Rest::Nothing => "COMPREPLY=()",
        Rest::Commands(_) => "_pesto_operand \"$current\"",
    };
    let operands = match program.rest {
        Rest::Commands(commands) => operands(commands, &with_argument(program, "|")),
        _ => String::new(),
    };
    format!(
        r#"{title}
{operands}
_{name}() {{
    local current=$2 previous=$3
    case $previous in
{words}{cases}    esac
    case $current in
        -*) mapfile -t COMPREPLY < <(compgen -W '{all}' -- "$current") ;;
        *) {rest} ;;
    esac
}}
complete -o filenames -F _{name} {name}
"#,
        title = title(program, "bash"),
        name = program.name,
        all = names(&|_| true, " "),
    )
}

/// The functions that complete an operand of `pesto`. `options` are the names of options with an argument.
fn operands(commands: &[Syntax], options: &str) -> String {
    let (mut cases, firsts) = (cases(commands), first_words(commands));
    for Word { word, seconds, .. } in firsts.iter().filter(|first| !first.seconds.is_empty()) {
        let seconds: Vec<&str> = seconds.iter().map(|second| second.word).collect();
        cases += &format!("        '{word} '*) skip=1 kinds=(word none) words='{}' ;;\n", seconds.join(" "));
    }
    format!(
        r#"
_pesto_instances() {{
    local path name
    for path in "${{XDG_RUNTIME_DIR-}}"/passt/*.api; do
        name=${{path##*/}} name=${{name%.api}}
        [[ -S $path && $name != *[!0-9]* ]] && echo "$name"
    done
}}

_pesto_operand() {{
    local current=$1 skip=0 words='{firsts}' index operands=() kinds=(start none)
    # The value of a condition.
    [[ ${{COMP_WORDS[COMP_CWORD]}} == = || ${{COMP_WORDS[COMP_CWORD - 1]}} == = ]] && return
    for ((index = 1; index < COMP_CWORD; index++)); do
        case ${{COMP_WORDS[index]}} in
            {options})
                ((index++))
                # A word that begins with = is a word of its own for bash.
                [[ ${{COMP_WORDS[index]}} == = ]] && ((index++)) ;;
            -d) [[ ${{operands[0]-}} == top ]] && ((index++)) ;;
            -*) ;;
            *) operands+=("${{COMP_WORDS[index]}}") ;;
        esac
    done
    case "${{operands[0]-}} ${{operands[1]-}}" in
{cases}    esac
    index=$((${{#operands[@]}} - skip))
    case ${{kinds[index]-${{kinds[-1]}}}} in
        start) words+=" $(_pesto_instances)" ;;&
        server) words=$(_pesto_instances) ;;&
        flows) words='{flows}' && compopt -o nospace +o filenames ;;&
        frames) words='{frames}' && compopt -o nospace +o filenames ;;&
        start | word | server | flows | frames) mapfile -t COMPREPLY < <(compgen -W "$words" -- "$current") ;;&
        start | server | file) mapfile -t -O "${{#COMPREPLY[@]}}" COMPREPLY < <(compgen -f -- "$current") ;;
    esac
}}
"#,
        firsts = firsts.iter().map(|first| first.word).collect::<Vec<_>>().join(" "),
        flows = conditions(&FLOW_CONDITIONS),
        frames = conditions(&FRAME_CONDITIONS),
    )
}
