//! A separate network namespace for a test that opens real sockets.

use std::{
    collections::BTreeSet,
    env, fs,
    io::{self, Write},
    process::Command,
    sync::{Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

/// Set in a process that [`in_user_namespace`] has started.
const NAMESPACE: &str = "PASST_TEST_NAMESPACE";

/// Runs `test`, a closure of the calling test, on a thread in a new network namespace. The namespace has only a loopback interface,
/// which is up. An ordinary user gets a user namespace, too. If iproute2 or the right to make a namespace is missing, the test is
/// skipped.
///
/// A port that a test has closed may stay in use for a short time: processes that other tests start hold a copy of the
/// descriptor until execve(2).
pub(crate) fn isolated<F: FnOnce() + Send + 'static>(test: F) {
    if !has_ip() {
        return skipped("ip (iproute2) is not installed");
    }
    let name = thread::current().name().unwrap_or_default().to_owned();
    let thread = thread::Builder::new().name(name).spawn(|| {
        if let Err(error) = sys::netns::enter_new() {
            return Some(error);
        }
        ip("link set lo up");
        test();
        None
    });
    let thread = thread.unwrap_or_else(|error| panic!("can't start a thread: {error}"));
    match thread.join() {
        Ok(None) => {}
        Ok(Some(error)) if error.kind() == io::ErrorKind::PermissionDenied => {
            in_user_namespace::<F>();
        }
        Ok(Some(error)) => panic!("can't make a network namespace: {error}"),
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

/// Runs `body`, a closure of the calling test, in a new user and network namespace.
pub(crate) fn as_root_of_namespace<F: FnOnce()>(body: F) {
    if env::var_os(NAMESPACE).is_some() {
        body();
    } else if !has_ip() {
        skipped("ip (iproute2) is not installed");
    } else {
        in_user_namespace::<F>();
    }
}

/// Starts this program again in a new user and network namespace, for the test alone that the closure `F` is part of. A process with
/// several threads can't enter a user namespace. If this user may make none, the test is skipped.
fn in_user_namespace<F>() {
    /// The tests that were run. A test that calls this for each of its cases has run as a whole the first time.
    static RUN: Mutex<BTreeSet<&str>> = Mutex::new(BTreeSet::new());
    assert!(env::var_os(NAMESPACE).is_none(), "root of a user namespace may not make a network namespace");
    let unshare = || {
        let mut unshare = Command::new("unshare");
        unshare.args(["--user", "--map-root-user", "--net", "--"]);
        unshare
    };
    let probe = unshare().arg("true").output().expect("unshare(1) of util-linux is needed");
    if !probe.status.success() {
        return skipped(&format!(
            "no user namespaces here: {}",
            String::from_utf8_lossy(&probe.stderr).trim()
        ));
    }
    let closure = std::any::type_name::<F>();
    // A closure in a closure of the test is part of the test, too.
    let name = closure.strip_prefix("passt::").and_then(|name| name.split_once("::{{closure}}"));
    let (name, _) = name.unwrap_or_else(|| panic!("{closure} is not a closure of a test"));
    if !RUN.lock().unwrap_or_else(PoisonError::into_inner).insert(name) {
        return;
    }
    let output = unshare()
        .arg(env::current_exe().unwrap_or_else(|error| panic!("no path of this program: {error}")))
        .args(["--exact", name, "--nocapture"])
        .env(NAMESPACE, "1")
        .output()
        .unwrap_or_else(|error| panic!("can't start unshare(1): {error}"));
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("1 passed"), "in a namespace:\n{text}\n{errors}");
    // What is skipped there is skipped here.
    errors.lines().filter(|line| line.starts_with("SKIPPED: ")).for_each(report);
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
    report(&format!("SKIPPED: {}: {why}", thread::current().name().unwrap_or("?")));
}

/// Writes a line to the real standard error. One call writes it whole: other tests write lines at the same time.
fn report(line: &str) {
    drop(io::stderr().write_all(format!("{line}\n").as_bytes()));
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
