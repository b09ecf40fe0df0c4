//! Tests of the start and end of pasta: commands, processes and namespaces to connect, users, exit statuses (behaviour
//! §1).

use crate::harness::*;
use std::net::IpAddr;

/// A script that shows the guest's addresses and routes, and pings the peer.
const LOOK: &str = "ip -o addr show dev eth0; ip route; ip -6 route; \
                    ping -n -c 1 -W 30 198.51.100.3 >&2; ping -n -c 1 -W 30 2001:db8:1::3 >&2";

/// Checks that the guest has the host's addresses and routes (behaviour §3.6).
fn assert_configured(look: &str) {
    for part in [
        "inet 198.51.100.2/24",
        "inet6 2001:db8:1::2/64",
        "default via 198.51.100.1 dev eth0",
        "default via 2001:db8:1::1 dev eth0",
    ] {
        assert!(look.contains(part), "no {part:?} in {look}");
    }
}

fn spawn_as(user: User) {
    need!("ping");
    let Some(net) = Net::with(Options { user, ..Options::default() }) else { return };
    let end = net.spawn(&[], &["sh", "-ec", LOOK]);
    assert_eq!(end.code(), 0, "{end:?}");
    assert_configured(&end.stdout);
    // The addresses are usable at once.
    let global = end.stdout.lines().filter(|line| line.contains("scope global"));
    global.for_each(|line| assert!(!line.contains("tentative"), "{line}"));
}

#[test]
fn a_command_can_be_started_as_userns_root() {
    spawn_as(User::UsernsRoot);
}

/// Q19: root starts pasta without a user namespace.
#[test]
fn a_command_can_be_started_as_plain_root_q19() {
    spawn_as(User::PlainRoot);
}

#[test]
fn a_command_can_be_started_as_ordinary_user() {
    spawn_as(User::Ordinary);
}

/// Starts a process in new namespaces. Returns the process and its PID.
pub(crate) fn target(net: &Net, unshare: &str) -> (Running, u32) {
    let file = net.path("target.pid");
    let script = format!("echo $$ >{file}.new; mv {file}.new {file}; exec sleep 120");
    let mut argv = net.as_user();
    argv.extend(["unshare".to_owned()]);
    argv.extend(unshare.split_whitespace().map(str::to_owned));
    argv.extend(["sh".to_owned(), "-ec".to_owned(), script]);
    let running = net.host.start(&argv.iter().map(String::as_str).collect::<Vec<_>>());
    wait_until("the target's PID", || std::path::Path::new(&file).exists());
    let pid = std::fs::read_to_string(&file).unwrap().trim().parse().unwrap();
    (running, pid)
}

fn assert_connects(net: &Net, guest: &Ns) {
    for peer in PEER {
        let listener = net.peer.listen((peer, 7000));
        let _client = guest.connect((peer, 7000)).unwrap();
        accept(&listener);
    }
}

fn join_pid_as(user: User) {
    let Some(net) = Net::with(Options { user, ..Options::default() }) else { return };
    let (_running, pid) = target(&net, "--user --map-root-user --net");
    let pid = pid.to_string();
    let pasta = net.daemon(&["--config-net", &pid]);
    let guest = net.host.inner(&["nsenter", "-t", &pid, "--user", "--preserve-credentials", "--net"]);
    assert_configured(&guest.sh("ip -o addr; ip route; ip -6 route"));
    assert_connects(&net, &guest);
    // behaviour §1.6: pasta quits when the namespace has ended.
    net.host.sh(&format!("kill -KILL {pid}"));
    wait_until("the end of pasta", || !pasta.runs());
}

#[test]
fn a_process_can_be_joined_as_userns_root() {
    join_pid_as(User::UsernsRoot);
}

#[test]
fn a_process_can_be_joined_as_plain_root_q19() {
    join_pid_as(User::PlainRoot);
}

#[test]
fn a_process_can_be_joined_as_ordinary_user() {
    join_pid_as(User::Ordinary);
}

/// Q19: neither root nor the guest has a user namespace.
#[test]
fn a_namespace_can_be_joined_as_plain_root_q19() {
    let Some(net) = Net::with(Options { user: User::PlainRoot, ..Options::default() }) else { return };
    net.pasta(&[]);
    assert_connects(&net, &net.guest);
}

