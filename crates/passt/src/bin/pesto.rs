//! `pesto`: see the library crate.

fn main() -> std::process::ExitCode {
    passt::pesto::main()
}
