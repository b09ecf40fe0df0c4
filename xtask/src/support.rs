//! Finds the options of the table that the program supports at present. The program's own parser decides.

use std::ffi::OsString;

use engine::forward::spec::Direction;
use passt::cli::options::{self, Action, Modes, Opt};
use passt::cli::{self, Invocation};
use passt::config::Mode;

/// All options of `pasta`.
pub(crate) fn options_of_pasta() -> impl Iterator<Item = &'static Opt> {
    options::all().filter(|opt| matches!(opt.modes, Modes::Both | Modes::Pasta))
}

/// All options of `slirp4netns`.
pub(crate) fn options_of_slirp4netns() -> impl Iterator<Item = &'static Opt> {
    options::groups(Mode::Slirp4netns).iter().flat_map(|group| group.options)
}

/// Whether the option's program supports it at present.
pub(crate) fn supported(opt: &Opt) -> bool {
    !refused(command_line(opt))
}

/// A command line with the option and all options that it requires.
fn command_line(opt: &Opt) -> Vec<OsString> {
    let name = opt.long[0];
    let program = if matches!(opt.modes, Modes::Both | Modes::Pasta) { "pasta" } else { "passt" };
    let mut line = vec![OsString::from(program)];
    if name == "stats" {
        line.push("--foreground".into());
    }
    if name.starts_with("policy-") {
        line.push("--deny=metadata".into());
    }
    if name.starts_with("no-copy-") {
        line.push("--config-net".into());
    }
    line.push(format!("--{name}").into());
    line.extend(argument(opt).map(OsString::from));
    line
}

/// Whether a command line is refused because an option is not supported yet.
pub(crate) fn refused(line: Vec<OsString>) -> bool {
    match cli::parse(line, || 32768..=60999) {
        Err(error) => error.to_string().contains("not supported yet"),
        Ok(
            Invocation::Run(_) | Invocation::Help(_) | Invocation::Version(_) | Invocation::Capabilities(_),
        ) => false,
    }
}

/// A valid argument of the option.
fn argument(opt: &Opt) -> Option<&'static str> {
    match opt.action {
        Action::Flag(_) | Action::Show(_) => None,
        Action::Ports(Direction::Inbound | Direction::Outbound, _) => Some("8080"),
        Action::Value(name, _) => Some(match name {
            "ADDR" | "ADDR[/LEN]" => "192.0.2.1",
            "BYTES" => "65000",
            "FD" => "5",
            "LIST" => "example.com",
            "MAC" => "02:00:00:00:00:01",
            "MASK" => "24",
            "SECONDS" => "1",
            "UID[:GID]" => "1000",
            "NAME" => "name",
            "WHAT" => "metadata",
            "CHECK" => "address",
            "ADDRESS:PORT" => "127.0.0.1:9100",
            "RATES" => "out=20M,in=100M",
            "SIZE" => "64M",
            "allow|deny" => "deny",
            _ => "/path",
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every argument is valid, so the only reason to refuse a command line is an unsupported option.
    #[test]
    fn every_option_is_accepted_or_not_supported_yet() {
        for opt in options_of_pasta() {
            if let Err(error) = cli::parse(command_line(opt), || 32768..=60999) {
                assert!(error.to_string().contains("not supported yet"), "{:?}: {error}", opt.long);
            }
        }
    }

    /// README.md lists exactly the options that are refused.
    #[test]
    fn readme_lists_unsupported_options() {
        let readme = std::fs::read_to_string(crate::house::root().join("README.md")).unwrap();
        let section = readme.split("## Not yet").nth(1).unwrap().split("\n## ").next().unwrap();
        for opt in options_of_pasta() {
            let name = format!("`--{}`", opt.long[0]);
            assert_eq!(section.contains(&name), !supported(opt), "README.md, \"Not yet\": {name}");
        }
        let line = |spec: &str| vec!["pasta".into(), "--tcp-ports".into(), spec.into()];
        assert_eq!(section.contains("`auto`"), refused(line("auto")));
        let line = |option: &str| vec!["passt".into(), option.into()];
        for option in ["--vhost-user", "--one-off"] {
            assert_eq!(section.contains(&format!("`{option}`")), refused(line(option)), "{option}");
        }
        assert_eq!(section.contains("`--fd`"), refused(vec!["pasta".into(), "--fd=5".into()]));
        let repair = vec!["passt".into(), "--vhost-user".into(), "--repair-path=x".into()];
        assert_eq!(section.contains("`--repair-path PATH`"), refused(repair));
    }
}
