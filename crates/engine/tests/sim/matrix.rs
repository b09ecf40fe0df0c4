//! Transfers over networks of every badness: loss x reordering x duplication x delay x MTU x buffers x direction.

use std::fmt::Write;

use crate::{
    network::Impairments,
    world::{Opener, Outcome, Scenario},
};

/// Lost, reordered and repeated frames in a thousand: the columns.
const LOSS: [u32; 4] = [0, 10, 50, 100];
const REORDERING: [u32; 2] = [0, 30];
const DUPLICATION: [u32; 2] = [0, 20];
/// One-way delays in microseconds, and buffers in bytes with what is sent through them.
const DELAYS: [u64; 3] = [100, 10_000, 50_000];
const BUFFERS: [(usize, u64); 3] = [(4 << 10, 48 << 10), (64 << 10, 384 << 10), (1 << 20, 2 << 20)];

#[derive(Clone, Copy, Debug)]
enum Way {
    Up,
    Down,
    Both,
}

#[test]
fn matrix() {
    let mut total = std::time::Duration::ZERO;
    for mtu in [1500, 9000, 65520] {
        let start = std::time::Instant::now();
        let table = table(mtu);
        total += start.elapsed();
        println!("{table}");
    }
    println!("{total:?}");
}

fn table(mtu: u16) -> String {
    let mut table = String::new();
    for delay in DELAYS {
        for (buffer, bytes) in BUFFERS {
            for way in [Way::Up, Way::Down, Way::Both] {
                let label = format!("{}ms {}K {way:?}", delay as f64 / 1000.0, buffer >> 10);
                write!(table, "{label:16}").unwrap();
                for (loss, reordering, duplication) in columns() {
                    let network = Impairments { loss, reordering, duplication, delay };
                    let outcome = run(mtu, network, buffer, bytes, way);
                    write!(
                        table,
                        " {:>7}/{:<3}",
                        outcome.time / 1000,
                        outcome.observed.repeated * 100 / bytes
                    )
                    .unwrap();
                }
                writeln!(table).unwrap();
            }
        }
    }
    table
}

fn columns() -> impl Iterator<Item = (u32, u32, u32)> {
    LOSS.into_iter().flat_map(|l| {
        REORDERING.into_iter().flat_map(move |r| DUPLICATION.into_iter().map(move |d| (l, r, d)))
    })
}

fn run(mtu: u16, network: Impairments, buffer: usize, bytes: u64, way: Way) -> Outcome {
    let (up, down) = match way {
        Way::Up => (bytes, 0),
        Way::Down => (0, bytes),
        Way::Both => (bytes, bytes),
    };
    let opener = if matches!(way, Way::Down) { Opener::Host } else { Opener::Guest };
    Scenario {
        mtu,
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

#[test]
fn one() {
    let network = Impairments { loss: 0, reordering: 0, duplication: 0, delay: 100 };
    let outcome = run(9000, network, 4096, 48 << 10, Way::Down);
    println!("{outcome:?}");
}
