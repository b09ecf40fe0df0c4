//! The link from the engine to the guest, and counts of the engine's segments.

use engine::link::Full;
use testkit::{
    guest::segment,
    link::Receiver,
    network::{Direction, RATE},
};
use wire::{
    ethernet, frame,
    offload::Offload,
    segment::{Segments, complete_checksum},
    tcp::{Flags, Header, Segment, Seq},
};
use zerocopy::FromBytes;

/// Counts and numbers of the engine's segments, before the network impairs them.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Observed {
    /// Number of super-frames and segments with payload.
    pub(crate) sends: u64,
    /// Number of payload bytes that were sent again, without probes of a closed window.
    pub(crate) repeated: u64,
    /// Number of bytes sent into a closed window, one at a time.
    pub(crate) probes: u64,
    /// The sequence number of the engine's SYN.
    pub(crate) initial: Option<Seq>,
    /// The guest's initial sequence number.
    guest_initial: Option<Seq>,
    /// The urgent byte that was announced last, and the number of urgent bytes.
    pub(crate) urgent: Option<Seq>,
    pub(crate) urgent_count: u64,
    /// The sequence number after the highest one that was sent.
    highest: Option<Seq>,
    /// The acknowledgment number that was sent last.
    acknowledged: Option<Seq>,
    /// The highest right edge of the guest's window so far.
    offered: Option<Seq>,
    /// The window that the guest advertised last.
    window: u32,
    scale: u8,
    /// How often the link was full.
    pub(crate) refused: u64,
}

impl Observed {
    /// Notes a segment of the guest, before the engine receives it.
    pub(crate) fn guest_segment(&mut self, segment: &Segment<'_>) {
        let syn = segment.flags().contains(Flags::SYN);
        if syn {
            self.guest_initial = Some(segment.seq());
            self.scale = wire::tcp::Options::parse(segment.options).window_scale.unwrap_or(0);
        }
        if segment.flags().contains(Flags::ACK) && self.highest.is_some() {
            self.window = u32::from(segment.window()) << if syn { 0 } else { self.scale };
            let edge = segment.ack() + self.window;
            self.offered = Some(self.offered.map_or(edge, |offered| offered.max(edge)));
        }
    }

    fn our_segment(&mut self, segment: &Segment<'_>) {
        let flags = segment.flags();
        if flags.contains(Flags::RST) {
            return;
        }
        if flags.contains(Flags::ACK) {
            let backwards = self.acknowledged.is_some_and(|before| segment.ack().before(before));
            assert!(!backwards, "an acknowledgment went backwards");
            self.acknowledged = Some(segment.ack());
        }
        let (start, end) = (segment.seq(), segment.seq() + segment.sequence_len());
        self.initial.get_or_insert(start);
        if let Some(urgent) = segment.urgent()
            && self.urgent.is_none_or(|before| urgent.after(before))
        {
            self.urgent = Some(urgent);
            self.urgent_count += 1;
        }
        if let (Some(highest), true) = (self.highest, !segment.payload.is_empty()) {
            self.sends += 1;
            let again = if start.before(highest) { highest.min(end) - start } else { 0 };
            // Segments of the guest may be reordered, so the last window need not be the newest.
            let closed = self.window == 0 || self.offered == Some(start);
            if closed && segment.payload.len() == 1 {
                self.probes += 1; // the guest drops this byte, unless its window has opened
                return;
            }
            self.repeated += u64::from(again);
            let data_end = segment.seq() + segment.payload.len() as u32;
            let inside = self.offered.is_some_and(|edge| !data_end.after(edge));
            let edge = self.offered.unwrap_or_default();
            assert!(
                inside || !data_end.after(highest),
                "{start:?} to {data_end:?} beyond the window to {edge:?}"
            );
        }
        self.highest = Some(self.highest.map_or(end, |highest| highest.max(end)));
    }
}

