//! `slirp4netns`: see the library crate. The name of the program selects the mode.

fn main() -> std::process::ExitCode {
    passt::main()
}
