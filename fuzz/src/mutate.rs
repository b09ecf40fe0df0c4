//! Makes new inputs from old ones, with a seeded generator.

use testkit::random::Random;

use crate::receive_path::RECORD;

/// Values that often trigger faults.
const INTERESTING: [u8; 10] = [0, 1, 2, 4, 0x7f, 0x80, 0xfe, 0xff, 0x45, 0x60];
/// Maximum length of a new input.
const MAX_LEN: usize = 4096;

/// A new input: a mutation of an input of `corpus`, or of an empty input.
#[must_use]
pub fn next_input(corpus: &[Vec<u8>], random: &mut Random) -> Vec<u8> {
    let mut input = match random.below(8) {
        0 => {
            let len = random.below(600);
            random.bytes(len)
        }
        _ => corpus.get(random.below(corpus.len())).cloned().unwrap_or_default(),
    };
    for _ in 0..=random.below(6) {
        change(&mut input, corpus, random);
    }
    input.truncate(MAX_LEN);
    input
}

fn change(input: &mut Vec<u8>, corpus: &[Vec<u8>], random: &mut Random) {
    let at = random.below(input.len());
    // Half of the changes keep the bounds of the records that `receive_path` reads.
    let whole = random.below(2) == 0;
    let at = if whole { at - at % RECORD } else { at };
    let len = if whole { RECORD } else { 1 + random.below(16) }.min(input.len() - at);
    match random.below(8) {
        0 => {
            if let Some(byte) = input.get_mut(at) {
                *byte ^= 1 << random.below(8);
            }
        }
        1 => {
            if let Some(byte) = input.get_mut(at) {
                *byte = INTERESTING[random.below(INTERESTING.len())];
            }
        }
        2 => {
            if let Some(byte) = input.get_mut(at) {
                *byte = random.next() as u8;
            }
        }
        3 => {
            let bytes = random.bytes(len);
            input.splice(at..at, bytes);
        }
        4 if !input.is_empty() => drop(input.drain(at..at + len)),
        5 if !input.is_empty() => {
            let again = input[at..at + len].to_vec();
            input.splice(at..at, again);
        }
        6 => input.truncate(at),
        _ => {
            if let Some(other) = corpus.get(random.below(corpus.len())) {
                let start = random.below(other.len());
                let start = if whole { start - start % RECORD } else { start };
                input.splice(at.., other[start..].iter().copied());
            }
        }
    }
}
