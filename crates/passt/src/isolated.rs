//! A network of its own for a test that opens real sockets.

use std::{fs, process::Command, thread};

/// Runs a test on a thread in a new network namespace, where loopback is up and nothing else is there. Without the
/// right to make one, the test is skipped, which is told.
///
/// A port that a test has closed may stay taken for a moment, by processes that other tests are just starting.
pub(crate) fn isolated(test: impl FnOnce() + Send + 'static) {
    let thread = thread::spawn(|| match sys::netns::enter_new() {
        Ok(()) => {
            ip("link set lo up");
            test();
        }
        Err(error) => eprintln!("SKIPPED: no right to make a network namespace: {error}"),
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

/// Runs ip(8) in the namespace of the calling thread.
#[track_caller]
pub(crate) fn ip(arguments: &str) {
    let status = Command::new("ip").args(arguments.split_ascii_whitespace()).status();
    assert!(status.is_ok_and(|status| status.success()), "ip {arguments}");
}

/// Sets a sysctl, `net/...`, in the namespace of the calling thread.
#[track_caller]
pub(crate) fn sysctl(name: &str, value: &str) {
    fs::write(format!("/proc/sys/{name}"), value).unwrap_or_else(|error| panic!("{name}: {error}"));
}

/// Adds an interface with an IPv4 network, behind which nobody answers, and which sends nothing by itself.
#[track_caller]
pub(crate) fn add_link(name: &str, address: &str) {
    sysctl("net/ipv6/conf/default/disable_ipv6", "1");
    ip(&format!("link add {name} type veth peer name {name}peer"));
    ip(&format!("link set {name}peer up"));
    ip(&format!("link set {name} up"));
    ip(&format!("address add {address} dev {name}"));
}
