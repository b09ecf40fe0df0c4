//! Runs a target under libFuzzer. The environment has the target's name:
//!
//! ```sh
//! FUZZ_TARGET=dhcp cargo +nightly fuzz run --fuzz-dir fuzz/coverage any fuzz/corpus/dhcp
//! ```
//!
//! libFuzzer adds the inputs that it finds to the folder. Run `cargo fuzz cmin`, and commit the remaining inputs, which
//! reach new code.
#![no_main]

use std::env;
use std::sync::LazyLock;

use fuzz::{TARGETS, Target};
use libfuzzer_sys::fuzz_target;

static TARGET: LazyLock<Target> = LazyLock::new(|| {
    let name = env::var("FUZZ_TARGET").unwrap_or_default();
    let names = TARGETS.map(|target| target.name).join(", ");
    let found = TARGETS.into_iter().find(|target| target.name == name);
    found.unwrap_or_else(|| panic!("FUZZ_TARGET has to be one of {names}"))
});

fuzz_target!(|input: &[u8]| (TARGET.run)(input));
