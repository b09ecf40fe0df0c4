//! Command lines and their results, as text.

use std::{
    ffi::OsString,
    fmt::{Debug, Write},
};

use passt::{
    cli::{self, Invocation},
    config::{Config, Target},
};

/// The results of these command lines, one per line. An argument that has blanks or is empty is in single quotes.
pub(crate) fn outcomes(command_lines: &str) -> String {
    let mut text = String::new();
    for line in command_lines.lines().map(str::trim).filter(|line| !line.is_empty()) {
        writeln!(text, "$ {line}\n{}", outcome(&split(line))).unwrap();
    }
    text
}

/// The result of a command line: the difference from the program's defaults, or the error.
fn outcome(args: &[OsString]) -> String {
    match read(args.iter().cloned()) {
        Ok(Invocation::Run(config)) => difference(&config, &bare(&args[0], &config)),
        Ok(Invocation::Help(_)) => "  help".into(),
        Ok(Invocation::Version(_)) => "  version".into(),
        Ok(Invocation::Capabilities(_)) => "  capabilities".into(),
        Err(error) => error_lines(&error.to_string()),
    }
}

/// Reads a command line on a host with Linux's default ephemeral ports.
pub(crate) fn read(args: impl IntoIterator<Item = OsString>) -> Result<Invocation, cli::Error> {
    cli::read(args, || 32768..=60999)
}

/// The configuration of a command line that must be valid.
pub(crate) fn config(line: &str) -> Config {
    match read(split(line)) {
        Ok(Invocation::Run(config)) => *config,
        other => panic!("{line}: {other:?}"),
    }
}

/// Splits a line into arguments, at blanks outside single quotes.
pub(crate) fn split(line: &str) -> Vec<OsString> {
    let mut args = Vec::new();
    for (index, part) in line.split('\'').enumerate() {
        match index % 2 {
            0 => args.extend(part.split_whitespace().map(OsString::from)),
            _ => args.push(part.into()),
        }
    }
    args
}

/// The configuration with which `config` is compared: that of the program without arguments. A command implies several
/// options. So if pasta joins a namespace, the other configuration joins a process.
fn bare(program: &OsString, config: &Config) -> Config {
    self::config(match (program == "passt", &config.pasta.target) {
        (true, _) => "passt",
        (false, Target::Spawn { .. }) => "pasta",
        (false, Target::Pid(_) | Target::Netns(_)) => "pasta 1",
    })
}

/// The lines of an error.
fn error_lines(error: &str) -> String {
    error.lines().map(|line| format!("! {line}")).collect::<Vec<_>>().join("\n")
}

/// The fields in which two configurations differ.
fn difference(config: &Config, bare: &Config) -> String {
    let mut lines = Vec::new();
    for ((name, value), (_, usual)) in fields(config).into_iter().zip(fields(bare)) {
        if value != usual {
            lines.push(format!("  {name} = {value}"));
        }
    }
    for (name, table, usual) in
        [("inbound", &config.inbound, &bare.inbound), ("outbound", &config.outbound, &bare.outbound)]
    {
        if table.is_empty() && table != usual {
            lines.push(format!("  {name}: none"));
        }
        for rule in table.rules().iter().filter(|_| table != usual) {
            lines.push(format!("  {name}: {}", rule.to_string().trim_end()));
        }
    }
    if lines.is_empty() {
        lines.push("  as bare".into());
    }
    lines.join("\n")
}

/// Names and values of all fields except the rule tables. Fields of families and modes are listed one by one.
fn fields(config: &Config) -> Vec<(String, String)> {
    let mut all = Vec::new();
    for (name, value) in members(config) {
        let nested = match name.as_str() {
            "v4" => members(&config.v4),
            "v6" => members(&config.v6),
            "passt" => members(&config.passt),
            "pasta" => members(&config.pasta),
            "inbound" | "outbound" => continue,
            _ => {
                all.push((name, value));
                continue;
            }
        };
        all.extend(nested.into_iter().map(|(member, value)| (format!("{name}.{member}"), value)));
    }
    all
}

/// Names and values of the members of a struct, parsed from its pretty debug text.
fn members(value: &impl Debug) -> Vec<(String, String)> {
    let text = format!("{value:#?}");
    let mut members: Vec<(String, String)> = Vec::new();
    for line in text.lines().filter_map(|line| line.strip_prefix("    ")) {
        let begins = line.starts_with(|first: char| first.is_ascii_lowercase());
        match (begins.then(|| line.split_once(": ")).flatten(), members.last_mut()) {
            (Some((name, value)), _) => members.push((name.into(), value.into())),
            (None, Some((_, value))) => value.push_str(line.trim_start()),
            (None, None) => panic!("not a struct: {text}"),
        }
    }
    for (_, value) in &mut members {
        *value = value.replace(",)", ")").replace(",]", "]").replace(",}", " }").replace("{", "{ ");
        *value = value.replace(",", ", ").replace("  ", " ").trim_end_matches(", ").into();
    }
    members
}
