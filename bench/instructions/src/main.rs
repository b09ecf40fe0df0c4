//! Hot functions, to be counted under valgrind by `cargo xtask instructions`.
//!
//! `instructions` prints the names, `instructions NAME COUNT` prepares the inputs of a function and calls it COUNT
//! times. The difference between two counts has no preparation in it.
//!
//! To add a function: write a `fn(u32)` in `wire_functions`, `engine_functions` or `tcp` that prepares its inputs and
//! then calls [`repeat`], give it a row in [`FUNCTIONS`], and update the baseline (bench/README.md).
#![forbid(unsafe_code)]

mod engine_functions;
mod tcp;
mod wire_functions;

use std::hint::black_box;
use std::process::ExitCode;

/// A name for the baseline, and what runs under it.
type Function = (&'static str, fn(u32));

/// All functions, in the order of the baseline.
const FUNCTIONS: [Function; 20] = [
    ("wire: parse TCP over IPv4", wire_functions::parse_tcp4),
    ("wire: parse TCP over IPv6", wire_functions::parse_tcp6),
    ("wire: parse UDP over IPv4", wire_functions::parse_udp4),
    ("wire: parse three SACK blocks", wire_functions::parse_sack),
    ("wire: checksum of 1460 bytes", wire_functions::checksum_1460),
    ("wire: checksum of 65000 bytes", wire_functions::checksum_65000),
    ("wire: verify TCP of 1460 bytes", wire_functions::verify_tcp),
    ("wire: write TCP over IPv4", wire_functions::write_tcp4),
    ("wire: write TCP over IPv6", wire_functions::write_tcp6),
    ("wire: write UDP over IPv4", wire_functions::write_udp4),
    ("wire: cut headers of 44 segments", wire_functions::cut_segments),
    ("wire: join a segment of 1460 bytes", wire_functions::join_segment),
    ("engine: segment of 1460 bytes to socket", tcp::segment_to_socket),
    ("engine: super-frame to the guest", tcp::frame_to_guest),
    ("engine: find one flow of 1000", engine_functions::find_flow),
    ("engine: read an answer of 10 records", engine_functions::read_answer),
    ("engine: match the last rule of 64", engine_functions::match_rule),
    ("engine: judge by 10000 prefixes", engine_functions::judge),
    ("engine: name in a ClientHello, TLS", engine_functions::name_in_tls),
    ("engine: name in a ClientHello, QUIC", engine_functions::name_in_quic),
];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words[..] {
        [] => FUNCTIONS.iter().for_each(|(name, _)| println!("{name}")),
        [name, count] => {
            let function = FUNCTIONS.iter().find(|(known, _)| *known == name);
            let (Some((_, run)), Ok(count)) = (function, count.parse()) else { return ExitCode::FAILURE };
            run(count);
        }
        _ => return ExitCode::FAILURE,
    }
    ExitCode::SUCCESS
}

/// Calls `function` `count` times, such that the compiler can neither move nor drop a call.
fn repeat<T>(count: u32, mut function: impl FnMut() -> T) {
    for _ in 0..count {
        black_box(function());
    }
}
