//! Tests of slirp4netns: its virtual network, and the life of its process (behaviour §13.1).

use crate::harness::*;
use crate::nat;
use std::io::ErrorKind;
use std::net::IpAddr;

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// [`nat::assert_reaches`], with the address `to` as text.
fn assert_reaches(net: &Net, to: (&str, u16), server: &Ns, real: (IpAddr, u16)) -> IpAddr {
    nat::assert_reaches(net, (address(to.0), to.1).into(), server, real.into())
}

/// [`nat::assert_tcp_reaches`], with the address `to` as text.
fn assert_tcp_reaches(net: &Net, to: (&str, u16), server: &Ns, real: (IpAddr, u16)) -> IpAddr {
    nat::assert_tcp_reaches(net, (address(to.0), to.1).into(), server, real.into())
}

/// Checks that a connection fails at once, by an ICMP error or since no host has the address.
fn assert_unreachable(net: &Net, to: &str, port: u16) {
    let error = net.guest.connect((address(to), port)).expect_err(to);
    let kinds = [ErrorKind::NetworkUnreachable, ErrorKind::HostUnreachable];
    assert!(kinds.contains(&error.kind()), "{to}: {error}");
}

fn addresses(net: &Net) -> String {
    net.guest.sh("ip -o -4 addr show")
}

/// behaviour §13.1.2: the defaults of the virtual network.
#[test]
fn slirp_configures_the_namespace_and_connects_it() {
    let Some(net) = Net::new() else { return };
    let _slirp = net.slirp(&[]);
    assert!(addresses(&net).contains("inet 127.0.0.1/8"));
    assert!(addresses(&net).contains("inet 10.0.2.100/24 brd 10.0.2.255"), "{}", addresses(&net));
    assert_eq!(net.guest.sh("ip route show default").trim(), "default via 10.0.2.2 dev tap0");
    assert!(net.guest.sh("ip -o link show tap0").contains(" mtu 1500 "));
    assert_eq!(assert_reaches(&net, ("10.0.2.2", 7000), &net.host, (LOOPBACK[0], 7000)), LOOPBACK[0]);
    let peer = PEER[0].to_string();
    assert_eq!(assert_reaches(&net, (&peer, 7000), &net.peer, (PEER[0], 7000)), HOST[0]);
    assert_eq!(assert_reaches(&net, ("10.0.2.3", 53), &net.peer, (PEER[0], 53)), HOST[0]);
}

#[test]
fn slirp_sets_the_mtu() {
    let Some(net) = Net::new() else { return };
    let _slirp = net.slirp(&["-m", "65520"]);
    assert!(net.guest.sh("ip -o link show tap0").contains(" mtu 65520 "));
    let listener = net.host.listen((LOOPBACK[0], 7000));
    let client = net.guest.connect((address("10.0.2.2"), 7000)).unwrap();
    let (server, _) = accept(&listener);
    let sender = std::thread::spawn(move || send(client, 1, 4 << 20));
    receive(server, 1, 4 << 20);
    sender.join().unwrap();
}

#[test]
fn slirp_moves_all_addresses_by_cidr() {
    let Some(net) = Net::new() else { return };
    let _slirp = net.slirp(&["--cidr=10.77.128.0/25"]);
    assert!(addresses(&net).contains("inet 10.77.128.100/25 brd 10.77.128.127"), "{}", addresses(&net));
    assert_eq!(net.guest.sh("ip route show default").trim(), "default via 10.77.128.2 dev tap0");
    assert_tcp_reaches(&net, ("10.77.128.2", 7000), &net.host, (LOOPBACK[0], 7000));
    assert_tcp_reaches(&net, ("10.77.128.3", 53), &net.peer, (PEER[0], 53));
}

/// behaviour §13.1.2: nothing of the host is reachable at the gateway, and everything else still is.
#[test]
fn slirp_disables_the_hosts_loopback() {
    let Some(net) = Net::new() else { return };
    let _slirp = net.slirp(&["--disable-host-loopback"]);
    let _listener = net.host.listen((any(HOST[0]), 7000));
    assert_unreachable(&net, "10.0.2.2", 7000);
    let peer = PEER[0].to_string();
    assert_reaches(&net, (&peer, 7000), &net.peer, (PEER[0], 7000));
    assert_reaches(&net, ("10.0.2.3", 53), &net.peer, (PEER[0], 53));
}

