//! A capture that begins and ends while the link is in use. Frames go to the reader in batches, one for each round. The
//! link never waits for the reader: frames that do not fit are lost, and counted.

use std::net::IpAddr;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use engine::flow::Protocol;
use ipnet::IpNet;
use wire::frame::{self, Body, Frame, Transport};
use wire::payload::Payload;

use super::pcap;

/// Maximum number of batches that wait for the reader.
const BATCHES: usize = 1024;

/// Which frames are captured. The addresses and ports are those on the link. A condition that is `None` is met by every
/// frame.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Filter {
    /// The protocol.
    pub(crate) protocol: Option<Protocol>,
    /// A network that contains the source or the destination.
    pub(crate) address: Option<IpNet>,
    /// The port of the source or of the destination.
    pub(crate) port: Option<u16>,
}

/// The values that both ends share.
#[derive(Debug, Default)]
struct Shared {
    /// Number of bytes that wait for the reader.
    queued: AtomicUsize,
    /// Number of frames that were lost.
    lost: AtomicU64,
    /// The reader has ended the capture.
    over: AtomicBool,
}

/// The link's end.
#[derive(Debug)]
pub(crate) struct Live {
    filter: Filter,
    batch: Batch,
    /// The frame that is being added.
    frame: Vec<u8>,
    /// Maximum number of bytes that wait for the reader.
    most: usize,
    batches: SyncSender<Batch>,
    shared: Arc<Shared>,
    /// Readable if there is something for the reader.
    wake: Arc<OwnedFd>,
}

/// The reader's end.
#[derive(Debug)]
pub(crate) struct Reader {
    batches: Receiver<Batch>,
    shared: Arc<Shared>,
}

/// Whole frames, as records of a capture file.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    /// The records.
    pub(crate) bytes: Vec<u8>,
    /// Number of frames.
    pub(crate) frames: u64,
}

/// Makes a capture of the frames that `filter` accepts. The link makes the eventfd `wake` readable when it has something
/// for the reader. At most `most` bytes wait for the reader.
pub(crate) fn live(filter: Filter, wake: Arc<OwnedFd>, most: usize) -> (Live, Reader) {
    let (sender, receiver) = sync_channel(BATCHES);
    let shared = Arc::<Shared>::default();
    let (batch, frame) = (Batch::default(), Vec::new());
    let live = Live { filter, batch, frame, most, batches: sender, shared: shared.clone(), wake };
    (live, Reader { batches: receiver, shared })
}

impl Live {
    /// Adds a frame that consists of `parts`, if the filter accepts it.
    pub(crate) fn add(&mut self, parts: &[&[u8]]) {
        if !self.filter.accepts(parts) {
            return;
        }
        // A frame has at most 64 KiB and its headers, so the batch exceeds the limit by no more.
        if self.shared.queued.load(Ordering::Relaxed) + self.batch.bytes.len() >= self.most {
            self.shared.lost.fetch_add(1, Ordering::Relaxed);
            return;
        }
        match pcap::write_record(&mut self.batch.bytes, &mut self.frame, parts) {
            Ok(()) => self.batch.frames += 1,
            // The clock is beyond the year 2106. Memory takes every byte.
            Err(_) => drop(self.shared.lost.fetch_add(1, Ordering::Relaxed)),
        }
    }

    /// Whether the reader is gone.
    pub(super) fn is_over(&self) -> bool {
        self.shared.over.load(Ordering::Relaxed)
    }

    /// Passes the frames of the round on.
    pub(crate) fn flush(&mut self) {
        if self.batch.frames == 0 {
            return;
        }
        let batch = std::mem::take(&mut self.batch);
        let (len, frames) = (batch.bytes.len(), batch.frames);
        // The count comes first: the other thread may take the batch at once.
        self.shared.queued.fetch_add(len, Ordering::Relaxed);
        if self.batches.try_send(batch).is_err() {
            self.shared.queued.fetch_sub(len, Ordering::Relaxed);
            self.shared.lost.fetch_add(frames, Ordering::Relaxed);
        }
        self.signal();
    }

