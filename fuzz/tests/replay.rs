//! Replays the corpus, and then mutations of it. Their number is the target's `iterations`, or `FUZZ_ITERATIONS`.
#![expect(clippy::unwrap_used, reason = "in a test, it is a failure")]

use std::{fs, panic, path::PathBuf};

use fuzz::{TARGETS, Target, mutate::next_input};
use testkit::random::Random;

fn corpus(target: &Target) -> Vec<(PathBuf, Vec<u8>)> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target.name);
    let mut files: Vec<_> = fs::read_dir(&folder)
        .unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    files.into_iter().map(|path| (path.clone(), fs::read(&path).unwrap())).collect()
}

/// Runs one input. If the target fails, the input stays in a file.
fn run(target: &Target, input: &[u8], name: &str) {
    if let Err(failure) = panic::catch_unwind(|| (target.run)(input)) {
        let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("{}-failed", target.name));
        fs::write(&path, input).unwrap();
        eprintln!("target {} failed with input {name}, which is in {}", target.name, path.display());
        panic::resume_unwind(failure);
    }
}

fn fuzz(name: &str) {
    let target = TARGETS.iter().find(|target| target.name == name).unwrap();
    let files = corpus(target);
    assert!(!files.is_empty(), "no corpus");
    for (path, input) in &files {
        run(target, input, &path.display().to_string());
    }
    let inputs: Vec<_> = files.into_iter().map(|(_, input)| input).collect();
    let asked = |name: &str| std::env::var(name).ok().and_then(|value| value.parse().ok());
    let seed = asked("FUZZ_SEED").unwrap_or(1);
    let mut random = Random::new(seed);
    for iteration in 0..asked("FUZZ_ITERATIONS").unwrap_or(target.iterations) {
        let input = next_input(&inputs, &mut random);
        run(target, &input, &format!("{iteration} of seed {seed}"));
    }
}

/// Makes one test for each target, so that targets run in parallel and fail independently.
macro_rules! replay {
    ($($name:ident)*) => {
        $(#[test] fn $name() { fuzz(stringify!($name)); })*

        #[test]
        fn every_target_is_replayed() {
            assert_eq!(TARGETS.map(|target| target.name), [$(stringify!($name)),*]);
        }
    };
}

replay! {
    receive_path frames fragments segment stream options arp ndp dhcp dhcpv6 dns questions icmp_error first_bytes
    first_datagrams port_spec policy resolv_conf command_line control vhost_messages vhost_rings
}