/// The host may have a route to addresses of the virtual network. They do not lead there.
#[test]
fn slirp_keeps_the_virtual_network_apart_from_the_hosts() {
    let Some(net) = Net::new() else { return };
    net.host.sh("ip addr add 10.0.2.2/24 dev eth0; ip addr add 10.0.2.3/24 dev eth0; ip addr add 10.0.2.50/24 dev eth0");
    let _slirp = net.slirp(&["--disable-host-loopback", "--disable-dns"]);
    let _listener = net.host.listen((any(HOST[0]), 7000));
    for to in ["10.0.2.2", "10.0.2.3", "10.0.2.50"] {
        assert_unreachable(&net, to, 7000);
    }
}

#[test]
fn slirp_disables_dns() {
    let Some(net) = Net::new() else { return };
    let _slirp = net.slirp(&["--disable-dns"]);
    let _tcp = net.peer.listen((PEER[0], 53));
    assert_unreachable(&net, "10.0.2.3", 53);
    let peer = PEER[0].to_string();
    assert_reaches(&net, (&peer, 54), &net.peer, (PEER[0], 54));
}

/// The gateway and the DNS address answer pings, even if they do not lead to the host.
#[test]
fn slirp_answers_pings() {
    need!("ping");
    let Some(net) = Net::new() else { return };
    let _slirp = net.slirp(&["--disable-host-loopback", "--disable-dns", "--enable-ipv6"]);
    for to in ["10.0.2.2", "10.0.2.3", "fe80::2%tap0", "fd00::2", "fd00::3"] {
        net.guest.run(&["ping", "-c1", "-W30", to]).ok();
    }
    assert!(!net.guest.run(&["ping", "-c1", "-W1", "10.0.2.50"]).status.success());
}

#[test]
fn slirp_sets_the_mac_address() {
    let Some(net) = Net::new() else { return };
    let _slirp = net.slirp(&["--macaddress=02:11:22:33:44:55"]);
    assert!(net.guest.sh("ip -o link show tap0").contains("link/ether 02:11:22:33:44:55"));
    assert_tcp_reaches(&net, ("10.0.2.2", 7000), &net.host, (LOOPBACK[0], 7000));
}

const SECOND_LINK: &str = "ip addr add 198.51.100.9/24 dev eth0; ip addr add 2001:db8:1::9/64 dev eth0 nodad
ip link add eth1 type veth peer name eth2; ip link set eth1 up
ip addr add 192.0.2.22/32 dev eth1; ip addr add 2001:db8:9::16/128 dev eth1 nodad";

/// The name of an interface means its first address. The routes are not affected.
#[test]
fn slirp_chooses_the_source_of_connections() {
    let Some(net) = Net::with(Options { host_setup: SECOND_LINK, ..Options::default() }) else { return };
    let peer = PEER[0].to_string();
    for (option, source) in
        [("198.51.100.9", "198.51.100.9"), ("eth0", "198.51.100.2"), ("eth1", "192.0.2.22")]
    {
        let slirp = net.slirp(&["--outbound-addr", option]);
        let from = assert_reaches(&net, (&peer, 7000), &net.peer, (PEER[0], 7000));
        assert_eq!(from, address(source), "{option}");
        let from = assert_reaches(&net, ("10.0.2.2", 7000), &net.host, (LOOPBACK[0], 7000));
        assert_eq!(from, address(source), "{option}");
        slirp.terminate();
    }
    for option in ["nosuchif", "1.2.3", "fd00::1"] {
        let end = net.run_slirp(&[&["-c", "--outbound-addr", option], &SLIRP_GUEST[..]].concat());
        assert_eq!(end.code(), 1, "{end:?}");
        assert!(end.stderr.contains("outbound-addr"), "{end:?}");
    }
}

#[test]
fn slirp_chooses_the_source_of_ipv6_connections() {
    let Some(net) = Net::with(Options { host_setup: SECOND_LINK, ..Options::default() }) else { return };
    let peer = PEER[1].to_string();
    for (option, source) in [("2001:db8:1::9", "2001:db8:1::9"), ("eth1", "2001:db8:9::16")] {
        let slirp = net.slirp(&["--enable-ipv6", "--outbound-addr6", option]);
        wait_for_ipv6(&net);
        let from = assert_tcp_reaches(&net, (&peer, 7000), &net.peer, (PEER[1], 7000));
        assert_eq!(from, address(source), "{option}");
        slirp.terminate();
    }
}

