//! Completion for bash.

use passt::cli::options::Opt;

use super::{Argument, Program, Rest, argument, title};

/// The script for bash.
pub(super) fn script(program: &Program) -> String {
    let names = |wanted: &dyn Fn(&Opt) -> bool, separator: &str| -> String {
        let of = |opt: &&Opt| {
            let long = opt.long.iter().map(|name| format!("--{name}"));
            let short = opt.short.map(|letter| format!("-{letter}"));
            short.into_iter().chain(long).collect::<Vec<_>>()
        };
        program
            .options
            .iter()
            .copied()
            .filter(|opt| wanted(opt))
            .flat_map(|opt| of(&opt))
            .collect::<Vec<_>>()
            .join(separator)
    };
    let takes = |wanted: Argument| move |opt: &Opt| argument(opt) == wanted;
    let cases = [
        (
            names(&takes(Argument::File), "|"),
            "mapfile -t COMPREPLY < <(compgen -f -- \"$current\")\n            ",
        ),
        (
            names(&takes(Argument::Interface), "|"),
            "mapfile -t COMPREPLY < <(cd /sys/class/net && compgen -G \"$current*\")\n            ",
        ),
        (names(&|opt| matches!(argument(opt), Argument::Other | Argument::Words(_)), "|"), ""),
    ];
    let cases: String = cases
        .iter()
        .filter(|(names, _)| !names.is_empty())
        .map(|(names, action)| format!("        {names})\n            {action}return ;;\n"))
        .collect();
    let rest = match program.rest {
        Rest::Command => "mapfile -t COMPREPLY < <(compgen -c -- \"$current\")",
        Rest::File => "mapfile -t COMPREPLY < <(compgen -f -- \"$current\")",
        Rest::Nothing => "COMPREPLY=()",
    };
    format!(
        r#"{title}

_{name}() {{
    local current=$2 previous=$3
    case $previous in
{cases}    esac
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
