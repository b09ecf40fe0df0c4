//! The program `pesto`.
#![forbid(unsafe_code)]

use std::process::ExitCode;

/// Runs `pesto` with the arguments of the process.
fn main() -> ExitCode {
    pesto::main(std::env::args_os())
}