/// Waits until the guest has an address and a route from a router advertisement.
fn wait_for_ipv6(net: &Net) {
    wait_until("IPv6", || {
        let list =
            net.guest.sh("ip -6 -o addr show dev tap0 scope global -tentative; ip -6 route show default");
        list.contains("inet6 fd00:") && list.contains("default via fe80::2")
    });
}

#[test]
fn slirp_connects_ipv6() {
    let Some(net) = Net::new() else { return };
    let _slirp = net.slirp(&["-6"]);
    wait_for_ipv6(&net);
    assert_eq!(assert_reaches(&net, ("fd00::2", 7000), &net.host, (LOOPBACK[1], 7000)), LOOPBACK[1]);
    let peer = PEER[1].to_string();
    assert_eq!(assert_reaches(&net, (&peer, 7000), &net.peer, (PEER[1], 7000)), HOST[1]);
    // The host's resolvers are asked in their order, whatever the family of the question.
    assert_eq!(assert_reaches(&net, ("fd00::3", 53), &net.peer, (PEER[0], 53)), HOST[0]);
}

#[test]
fn slirp_has_no_ipv6_by_default() {
    let Some(net) = Net::new() else { return };
    let _slirp = net.slirp(&[]);
    assert_tcp_reaches(&net, ("10.0.2.2", 7000), &net.host, (LOOPBACK[0], 7000));
    assert!(!net.guest.sh("ip -6 addr show dev tap0").contains("scope global"));
    assert_unreachable(&net, "fd00::2", 7000);
}

/// behaviour §13.1.2: a client gets the first address of the DHCP range.
#[test]
fn slirp_offers_an_address_by_dhcp() {
    need!("busybox");
    let Some(net) = Net::new() else { return };
    let _slirp = net.slirp_with(&SLIRP_GUEST);
    net.guest.sh("ip link set tap0 up");
    std::fs::write(
        net.path("script"),
        "#!/bin/sh\n[ \"$1\" = bound ] && echo $ip/$mask via $router dns $dns\n",
    )
    .unwrap();
    net.host.sh(&format!("chmod +x {}", net.path("script")));
    let end =
        net.guest.run(&["busybox", "udhcpc", "-f", "-q", "-n", "-i", "tap0", "-s", &net.path("script")]);
    assert!(end.stdout.contains("10.0.2.15/24 via 10.0.2.2 dns 10.0.2.3"), "{end:?}");
}

#[test]
fn slirp_leaves_the_interface_alone_without_configure() {
    let Some(net) = Net::new() else { return };
    net.guest.sh("ip link set lo down");
    let _slirp = net.slirp_with(&SLIRP_GUEST);
    assert_eq!(net.guest.sh("ip -o addr show dev tap0"), "");
    for name in ["lo", "tap0"] {
        assert!(!net.guest.sh(&format!("ip -o link show {name}")).contains("UP"), "{name} is up");
    }
    net.guest.sh("ip link set tap0 up; ip addr add 10.0.2.77/24 dev tap0; ip route add default via 10.0.2.2");
    assert_tcp_reaches(&net, ("10.0.2.2", 7000), &net.host, (LOOPBACK[0], 7000));
}

/// RootlessKit makes the interface itself, and brings it up before it starts the program.
#[test]
fn slirp_uses_a_persistent_interface() {
    let Some(net) = Net::new() else { return };
    net.guest.sh("ip tuntap add name tap0 mode tap; ip link set tap0 up");
    let _slirp = net.slirp_with(&[&["--mtu", "65520", "--disable-host-loopback"], &SLIRP_GUEST[..]].concat());
    net.guest.sh(
        "ip link set tap0 mtu 65520; ip addr add 10.0.2.100/24 dev tap0; ip route add default via 10.0.2.2",
    );
    let peer = PEER[0].to_string();
    assert_reaches(&net, (&peer, 7000), &net.peer, (PEER[0], 7000));
}

/// Starts a process in new user and network namespaces. Returns its process ID.
fn namespaces(net: &Net) -> String {
    let script = "unshare --user --map-root-user --net sh -c 'echo $$; exec sleep 1000' >@ & until [ -s @ ]; do sleep 0.02; done; cat @";
    net.host.sh(&script.replace('@', &net.path("holder"))).trim().to_owned()
}

