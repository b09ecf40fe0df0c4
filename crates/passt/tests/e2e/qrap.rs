//! Tests of `qrap`, which starts QEMU with a socket to passt (behaviour §9.6). Here, shell scripts replace QEMU.

use crate::harness::*;

/// A network with an empty `/tmp`, and with `qrap` and `passt` in `/run`.
fn set_up() -> Option<Net> {
    let net = Net::new()?;
    let (passt, qrap) = (passt_path(), companion("qrap"));
    net.host.sh(&format!("cp {passt} {qrap} /run/; mount -t tmpfs tmpfs /tmp"));
    Some(net)
}

/// Starts passt at its default path. passt ends with the network.
fn start_passt(net: &Net) {
    net.host.run(&["/run/passt", "--quiet"]).ok();
}

/// The command gets the socket as the given descriptor, and no other descriptor. Its arguments are unchanged.
#[test]
fn qrap_passes_the_socket_to_a_command() {
    let Some(net) = set_up() else { return };
    start_passt(&net);
    let script = "echo \"$@\"; ls -l /proc/self/fd";
    let output = net.host.run(&["/run/qrap", "7", "sh", "-c", script, "name", "-net", "user"]).ok();
    assert!(output.starts_with("-net user\n"), "{output}");
    assert!(output.lines().any(|line| line.contains(" 7 -> socket:")), "{output}");
    assert!(!output.contains(" 3 -> socket:"), "{output}");
}

/// Options for the socket replace network options. If there are no network options, the arguments are unchanged.
#[test]
fn qrap_replaces_the_network_of_qemu() {
    let Some(net) = set_up() else { return };
    start_passt(&net);
    let arch = std::env::consts::ARCH;
    net.host.sh(&format!(
        "mkdir /tmp/bin; printf '#!/bin/sh\\necho \"$@\"; ls -l /proc/self/fd/5\\n' >/tmp/bin/qemu-system-{arch}\n\
         chmod +x /tmp/bin/qemu-system-{arch}"
    ));
    let run =
        |arguments: &str| net.host.run(&["sh", "-c", &format!("PATH=/tmp/bin:$PATH /run/qrap {arguments}")]);
    let output = run("-m 1G -net nic -net user").ok();
    assert!(output.starts_with("-m 1G -netdev socket,fd=5,id=hostnet0 -device virtio-net-"), "{output}");
    assert!(output.contains("-> socket:"), "{output}");
    let version = run("-version");
    assert!(version.stdout.starts_with("-version\n") && !version.stdout.contains("socket"), "{version:?}");
}

#[test]
fn without_passt_qrap_reports_what_to_do() {
    let Some(net) = set_up() else { return };
    let end = net.host.run(&["/run/qrap", "5", "sh", "-c", "true"]);
    assert!(end.code() == 1 && end.stderr.contains("start passt first"), "{end:?}");
    let end = net.host.run(&["/run/qrap"]);
    assert!(end.code() == 1 && end.stderr.contains("Usage: qrap"), "{end:?}");
}
