//! Linux calls that rustix lacks, each one safe from outside.
//!
//! This is the only crate of the project that may contain `unsafe`; every block says why it is sound.

pub mod address;
pub mod cmsg;
pub mod iov;
pub mod mmsg;
pub mod netns;
pub mod packet;
pub mod passwd;
pub mod ptrace;
pub mod signal;
pub mod sockopt;
pub mod spawn;
pub mod stream;
pub mod tap;
