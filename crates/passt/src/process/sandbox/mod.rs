//! What a hole in this program would not open: files, other processes, privileges, most of the kernel (behaviour §10).
//!
//! Each module is one means. [`crate::process::stage`] says when each of them is used, and in which order.

pub(crate) mod capabilities;
pub(crate) mod landlock;
pub(crate) mod namespaces;
pub(crate) mod root;
pub(crate) mod seccomp;
