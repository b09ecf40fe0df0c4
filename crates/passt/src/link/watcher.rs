//! The one place where frames that cross a link are counted, traced and captured.

use super::pcap::Capture;
use super::trace::{self, Direction};

/// Counts of frames since the start. A super-frame that crosses the link whole is one frame; one that is cut into
/// segments before is as many.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counters {
    /// Frames from the guest.
    pub(crate) received: u64,
    /// Frames to the guest.
    pub(crate) sent: u64,
    /// Frames in either direction that were lost: the link refused them, or nobody was there to receive them.
    pub(crate) dropped: u64,
}

/// Counts frames, and shows them to the capture (`--pcap`) and the trace (`--trace`).
pub(super) struct Watcher {
    capture: Option<Capture>,
    counters: Counters,
}

impl Watcher {
    /// Nothing counted yet.
    pub(super) const fn new(capture: Option<Capture>) -> Self {
        Self { capture, counters: Counters { received: 0, sent: 0, dropped: 0 } }
    }

    /// The counts so far.
    pub(super) const fn counters(&self) -> Counters {
        self.counters
    }

    /// Whether the bytes of every frame are wanted, as they cross the link. If not, [`Watcher::received`] and
    /// [`Watcher::sent`] only count and may be given no bytes.
    pub(super) fn is_watching(&self) -> bool {
        self.capture.is_some() || trace::is_enabled()
    }

    /// A frame came from the guest; `parts` are its bytes.
    pub(super) fn received(&mut self, parts: &[&[u8]]) {
        self.counters.received += 1;
        self.show(Direction::FromGuest, parts);
    }

    /// A frame was sent to the guest; `parts` are its bytes.
    pub(super) fn sent(&mut self, parts: &[&[u8]]) {
        self.counters.sent += 1;
        self.show(Direction::ToGuest, parts);
    }

    /// `count` frames were lost.
    pub(super) const fn dropped(&mut self, count: u64) {
        self.counters.dropped += count;
    }

    fn show(&mut self, direction: Direction, parts: &[&[u8]]) {
        if trace::is_enabled() {
            trace::frame(direction, parts);
        }
        if let Some(capture) = &mut self.capture {
            capture.add(parts);
        }
    }

    /// Completes the capture file, so that it is whole whenever the process waits.
    pub(super) fn flush(&mut self) {
        if let Some(capture) = &mut self.capture {
            capture.flush();
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
