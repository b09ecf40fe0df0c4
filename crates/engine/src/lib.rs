//! Decisions of user-mode networking, as state machines that never touch the operating system.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod forward;
