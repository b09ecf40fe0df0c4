//! End-to-end tests of `pasta` in namespaces of their own making.
//!
//! Each test builds `[guest] == tap == (pasta in [host]) --- veth --- [peer] --- veth --- [far]` in a PID
//! namespace of its own, so tests run in parallel, need nothing of the machine's network, and leave nothing
//! behind even when they are killed. Sockets of any namespace are ordinary `std::net` values in the test.
//!
//! Environment:
//! - `PASTA_UNDER_TEST`: another program to test in place of this workspace's `pasta`;
//! - `PASTA_UNDER_TEST_ARGS`: arguments put before those of each test (blank-separated);
//! - `PASTA_UNDER_TEST_LOG`: when set, runs the program with `--trace` and a log file, printed when a test fails;
//! - `CI`: when set, a missing tool or privilege fails the test instead of skipping it.
#![allow(clippy::unwrap_used, clippy::expect_used)] // helper functions of tests are tests

mod addresses;
mod announced;
mod auto;
mod budgets;
mod bulk;
mod checksums;
mod dns;
mod flood;
mod fragments;
mod harness;
mod hostile;
mod http;
mod icmp;
mod limits;
mod link;
mod local;
mod local_raw;
mod mdns;
mod multicast;
mod nat;
mod pesto;
mod qrap;
mod rules;
mod splice;
mod start;
mod stream;
mod tcp;
mod tcp_raw;
mod telling;
mod udp;
mod udp_bypass;
mod urgent;
mod vhost_user;
mod vm;
