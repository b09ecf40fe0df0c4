//! Packet formats: bytes to typed views and back. No I/O, no clock, no allocation.
#![no_std]
#![forbid(unsafe_code)]
