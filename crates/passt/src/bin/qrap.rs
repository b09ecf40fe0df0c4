//! `qrap`: see the library crate.

fn main() -> std::process::ExitCode {
    passt::qrap::main()
}
