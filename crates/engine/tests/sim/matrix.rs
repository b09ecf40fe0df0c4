//! Transfers over bad networks, for all combinations of loss, reordering, duplication, delay, MTU, buffers and
//! direction.
//!
//! The snapshots record the time of each transfer and the amount of retransmitted data, so a change that makes either
//! worse or better is visible. The time of a lossy transfer from the guest depends mostly on smoltcp, which waits for
//! at least a second before it retransmits, and keeps at most 32 ranges after holes.

use std::fmt::Write;

use testkit::network::Impairments;

use crate::world::{Opener, Outcome, Scenario};

/// The columns: lost, reordered or duplicated frames per thousand.
const LOSS: [u32; 4] = [0, 10, 50, 100];
const REORDERING: [u32; 2] = [0, 30];
const DUPLICATION: [u32; 2] = [0, 20];
/// The rows: one-way delays in microseconds, and buffers in bytes with the number of bytes that are sent.
const DELAYS: [u64; 3] = [100, 10_000, 50_000];
const BUFFERS: [(usize, u64); 3] = [(4 << 10, 48 << 10), (64 << 10, 384 << 10), (1 << 20, 2 << 20)];

/// Number of runs of each transfer. The median counts.
const SEEDS: usize = 5;

/// The maximum time of a transfer over a bad network is the time over a clean network with the same delay, multiplied
/// by this factor, plus the time for timeouts below.
const FACTOR: u64 = 4;
/// The time for timeouts in microseconds, for each value of [`LOSS`]. The engine's timeouts start at 240 ms. smoltcp's
/// timeouts start at 1 s, and double.
const OUR_TIMEOUTS: [u64; 4] = [500_000, 1_500_000, 3_000_000, 6_000_000];
const SMOLTCP_TIMEOUTS: [u64; 4] = [2_000_000, 16_000_000, 64_000_000, 130_000_000];

/// Maximum memory of one connection, in bytes: the window, and a chunk at each end.
const MEMORY: usize = (1 << 20) + (32 << 10);

#[derive(Clone, Copy, Debug)]
enum Way {
    Up,
    Down,
    Both,
}

#[test]
fn mtu_1500() {
    insta::assert_snapshot!(table(1500, false));
}

#[test]
fn mtu_9000_over_ipv6() {
    insta::assert_snapshot!(table(9000, true));
}

#[test]
fn mtu_65520() {
    insta::assert_snapshot!(table(65520, false));
}

fn table(mtu: u16, v6: bool) -> String {
    let mut table =
        String::from("ms taken/% sent again; columns: loss+reordering+duplication in a thousand\n");
    write!(table, "{:16}", "").unwrap();
    for (_, loss, reordering, duplication) in columns() {
        write!(table, " {:>10}", format!("{loss}+{reordering}+{duplication}")).unwrap();
    }
    writeln!(table).unwrap();
    std::thread::scope(|scope| {
        let parts = DELAYS.map(|delay| scope.spawn(move || rows(mtu, v6, delay)));
        for part in parts {
            table += &part.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        }
    });
    table
}

/// The rows of the table for one delay.
fn rows(mtu: u16, v6: bool, delay: u64) -> String {
    let mut rows = String::new();
    for (buffer, bytes) in BUFFERS {
        for way in [Way::Up, Way::Down, Way::Both] {
            let label = format!("{}ms {}K {way:?}", delay as f64 / 1000.0, buffer >> 10);
            write!(rows, "{label:16}").unwrap();
            let clean = run(mtu, v6, Impairments { delay, ..Impairments::CLEAN }, 1, buffer, bytes, way);
            for (severity, loss, reordering, duplication) in columns() {
                let network = Impairments { loss, reordering, duplication, delay };
                let (mut times, mut agains) = ([0; SEEDS], [0; SEEDS]);
                for (seed, (time, again)) in (1..).zip(times.iter_mut().zip(&mut agains)) {
                    let outcome = run(mtu, v6, network, seed, buffer, bytes, way);
                    check(&label, network, severity, way, &outcome, &clean);
                    (*time, *again) = (outcome.time / 1000, outcome.observed.repeated * 100 / bytes);
                }
                let cell = format!("{}/{}", coarse(median(times)), coarse(median(agains)));
                write!(rows, " {cell:>10}").unwrap();
            }
            writeln!(rows).unwrap();
        }
    }
    rows
}

fn columns() -> impl Iterator<Item = (usize, u32, u32, u32)> {
    let rest = |severity, loss| {
        REORDERING.into_iter().flat_map(move |reordering| {
            DUPLICATION.into_iter().map(move |duplication| (severity, loss, reordering, duplication))
        })
    };
    LOSS.into_iter().enumerate().flat_map(move |(severity, loss)| rest(severity, loss))
}

fn run(mtu: u16, v6: bool, network: Impairments, seed: u64, buffer: usize, bytes: u64, way: Way) -> Outcome {
    let (up, down) = match way {
        Way::Up => (bytes, 0),
        Way::Down => (0, bytes),
        Way::Both => (bytes, bytes),
    };
    let opener = if matches!(way, Way::Down) { Opener::Host } else { Opener::Guest };
    Scenario {
        seed,
        mtu,
        v6,
        network,
        opener,
        guest_receive: buffer,
        guest_send: buffer,
        host_receive: buffer as u64,
        host_send: buffer as u64,
        ..Scenario::transfer(up, down)
    }
    .run()
}

fn check(label: &str, network: Impairments, severity: usize, way: Way, outcome: &Outcome, clean: &Outcome) {
    let timeouts = if matches!(way, Way::Down) { OUR_TIMEOUTS } else { SMOLTCP_TIMEOUTS }[severity];
    let at_most = clean.time * FACTOR + timeouts;
    assert!(outcome.time <= at_most, "{label} over {network:?}: {} us, not {at_most}", outcome.time);
    assert!(outcome.memory <= MEMORY, "{label} over {network:?}: {} bytes of queue", outcome.memory);
    if network.loss == 0 && network.reordering == 0 {
        assert_eq!(outcome.observed.repeated, 0, "{label} over {network:?}: bytes sent again for no reason");
    }
}

fn median(mut values: [u64; SEEDS]) -> u64 {
    values.sort_unstable();
    values[SEEDS / 2]
}

/// Rounds to the nearest of 0, 1, 2, 5, 10, 20, 50 and so on.
fn coarse(value: u64) -> u64 {
    let (mut nearest, mut power) = (0, 1);
    while power <= value * 2 {
        for step in [power, 2 * power, 5 * power] {
            if step.abs_diff(value) < value.abs_diff(nearest) {
                nearest = step;
            }
        }
        power *= 10;
    }
    nearest
}
