//! The harness of all tests: namespaces, sockets in these namespaces, guests, and the program under test.

mod capture;
mod front_end;
mod machine;
mod net;
mod ns;
mod opener;
mod payload;
mod program;
mod raw;
mod resolver;
mod server;
mod slirp;
mod smol_guest;

pub(crate) use capture::*;
pub(crate) use front_end::*;
pub(crate) use machine::*;
pub(crate) use net::*;
pub(crate) use ns::*;
pub(crate) use payload::*;
pub(crate) use program::*;
pub(crate) use raw::*;
pub(crate) use resolver::*;
pub(crate) use server::*;
pub(crate) use slirp::*;
pub(crate) use smol_guest::*;

use std::io::Write;
use std::time::{Duration, Instant};

/// Maximum time of every wait. It is long, because test machines are slow and shared. No wait should come close to this
/// time.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Polls `condition` until it is true.
///
/// # Panics
/// If the condition is not true within [`PATIENCE`].
pub(crate) fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < end, "timed out waiting for: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The end of the message that a port is in use, without the words of the C library.
pub(crate) const IN_USE: &str = "in use (os error 98)";

/// Checks that something that began at `start` was logged `lines` times: at once, and then at most once a minute.
///
/// # Panics
/// If it was not.
pub(crate) fn assert_once_a_minute(lines: usize, start: Instant) {
    let minutes = start.elapsed().as_secs() / 60;
    assert!((1..=1 + minutes).contains(&(lines as u64)), "{lines} lines in {minutes} whole minutes");
}

/// Reports on the real standard error, which the test runner does not capture, that this test is skipped.
///
/// # Panics
/// If `CI` is set: then no test may be skipped.
pub(crate) fn skipped(why: &str) {
    assert!(std::env::var_os("CI").is_none(), "would be skipped, but CI is set: {why}");
    let test = std::thread::current().name().unwrap_or("?").to_owned();
    let line = format!("SKIPPED: {test}: {why}\n");
    std::io::stderr().write_all(line.as_bytes()).unwrap();
}

/// Whether `tool` is installed, in PATH or in a directory of administration tools.
pub(crate) fn has_tool(tool: &str) -> bool {
    let path = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin";
    path.split(':').any(|dir| std::path::Path::new(dir).join(tool).exists())
}

/// If one of the tools is missing, reports the test as skipped, and returns from it.
macro_rules! need {
    ($($tool:literal),+) => {
        $(if !$crate::harness::has_tool($tool) {
            return $crate::harness::skipped(concat!($tool, " is not installed"));
        })+
    };
}
pub(crate) use need;
