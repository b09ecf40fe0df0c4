//! `pasta`: see the library crate; the mode follows the name the program was called by.

fn main() -> std::process::ExitCode {
    passt::main()
}
