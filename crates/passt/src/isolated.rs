//! A separate network namespace for a test that opens real sockets.

use std::{
    env, fs,
    io::{self, Write},
    process::Command,
    thread,
    time::{Duration, Instant},
};

/// Runs a test on a thread in a new network namespace. The namespace has only a loopback interface, which is up. If the
/// right to make a namespace or iproute2 is missing, the test is skipped.
///
/// A port that a test has closed may stay in use for a short time: processes that other tests start hold a copy of the
/// descriptor until execve(2).
pub(crate) fn isolated(test: impl FnOnce() + Send + 'static) {
    if !has_ip() {
        return skipped("ip (iproute2) is not installed");
    }
    let name = thread::current().name().unwrap_or_default().to_owned();
    let thread = thread::Builder::new().name(name).spawn(|| match sys::netns::enter_new() {
        Ok(()) => {
            ip("link set lo up");
            test();
        }
        Err(error) => skipped(&format!("no right to make a network namespace: {error}")),
    });
    let thread = thread.unwrap_or_else(|error| panic!("can't start a thread: {error}"));
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

/// Whether ip(8), which sets up networks, is installed. This function does not run ip(8): a child process has copies of
/// other tests' sockets until execve(2).
pub(crate) fn has_ip() -> bool {
    env::var_os("PATH").is_some_and(|path| env::split_paths(&path).any(|folder| folder.join("ip").exists()))
}

/// Reports that this test was skipped. The message is written to the real standard error, which the test harness does
/// not capture. With `CI` set, the test fails instead.
#[track_caller]
pub(crate) fn skipped(why: &str) {
    assert!(env::var_os("CI").is_none(), "would be skipped, but CI is set: {why}");
    let line = format!("SKIPPED: {}: {why}\n", thread::current().name().unwrap_or("?"));
    drop(io::stderr().write_all(line.as_bytes()));
}

/// Runs ip(8) in the namespace of the calling thread.
#[track_caller]
pub(crate) fn ip(arguments: &str) {
    let status = Command::new("ip").args(arguments.split_ascii_whitespace()).status();
    assert!(status.is_ok_and(|status| status.success()), "ip {arguments}");
}

/// Adds an IPv6 address with a prefix of 64 bits to an interface, and waits until it is local: the kernel acknowledges it before
/// (`findings/linux-ipv6-address-before-its-route.sh`).
#[track_caller]
pub(crate) fn add_v6_address(address: &str, interface: &str) {
    ip(&format!("address add {address}/64 dev {interface} nodad"));
    let is_local = || {
        let output = Command::new("ip").args(["-6", "route", "get", address]).output();
        output.is_ok_and(|output| output.stdout.starts_with(b"local "))
    };
    let patience = Instant::now() + Duration::from_secs(10);
    while !is_local() {
        assert!(Instant::now() < patience, "{address} is not local");
        thread::sleep(Duration::from_millis(1));
    }
}

/// Sets a sysctl, `net/...`, in the namespace of the calling thread.
#[track_caller]
pub(crate) fn sysctl(name: &str, value: &str) {
    fs::write(format!("/proc/sys/{name}"), value).unwrap_or_else(|error| panic!("{name}: {error}"));
}

/// Adds an interface with an IPv4 network in which no host answers. The interface sends nothing by itself.
#[track_caller]
pub(crate) fn add_link(name: &str, address: &str) {
    sysctl("net/ipv6/conf/default/disable_ipv6", "1");
    ip(&format!("link add {name} type veth peer name {name}peer"));
    ip(&format!("link set {name}peer up"));
    ip(&format!("link set {name} up"));
    ip(&format!("address add {address} dev {name}"));
}