#[test]
fn a_namespace_can_be_joined_by_path() {
    let Some(net) = Net::new() else { return };
    let pasta = net.daemon(&["--config-net", "--netns", "/run/netns/guest"]);
    assert_connects(&net, &net.guest);
    net.host.sh("ip netns del guest");
    wait_until("the end of pasta", || !pasta.runs());
}

#[test]
fn a_namespace_can_be_joined_by_name() {
    let Some(net) = Net::new() else { return };
    net.daemon(&["--config-net", "--netns", "guest"]);
    assert_connects(&net, &net.guest);
}

/// behaviour §2.2: `--nsrun-dir`.
#[test]
fn a_namespace_can_be_joined_by_name_in_nsrun_dir() {
    let Some(net) = Net::new() else { return };
    net.host.sh("mkdir /run/names; touch /run/names/box; mount --bind /run/netns/guest /run/names/box");
    net.daemon(&["--config-net", "--nsrun-dir", "/run/names", "--netns", "box"]);
    assert_connects(&net, &net.guest);
}

/// Both namespaces are given by paths. The user may enter both.
#[test]
fn a_namespace_and_its_user_namespace_can_be_joined() {
    let Some(net) = Net::with(Options { user: User::Ordinary, ..Options::default() }) else { return };
    let (_running, pid) = target(&net, "--user --map-root-user --net");
    let ns = |kind: &str| format!("/proc/{pid}/ns/{kind}");
    net.daemon(&["--config-net", "--userns", &ns("user"), "--netns", &ns("net")]);
    let pid = pid.to_string();
    assert_connects(
        &net,
        &net.host.inner(&["nsenter", "-t", &pid, "--user", "--preserve-credentials", "--net"]),
    );
}

/// behaviour §1.3, §1.4: the exit status is 0.
#[test]
fn sigterm_ends_pasta_in_the_foreground() {
    let Some(net) = Net::new() else { return };
    let pid_file = net.path("pid");
    let running = net.start_pasta(&["-f", "--config-net", "--pid", &pid_file, "--netns", "/run/netns/guest"]);
    let mut pid = String::new();
    wait_until("the PID file", || {
        pid = std::fs::read_to_string(&pid_file).unwrap_or_default();
        pid.ends_with('\n')
    });
    assert!(net.guest.sh("ip -6 route").contains("default"));
    net.host.sh(&format!("kill -TERM {pid}"));
    assert_eq!(running.wait().code(), 0);
    assert!(!net.guest.sh("ip -o link").contains("eth0"), "the interface must disappear with pasta");
}

/// behaviour §1.3.1: traffic works, and the PID file is complete.
#[test]
fn a_daemon_is_ready_when_the_start_returns() {
    let Some(net) = Net::new() else { return };
    let listener = net.peer.listen((PEER[0], 7000));
    let pasta = net.pasta(&["-t", "7001"]);
    let _out = net.guest.connect((PEER[0], 7000)).unwrap();
    accept(&listener);
    let listener = net.guest.listen((any(HOST[0]), 7001));
    let _in = net.peer.connect((HOST[0], 7001)).unwrap();
    accept(&listener);
    let mode = net.host.sh(&format!("stat -c %a {}", net.path("pasta.pid")));
    assert_eq!(mode.trim(), "600", "behaviour §1.3.6");
    assert!(pasta.runs());
    pasta.terminate();
}

/// behaviour §1.4: if a signal killed the command, the status is 128 plus the number of the signal.
#[test]
fn the_exit_status_is_that_of_the_command() {
    need!("pgrep");
    let Some(net) = Net::new() else { return };
    for (script, status) in
        [("exit 0", 0), ("exit 1", 1), ("exit 42", 42), ("exit 255", 255), ("exec sh -c 'exit 7'", 7)]
    {
        let end = net.spawn(&[], &["sh", "-c", script]);
        assert_eq!(end.code(), status, "{script}: {end:?}");
    }
    for (signal, status) in [("TERM", 143), ("KILL", 137), ("SEGV", 139)] {
        let script = format!("kill -{signal} $$; exec sleep 60");
        let end = net.spawn(&["--no-pidns"], &["sh", "-c", &script]);
        assert_eq!(end.code(), status, "{signal}: {end:?}");
    }
    // Process 1 of a PID namespace gets no signals without a handler, except SIGKILL from outside the namespace.
    let mut running = net.start_pasta(&["--config-net", "--", "sh", "-c", "echo up; exec sleep 1234.5"]);
    running.wait_for("up");
    let mut pid = String::new();
    wait_until("the command", || {
        pid = net.host.run(&["pgrep", "-xf", "sleep 1234.5"]).stdout;
        !pid.is_empty()
    });
    net.host.sh(&format!("kill -KILL {pid}"));
    assert_eq!(running.wait().code(), 137);
}

