//! Fuzz targets as plain functions. The ordinary tests run them on stable Rust.
//!
//! A target accepts any bytes as input, and panics if an invariant does not hold. Its corpus is in `corpus/`, in a
//! folder with the target's name. `cargo test -p fuzz` runs the corpus and some thousand mutations of it.
//! `FUZZ_ITERATIONS=1000000 cargo test --release -p fuzz` runs more mutations. Add each input that failed to the
//! corpus.
#![forbid(unsafe_code)]

pub mod command_line;
pub mod control;
pub mod dns;
pub mod first_bytes;
pub mod fragments;
pub mod frames;
pub mod icmp_error;
pub mod input;
pub mod local;
pub mod mutate;
pub mod options;
pub mod policy;
pub mod port_spec;
pub mod questions;
pub mod receive_path;
pub mod resolv_conf;
pub mod seeds;
pub mod segment;
pub mod stream;
pub mod vhost_user;

/// A target: a function that accepts any bytes.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// The name of the target and of its corpus.
    pub name: &'static str,
    /// The function.
    pub run: fn(&[u8]),
    /// Number of mutations that an ordinary test runs.
    pub iterations: u64,
}

const fn target(name: &'static str, iterations: u64, run: fn(&[u8])) -> Target {
    Target { name, run, iterations }
}

/// All targets.
pub const TARGETS: [Target; 22] = [
    target("receive_path", 12_000, receive_path::target),
    target("frames", 50_000, frames::target),
    target("fragments", 20_000, fragments::target),
    target("segment", 20_000, segment::target),
    target("stream", 5_000, stream::target),
    target("options", 50_000, options::target),
    target("arp", 20_000, local::arp),
    target("ndp", 20_000, local::ndp),
    target("dhcp", 20_000, local::dhcp),
    target("dhcpv6", 20_000, local::dhcpv6),
    target("dns", 50_000, dns::target),
    target("questions", 20_000, questions::target),
    target("icmp_error", 20_000, icmp_error::target),
    target("first_bytes", 20_000, first_bytes::stream),
    target("first_datagrams", 20_000, first_bytes::datagrams),
    target("port_spec", 20_000, port_spec::target),
    target("policy", 10_000, policy::target),
    target("resolv_conf", 10_000, resolv_conf::target),
    target("command_line", 10_000, command_line::target),
    target("control", 20_000, control::target),
    target("vhost_messages", 3_000, vhost_user::messages),
    target("vhost_rings", 3_000, vhost_user::rings),
];
