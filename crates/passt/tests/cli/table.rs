//! Tests that every option of the table is accepted, refused and shown according to its row (behaviour §2.2).

use std::fmt::Write;

use passt::{
    cli::{
        Invocation,
        options::{Action, Modes, Opt, all},
    },
    config::Mode,
};

use crate::golden::{outcomes, read, split};

/// Each option and alias is used once, correctly.
#[test]
fn every_option_is_accepted() {
    let mut lines = String::new();
    for opt in all() {
        // The other options that the option needs. Pasta joins a process, because a command implies too many other
        // options.
        let (program, before, after) = match opt.long[0] {
            "netns" | "no-pidns" | "vhost-user" => ("pasta", "", ""),
            "nsrun-dir" => ("pasta", "--netns blue ", ""),
            "no-copy-routes" | "no-copy-addrs" => ("pasta", "--config-net ", " 1"),
            "stats" => ("pasta", "--foreground ", " 1"),
            "migrate-exit" | "migrate-no-linger" | "repair-path" => ("passt", "--vhost-user ", ""),
            "policy-audit" | "policy-names" | "policy-ech" => ("pasta", "--deny all ", " 1"),
            _ if program_for(opt) == "passt" => ("passt", "", ""),
            _ => ("pasta", "", " 1"),
        };
        let argument = argument_for(opt);
        for name in opt.long {
            writeln!(lines, "{program} {before}--{name} {argument}{after}").unwrap();
        }
        if let Some(letter) = opt.short {
            writeln!(lines, "{program} {before}-{letter}{argument}{after}").unwrap();
        }
    }
    let text = outcomes(&lines);
    assert!(!text.contains("\n!"), "{text}");
    insta::assert_snapshot!(text);
}

/// Each flag with an argument, each other option without an argument, and each option in the wrong mode is refused.
#[test]
fn misused_options_are_refused() {
    for opt in all() {
        let program = program_for(opt);
        for name in opt.long {
            let (line, expected) = match takes_argument(opt) {
                true => (format!("{program} --{name}"), format!("option '--{name}' requires an argument")),
                false => {
                    (format!("{program} --{name}=x"), format!("option '--{name}' doesn't allow an argument"))
                }
            };
            assert_eq!(first_error_line(&line), format!("{program}: {expected}"));
        }
        if let (Some(letter), true) = (opt.short, takes_argument(opt)) {
            let expected = format!("{program}: option requires an argument -- '{letter}'");
            assert_eq!(first_error_line(&format!("{program} -{letter}")), expected);
        }
        let (wrong, right) = match opt.modes {
            Modes::Both | Modes::MainlyPasst => continue,
            Modes::Passt => ("pasta", "passt"),
            Modes::VhostUser => ("passt", "vhost-user"),
            Modes::Pasta => ("passt", "pasta"),
        };
        let line = format!("{wrong} --{} {}", opt.long[0], argument_for(opt));
        assert_eq!(first_error_line(&line), format!("{wrong}: --{} is for {right} mode only", opt.long[0]));
        if let Some(letter) = opt.short {
            let line = format!("{wrong} -{letter}{}", argument_for(opt));
            assert_eq!(first_error_line(&line), format!("{wrong}: -{letter} is for {right} mode only"));
        }
    }
}

/// `--help` lists every option of the mode and no other, in 80 columns.
#[test]
fn help_lists_the_options_of_the_mode() {
    for (program, mode) in [("passt", Mode::Passt), ("pasta", Mode::Pasta)] {
        let Ok(Invocation::Help(help)) = read(split(&format!("{program} --help"))) else { panic!() };
        for opt in all() {
            let shown = help.lines().any(|line| names_of(line).contains(&opt.long[0]));
            let expected = match opt.modes {
                Modes::Both => true,
                Modes::MainlyPasst | Modes::Passt | Modes::VhostUser => mode == Mode::Passt,
                Modes::Pasta => mode == Mode::Pasta,
            };
            assert_eq!(shown, expected, "{program}: --{}", opt.long[0]);
        }
        assert!(help.lines().all(|line| line.chars().count() <= 80));
        insta::assert_snapshot!(format!("help_{program}"), help);
    }
}

/// The long options in the left column of a line of the help text.
fn names_of(line: &str) -> Vec<&str> {
    let column = line.char_indices().nth(28).map_or(line, |(at, _)| &line[..at]);
    column.split([' ', ',']).filter_map(|word| word.strip_prefix("--")).collect()
}

fn first_error_line(line: &str) -> String {
    let error = read(split(line)).map(|_| line).unwrap_err().to_string();
    error.lines().next().unwrap().to_owned()
}

fn program_for(opt: &Opt) -> &'static str {
    match opt.modes {
        Modes::Both | Modes::Pasta => "pasta",
        Modes::MainlyPasst | Modes::Passt | Modes::VhostUser => "passt",
    }
}

fn takes_argument(opt: &Opt) -> bool {
    matches!(opt.action, Action::Value(..) | Action::Ports(..))
}

/// A valid argument of the option. Empty for a flag.
fn argument_for(opt: &Opt) -> &'static str {
    match opt.action {
        Action::Flag(_) | Action::Show(_) => return "",
        Action::Ports(..) => return "22",
        Action::Value(..) => {}
    }
    match opt.long[0] {
        "stats" => "3",
        "log-size" => "65536",
        "runas" => "1000:100",
        "fd" | "api-fd" => "5",
        "memory" => "64M",
        "metrics" => "127.0.0.1:9100",
        "netns" => "blue",
        "ns-ifname" | "interface" | "outbound-if4" | "outbound-if6" => "eth7",
        "mac-addr" | "ns-mac-addr" => "02:00:00:00:00:0a",
        "address" | "gateway" | "outbound" | "map-host-loopback" | "map-guest-addr" | "dns"
        | "dns-forward" | "dns-host" => "192.0.2.7",
        "netmask" => "24",
        "mtu" => "1500",
        "allow" | "deny" => "tcp/192.0.2.0/24:443",
        "policy-names" => "address",
        "policy-ech" => "deny",
        "limit" => "out=20M,in=1.5G",
        "search" | "hostname" | "fqdn" => "guest.example",
        "log-file" | "pid" | "pcap" | "conf-path" | "socket" | "repair-path" | "nsrun-dir" | "userns"
        | "policy" | "flow-log" | "api-socket" => "/dir/x",
        other => panic!("no argument for --{other}"),
    }
}
