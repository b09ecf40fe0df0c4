//! Port options (behaviour §2.4). The engine tests the grammar itself.

use crate::golden::{outcomes, read, split};

#[test]
fn port_options_become_rules() {
    insta::assert_snapshot!(outcomes(
        "pasta -t 22
         pasta -t22
         pasta --tcp-ports=22,80:8080 -u 53
         pasta -t 22 -t 80 -u 22
         pasta -t none
         pasta -t none -t 22
         pasta -t 22 -t none
         pasta -t 22 -u none
         pasta -u none -t none -T none -U none
         pasta -t all
         passt -t all -u 5353
         pasta -t auto
         passt -t auto
         passt -t 22,auto
         pasta -T 22 -U 53
         pasta -T auto
         pasta -T 127.0.0.1/22
         pasta -U %lo/22
         pasta -t 22 -t 22
         pasta -t 22 --tcp-ports 127.0.0.1/22
         pasta -t %lo/22 -t %eth0/22
         pasta -t '[::1]/22'
         pasta -t 65535
         pasta -t 0
         pasta -t 22:0
         pasta -t 22:127.0.0.1
         pasta -t -1
         pasta -t ''
         pasta --udp-ports 22,
         pasta -t 127.0.0.1/none"
    ));
}

/// The options that choose families and protocols apply to port options before and after them. R-107: a port option
/// that contradicts them is an error. Q9: a disabled protocol needs no `none`.
#[test]
fn families_and_protocols_restrict_port_options_r107() {
    insta::assert_snapshot!(outcomes(
        "pasta -4 -t 22
         pasta -t 22 -4
         pasta -t 22 -6
         pasta -4 -t ::1/22
         pasta -t 0.0.0.0/22 -6
         pasta -4 -t 22:192.0.2.1
         pasta --no-tcp
         pasta --no-udp
         pasta --no-tcp -t none
         pasta --no-tcp -t 22
         pasta -t 22 --no-tcp
         pasta -u 22 --no-udp
         pasta --no-tcp -u 22"
    ));
}

/// ports can follow `-D`.
#[test]
fn ports_can_follow_a_dns_server_r5() {
    insta::assert_snapshot!(outcomes("pasta -D 192.0.2.53 -t 22 -u 53"));
}

/// The parser gets a function that returns the ephemeral ports, and calls it only if a port option needs them.
#[test]
fn ephemeral_ports_are_read_only_if_needed() {
    let text = |line: &str| match passt::cli::read(split(line), || 40000..=49999) {
        Ok(passt::cli::Invocation::Run(config)) => config.inbound.rules()[0].to_string(),
        other => panic!("{other:?}"),
    };
    assert!(text("pasta -t all").starts_with("TCP [*]:1-39999 "));
    passt::cli::read(split("passt -4"), || panic!("the range was read")).unwrap();
}

/// An argument that is not UTF-8 is refused if the option needs text. If the option needs a path, the argument is kept
/// unchanged.
#[test]
fn arguments_that_are_not_utf8_are_accepted_as_paths_only() {
    use std::{ffi::OsString, os::unix::ffi::OsStringExt};
    let bytes = OsString::from_vec(b"/a\xffb".to_vec());
    for option in ["-t", "-a", "-n", "-m", "-M", "-g", "-i", "-o", "-D", "-S", "-H", "--runas", "-F"] {
        assert!(read(["pasta".into(), option.into(), bytes.clone()]).is_err(), "{option}");
    }
    for option in ["-P", "-p", "-l", "--netns", "--userns", "-c"] {
        let args = ["pasta".into(), "--netns".into(), "x".into(), option.into(), bytes.clone()];
        let debug = format!("{:?}", read(args).unwrap());
        assert!(debug.contains("\\xFFb"), "{option}: {debug}");
    }
    let name = OsString::from_vec(b"--a\xff".to_vec());
    let error = read(["pasta".into(), name]).unwrap_err().to_string();
    assert!(error.starts_with("pasta: unrecognized option '--a\u{fffd}'\nSee 'pasta --help'."), "{error}");
}