    fn signal(&self) {
        // This fails only if the eventfd is readable already.
        let _ = rustix::io::write(&self.wake, &1_u64.to_ne_bytes());
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        self.flush();
    }
}

impl Reader {
    /// The next batch.
    pub(crate) fn next(&self) -> Option<Batch> {
        let batch = self.batches.try_recv().ok()?;
        self.shared.queued.fetch_sub(batch.bytes.len(), Ordering::Relaxed);
        Some(batch)
    }

    /// Number of frames that were lost so far.
    pub(crate) fn lost(&self) -> u64 {
        self.shared.lost.load(Ordering::Relaxed)
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.shared.over.store(true, Ordering::Relaxed);
    }
}

impl Filter {
    fn accepts(&self, parts: &[&[u8]]) -> bool {
        let len = parts.iter().map(|part| part.len()).sum();
        if *self == Self::default() {
            return len > 0;
        }
        let mut head = [0; frame::HEAD_LEN];
        let mut filled = 0;
        for part in parts {
            let room = head.get_mut(filled..).unwrap_or_default();
            let count = part.len().min(room.len());
            room.iter_mut().zip(*part).for_each(|(place, byte)| *place = *byte);
            filled += count;
        }
        let head = head.get(..filled).unwrap_or_default();
        let Ok(Frame { body: Body::Ip(packet), .. }) = frame::parse_head(head, Length(len)) else {
            return false;
        };
        let (protocol, ports) = match packet.transport {
            Transport::Tcp(segment) => {
                let header = segment.header;
                (Some(Protocol::Tcp), Some([header.source_port, header.destination_port]))
            }
            Transport::Udp(datagram) => {
                let header = datagram.header;
                (Some(Protocol::Udp), Some([header.source_port, header.destination_port]))
            }
            Transport::Icmp(_) => (Some(Protocol::Icmp), None),
            Transport::Fragment(fragment) => (protocol_of(fragment.protocol), None),
            Transport::Other(..) => (None, None),
        };
        let meets =
            |net: IpNet| [packet.source, packet.destination].iter().any(|end: &IpAddr| net.contains(end));
        self.protocol.is_none_or(|wanted| protocol == Some(wanted))
            && self.address.is_none_or(meets)
            && self.port.is_none_or(|wanted| ports.into_iter().flatten().any(|port| port.get() == wanted))
    }
}

fn protocol_of(number: u8) -> Option<Protocol> {
    match number {
        wire::protocol::TCP => Some(Protocol::Tcp),
        wire::protocol::UDP => Some(Protocol::Udp),
        wire::protocol::ICMP | wire::protocol::ICMPV6 => Some(Protocol::Icmp),
        _ => None,
    }
}

/// A payload of which only the length is known.
#[derive(Clone, Copy)]
struct Length(usize);

impl Payload for Length {
    fn len(self) -> usize {
        self.0
    }

    fn slice(self, range: Range<usize>) -> Self {
        Self(range.end.min(self.0).saturating_sub(range.start))
    }

    fn copy_to(self, _: &mut [u8]) -> usize {
        0
    }
}

#[cfg(test)]
mod tests {
    use rustix::event::{EventfdFlags, eventfd};

    use super::*;

    const MAX_QUEUED: usize = 4 << 20;