/// The link's receiver: the direction of the network to the guest.
#[derive(Debug)]
pub(crate) struct ToGuest {
    /// The present time. It is set before each step of the engine.
    pub(crate) now: u64,
    pub(crate) network: Direction,
    pub(crate) observed: Observed,
    /// Maximum backlog in bytes. None: the link is never full.
    queue: Option<u64>,
    commits: u64,
    full_until: u64,
    segment: Vec<u8>,
}

impl ToGuest {
    pub(crate) fn new(network: Direction, queue: Option<u64>) -> Self {
        let (observed, segment) = (Observed::default(), vec![0; frame::MAX_LEN]);
        Self { now: 0, network, observed, queue, commits: 0, full_until: 0, segment }
    }

    /// The time at which the link accepts frames again. None if it accepts frames now.
    pub(crate) fn free_at(&self) -> Option<u64> {
        let over = self.network.backlog(self.now).saturating_sub(self.queue?);
        Some((self.now + over.div_ceil(RATE)).max(self.full_until)).filter(|&at| at > self.now)
    }
}

impl Receiver for ToGuest {
    fn has_room(&mut self) -> bool {
        let free = self.free_at().is_none();
        self.observed.refused += u64::from(!free);
        free
    }

    fn frame(&mut self, frame: &mut [u8], offload: &Offload) -> Result<(), Full> {
        // Sometimes the link reports only at the commit that it is full.
        self.commits += 1;
        if self.queue.is_some() && self.commits.is_multiple_of(3) && self.network.free_at() > self.now {
            self.full_until = self.network.free_at();
            self.observed.refused += 1;
            return Err(Full);
        }
        trace(self.now, "us", frame);
        let segment = segment(frame).map(|(_, segment)| segment);
        let urgent = segment.is_some_and(|segment| segment.urgent().is_some());
        if let Some(segment) = segment {
            self.observed.our_segment(&segment);
        }
        match Segments::new(frame, offload) {
            Some(_) if urgent => panic!("one urgent pointer for several segments"),
            Some(mut segments) => {
                while let Some(len) = segments.write_next(&mut self.segment) {
                    self.network.send(self.now, &self.segment[..len]);
                }
            }
            None => {
                assert!(complete_checksum(frame, offload), "an offload that does not fit its frame");
                self.network.send(self.now, frame);
            }
        }
        Ok(())
    }
}

/// Sets the urgent pointer of a guest's segment to the segment's last urgent byte, or to the next urgent byte after the
/// segment. In the stream of `total` bytes, each byte at a multiple of `every` is urgent.
pub(crate) fn name_urgent_byte(frame: &mut [u8], every: u64, total: u64, observed: &Observed) {
    let (Some((packet, segment)), Some(initial)) = (segment(frame), observed.guest_initial) else { return };
    if segment.payload.is_empty() {
        return;
    }
    let position = u64::from(segment.seq() - (initial + 1));
    let last = (position + segment.payload.len() as u64 - 1) / every * every;
    let urgent = if last >= position { last } else { last + every };
    let ahead = urgent - position + 1;
    let transport = ethernet::HEADER_LEN + if packet.source.is_ipv4() { 20 } else { 40 };
    let header = Header::mut_from_prefix(&mut frame[transport..]).expect("a TCP header").0;
    if let Ok(pointer) = u16::try_from(ahead)
        && urgent < total
    {
        header.set_urgent(pointer);
    }
}

/// Prints a segment if `SIM_TRACE` is set, to debug a failure.
pub(crate) fn trace(now: u64, who: &str, bytes: &[u8]) {
    static ON: std::sync::LazyLock<bool> =
        std::sync::LazyLock::new(|| std::env::var_os("SIM_TRACE").is_some());
    if let (true, Some((_, segment))) = (*ON, segment(bytes)) {
        let (seq, len, ack) = (segment.seq().0, segment.payload.len(), segment.ack().0);
        let options = wire::tcp::Options::parse(segment.options);
        let sack = options.sack.as_slice();
        println!("{now} {who} {:?} {seq}+{len} ack {ack} win {} {sack:?}", segment.flags(), segment.window());
    }
}
