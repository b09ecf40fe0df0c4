//! Values that options accept and refuse (behaviour §2.2), and combinations of options.

use passt::config::ApiSocket;

use crate::golden::{config, outcomes, read, split};

/// `--debug` does not imply `--foreground`. R-4: the last value of a repeated option is used.
#[test]
fn output_options_are_checked_and_combined_r6_r4() {
    insta::assert_snapshot!(outcomes(
        "pasta --netns x
         pasta --netns x -d
         pasta --netns x -q
         pasta --netns x -d -q
         pasta --netns x -q -d
         pasta --netns x --trace -d
         pasta --netns x --trace -q
         pasta --netns x -q --trace
         pasta -d
         pasta --trace true
         pasta -f --stats 0
         pasta -f --stats 10
         pasta --stats 10
         pasta --stats 10 -f
         pasta -f --stats x
         pasta -f --stats -1
         pasta -l ''
         pasta --log-size 40960
         pasta --log-size 0xa000
         pasta --log-size 40959
         pasta --log-size x
         pasta --log-size ''
         pasta --memory 64M
         pasta --memory 16777216
         passt --memory 2G
         pasta --memory 16383K
         pasta --memory 64MB
         pasta --memory 0x4000000
         pasta --memory 99999999999G
         pasta --memory ''
         pasta --memory 64M --memory 64M
         pasta -P ''
         pasta -p ''
         pasta -P a -P b"
    ));
}

#[test]
fn rules_of_the_guard() {
    insta::assert_snapshot!(outcomes(
        "pasta --allow example.org:443 1
         pasta --allow *.example.org --deny udp/example.net:5000-6000 1
         pasta --allow a*.example.org 1
         pasta --deny icmp/example.org:80 1
         pasta --deny all --policy-names name 1
         pasta --deny all --policy-ech no 1
         pasta --policy a --policy b 1"
    ));
}

#[test]
fn rates_of_the_guest() {
    insta::assert_snapshot!(outcomes(
        "pasta --limit out=20M 1
         pasta --limit in=1.5G,out=64k 1
         pasta --limit out=20M --limit in=100M 1
         passt --limit in=1000000
         pasta --limit out=20M,out=30M 1
         pasta --limit in=20M --limit in=20M 1
         pasta --limit '' 1
         pasta --limit 20M 1
         pasta --limit up=20M 1
         pasta --limit out=20M, 1
         pasta --limit out 1
         pasta --limit out=0 1
         pasta --limit out=20 1
         pasta --limit out=-1M 1
         pasta --limit out=20m 1
         pasta --limit out=20Mbit 1
         pasta --limit in=2000G 1"
    ));
}

#[test]
fn runas_accepts_names_and_numbers() {
    insta::assert_snapshot!(outcomes(
        "pasta --runas 0
         pasta --runas 1000
         pasta --runas 1000:100
         pasta --runas 0:0
         pasta --runas someone
         pasta --runas someone:staff
         pasta --runas someone:100
         pasta --runas root
         pasta --runas root:root
         pasta --runas ''
         pasta --runas :
         pasta --runas 1000:
         pasta --runas :1000
         pasta --runas 1:2:3
         pasta --runas 4294967295
         pasta --runas 4294967296
         pasta --runas -1"
    ));
}

/// `--fd 0` is accepted. A socket path and `--fd` exclude each other.
#[test]
fn a_socket_path_and_fd_exclude_each_other_r12() {
    insta::assert_snapshot!(outcomes(
        "passt --fd 0
         passt --fd 3
         passt --fd 0x10
         passt --fd 1
         passt --fd 2
         passt --fd -1
         passt --fd x
         passt --fd ''
         passt --fd 2147483648
         passt -s x --fd 3
         passt --fd 3 -s x
         passt --fd 3 -s x -1
         passt -s ''
         passt --vhost-user
         pasta --vhost-user
         other --vhost-user
         passt --vhost-user --fd 3
         passt --vhost-user --repair-path x
         passt --vhost-user --repair-path none
         passt --repair-path none
         pasta --repair-path none
         passt --repair-path x
         passt --migrate-exit
         passt foo
         passt -f foo bar
         other
         other --help"
    ));
}

