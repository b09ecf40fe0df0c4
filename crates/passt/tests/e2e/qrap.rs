//! `qrap`: QEMU with a passt's socket (behaviour §9.6), whose place a shell takes here.

use crate::harness::*;

/// The network, a `/tmp` of its own with nothing in it, and `qrap` and `passt` where that doesn't hide them.
fn set_up() -> Option<Net> {
    let net = Net::new()?;
    let (passt, qrap) = (env!("CARGO_BIN_EXE_passt"), companion("qrap"));
    net.host.sh(&format!("cp {passt} {qrap} /run/; mount -t tmpfs tmpfs /tmp"));
    Some(net)
}

/// Starts a passt at a path that it chooses by itself; it ends with the network.
fn start_passt(net: &Net) {
    net.host.run(&["/run/passt", "--quiet"]).ok();
}

/// As it is, with the socket at the number that was asked for, and nothing else.
#[test]
fn a_command_line_as_it_is() {
    let Some(net) = set_up() else { return };
    start_passt(&net);
    let script = "echo \"$@\"; ls -l /proc/self/fd";
    let told = net.host.run(&["/run/qrap", "7", "sh", "-c", script, "name", "-net", "user"]).ok();
    assert!(told.starts_with("-net user\n"), "{told}");
    assert!(told.lines().any(|line| line.contains(" 7 -> socket:")), "{told}");
    assert!(!told.contains(" 3 -> socket:"), "{told}");
}

/// With another network than the one that was asked for; and what the socket carries is understood.
#[test]
fn the_network_is_replaced() {
    let Some(net) = set_up() else { return };
    start_passt(&net);
    let arch = std::env::consts::ARCH;
    net.host.sh(&format!(
        "mkdir /tmp/bin; printf '#!/bin/sh\\necho \"$@\"; ls -l /proc/self/fd/5\\n' >/tmp/bin/qemu-system-{arch}\n\
         chmod +x /tmp/bin/qemu-system-{arch}"
    ));
    let run =
        |arguments: &str| net.host.run(&["sh", "-c", &format!("PATH=/tmp/bin:$PATH /run/qrap {arguments}")]);
    let told = run("-m 1G -net nic -net user").ok();
    assert!(told.starts_with("-m 1G -netdev socket,fd=5,id=hostnet0 -device virtio-net-"), "{told}");
    assert!(told.contains("-> socket:"), "{told}");
    let asked = run("-version");
    assert!(asked.stdout.starts_with("-version\n") && !asked.stdout.contains("socket"), "{asked:?}");
}

#[test]
fn without_a_passt_it_says_what_to_do() {
    let Some(net) = set_up() else { return };
    let end = net.host.run(&["/run/qrap", "5", "sh", "-c", "true"]);
    assert!(end.code() == 1 && end.stderr.contains("start passt first"), "{end:?}");
    let end = net.host.run(&["/run/qrap"]);
    assert!(end.code() == 1 && end.stderr.contains("Usage: qrap"), "{end:?}");
}