/// Checks that the process's namespace has the configured interface and reaches the host.
fn assert_connected(net: &Net, pid: &str) {
    let inner = net.host.inner(&["nsenter", "--target", pid, "--user", "--net", "--preserve-credentials"]);
    assert!(inner.sh("ip -o addr").contains("10.0.2.100/24"));
    let listener = net.host.listen((LOOPBACK[0], 7000));
    let _client = inner.connect((address("10.0.2.2"), 7000)).unwrap();
    accept(&listener);
}

#[test]
fn slirp_joins_a_process() {
    let Some(net) = Net::new() else { return };
    let pid = namespaces(&net);
    let _slirp = net.slirp_with(&["-c", &pid, "tap0"]);
    assert_connected(&net, &pid);
}

#[test]
fn slirp_joins_namespaces_by_path() {
    let Some(net) = Net::new() else { return };
    let pid = namespaces(&net);
    let (user, network) = (format!("--userns-path=/proc/{pid}/ns/user"), format!("/proc/{pid}/ns/net"));
    let _slirp = net.slirp_with(&["-c", "--netns-type=path", &user, &network, "tap0"]);
    assert_connected(&net, &pid);
}

/// Operands may come first, as with the C program.
#[test]
fn slirp_accepts_options_after_operands() {
    let Some(net) = Net::new() else { return };
    let pid = namespaces(&net);
    let _slirp = net.slirp_with(&[&pid, "tap0", "-c"]);
    assert_connected(&net, &pid);
}

/// behaviour §13.1.3: another process may still be in the namespace.
#[test]
fn slirp_outlives_the_process_that_it_joined() {
    let Some(net) = Net::new() else { return };
    let pid = namespaces(&net);
    let slirp = net.slirp_with(&["-c", &pid, "tap0"]);
    let listener = net.host.listen((LOOPBACK[0], 7000));
    let inner = net.host.inner(&["nsenter", "--target", &pid, "--user", "--net", "--preserve-credentials"]);
    let connect = || inner.connect((address("10.0.2.2"), 7000)).unwrap();
    let _first = (connect(), accept(&listener));
    net.host.sh(&format!("kill {pid}"));
    wait_until("the end of the process", || !runs(&net.host, pid.parse().unwrap()));
    // The process that opens the test's sockets is still in the namespace.
    let _second = (connect(), accept(&listener));
    assert!(slirp.runs());
}

/// behaviour §13.1.3: a signal ends the process as if it was not handled.
#[test]
fn slirp_is_ended_by_signals() {
    let Some(net) = Net::new() else { return };
    for (name, status) in [("TERM", 143), ("INT", 130), ("HUP", 129)] {
        let slirp = net.slirp(&[]);
        slirp.signal(name);
        let end = slirp.wait();
        assert_eq!(end.code(), status, "{name}: {end:?}");
        // The interface is gone with the process, so the next one can make it again.
        wait_until("the end of the interface", || {
            !net.guest.run(&["ip", "link", "show", "tap0"]).status.success()
        });
    }
}

/// behaviour §13.1.3: RootlessKit asks the kernel to kill the program when RootlessKit itself ends.
#[test]
fn slirp_ends_with_its_caller_on_request() {
    need!("setpriv");
    let Some(net) = Net::with(Options { user: User::PlainRoot, ..Options::default() }) else { return };
    let (ready, pid) = (net.path("ready"), net.path("slirp.pid"));
    let script = format!("setpriv --pdeathsig KILL \"$@\" 3>{ready} & echo $! >{pid}; echo started; wait");
    let program = slirp_path();
    let args = [&["sh", "-c", &script, "sh", &program, "-c", "-r", "3"], &SLIRP_GUEST[..]].concat();
    let mut caller = net.host.start(&args);
    caller.wait_for("started");
    wait_until("slirp4netns to be ready", || std::fs::read_to_string(&ready).is_ok_and(|text| text == "1"));
    let pid: u32 = std::fs::read_to_string(&pid).unwrap().trim().parse().unwrap();
    let parent = net.host.sh(&format!("awk '{{print $4}}' /proc/{pid}/stat"));
    net.host.sh(&format!("kill -9 {}", parent.trim()));
    wait_until("slirp4netns to end", || !runs(&net.host, pid));
}