/// docs/api.md.
#[test]
fn there_is_one_api_socket() {
    assert_eq!(config("passt --api-fd 3").api, Some(ApiSocket::Fd(3)));
    assert_eq!(config("passt").api, Some(ApiSocket::Registry));
    assert_eq!(config("pasta --no-api 1").api, None);
    for (line, expected) in [
        ("pasta --api-fd 2", "--api-fd: Invalid --api-fd: 2"),
        ("pasta --no-api --api-fd 3 1", "--no-api can't be used with --api-socket or --api-fd"),
        ("pasta --api-fd x", "--api-fd: Invalid --api-fd: x"),
        ("pasta --api-socket ''", "--api-socket: Invalid socket path: the path is empty"),
        (
            "passt --api-fd 3 --api-socket x",
            "--api-socket: there is one API socket, and it was given before, by --api-socket or --api-fd",
        ),
    ] {
        let program = line.split(' ').next().unwrap();
        assert_eq!(read(split(line)).unwrap_err().to_string(), format!("{program}: {expected}"), "{line}");
    }
    // Rules may come later.
    config("pasta --policy-audit --api-socket x 1");
    let metrics = |address: &str| config(&format!("passt --metrics {address}"));
    assert_eq!(metrics("127.0.0.1:9100").metrics, "127.0.0.1:9100".parse().ok());
    assert!(metrics("[::1]:9100").warnings.is_empty());
    assert!(metrics("0.0.0.0:9100").warnings[0].contains("is not a loopback address"));
    for address in ["9100", "127.0.0.1", "localhost:9100", "127.0.0.1:0", "::1:9100x"] {
        let error = read(split(&format!("passt --metrics {address}"))).unwrap_err().to_string();
        assert!(error.contains(&format!("Invalid --metrics: {address} ")), "{error}");
    }
}

/// a socket path has at most 107 bytes, an interface name 15, a host name 253.
#[test]
fn names_have_at_most_their_maximum_length_r15() {
    for option in ["--socket", "--conf-path", "--api-socket"] {
        let path = "p".repeat(107);
        config(&format!("passt {option} {path}"));
        let error = read(split(&format!("passt {option} {path}p"))).unwrap_err().to_string();
        assert_eq!(error, format!("passt: {option}: Socket path longer than 107 bytes: {path}p"));
    }
    for option in ["--ns-ifname", "--interface", "--outbound-if4", "--outbound-if6"] {
        config(&format!("pasta {option} abcdefghijklmno"));
        for bad in ["abcdefghijklmnop", "''", "a/b", "'a b'", ".", ".."] {
            let error = read(split(&format!("pasta {option} {bad}"))).unwrap_err().to_string();
            assert_eq!(error, format!("pasta: {option}: Invalid interface name: {}", bad.trim_matches('\'')));
        }
    }
    for option in ["--hostname", "--fqdn"] {
        let name = "h".repeat(253);
        config(&format!("pasta {option} {name}"));
        assert!(read(split(&format!("pasta {option} {name}h"))).is_err());
        assert!(read(split(&format!("pasta {option} ''"))).is_err());
    }
}

