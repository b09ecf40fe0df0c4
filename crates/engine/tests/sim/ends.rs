//! Tests of the end of connections with another TCP implementation: every order of closing, resets, and slow readers.

use smoltcp::socket::tcp::State;

use testkit::{
    network::Impairments,
    stream::{CONNECTION_REFUSED, Closed},
};

use crate::{
    application::{Application, Close, Pace},
    world::{Answer, Opener, Scenario, World},
};

/// Variants of the scenario: either end opens the connection, over both families, and over a clean and a lossy network.
fn everywhere(scenario: &Scenario) -> impl Iterator<Item = Scenario> {
    let lossy = Impairments { loss: 100, reordering: 50, duplication: 20, delay: 2000 };
    let mut all = Vec::new();
    for opener in [Opener::Guest, Opener::Host] {
        for v6 in [false, true] {
            for (network, seeds) in [(Impairments::CLEAN, 1..2), (lossy, 1..9)] {
                all.extend(seeds.map(|seed| Scenario { opener, v6, network, seed, ..scenario.clone() }));
            }
        }
    }
    all.into_iter()
}

fn users(up: u64, guest: Close, down: u64, host: Close) -> Scenario {
    Scenario {
        guest: Application::new(up, guest, Pace::Fast),
        host: Application::new(down, host, Pace::Fast),
        ..Scenario::transfer(up, down)
    }
}

#[test]
fn the_guest_closes_first() {
    for (up, down) in [(0, 0), (10_000, 0), (1000, 1000)] {
        everywhere(&users(up, Close::WhenSent, down, Close::WhenOtherClosed)).for_each(|run| {
            run.run();
        });
    }
}

#[test]
fn the_host_closes_first() {
    for (up, down) in [(0, 0), (0, 10_000), (1000, 1000)] {
        everywhere(&users(up, Close::WhenOtherClosed, down, Close::WhenSent)).for_each(|run| {
            run.run();
        });
    }
}

#[test]
fn both_close_at_once() {
    for (up, down) in [(0, 0), (5000, 5000)] {
        everywhere(&users(up, Close::WhenSent, down, Close::WhenSent)).for_each(|run| {
            run.run();
        });
    }
}

#[test]
fn a_long_transfer_after_a_half_close_r70() {
    everywhere(&users(10, Close::WhenSent, 300_000, Close::WhenSent)).for_each(|run| {
        run.run();
    });
    everywhere(&users(300_000, Close::WhenSent, 10, Close::WhenSent)).for_each(|run| {
        run.run();
    });
}

#[test]
fn a_slow_reader_in_the_guest_closes_and_opens_its_window() {
    for rest in [1000, 700_000] {
        let reader = Application::new(0, Close::WhenOtherClosed, Pace::Slow(3000, rest));
        let host = Application::new(60_000, Close::WhenSent, Pace::Fast);
        let run = Scenario { guest: reader, host, guest_receive: 8000, ..Scenario::transfer(0, 0) };
        for run in everywhere(&run) {
            let clean = run.network.loss == 0;
            let outcome = run.run();
            if clean {
                assert_eq!(outcome.observed.repeated, 0, "{:?}", outcome.observed);
            }
        }
    }
}

#[test]
fn a_slow_reader_at_the_host_fills_the_queue_up_to_its_limit() {
    for rest in [1000, 700_000] {
        let guest = Application::new(1_500_000, Close::WhenSent, Pace::Fast);
        let reader = Application::new(0, Close::WhenOtherClosed, Pace::Slow(60_000, rest));
        let run = Scenario {
            guest,
            host: reader,
            host_send: 20_000,
            guest_send: 1 << 20,
            mtu: 9000,
            ..Scenario::transfer(0, 0)
        };
        for mut run in everywhere(&run) {
            let clean = run.network.reordering == 0;
            // smoltcp stops probing a closed window after a retransmission, so the window update must not be lost.
            run.network.loss = 0;
            let outcome = run.run();
            assert!(outcome.memory <= (1 << 20) + (32 << 10), "{} bytes of queue", outcome.memory);
            assert!(!clean || outcome.memory > 500_000, "the queue was not used: {}", outcome.memory);
        }
    }
}

#[test]
fn a_link_that_is_often_full_loses_nothing_r64() {
    for queue in [1, 20_000] {
        let run = Scenario { link_queue: Some(queue), ..Scenario::transfer(200_000, 1_000_000) };
        for run in everywhere(&run) {
            let clean = run.network.loss == 0;
            let outcome = run.run();
            assert!(outcome.observed.refused > 0);
            assert!(!clean || outcome.observed.repeated == 0, "{:?}", outcome.observed);
        }
    }
}

#[test]
fn our_sequence_numbers_wrap_within_a_transfer() {
    let run = Scenario::transfer(0, 1 << 20);
    let mut first = World::new(run.clone());
    first.run();
    let iss = first.outcome().observed.initial.expect("a SYN").0;
    // Initial sequence numbers contain a clock with a period of 4 us. At this start time, they are just below the
    // wrap-around.
    for before in [5_000, 100_000, 1 << 19] {
        let start = 4 * u64::from(u32::MAX - iss - before);
        let lossy = Impairments { loss: 30, reordering: 30, duplication: 10, delay: 1000 };
        for network in [Impairments::CLEAN, lossy] {
            let outcome = Scenario { start, network, ..run.clone() }.run();
            let iss = outcome.observed.initial.expect("a SYN").0;
            assert!((1..=before).contains(&(u32::MAX - iss)), "it starts at {iss}");
        }
    }
}

#[test]
fn a_refused_connection_is_refused_in_the_guest() {
    for v6 in [false, true] {
        let answer = Answer::Failed(CONNECTION_REFUSED);
        let mut world = World::new(Scenario { answer, v6, ..Scenario::transfer(100, 100) });
        world.run();
        assert_eq!(world.guest.state(), State::Closed);
        assert!(world.outcome().time < 10_000, "{} us", world.outcome().time);
    }
}

#[test]
fn a_reset_from_either_side_ends_both_at_any_time() {
    for received in [0, 1, 50_000, 199_999] {
        for run in everywhere(&Scenario::transfer(200_000, 200_000)) {
            let mut world = World::new(Scenario { guest_aborts_at: Some(received), ..run.clone() });
            world.run();
            assert_eq!(world.guest.state(), State::Closed);
            assert!(matches!(world.outcome().closed, None | Some(Closed::Reset)), "{:?}", world.outcome());

            let mut world = World::new(Scenario { host_aborts_at: Some(received), ..run });
            world.run();
            assert!(world.outcome().closed.is_some());
        }
    }
}
