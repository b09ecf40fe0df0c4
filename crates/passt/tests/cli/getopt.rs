//! Conventions of GNU getopt on which clients rely (behaviour §2.1, §1.4).

use proptest::prelude::*;

use crate::golden::{config, outcomes, read, split};

#[test]
fn arguments_follow_the_conventions_of_getopt() {
    insta::assert_snapshot!(outcomes(
        "pasta -4f
         pasta -4ft22
         pasta -dm1500
         pasta -t=22
         pasta -m 1500 -m 1400
         pasta --mtu=1500
         pasta --mtu 1500
         pasta --mt 1500
         pasta --mtu=
         pasta -t -1
         pasta -H -4
         pasta -H --
         pasta --hostname --mtu
         pasta --no-t
         pasta --netns=x
         pasta --netn=x
         pasta --net
         pasta --outbound 192.0.2.1
         pasta --outb 192.0.2.1
         pasta --de
         pasta --de=1
         passt --so x
         pasta --no-copy
         pasta --foo
         pasta --foo=3
         pasta --map-guest-address 192.0.2.1
         pasta -Z
         pasta -4Z6
         pasta -4=6
         pasta -d=1
         pasta -
         pasta --
         pasta -4 -- -6
         pasta -4 true -6
         pasta --help --foo
         pasta --foo --help
         pasta -m x --help
         pasta --version
         pasta --print-capabilities
         passt --print-capabilities
         pasta -hv"
    ));
}

/// behaviour §1.8: podman matches this text, together with exit status 1.
#[test]
fn podman_recognises_an_unknown_option() {
    let error = read(split("/usr/bin/pasta --map-guest-addrx 192.0.2.1")).unwrap_err().to_string();
    assert!(error.starts_with("/usr/bin/pasta: unrecognized option '--map-guest-addr"), "{error}");
}

/// every option may be repeated, and the last value is used.
#[test]
fn the_last_of_repeated_options_wins_r4() {
    for (twice, once) in [
        ("pasta -m 1500 -m 1400", "pasta -m 1400"),
        ("pasta -P a --pid b", "pasta -P b"),
        ("pasta -a 192.0.2.1 -a 192.0.2.2", "pasta -a 192.0.2.2"),
        ("pasta -4 -6", "pasta -6"),
        ("pasta -i a -i b", "pasta -i b"),
        ("pasta -n 24 -n 16", "pasta -n 16"),
        ("pasta -f -f --config-net --config-net", "pasta -f --config-net"),
        ("passt --fd 3 --fd 4", "passt --fd 4"),
        ("passt -s a -s b", "passt -s b"),
    ] {
        assert_eq!(config(twice), config(once), "{twice}");
    }
}

proptest! {
    /// No command line causes a panic.
    #[test]
    fn no_command_line_panics(
        program in "pasta|passt|\\PC{0,8}",
        args in prop::collection::vec("-[a-zA-Z0-9]{1,4}|--[a-z-]{0,12}(=[0-9a-f:.]{0,9})?|[0-9a-f:./,-]{0,12}|\\PC{0,6}", 0..8),
    ) {
        let _ = read(std::iter::once(program).chain(args).map(Into::into));
    }
}
