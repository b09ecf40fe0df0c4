//! Counts, traces and captures the frames that cross a link. No other code does so.

use super::live::Live;
use super::pcap::Capture;
use super::trace::{self, Direction};

/// Counts of frames since the start. A super-frame that crosses the link whole counts as one frame. If a super-frame is
/// segmented before, each segment counts as one frame.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counters {
    /// Frames from the guest.
    pub(crate) received: u64,
    /// Frames to the guest.
    pub(crate) sent: u64,
    /// Lost frames of both directions: the link refused the frame, or no guest was connected.
    pub(crate) dropped: u64,
}

/// Counts frames, and shows them to the captures and the trace (`--trace`).
pub(super) struct Watcher {
    captures: Option<Box<Captures>>,
    counters: Counters,
}

/// The captures. At least one is there.
struct Captures {
    /// `--pcap`.
    file: Option<Capture>,
    /// That of a client of the API socket.
    live: Option<Live>,
}

impl Watcher {
    /// Creates a watcher with all counts zero.
    pub(super) fn new(capture: Option<Capture>) -> Self {
        let captures = capture.map(|file| Box::new(Captures { file: Some(file), live: None }));
        Self { captures, counters: Counters { received: 0, sent: 0, dropped: 0 } }
    }

    /// The counts so far.
    pub(super) const fn counters(&self) -> Counters {
        self.counters
    }

    /// Whether the bytes of all frames are needed. If not, [`Watcher::received`] and [`Watcher::sent`] only count, and
    /// the caller need not pass any bytes.
    pub(super) fn is_watching(&self) -> bool {
        self.captures.is_some() || trace::is_enabled()
    }

    /// Counts a frame from the guest. `parts` are the frame's bytes.
    pub(super) fn received(&mut self, parts: &[&[u8]]) {
        self.counters.received += 1;
        self.show(Direction::FromGuest, parts);
    }

    /// Counts a frame to the guest. `parts` are the frame's bytes.
    pub(super) fn sent(&mut self, parts: &[&[u8]]) {
        self.counters.sent += 1;
        self.show(Direction::ToGuest, parts);
    }

    /// Counts `count` lost frames.
    pub(super) const fn dropped(&mut self, count: u64) {
        self.counters.dropped += count;
    }

    fn show(&mut self, direction: Direction, parts: &[&[u8]]) {
        if trace::is_enabled() {
            trace::frame(direction, parts);
        }
        if let Some(captures) = &mut self.captures {
            captures.file.iter_mut().for_each(|file| file.add(parts));
            captures.live.iter_mut().for_each(|live| live.add(parts));
        }
    }

    /// Begins a capture for a client, or ends it.
    pub(super) fn capture(&mut self, live: Option<Live>) {
        let file = self.captures.take().and_then(|captures| captures.file);
        if file.is_some() || live.is_some() {
            self.captures = Some(Box::new(Captures { file, live }));
        }
    }

    /// Passes all frames on to the captures, so that a capture file is complete whenever the process waits.
    pub(super) fn flush(&mut self) {
        if let Some(captures) = &mut self.captures {
            captures.file.iter_mut().for_each(Capture::flush);
            captures.live.iter_mut().for_each(Live::flush);
            if captures.live.as_ref().is_some_and(Live::is_over) {
                self.capture(None);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_counted_and_captured() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("capture");
        let mut watcher = Watcher::new(Some(Capture::create(&path).unwrap()));
        assert!(watcher.is_watching());
        watcher.received(&[&[1; 60]]);
        watcher.sent(&[&[2; 54], &[3; 100]]);
        watcher.sent(&[&[4; 60]]);
        watcher.dropped(4);
        assert_eq!(watcher.counters(), Counters { received: 1, sent: 2, dropped: 4 });
        watcher.flush();
        let file = std::fs::read(&path).unwrap();
        let mut reader = pcap_file::pcap::PcapReader::new(&file[..]).unwrap();
        let mut frames = Vec::new();
        while let Some(packet) = reader.next_packet() {
            frames.push(packet.unwrap().data.into_owned());
        }
        assert_eq!(frames, [vec![1; 60], [vec![2; 54], vec![3; 100]].concat(), vec![4; 60]]);
        assert!(!Watcher::new(None).is_watching());
    }
}