/// behaviour §1.4, R-13: the status is 1, there is a message, and nothing hangs.
#[test]
fn a_command_that_cannot_be_executed_is_an_error_r13() {
    let Some(net) = Net::new() else { return };
    for command in ["/nonexistent/command", "no-such-command-e2e", "/etc"] {
        let end = net.spawn(&[], &[command]);
        assert_eq!(end.code(), 1, "{end:?}");
        assert!(!end.stderr.is_empty());
    }
}

/// behaviour §1.4, R-1: the status is 1.
#[test]
fn a_fatal_error_names_its_object_and_leaves_no_process_r1() {
    need!("pgrep");
    let Some(net) = Net::new() else { return };
    let cases: [(&[&str], &str); 5] = [
        (&["--netns", "/run/netns/none"], "none"),
        (&["--netns", "no-such-name"], "no-such-name"),
        (&["4000000"], "4000000"),
        (&["-i", "nope0", "--", "true"], "nope0"),
        (&["--netns", "guest", "--", "true"], "netns"),
    ];
    for (args, named) in cases {
        let end = net.run_pasta(args);
        assert_eq!(end.code(), 1, "{args:?}: {end:?}");
        assert!(end.stderr.contains(named), "{args:?}: {end:?}");
    }
    let left = net.host.run(&["pgrep", "-x", "pasta.*"]).stdout;
    assert_eq!(left, "");
}

/// pasta passes the options on to the command.
#[test]
fn options_after_the_command_belong_to_it_r2() {
    let Some(net) = Net::new() else { return };
    let end = net.run_pasta(&["--config-net", "sh", "-c", "echo \"$@\"", "-t", "22", "--help", "-f"]);
    assert_eq!((end.code(), end.stdout.as_str()), (0, "22 --help -f\n"), "{end:?}");
}

/// behaviour §1.5: the test checks the environment of the command. pasta prints nothing.
#[test]
fn the_command_is_root_in_new_namespaces() {
    let Some(net) = Net::new() else { return };
    let script = "echo $$; id -u; id -g; hostname; ls /proc | grep -c '^[0-9]'; \
                  cat /proc/sys/net/ipv4/ping_group_range; ls /proc/self/fd; echo $E2E_INHERITED; cat /proc/self/uid_map";
    let end = net.spawn(&[], &["env", "E2E_INHERITED=yes", "sh", "-ec", script]);
    assert_eq!(end.code(), 0, "{end:?}");
    let lines: Vec<&str> = end.stdout.lines().collect();
    assert_eq!(lines[..4], ["1", "0", "0", "pasta-e2e-host"], "{end:?}");
    assert!(lines[4].parse::<u32>().unwrap() <= 4, "only its own processes: {end:?}");
    assert_eq!(lines[5].split_whitespace().collect::<Vec<_>>(), ["0", "0"]);
    // the command has no descriptor of pasta. ls itself has opened descriptor 3 for the directory.
    assert_eq!(lines[6..10], ["0", "1", "2", "3"], "{end:?}");
    assert_eq!(lines[10], "yes");
    assert_eq!(lines[11].split_whitespace().collect::<Vec<_>>(), ["0", "0", "1"]);
    assert_eq!(end.stderr, "");
}

#[test]
fn hostname_sets_the_host_name() {
    let Some(net) = Net::new() else { return };
    let end = net.spawn(&["--hostname", "box.example"], &["hostname"]);
    assert_eq!(end.ok(), "box.example\n");
}

