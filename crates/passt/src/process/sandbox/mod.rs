//! The sandbox: a vulnerability of this program must not give access to files, other processes, privileges, or most
//! system calls (behaviour §10).
//!
//! Each module is one mechanism. [`crate::process::stage`] uses them, and explains the order.

pub(crate) mod capabilities;
pub(crate) mod landlock;
pub(crate) mod namespaces;
pub(crate) mod root;
pub(crate) mod seccomp;