    fn pair(filter: Filter) -> (Live, Reader) {
        live(
            filter,
            Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap()),
            MAX_QUEUED,
        )
    }

    /// An Ethernet frame with an IPv4 packet between 192.0.2.1 and 192.0.2.2, from port 1000 to 443.
    fn frame_of(protocol: u8, payload: usize) -> Vec<u8> {
        let len = u16::try_from(20 + 20 + payload).unwrap().to_be_bytes();
        let ethernet = [[2; 6], [4; 6]].concat();
        let ip = [0x45, 0, len[0], len[1], 0, 0, 0, 0, 64, protocol, 0, 0, 192, 0, 2, 1, 192, 0, 2, 2];
        let udp = u16::try_from(20 + payload).unwrap().to_be_bytes();
        let mut transport =
            [0x03, 0xe8, 0x01, 0xbb, udp[0], udp[1], 0, 0, 0, 0, 0, 0, 0x50, 0x10, 0, 0, 0, 0, 0, 0];
        if protocol == 6 {
            transport[4..6].copy_from_slice(&[0, 0]);
        }
        [&ethernet[..], &[8, 0], &ip, &transport, &vec![7; payload]].concat()
    }

    #[test]
    fn each_condition_counts() {
        let none = Filter::default;
        let net = |text: &str| text.parse().ok();
        let (tcp, udp) = (frame_of(6, 3000), frame_of(17, 100));
        let arp = [&[0xff; 6][..], &[2; 6], &[8, 6], &[0; 46]].concat();
        for (filter, accepted) in [
            (none(), [true, true, true]),
            (Filter { protocol: Some(Protocol::Tcp), ..none() }, [true, false, false]),
            (Filter { protocol: Some(Protocol::Udp), ..none() }, [false, true, false]),
            (Filter { port: Some(443), ..none() }, [true, true, false]),
            (Filter { port: Some(1000), protocol: Some(Protocol::Udp), ..none() }, [false, true, false]),
            (Filter { port: Some(53), ..none() }, [false; 3]),
            (Filter { address: net("192.0.2.2/32"), ..none() }, [true, true, false]),
            (Filter { address: net("198.51.100.0/24"), ..none() }, [false; 3]),
        ] {
            let seen = [&tcp, &udp, &arp].map(|bytes| {
                // The parts end anywhere, also within a header.
                let whole = filter.accepts(&[bytes]);
                for at in [1, 20, 40, 59] {
                    let (first, rest) = bytes.split_at(at);
                    assert_eq!(filter.accepts(&[first, rest]), whole, "{filter:?} {at}");
                }
                whole
            });
            assert_eq!(seen, accepted, "{filter:?}");
        }
        assert!(!none().accepts(&[]) && !none().accepts(&[&[]]));
        // What can't be parsed is accepted without a condition only.
        let broken = [&udp[..14], &[0xff; 3]].concat();
        assert!(none().accepts(&[&broken]) && !Filter { port: Some(443), ..none() }.accepts(&[&broken]));
    }

    /// The queue is bounded by bytes and by batches. What does not fit is counted.
    #[test]
    fn frames_that_do_not_fit_are_counted() {
        let (mut live, reader) = pair(Filter::default());
        let frame = frame_of(6, 60_000);
        let mut added = 0;
        while reader.lost() < 3 {
            live.add(&[&frame]);
            live.flush();
            added += 1;
        }
        let batches: Vec<Batch> = std::iter::from_fn(|| reader.next()).collect();
        let bytes: usize = batches.iter().map(|batch| batch.bytes.len()).sum();
        assert!((MAX_QUEUED..MAX_QUEUED + (1 << 17)).contains(&bytes), "{bytes}");
        assert_eq!(batches.iter().map(|batch| batch.frames).sum::<u64>() + 3, added);
        // There is room again.
        (0..BATCHES + 5).for_each(|_| {
            live.add(&[&frame[..60]]);
            live.flush();
        });
        assert_eq!(reader.lost(), 3 + 5);
        assert_eq!(std::iter::from_fn(|| reader.next()).count(), BATCHES);
        live.add(&[&frame]);
        drop(live);
        assert_eq!(reader.next().unwrap().frames, 1);
        let (live, reader) = pair(Filter::default());
        drop(reader);
        assert!(live.is_over());
    }
}
