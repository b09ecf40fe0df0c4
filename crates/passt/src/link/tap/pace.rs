//! How often the guest sends single frames, so that no read of the tap is wasted on finding nothing.
//!
//! After a frame, only another read tells whether there are more. In an exchange of small messages, there never are. So
//! after some rounds with one frame each, a round reads one frame. If there are more frames, epoll reports the tap again
//! at once, and the next round reads all of them.

/// Number of rounds with one frame each, with other rounds between them, after which single frames are expected.
const ENOUGH: u8 = 3;

/// What the last rounds have found.
#[derive(Debug, Default)]
pub(super) struct Pace {
    /// Number of frames that this round has found.
    found: u32,
    /// Whether the round before this round found frames.
    follows: bool,
    /// Number of rounds in a row that found one frame and did not follow another round with frames.
    single: u8,
}

impl Pace {
    /// Whether this round should try to read another frame.
    pub(super) const fn reads_on(&self) -> bool {
        self.found == 0 || self.follows || self.single < ENOUGH
    }

    /// Notes a frame.
    pub(super) const fn found(&mut self) {
        self.found += 1;
    }

    /// Notes the end of a round.
    pub(super) const fn finish_round(&mut self) {
        match self.found {
            0 => {}
            1 if !self.follows => self.single = self.single.saturating_add(1),
            _ => self.single = 0,
        }
        self.follows = self.found > 0;
        self.found = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs a round with `frames` frames. Returns how many reads it made.
    fn round(pace: &mut Pace, frames: &mut u32) -> u32 {
        let mut reads = 0;
        while pace.reads_on() {
            reads += 1;
            if *frames == 0 {
                break;
            }
            *frames -= 1;
            pace.found();
        }
        pace.finish_round();
        reads
    }

    #[test]
    fn single_frames_cost_one_read_each() {
        let mut pace = Pace::default();
        let reads: Vec<_> = (0..6).map(|_| round(&mut pace, &mut 1) + round(&mut pace, &mut 0) - 1).collect();
        assert_eq!(reads, [2, 2, 2, 1, 1, 1]);
        // More frames are all read one round later. After that, single frames are not expected for a while.
        let mut frames = 5;
        assert_eq!((round(&mut pace, &mut frames), frames), (1, 4));
        assert_eq!((round(&mut pace, &mut frames), frames), (5, 0));
        round(&mut pace, &mut 0);
        assert_eq!(round(&mut pace, &mut 1), 2);
    }

    #[test]
    fn in_a_stream_of_frames_every_round_reads_all() {
        let mut pace = Pace::default();
        let reads: Vec<_> = (0..6).map(|_| round(&mut pace, &mut 1)).collect();
        assert_eq!(reads, [2; 6]);
    }
}