/// behaviour §1.5.7: without a command, $SHELL is started.
#[test]
fn the_default_command_is_a_login_shell() {
    let Some(net) = Net::new() else { return };
    let shell = net.path("shell");
    std::fs::write(
        &shell,
        "#!/bin/sh\ntr '\\0' ' ' </proc/self/cmdline >/dev/null\necho \"shell $# $0\"\nexit 3\n",
    )
    .unwrap();
    net.host.sh(&format!("chmod 755 {shell}"));
    let mut argv = vec!["env".to_owned(), format!("SHELL={shell}")];
    argv.extend(net.pasta_argv(&["--config-net"]));
    let end = net.host.run(&argv.iter().map(String::as_str).collect::<Vec<_>>());
    assert_eq!(end.code(), 3, "{end:?}");
    assert!(end.stdout.starts_with("shell 0"), "{end:?}");
}

/// behaviour §2.2: the options are `-4` and `-6`.
#[test]
fn options_restrict_the_guest_to_one_family() {
    let Some(net) = Net::new() else { return };
    let look = "ip -o addr show dev eth0 scope global; ip route; ip -6 route show default";
    let v4 = net.spawn(&["-4"], &["sh", "-c", look]).ok();
    assert!(v4.contains("198.51.100.2/24") && !v4.contains("2001:db8"), "{v4}");
    let v6 = net.spawn(&["-6"], &["sh", "-c", look]).ok();
    assert!(!v6.contains("198.51.100") && v6.contains("2001:db8:1::2/64"), "{v6}");
}

/// behaviour §2.2, §3.6: the options set name, MTU, MAC address, addresses and gateways.
#[test]
fn options_configure_the_interface() {
    let Some(net) = Net::new() else { return };
    let options = [
        "-I",
        "tap_in_the_test",
        "--mtu",
        "1400",
        "--ns-mac-addr",
        "02:00:5e:10:00:02",
        "-a",
        "198.51.100.70/25",
        "-g",
        "198.51.100.71",
        "-a",
        "2001:db8:1::70",
        "-g",
        "2001:db8:1::71",
    ];
    let look = "ip -o link show tap_in_the_test; ip -o addr show tap_in_the_test; ip route; ip -6 route";
    let seen = net.spawn(&options, &["sh", "-c", look]).ok();
    for part in [
        "mtu 1400",
        "link/ether 02:00:5e:10:00:02",
        "inet 198.51.100.70/25",
        "inet6 2001:db8:1::70/64",
        "default via 198.51.100.71",
        "default via 2001:db8:1::71",
    ] {
        assert!(seen.contains(part), "no {part:?} in {seen}");
    }
    assert!(!seen.contains("198.51.100.2/"), "{seen}");
}

/// behaviour §3.5: the host has neither addresses nor routes.
#[test]
fn a_host_without_a_network_gives_local_mode() {
    let host_setup = "ip link set eth0 down; ip addr flush dev eth0\n";
    let Some(net) = Net::with(Options { host_setup, ..Options::default() }) else { return };
    net.pasta(&["-t", "7001", "--no-splice"]);
    let look = net.guest.sh("ip -o addr show tap0; ip route");
    assert!(look.contains("169.254.2.1/16") && look.contains("default via 169.254.2.2"), "{look}");
    let listener = net.host.listen((LOOPBACK[0], 7000));
    let gateway: IpAddr = "169.254.2.2".parse().unwrap();
    let _client = net.guest.connect((gateway, 7000)).unwrap();
    accept(&listener);
    let listener = net.guest.listen((any(gateway), 7001));
    let _client = net.host.connect((LOOPBACK[0], 7001)).unwrap();
    assert_eq!(accept(&listener).1.ip(), gateway);
}

/// At the end of each test, the harness checks whether the seccomp filter has killed a program.
#[test]
#[should_panic(expected = "killed by the seccomp filter")]
fn a_program_killed_by_sigsys_fails_its_test() {
    let net =
        Net::new().unwrap_or_else(|| panic!("killed by the seccomp filter: there are no namespaces here"));
    // The killed process is a daemon: its parent has exited.
    net.host.sh("(sh -c 'echo $$ >/run/killed; kill -SYS $$' >/dev/null 2>&1 &)");
    let mut pid = String::new();
    wait_until("the shell", || {
        pid = net.host.sh("cat /run/killed || :");
        pid.ends_with('\n')
    });
    wait_until("the end of the shell", || !runs(&net.host, pid.trim().parse().unwrap()));
}
