//! Completion of the command line in shells.

mod bash;
mod fish;
mod nushell;
mod zsh;

use passt::cli::options::{Action, Modes, Opt, all};

use crate::support::{options_of_pasta, options_of_slirp4netns, supported};

/// A shell: the file below a prefix that completes a program (`*` is the program), and the function that writes
/// the file.
struct Shell {
    path: &'static str,
    script: fn(&Program) -> String,
}

/// The shells.
const SHELLS: [Shell; 4] = [
    Shell { path: "share/bash-completion/completions/*", script: bash::script },
    Shell { path: "share/zsh/vendor-completions/_*", script: zsh::script },
    Shell { path: "share/fish/vendor_completions.d/*.fish", script: fish::script },
    Shell { path: "share/nushell/vendor/autoload/*.nu", script: nushell::script },
];

/// A program whose command line is completed.
struct Program {
    name: &'static str,
    /// The options that the program supports.
    options: Vec<&'static Opt>,
    rest: Rest,
}

/// The arguments that are not options.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rest {
    /// A command with its own arguments.
    Command,
    /// The path of a file.
    File,
    /// Nothing.
    Nothing,
}

/// The argument of an option, for completion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Argument {
    /// The option has no argument.
    None,
    /// An interface of the host.
    Interface,
    /// A file or folder.
    File,
    /// One of these words.
    Words(&'static str),
    /// Something that can't be completed.
    Other,
}

/// The programs.
fn programs() -> [Program; 3] {
    let passt = all().filter(|opt| opt.modes != Modes::Pasta && supported(opt)).collect();
    let pasta = options_of_pasta().filter(|opt| supported(opt)).collect();
    [
        Program { name: "passt", options: passt, rest: Rest::Nothing },
        Program { name: "pasta", options: pasta, rest: Rest::Command },
        Program { name: "slirp4netns", options: options_of_slirp4netns().collect(), rest: Rest::File },
    ]
}

/// All scripts: the program, the path below a prefix, and the content.
pub(crate) fn scripts() -> impl Iterator<Item = (&'static str, String, String)> {
    programs().into_iter().flat_map(|program| {
        SHELLS.map(|shell| (program.name, shell.path.replace('*', program.name), (shell.script)(&program)))
    })
}

/// The first comment of each script.
fn title(program: &Program, shell: &str) -> String {
    format!("# Completion of {}(1) for {shell}. Made by `cargo xtask completions`.", program.name)
}

/// The argument of an option.
fn argument(opt: &Opt) -> Argument {
    let interfaces = ["interface", "outbound-if4", "outbound-if6", "outbound-addr", "outbound-addr6"];
    match opt.action {
        Action::Flag(_) | Action::Show(_) => Argument::None,
        Action::Value(..) if interfaces.contains(&opt.long[0]) => Argument::Interface,
        Action::Value("PATH" | "PATH|NAME" | "DIR", _) => Argument::File,
        Action::Value(words, _)
            if words.contains('|') && words.chars().all(|c| c == '|' || c.is_lowercase()) =>
        {
            Argument::Words(words)
        }
        Action::Value(..) | Action::Ports(..) => Argument::Other,
    }
}

/// The name of an option's argument in the help text.
fn argument_name(opt: &Opt) -> &'static str {
    match opt.action {
        Action::Flag(_) | Action::Show(_) => "",
        Action::Value(name, _) => name,
        Action::Ports(..) => "SPEC",
    }
}

/// The first line of an option's help text.
fn purpose(opt: &Opt) -> &'static str {
    opt.help.lines().next().unwrap_or_default().trim_end_matches([':', ','])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn supported_options_are_completed() {
        for program in programs() {
            let options: Vec<&str> = program.options.iter().flat_map(|opt| opt.long).copied().collect();
            for shell in &SHELLS {
                let script = (shell.script)(&program);
                // In fish, an option has no dashes.
                let mark = if shell.path.ends_with(".fish") { "-l " } else { "--" };
                let words: Vec<&str> = script
                    .split(mark)
                    .skip(1)
                    .filter_map(|rest| {
                        rest.split(|c: char| !c.is_ascii_alphanumeric() && c != '-')
                            .find(|word| !word.is_empty())
                    })
                    .collect();
                for name in &options {
                    assert!(words.contains(name), "{}, {}: {name}", program.name, shell.path);
                }
                for opt in all().filter(|opt| !supported(opt)) {
                    assert!(
                        !words.contains(&opt.long[0]),
                        "{}, {}: {:?}",
                        program.name,
                        shell.path,
                        opt.long
                    );
                }
            }
        }
    }
}
