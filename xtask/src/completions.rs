//! Completion of the command line in shells.

mod bash;
mod fish;
mod nushell;
mod zsh;

use passt::cli::options::{Action, Modes, Opt, all};
use pesto::options::{COMMANDS, Operand, Syntax};

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
    options: Vec<Flag>,
    rest: Rest,
}

/// An option of a program.
struct Flag {
    short: Option<char>,
    long: Vec<&'static str>,
    argument: Argument,
    /// The name of its argument in the help text. Empty if it has none.
    argument_name: &'static str,
    /// The first line of its help text.
    purpose: &'static str,
}

/// The arguments that are not options.
#[derive(Clone, Copy)]
enum Rest {
    /// A command with its own arguments.
    Command,
    /// The path of a file.
    File,
    /// Nothing.
    Nothing,
    /// One of the commands of `pesto`, with its operands, or a server.
    Commands(&'static [Syntax]),
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
fn programs() -> [Program; 4] {
    let passt = all().filter(|opt| opt.modes != Modes::Pasta && supported(opt)).map(flag).collect();
    let pasta = options_of_pasta().filter(|opt| supported(opt)).map(flag).collect();
    let slirp4netns = options_of_slirp4netns().map(flag).collect();
    let pesto = pesto::options::all().map(flag_of_pesto).collect();
    [
        Program { name: "passt", options: passt, rest: Rest::Nothing },
        Program { name: "pasta", options: pasta, rest: Rest::Command },
        Program { name: "slirp4netns", options: slirp4netns, rest: Rest::File },
        Program { name: "pesto", options: pesto, rest: Rest::Commands(&COMMANDS) },
    ]
}

fn flag(opt: &'static Opt) -> Flag {
    let argument_name = match opt.action {
        Action::Flag(_) | Action::Show(_) => "",
        Action::Value(name, _) => name,
        Action::Ports(..) => "SPEC",
    };
    let long = opt.long.to_vec();
    Flag { short: opt.short, long, argument: argument(opt), argument_name, purpose: purpose(opt.help) }
}

fn flag_of_pesto(opt: &'static pesto::options::Opt) -> Flag {
    let argument = match opt.argument() {
        None => Argument::None,
        Some("TABLE") => Argument::Words("HOST|SPLICE"),
        Some(_) => Argument::Other,
    };
    let argument_name = opt.argument().unwrap_or_default();
    Flag { short: opt.short, long: vec![opt.long], argument, argument_name, purpose: purpose(opt.help) }
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

/// A word that a command of `pesto` begins with, or that follows such a word, and what it does.
struct Word {
    word: &'static str,
    help: &'static str,
    /// The words that follow it.
    seconds: Vec<Self>,
}

/// The words that commands begin with.
fn first_words(commands: &[Syntax]) -> Vec<Word> {
    let mut firsts: Vec<Word> = Vec::new();
    for &Syntax { words, help, .. } in commands {
        let of = |word, help| Word { word, help, seconds: Vec::new() };
        match *words {
            [word] => firsts.push(of(word, help)),
            [first, second] => {
                if firsts.last().is_none_or(|last| last.word != first) {
                    firsts.push(of(first, "the rules for what the guest may reach"));
                }
                if let Some(last) = firsts.last_mut() {
                    last.seconds.push(of(second, help));
                }
            }
            _ => {}
        }
    }
    firsts
}

/// The cases of a command's words, for bash and zsh.
fn cases(commands: &[Syntax]) -> String {
    let case = |command: &Syntax| {
        let (skip, words) = (command.words.len(), command.words.join(" "));
        let pattern = if skip > 1 { format!("'{words}'") } else { format!("'{words} '*") };
        format!("        {pattern}) skip={skip} kinds=({}) ;;\n", kinds(command))
    };
    commands.iter().map(case).collect()
}

/// The kinds of the operands of a command, for the scripts. The last one is that of all that follow.
fn kinds(command: &Syntax) -> String {
    let kind = |operand: &Operand| match operand {
        Operand::Server => "server",
        Operand::File => "file",
        Operand::Destination | Operand::Filter => "none",
        Operand::FlowConditions => "flows",
        Operand::FrameConditions => "frames",
    };
    let is_repeated = [Operand::FlowConditions, Operand::FrameConditions];
    let end = command.operands.last().is_none_or(|last| !is_repeated.contains(last)).then_some("none");
    command.operands.iter().map(kind).chain(end).collect::<Vec<_>>().join(" ")
}

/// Names of conditions, as words that are continued.
fn conditions(names: &[&str]) -> String {
    names.iter().map(|name| format!("{name}=")).collect::<Vec<_>>().join(" ")
}

/// The names of the options that have an argument.
fn with_argument(program: &Program, separator: &str) -> String {
    let having = program.options.iter().filter(|opt| opt.argument != Argument::None);
    having.flat_map(Flag::names).collect::<Vec<_>>().join(separator)
}

impl Flag {
    /// Its names, with dashes.
    fn names(&self) -> impl Iterator<Item = String> {
        let short = self.short.map(|letter| format!("-{letter}"));
        short.into_iter().chain(self.long.iter().map(|name| format!("--{name}")))
    }
}

/// The first line of an option's help text.
fn purpose(help: &'static str) -> &'static str {
    help.lines().next().unwrap_or_default().trim_end_matches([':', ',', ';'])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn supported_options_are_completed() {
        for program in programs() {
            let options: Vec<&str> = program.options.iter().flat_map(|opt| opt.long.clone()).collect();
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
                if let Rest::Commands(commands) = program.rest {
                    for word in commands.iter().flat_map(|command| command.words) {
                        assert!(script.contains(word), "{}: {word}", shell.path);
                    }
                    continue;
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
