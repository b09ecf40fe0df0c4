//! The command line, from the outside (behaviour §2): golden texts of what each use of an option comes to.
//!
//! `INSTA_UPDATE=always cargo test -p passt --test cli` writes the golden texts anew; look at the difference.
#![expect(clippy::unwrap_used, reason = "in a test, it is a failure")]

mod clients;
mod forwarding;
mod getopt;
mod golden;
mod program;
mod table;
mod values;
