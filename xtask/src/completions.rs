//! Completion of the command line in shells.

use passt::cli::options::{Action, Opt};

use crate::support::{options_of_pasta, supported};

/// The completion script for bash. It completes the names of options, the files and interfaces that are arguments of
/// options, and the command after the options.
pub(crate) fn bash() -> String {
    let options: Vec<&Opt> = options_of_pasta().filter(|opt| supported(opt)).collect();
    let names = |wanted: &dyn Fn(&Opt) -> bool, separator: &str| -> String {
        let of = |opt: &&Opt| {
            let long = opt.long.iter().map(|name| format!("--{name}"));
            let short = opt.short.map(|letter| format!("-{letter}"));
            short.into_iter().chain(long).collect::<Vec<_>>()
        };
        options.iter().filter(|opt| wanted(opt)).flat_map(of).collect::<Vec<_>>().join(separator)
    };
    let takes = |argument: &'static str| move |opt: &Opt| matches!(opt.action, Action::Value(name, _) if name == argument);
    let interface = |opt: &Opt| matches!(opt.long[0], "interface" | "outbound-if4" | "outbound-if6");
    let file = |opt: &Opt| takes("PATH")(opt) || takes("PATH|NAME")(opt) || takes("DIR")(opt);
    let other = |opt: &Opt| {
        matches!(opt.action, Action::Value(..) | Action::Ports(..)) && !interface(opt) && !file(opt)
    };
    format!(
        r#"# Completion of pasta(1) for bash. Made by `cargo xtask completions`.

_pasta() {{
    local current=$2 previous=$3
    case $previous in
        {files})
            mapfile -t COMPREPLY < <(compgen -f -- "$current")
            return ;;
        {interfaces})
            mapfile -t COMPREPLY < <(cd /sys/class/net && compgen -G "$current*")
            return ;;
        {others})
            return ;;
    esac
    case $current in
        -*) mapfile -t COMPREPLY < <(compgen -W '{all}' -- "$current") ;;
        *) mapfile -t COMPREPLY < <(compgen -c -- "$current") ;;
    esac
}}
complete -o filenames -F _pasta pasta
"#,
        files = names(&file, "|"),
        interfaces = names(&interface, "|"),
        others = names(&other, "|"),
        all = names(&|_| true, " "),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn supported_options_are_completed() {
        let text = bash();
        for opt in options_of_pasta() {
            let name = format!("--{}", opt.long[0]);
            let listed = text.split([' ', '\'', '|', ')']).any(|word| word == name);
            assert_eq!(listed, supported(opt), "{name}");
        }
    }
}