#[test]
fn addresses_are_checked_for_their_use() {
    insta::assert_snapshot!(outcomes(
        "pasta -a 192.0.2.1
         pasta -a 192.0.2.1 -a 192.0.2.2
         pasta -a 192.0.2.1/24 -a 192.0.2.2
         pasta -a 192.0.2.1 -a 2001:db8::1
         pasta -a 192.0.2.1/0
         pasta -a 192.0.2.1/32
         pasta -a 192.0.2.1/33
         pasta -a 192.0.2.1/
         pasta -a 192.0.2.1/x
         pasta -a 192.0.2.1/+1
         pasta -a 192.0.2.1/24/24
         pasta -a 192.0.2.1/4294967320
         pasta -a 2001:db8::1/128
         pasta -a 2001:db8::1/129
         pasta -a ::ffff:192.0.2.1
         pasta -a ::ffff:192.0.2.1/24
         pasta -a ::ffff:192.0.2.1/120
         pasta -a ::ffff:192.0.2.1/64
         pasta -a ::ffff:127.0.0.1
         pasta -a fe80::1
         pasta -a 0.0.0.0
         pasta -a 127.0.0.1
         pasta -a 224.0.0.1
         pasta -a 255.255.255.255
         pasta -a ::
         pasta -a ::1
         pasta -a ff02::1
         pasta -a x
         pasta -a ''
         pasta -a 192.0.2.1/24 -n 24
         pasta -n 24 -a 192.0.2.1/24
         pasta -n 24 -a 192.0.2.1
         pasta -a 2001:db8::1/64 -n 24
         pasta -g 192.0.2.254
         pasta -g 192.0.2.254 -g 192.0.2.253 -g fe80::1
         pasta -g 224.0.0.1
         pasta -g 0.0.0.0
         pasta -g 127.0.0.1
         pasta -g 255.255.255.255
         pasta -g ::
         pasta -g ::1
         pasta -g x
         pasta -o 192.0.2.1 -o 2001:db8::1
         pasta -o 127.0.0.1
         pasta -o 0.0.0.0
         pasta -o 255.255.255.255
         pasta -o 224.0.0.1
         pasta -o ::
         pasta -o ::1
         pasta -o ff02::1
         pasta -o ::ffff:192.0.2.1
         pasta -o ::192.0.2.1
         pasta -o x
         pasta -4
         pasta -6
         pasta -4 -6
         pasta -6 -4"
    ));
}

/// masks with holes and numbers that overflow are refused. Q18: the parser accepts MTU 0 without a warning.
/// a malformed MAC address and garbage after an MTU are refused.
#[test]
fn masks_mtus_and_mac_addresses_are_checked_r17_r16() {
    insta::assert_snapshot!(outcomes(
        "pasta -n 0
         pasta -n 24
         pasta -n 32
         pasta -n 0x18
         pasta -n 030
         pasta -n 255.255.255.0
         pasta -n 255.255.255.255
         pasta -n 0.0.0.0
         pasta -n 24 -n 16
         pasta -n 33
         pasta -n -1
         pasta -n 0.255.0.255
         pasta -n 255.0.255.0
         pasta -n 4294967320
         pasta -n 18446744073709551640
         pasta -n 255.255.255
         pasta -n x
         pasta -n ''
         pasta -m 0
         pasta -m 67
         pasta -m ' 1500'
         pasta -m +1500
         pasta -m 0x500
         pasta -m 02734
         pasta -m 65521
         pasta -m 65522
         pasta -m 18446744073709551616
         pasta -m 1500x
         pasta -m '1500 '
         pasta -m -1
         pasta -m +-1
         pasta -m 0x
         pasta -m 08
         pasta -m x
         pasta -m ''
         pasta -M 02:00:00:aA:Bb:0c
         pasta -M ff:ff:ff:ff:ff:ff
         pasta -M 2:0:0:0:0:1
         pasta -M 02:00:00:00:00
         pasta -M 02:00:00:00:00:01:02
         pasta -M 02:00:00:00:00:011
         pasta -M 02-00-00-00-00-01
         pasta -M 02:00:00:00:00:+1
         pasta -M ''
         pasta --ns-mac-addr 02:00:00:00:00:01
         pasta --ns-mac-addr x"
    ));
}

/// Q15: QEMU passes its search list as one argument, separated by blanks.
#[test]
fn dns_servers_and_search_lists_are_checked() {
    insta::assert_snapshot!(outcomes(
        "pasta -D 192.0.2.53 -D 2001:db8::53
         pasta -D 127.0.0.53
         pasta -D 192.0.2.1 -D 192.0.2.2 -D 192.0.2.3 -D 192.0.2.4
         pasta -D none
         pasta -D 192.0.2.1 --dns-forward 192.0.2.2 --dns-host 192.0.2.3 -D none
         pasta -D none -D 192.0.2.1
         pasta -D none --dns-forward 192.0.2.2
         pasta -D x
         pasta -D ''
         pasta -S a.example -S b.example
         pasta -S 'a.example b.example'
         pasta -S none
         pasta -S a.example -S none
         pasta -S none -S a.example
         pasta -S 'a b c d e f'
         pasta -S 'a b c d e f g'
         pasta -S a -S b -S c -S d -S e -S f -S g
         pasta -S ''
         pasta -S ' '
         passt --no-dhcp-dns --no-dhcp-search
         pasta --dhcp-dns --dhcp-search
         pasta --dns-forward 192.0.2.1 --dns-forward 2001:db8::1 --dns-forward 192.0.2.2
         pasta --dns-forward 0.0.0.0
         pasta --dns-forward ::
         pasta --dns-forward 127.0.0.1
         pasta --dns-forward ::1
         pasta --dns-forward 255.255.255.255
         pasta --dns-forward x
         pasta --dns-host 127.0.0.53
         pasta --dns-host ::1
         pasta --dns-host 0.0.0.0
         pasta --dns-host ::
         pasta --dns-host 255.255.255.255
         pasta --dns-host x"
    ));
}