/// behaviour §13.1.3: the end of `--exit-fd` ends the process with status 0.
#[test]
fn slirp_exits_with_its_exit_fd() {
    let Some(net) = Net::new() else { return };
    let (fifo, ready) = (net.path("fifo"), net.path("ready"));
    net.host.sh(&format!("mkfifo {fifo}"));
    let script = format!("cat {fifo} | exec \"$@\" 3>{ready}");
    let program = slirp_path();
    let args =
        [&["sh", "-c", &script, "sh", &program, "-c", "-e", "0", "-r", "3"], &SLIRP_GUEST[..]].concat();
    let mut running = net.host.start(&args);
    let writer = std::fs::OpenOptions::new().write(true).open(&fifo).unwrap();
    wait_until("slirp4netns to be ready", || std::fs::read_to_string(&ready).is_ok_and(|text| text == "1"));
    assert!(running.is_running());
    drop(writer);
    assert_eq!(running.wait().code(), 0);
}

/// behaviour §13.1.3: the process is confined with and without these options.
#[test]
fn slirp_is_confined() {
    let Some(net) = Net::new() else { return };
    for options in [&[][..], &["--enable-sandbox", "--enable-seccomp"], &["--create-sandbox"]] {
        let slirp = net.slirp(options);
        let status = net.host.sh(&format!("cat /proc/{}/status", slirp.pid));
        for line in ["NoNewPrivs:\t1", "Seccomp:\t2", "CapEff:\t0000000000000000"] {
            assert!(status.contains(line), "{options:?}: {status}");
        }
        assert_tcp_reaches(&net, ("10.0.2.2", 7000), &net.host, (LOOPBACK[0], 7000));
        slirp.terminate();
        wait_until("the end of the interface", || {
            !net.guest.run(&["ip", "link", "show", "tap0"]).status.success()
        });
    }
}

/// behaviour §13.1.1: what can't work is refused with status 1 and a reason.
#[test]
fn slirp_refuses_what_cannot_work() {
    let Some(net) = Net::new() else { return };
    for (options, reason) in [
        (&["--cidr=10.0.2.1/24"][..], "10.0.2.0/24"),
        (&["--cidr=10.0.2.0/26"], "prefix length needs to be 1-25"),
        (&["--cidr=10.0.2.0"], "invalid CIDR"),
        (&["--cidr=fd00::/64"], "invalid CIDR"),
        (&["--cidr=127.0.0.0/16"], "overlaps"),
        (&["--cidr=0.0.0.0/1"], "overlaps"),
        (&["--mtu=0"], "--mtu"),
        (&["--mtu=65522"], "--mtu"),
        (&["--exit-fd=-1"], "--exit-fd"),
        (&["--exit-fd=77"], "--exit-fd"),
        (&["--ready-fd=77"], "--ready-fd"),
        (&["--macaddress=03:00:00:00:00:01"], "--macaddress"),
        (&["--target-type=bess"], "bess"),
        (&["--api-socket=/nonexistent/api"], "/nonexistent/api"),
        (&["--unknown"], "--unknown"),
    ] {
        let end = net.run_slirp(&[&["-c"], options, &SLIRP_GUEST[..]].concat());
        assert_eq!(end.code(), 1, "{options:?}: {end:?}");
        assert!(end.stderr.contains(reason), "{options:?}: {end:?}");
    }
    for arguments in
        [&["-c"][..], &["-c", "1"], &["-c", "abc", "tap0"], &["-c", "0", "tap0"], &["-c", "999999", "tap0"]]
    {
        let end = net.run_slirp(arguments);
        assert_eq!(end.code(), 1, "{arguments:?}: {end:?}");
        assert!(!end.stderr.is_empty());
    }
}

/// Clients look for options in the help text.
#[test]
fn slirp_shows_its_options_and_version() {
    let Some(net) = Net::new() else { return };
    let help = net.run_slirp(&["--help"]).ok();
    for option in [
        "--netns-type",
        "--mtu",
        "--cidr",
        "--disable-host-loopback",
        "--api-socket",
        "--enable-sandbox",
        "--enable-seccomp",
        "--enable-ipv6",
        "--outbound-addr",
    ] {
        assert!(help.contains(option), "{option}: {help}");
    }
    assert!(net.run_slirp(&["-v"]).ok().starts_with("slirp4netns "));
}
