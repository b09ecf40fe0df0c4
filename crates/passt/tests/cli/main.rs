//! Tests of the command line through the public interface (behaviour §2): snapshots of the result of each use of an
//! option.
//!
//! `INSTA_UPDATE=always cargo test -p passt --test cli` rewrites the snapshots; review the difference.
#![expect(clippy::unwrap_used, reason = "a panic fails the test")]

mod clients;
mod forwarding;
mod getopt;
mod golden;
mod program;
mod slirp4netns;
mod table;
mod values;