#[test]
fn address_mappings_are_checked_and_combined() {
    insta::assert_snapshot!(outcomes(
        "pasta --map-host-loopback 192.0.2.1
         pasta --map-host-loopback 192.0.2.1 --map-host-loopback 2001:db8::1
         pasta --map-host-loopback none
         pasta --no-map-gw
         pasta --map-host-loopback 192.0.2.1 --no-map-gw
         pasta --map-host-loopback 192.0.2.1 --map-host-loopback none
         pasta --map-host-loopback none --map-host-loopback 192.0.2.1
         pasta --map-host-loopback 127.0.0.1
         pasta --map-host-loopback ::1
         pasta --map-host-loopback 0.0.0.0
         pasta --map-host-loopback 224.0.0.1
         pasta --map-host-loopback x
         pasta --map-guest-addr 192.0.2.1 --map-guest-addr 2001:db8::1
         pasta --map-guest-addr 192.0.2.1 --map-guest-addr none
         pasta --map-guest-addr none
         pasta --map-guest-addr 127.0.0.1
         pasta --map-guest-addr ::
         pasta --map-guest-addr ff02::1
         pasta --map-guest-addr x
         pasta --no-splice
         pasta --splice-only
         pasta --no-splice --splice-only
         pasta --splice-only --no-splice
         pasta --no-splice --host-lo-to-ns-lo
         pasta --host-lo-to-ns-lo --no-splice"
    ));
}

#[test]
fn options_imply_or_need_others() {
    insta::assert_snapshot!(outcomes(
        "pasta --no-icmp
         pasta --config-net
         pasta --config-net -a 192.0.2.1
         pasta --config-net -g 2001:db8::1
         pasta --config-net --no-copy-routes
         pasta --no-copy-addrs --config-net
         pasta --no-copy-routes
         pasta --no-copy-addrs"
    ));
}

/// behaviour §1.2, §1.3.5, §10.3. R-2: the arguments of the command stay unchanged.
#[test]
fn targets_and_commands_are_recognised_r2() {
    insta::assert_snapshot!(outcomes(
        "pasta
         pasta true
         pasta ip -4 --help addr
         pasta -- -x
         pasta -4 -- ls -6
         pasta -
         pasta ''
         pasta sh -c 'exit 3' --vhost-user
         pasta 1234
         pasta -f 1234
         pasta 0
         pasta 2147483647
         pasta 2147483648
         pasta 99999999999999999999
         pasta 1234 x
         pasta +1234
         pasta --userns /u 1234
         pasta --netns-only 1234
         pasta --netns blue
         pasta --netns /proc/1/ns/net
         pasta --netns ./blue
         pasta --nsrun-dir /d --netns blue
         pasta --netns blue --nsrun-dir /d
         pasta --nsrun-dir /d --netns /n/blue
         pasta --nsrun-dir ''
         pasta --netns ''
         pasta --netns red --netns blue
         pasta --netns blue --userns /u
         pasta --netns blue --userns /u --netns-only
         pasta --netns blue --netns-only --userns /u
         pasta --netns blue 1234
         pasta --netns blue true
         pasta --userns /u true
         pasta --userns ''
         pasta --netns-only true
         pasta --no-pidns true
         pasta --no-pidns 1234
         pasta --no-pidns --netns blue
         pasta --no-netns-quit --netns blue
         passt4netns --netns blue
         /usr/lib/passt/pasta.real --netns blue
         passtpasta --netns blue
         /opt/pasta/bin/passt"
    ));
}
