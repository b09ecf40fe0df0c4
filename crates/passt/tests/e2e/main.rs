//! End-to-end tests of `pasta` and `passt`, in namespaces that they create.
//!
//! Each test builds `[guest] == tap == (pasta in [host]) --- veth --- [peer] --- veth --- [far]` in a new PID
//! namespace. So tests run in parallel, do not use the machine's network, and leave nothing behind even when they are
//! killed. Sockets in any namespace are ordinary `std::net` values in the test.
//!
//! Environment:
//! - `PASTA_UNDER_TEST`: the program to test instead of this workspace's `pasta`; `passt` is beside it;
//! - `SLIRP4NETNS_UNDER_TEST`: the program to test instead of this workspace's `slirp4netns`;
//! - `PASTA_UNDER_TEST_ARGS`: arguments that come before the arguments of each test, separated by blanks;
//! - `PASTA_UNDER_TEST_LOG`: if set, the program runs with `--trace` and a log file, which a failing test prints;
//! - `CI`: if set, a missing tool or privilege fails the test instead of skipping it.
#![allow(clippy::unwrap_used, clippy::expect_used)] // all of this is test code

mod addresses;
mod announced;
mod api;
mod attacks;
mod auto;
mod budgets;
mod bulk;
mod checksums;
mod command_names;
mod dns;
mod flood;
mod flow_log;
mod fragments;
mod guard;
mod harness;
mod hostile;
mod http;
mod icmp;
mod limit;
mod limits;
mod link;
mod local;
mod local_raw;
mod logging;
mod mdns;
mod memory;
mod multicast;
mod names;
mod nat;
mod pesto;
mod policy;
mod qrap;
mod questions;
mod rules;
mod service;
mod slirp;
mod slirp_api;
mod splice;
mod start;
mod stream;
mod tcp;
mod tcp_raw;
mod udp;
mod udp_bypass;
mod urgent;
mod vhost_user;
mod vm;
