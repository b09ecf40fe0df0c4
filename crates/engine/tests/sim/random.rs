//! Transfers whose every parameter is random: amounts, MTU, buffers, losses, delays, paces, closes.
//!
//! `SIM_SEEDS=100000 cargo test --release -p engine --test sim random` runs as many. A failure names its seed;
//! `SIM_SEEDS=SEED..=SEED` repeats it.

use std::{env, ops::RangeInclusive, thread};

use testkit::{network::Impairments, random::Random};

use crate::{
    application::{Application, Close, Pace},
    world::{Opener, Scenario},
};

/// The seeds of a run without `SIM_SEEDS`.
const SEEDS: RangeInclusive<u64> = 1..=300;

/// The parameters of a scenario, one after the other.
struct Dice(Random);

impl Dice {
    /// A number less than `bound`.
    fn below(&mut self, bound: u64) -> u64 {
        self.0.next() % bound
    }

    fn one_of<T: Copy>(&mut self, values: &[T]) -> T {
        values[self.below(values.len() as u64) as usize]
    }

    /// A number of up to `bits` bits; each length is equally likely.
    fn amount(&mut self, bits: u64) -> u64 {
        let length = self.below(bits + 1);
        self.below(1 << length)
    }
}

fn scenario(seed: u64) -> Scenario {
    let mut dice = Dice(Random::new(seed));
    let (up, down) = (dice.amount(21), dice.amount(21));
    let pace = |dice: &mut Dice| match dice.below(4) {
        // smoltcp drops what was not read 10 s after both ends have closed.
        0 => Pace::Slow(4000 + dice.amount(16), dice.amount(14)),
        _ => Pace::Fast,
    };
    let (guest_pace, host_pace) = (pace(&mut dice), pace(&mut dice));
    // If both waited for the other, none would close.
    let (guest_close, host_close) = dice.one_of(&[
        (Close::WhenSent, Close::WhenSent),
        (Close::WhenSent, Close::WhenOtherClosed),
        (Close::WhenOtherClosed, Close::WhenSent),
    ]);
    let network = Impairments {
        // With more loss, all acknowledgments of a FIN may be lost until smoltcp has forgotten the connection, after 10 s.
        // smoltcp stops probing a closed window after a retransmission, so the window update must not be lost.
        loss: if matches!(host_pace, Pace::Slow(..)) { 0 } else { dice.one_of(&[0, 0, 5, 20, 50]) },
        reordering: dice.one_of(&[0, 0, 10, 100]),
        duplication: dice.one_of(&[0, 0, 10, 100]),
        delay: dice.amount(17),
    };
    Scenario {
        seed,
        v6: dice.below(2) == 1,
        opener: dice.one_of(&[Opener::Guest, Opener::Host]),
        mtu: dice.one_of(&[1280, 1500, 9000, 65520]),
        network,
        link_queue: dice.one_of(&[None, None, Some(1), Some(20_000)]),
        guest_receive: (4 << 10) + dice.amount(20) as usize,
        guest_send: (4 << 10) + dice.amount(20) as usize,
        host_receive: (4 << 10) + dice.amount(20),
        host_send: (4 << 10) + dice.amount(20),
        peer_delay: dice.amount(17),
        guest: Application::new(up, guest_close, guest_pace),
        host: Application::new(down, host_close, host_pace),
        start: dice.below(1 << 34),
        ..Scenario::transfer(0, 0)
    }
}

/// Names the scenario of a test that fails.
struct Named(Scenario);

impl Drop for Named {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("SIM_SEEDS={0}..={0}: {1:?}", self.0.seed, self.0);
        }
    }
}

#[test]
fn every_byte_arrives_whatever_the_parameters() {
    let seeds = env::var("SIM_SEEDS").map_or(SEEDS, |text| {
        let number = |text: &str| text.parse().expect("SIM_SEEDS: a number, or FIRST..=LAST");
        text.split_once("..=").map_or_else(|| 1..=number(&text), |(first, last)| number(first)..=number(last))
    });
    let threads = thread::available_parallelism().map_or(1, usize::from);
    thread::scope(|scope| {
        for part in 0..threads {
            let seeds = seeds.clone().skip(part).step_by(threads);
            scope.spawn(|| {
                for seed in seeds {
                    let named = Named(scenario(seed));
                    named.0.clone().run();
                }
            });
        }
    });
}
